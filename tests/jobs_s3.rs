//! Files of batch jobs on S3: the program itself, with a stand-in for S3.

use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::data_dir;
use tests::jobs::{JobsClient, row};
use tests::program::{Program, binary};
use tests::s3::{BUCKET, S3};

const PREFIX: &str = "some/where";
const NUM_ROWS: usize = 60;

fn serve(s3: &S3, folder: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["serve", "--log-level", "warn", "--device", "cpu", "--threads", "1", "--offline"])
        .args(["--kv-cache-memory", "16MiB", "--max-num-seqs", "8", "--jobs-dir"])
        .arg(folder.join("jobs"))
        .args(["--jobs-store", &format!("s3://{BUCKET}/{PREFIX}")])
        .arg(data_dir().join("models/qwen2-tied"))
        .envs(s3.variables())
        .stdout(Stdio::null());
    command
}

fn client(program: &Program) -> JobsClient {
    JobsClient { address: program.address(), key: None }
}

fn key(file: &str) -> String {
    format!("{PREFIX}/{file}")
}

/// Only that it becomes so is asserted, not how fast.
fn wait(is_so: impl Fn() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never became so");
}

/// More than one part, every byte.
fn long_file() -> Vec<u8> {
    (0..12_500_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn files_come_back_as_they_were_sent() {
    let (s3, folder) = (S3::start(), tempfile::tempdir().expect("a folder"));
    let program = Program::start(&mut serve(&s3, folder.path()));
    let client = client(&program);
    for bytes in [Vec::new(), b"one\n".to_vec(), long_file()] {
        // A store that is busy is asked again.
        s3.refuse_next(2);
        let file = client.upload(&bytes);
        assert!(s3.object(&key(&file)).is_some_and(|kept| kept == bytes), "not what was sent");
        s3.refuse_next(1);
        let content = client.get(&format!("/v1/files/{file}/content"));
        assert!(content.status == 200 && content.body == bytes, "not what was sent");
        assert_eq!(client.delete(&format!("/v1/files/{file}")).status, 200);
        assert_eq!(client.get(&format!("/v1/files/{file}/content")).status, 404);
    }
    // An answer that breaks off is gone on with.
    let bytes = long_file();
    let file = client.upload(&bytes);
    s3.cut_next(2);
    let content = client.get(&format!("/v1/files/{file}/content"));
    assert!(content.body == bytes, "not what was sent");
    assert_eq!((s3.keys(), s3.num_open_uploads()), (vec![key(&file)], 0));
    assert!(!folder.path().join("jobs/files").exists(), "nothing of it is on this machine");
    s3.check();
}

#[test]
fn a_job_goes_on_with_what_is_on_s3_after_a_kill() {
    let (s3, folder) = (S3::start(), tempfile::tempdir().expect("a folder"));
    let mut program = Program::start(&mut serve(&s3, folder.path()));
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 24, "ignore_eos": true});
    let lines: Vec<String> =
        (0..NUM_ROWS).map(|i| row(&format!("row-{i}"), body.clone())).collect();
    let id = client(&program).start(&lines);
    client(&program).wait_for(&id, |batch| batch["request_counts"]["completed"].as_u64() > Some(0));
    drop(program);
    program = Program::start(&mut serve(&s3, folder.path()));
    let client = client(&program);
    let done = client.wait_for_status(&id, "completed");
    let output = client.results(&done["output_file_id"]);
    assert_eq!(output.len(), NUM_ROWS);
    for i in 0..NUM_ROWS {
        let usage = &output[&format!("row-{i}")]["response"]["body"]["usage"];
        assert_eq!(usage["completion_tokens"], 24);
    }
    let file = |name: &str| key(done[name].as_str().expect("an id"));
    let mut files = [file("input_file_id"), file("output_file_id")];
    files.sort();
    assert_eq!(s3.keys(), files);
    s3.check();
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let (s3, folder) = (S3::start(), tempfile::tempdir().expect("a folder"));
    let program = Program::start(&mut serve(&s3, folder.path()));
    let client = client(&program);
    let head = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 99000000\r\n\
                content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n";
    let mut stream = program.connect();
    for bytes in [head.as_bytes(), &long_file()] {
        std::io::Write::write_all(&mut stream, bytes).expect("the server reads");
    }
    wait(|| s3.num_open_parts() > 0);
    drop(stream);
    wait(|| s3.num_open_uploads() == 0);
    let num_files = || client.get("/metrics").text().contains("\nmonsoon_job_files 0\n");
    wait(num_files);
    assert_eq!(s3.keys(), Vec::<String>::new());
    s3.check();
}

#[test]
fn a_store_that_refuses_us_is_told_and_keeps_no_place() {
    let (s3, folder) = (S3::start(), tempfile::tempdir().expect("a folder"));
    let mut serve = serve(&s3, folder.path());
    let program = Program::start(serve.env("AWS_ACCESS_KEY_ID", "another-key"));
    let client = client(&program);
    let answer = client.send_form(&[("purpose", b"batch"), ("file", b"{}")]);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "job_store_failed");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(client.get("/v1/files").json()["data"], json!([]));
    assert_eq!(program.get("/health"), Some(200));
}
