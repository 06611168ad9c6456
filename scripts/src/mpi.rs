//! `cargo xtask mpi`: two processes serve one model, and what happens when one of them is lost.

use crate::process::{self, Server, cargo, root, target_dir};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// From the loss of a process to the end of all others, their clients answered.
const LOSS_SECONDS_MAX: u64 = 10;
/// What README.md says on running over Open MPI, beside what running as root on few cores needs.
const LAUNCHER: [&str; 10] = [
    "-n",
    "2",
    "--mca",
    "odls_base_sigkill_timeout",
    "2",
    "--bind-to",
    "none",
    "--allow-run-as-root",
    "--oversubscribe",
    "--quiet",
];

/// `monsoon` with MPI. The whole workspace and one test are named so that all dependencies have the
/// features that `cargo xtask test` builds them with: otherwise most would be compiled once more.
const BUILD: [&str; 9] = [
    "build",
    "--quiet",
    "--workspace",
    "--bin",
    "monsoon",
    "--test",
    "tidy",
    "--features",
    "server/mpi",
];
/// Packages of Debian that the build and the launch need.
const PACKAGES: [&str; 4] = ["libopenmpi-dev", "openmpi-bin", "libclang-dev", "clang"];

pub fn run() -> Result<()> {
    install_packages()?;
    process::run(&mut cargo(&BUILD))?;
    let binary = target_dir().join("debug/monsoon");
    let one = Server::start(serve(&mut Command::new(&binary), 1))?;
    let expected = complete(&one.url)?;
    drop(one);
    answers_are_those_of_one_process(&binary, &expected)?;
    a_lost_process_ends_the_group_in_time(&binary, "STOP")?;
    a_lost_process_ends_the_group_in_time(&binary, "KILL")?;
    a_wrong_count_of_processes_is_refused(&binary)?;
    println!("4 passed, 0 failed");
    Ok(())
}

/// Installs the packages that are missing, on a machine that has Debian's tools.
fn install_packages() -> Result<()> {
    let is_there = |package: &&str| {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat=${db:Status-Status}", package]);
        let output = query.stderr(Stdio::null()).output();
        output.map_or(true, |output| output.stdout == b"installed")
    };
    let missing: Vec<&str> = PACKAGES.iter().copied().filter(|p| !is_there(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    process::run(&mut apt_get(&["update", "--quiet"]))?;
    let options = ["install", "--quiet", "--yes", "--no-install-recommends"];
    process::run(&mut apt_get(&[&options[..], &missing].concat()))
}

/// Run by root, or by a user who may become root.
fn apt_get(args: &[&str]) -> Command {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let mut command = Command::new(if is_root { "apt-get" } else { "sudo" });
    if !is_root {
        command.arg("apt-get");
    }
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn model() -> PathBuf {
    root().join("tests/data/models/qwen2-tied")
}

fn serve(command: &mut Command, ranks: usize) -> &mut Command {
    command
        .args(["serve", "--log-level", "warn", "--kv-cache-memory", "16MiB"])
        .args(["--tensor-parallel", &ranks.to_string()])
        .arg(model())
}

/// Two processes of one rank each.
fn start_group(binary: &Path) -> Result<Server> {
    let mut command = Command::new("mpirun");
    command.args(LAUNCHER).arg(binary);
    Server::start(serve(&mut command, 2)).context("start two processes")
}

fn body(max_tokens: usize) -> serde_json::Value {
    serde_json::json!({
        "prompt": "The rain", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
    })
}

fn complete(url: &str) -> Result<String> {
    let answer = ureq::post(format!("{url}/v1/completions")).send_json(body(48))?;
    let answer: serde_json::Value = answer.into_body().read_json()?;
    Ok(answer["choices"][0]["text"].as_str().context("a text")?.to_string())
}

fn answers_are_those_of_one_process(binary: &Path, expected: &str) -> Result<()> {
    let mut server = start_group(binary)?;
    for _ in 0..3 {
        ensure!(complete(&server.url)? == *expected, "two processes gave another text");
    }
    // Rank 0 tells the others when its last request has ended.
    signal(process_of_rank(0)?, "TERM")?;
    let status = wait(&mut server, LOSS_SECONDS_MAX)?;
    ensure!(status.success(), "the group ended with {status}");
    println!("two processes answer as one does and end in order");
    Ok(())
}

/// A client streams when the process is lost: it gets an error, and every process ends.
fn a_lost_process_ends_the_group_in_time(binary: &Path, how: &str) -> Result<()> {
    let mut server = start_group(binary)?;
    let mut request = body(1000);
    request["stream"] = true.into();
    let answer = ureq::post(format!("{}/v1/completions", server.url)).send_json(request)?;
    let mut lines = BufReader::new(answer.into_body().into_reader()).lines();
    ensure!(lines.next().context("a first line")??.starts_with("data:"), "no event");
    let lost = process_of_rank(1)?;
    let begin = Instant::now();
    signal(lost, how)?;
    let rest: Vec<String> = lines.collect::<std::io::Result<_>>().context("the stream's end")?;
    let answered = begin.elapsed();
    let told = rest.iter().any(|line| line.contains("\"error\""));
    ensure!(told, "SIG{how}: the client was told nothing: {:?}", rest.last());
    let status = wait(&mut server, LOSS_SECONDS_MAX.saturating_sub(answered.as_secs()))?;
    ensure!(!status.success(), "SIG{how}: the group ended as if all were well");
    let seconds = begin.elapsed().as_secs_f32();
    println!(
        "SIG{how}: the client was told after {answered:.1?}, the end came after {seconds:.1} s"
    );
    ensure!(process_of_rank(1).is_err(), "SIG{how}: rank 1 is still there");
    Ok(())
}

fn a_wrong_count_of_processes_is_refused(binary: &Path) -> Result<()> {
    let mut command = Command::new("mpirun");
    let output = serve(command.args(LAUNCHER).arg(binary), 4).output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "4 ranks on 2 processes were not refused");
    ensure!(told.contains("4 ranks were asked for"), "no reason was given: {told}");
    println!("4 ranks on 2 processes are refused");
    Ok(())
}

fn signal(process: u32, name: &str) -> Result<()> {
    let mut command = Command::new("kill");
    process::run(command.args([&format!("-{name}"), &process.to_string()]).stdout(Stdio::null()))
}

/// The process of this model that Open MPI has given `rank`.
fn process_of_rank(rank: usize) -> Result<u32> {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    let model = model().to_string_lossy().into_owned();
    let mut found = std::fs::read_dir("/proc")?.filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let read = |name: &str| std::fs::read(format!("/proc/{id}/{name}")).ok();
        let has =
            |bytes: Vec<u8>, text: &str| bytes.split(|b| *b == 0).any(|s| s == text.as_bytes());
        (has(read("environ")?, &wanted) && has(read("cmdline")?, &model)).then_some(id)
    });
    found.next().with_context(|| format!("no process of rank {rank}"))
}

fn wait(server: &mut Server, seconds_max: u64) -> Result<ExitStatus> {
    let begin = Instant::now();
    loop {
        if let Some(status) = server.try_wait()? {
            return Ok(status);
        }
        ensure!(begin.elapsed().as_secs() <= seconds_max, "no end within {seconds_max} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}
