//! Jobs whose process is killed, again and again: no row is lost and none is there twice. The
//! program itself, with a tiny model.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tests::data_dir;
use tests::jobs::{JobsClient, by_custom_id, row};
use tests::program::{Program, binary};

/// Kills while the job is in work.
const NUM_KILLS: usize = 20;
/// All kills: some come when the job has ended.
const KILLS_MAX: usize = 200;
/// A kill comes at most so long after the server is there; half of it after one that came too late,
/// since machines differ.
const LIFE_MS_MAX: u64 = 600;
const LIFE_MS_MIN: u64 = 20;
/// The moments of the kills follow from it; `MONSOON_KILL_SEED` takes its place.
const SEED_DEFAULT: u64 = 20_261_128;
/// Rows that take their time, and rows that fail at once: so that validating, answering and writing
/// the files all take a part of the whole.
const NUM_ANSWERED: usize = 240;
const NUM_FAILED: usize = 2000;

fn seed() -> u64 {
    let seed = std::env::var("MONSOON_KILL_SEED").ok();
    seed.map_or(SEED_DEFAULT, |text| text.parse().expect("MONSOON_KILL_SEED is a number"))
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Every custom_id once, in a mixed order.
fn lines(num_answered: usize, num_failed: usize) -> Vec<String> {
    let answered = (0..num_answered).map(|i| {
        let body = json!({
            "prompt": [1 + i % 1000, 2, 3], "max_tokens": 24, "ignore_eos": true, "temperature": 0,
        });
        (i * num_failed.max(1), row(&format!("answered-{i}"), body))
    });
    let failed = (0..num_failed).map(|i| {
        let body = json!({"prompt": "x", "temperature": -1});
        (i * num_answered.max(1), row(&format!("failed-{i}"), body))
    });
    let mut lines: Vec<(usize, String)> = answered.chain(failed).collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

/// `output` and `errors` have no name in common and all names together.
fn check(output: &BTreeMap<String, Value>, errors: &BTreeMap<String, Value>) {
    assert_eq!((output.len(), errors.len()), (NUM_ANSWERED, NUM_FAILED));
    for i in 0..NUM_ANSWERED {
        let row = &output[&format!("answered-{i}")];
        let usage = &row["response"]["body"]["usage"]["completion_tokens"];
        assert_eq!(*usage, 24, "{row}");
    }
    for i in 0..NUM_FAILED {
        assert_eq!(errors[&format!("failed-{i}")]["response"]["status_code"], 400);
    }
}

fn serve(folder: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["serve", "--log-level", "warn", "--device", "cpu", "--threads", "1"])
        .args(["--kv-cache-memory", "16MiB", "--max-num-seqs", "8", "--offline", "--jobs-dir"])
        .arg(folder.join("jobs"))
        .arg(data_dir().join("models/qwen2-tied"))
        .stdout(Stdio::null());
    command
}

#[test]
fn a_server_that_is_killed_again_and_again_loses_no_row_and_doubles_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut random = seed();
    println!("seed {random}");
    let client = |program: &Program| JobsClient { address: program.address(), key: None };
    let mut program = Program::start(&mut serve(folder.path()));
    let lines = lines(NUM_ANSWERED, NUM_FAILED);
    let mut jobs = vec![client(&program).start(&lines)];
    let (mut num_done, mut num_in_work, mut life_ms_max) = (0, 0, LIFE_MS_MAX);
    for kill in 0..KILLS_MAX {
        let life_ms = next(&mut random) % life_ms_max;
        std::thread::sleep(Duration::from_millis(life_ms));
        let batch = client(&program).batch(jobs.last().expect("a job"));
        drop(program);
        // What was committed stays so.
        let count = |name: &str| batch["request_counts"][name].as_u64().expect("a count");
        let (status, done) = (&batch["status"], count("completed") + count("failed"));
        println!("kill {kill} after {life_ms} ms: {status}, {done} rows are done");
        assert!(done >= num_done, "{batch}");
        num_done = done;
        program = Program::start(&mut serve(folder.path()));
        if status == "completed" {
            jobs.push(client(&program).start(&lines));
            num_done = 0;
            life_ms_max = (life_ms_max / 2).max(LIFE_MS_MIN);
        } else {
            num_in_work += 1;
        }
        if num_in_work == NUM_KILLS {
            break;
        }
    }
    assert_eq!(num_in_work, NUM_KILLS, "of {KILLS_MAX} kills: the job is too short");
    let client = client(&program);
    for id in &jobs {
        let done = client.wait_for_status(id, "completed");
        let total = NUM_ANSWERED + NUM_FAILED;
        let counts = json!({"total": total, "completed": NUM_ANSWERED, "failed": NUM_FAILED});
        assert_eq!(done["request_counts"], counts);
        check(&client.results(&done["output_file_id"]), &client.results(&done["error_file_id"]));
    }
    // Three files of each job, and nothing that a process left behind.
    let num_files = 3 * jobs.len();
    let listed = client.get("/v1/files").json()["data"].as_array().map(Vec::len);
    let on_disk = std::fs::read_dir(folder.path().join("jobs/files")).expect("the folder");
    let names = on_disk.map(|entry| entry.expect("an entry").file_name());
    assert_eq!((listed, names.count()), (Some(num_files), num_files));
}

fn batch(folder: &Path, input: &str) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("batch")
        .arg(folder.join(input))
        .arg("--output")
        .arg(folder.join("out.jsonl"))
        .arg("--model")
        .arg(data_dir().join("models/qwen2-tied"))
        .args(["--", "--log-level", "warn", "--device", "cpu", "--threads", "1", "--offline"])
        .args(["--kv-cache-memory", "16MiB", "--max-num-seqs", "8", "--jobs-dir", "off"]);
    command
}

fn ended(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().expect("the binary starts");
    (status.code(), String::from_utf8(stderr).expect("text"))
}

fn spawn(command: &mut Command) -> Child {
    command.stderr(Stdio::null()).spawn().expect("the binary starts")
}

#[test]
fn a_job_from_file_to_file_goes_on_where_it_was_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let results = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();
    std::fs::write(path("in.jsonl"), lines(NUM_ANSWERED, NUM_FAILED).join("\n")).expect("written");
    let mut random = seed();
    println!("seed {random}");
    for kill in 0..6 {
        let num_before = results("out.jsonl").lines().count();
        let mut child = spawn(&mut batch(folder.path(), "in.jsonl"));
        let num_more = 1 + next(&mut random) as usize % 30;
        let has_more = || results("out.jsonl").lines().count() >= num_before + num_more;
        while !has_more() && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(next(&mut random) % 5));
        }
        child.kill().expect("it runs");
        child.wait().expect("a child");
        println!("kill {kill} after {} rows", results("out.jsonl").lines().count());
    }
    let (code, stderr) = ended(&mut batch(folder.path(), "in.jsonl"));
    assert_eq!(code, Some(1), "some requests failed: {stderr}");
    assert!(stderr.contains("2000 of 2240 requests failed"), "{stderr}");
    check(&by_custom_id(&results("out.jsonl")), &by_custom_id(&results("out.errors.jsonl")));
    // Once more there is nothing to do, and nothing changes.
    let before = results("out.jsonl");
    let (code, stderr) = ended(&mut batch(folder.path(), "in.jsonl"));
    assert_eq!((code, stderr.contains("2240 of 2240")), (Some(1), true), "{stderr}");
    assert_eq!(results("out.jsonl"), before);
}

#[test]
fn a_job_from_file_to_file_says_what_must_be_mended() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    let fails = |input: &str, pieces: &[&str]| {
        let (code, stderr) = ended(&mut batch(folder.path(), input));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(pieces.iter().all(|piece| stderr.contains(piece)), "{stderr}");
    };
    fails("none.jsonl", &["none.jsonl", "No such file"]);
    let good = lines(2, 0);
    write("bad.jsonl", &[&good[0], "{", &good[0], &good[1]].map(String::from).join("\n"));
    fails("bad.jsonl", &["bad.jsonl", "line 2", "line 3", "answered-0"]);
    write("good.jsonl", &good.join("\n"));
    write("out.jsonl", "something else\n");
    fails("good.jsonl", &["out.jsonl", "line 1"]);
    let stranger = json!({"id": "x", "custom_id": "stranger", "response": null, "error": null});
    write("out.jsonl", &format!("{stranger}\n"));
    fails("good.jsonl", &["1 results of other requests"]);
    // A line that was cut short is done again.
    write("out.jsonl", "{\"id\": \"x\", \"custom_id\": \"answ");
    let (code, stderr) = ended(&mut batch(folder.path(), "good.jsonl"));
    assert_eq!(code, Some(0), "{stderr}");
    let results = std::fs::read_to_string(folder.path().join("out.jsonl")).expect("written");
    assert_eq!(by_custom_id(&results).len(), 2);
    assert!(!folder.path().join("out.errors.jsonl").exists(), "there is nothing in it");
}
