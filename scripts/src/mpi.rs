//! `cargo xtask mpi`: two processes serve one model, and what happens when one of them is lost.

use crate::process::{self, Server, cargo, root, target_dir};
use crate::{cuda_toolchain, debian, virtual_gpu};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Only install what a build with MPI needs (Debian, as root or by sudo)
    #[arg(long)]
    install: bool,
}

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
/// Packages of Debian that the build and the launch need.
const PACKAGES: [&str; 4] = ["libopenmpi-dev", "openmpi-bin", "libclang-dev", "clang"];
const FEATURES: [&str; 2] = ["--features", "server/mpi"];

/// What the ranks compute on.
enum Device {
    Cpu,
    /// Of the Virtual GPU, with the folder of its libraries.
    Gpu(PathBuf),
}

pub fn run(args: &Args) -> Result<()> {
    debian::install(&PACKAGES)?;
    if args.install {
        return Ok(());
    }
    cuda_toolchain::install().context("nvcc compiles the CUDA kernels")?;
    process::run(cargo(&["build", "--quiet"]).args(process::MONSOON).args(FEATURES))?;
    let binary = target_dir().join("debug/monsoon");
    let mut num_passed = 0;
    for device in [Device::Cpu, Device::Gpu(virtual_gpu::install()?)] {
        answers_are_those_of_one_process(&binary, &device)?;
        a_lost_process_ends_the_group_in_time(&binary, &device, "STOP")?;
        a_lost_process_ends_the_group_in_time(&binary, &device, "KILL")?;
        num_passed += 3;
    }
    a_wrong_count_of_processes_is_refused(&binary)?;
    println!("{} passed, 0 failed", num_passed + 1);
    Ok(())
}

/// Features of every build for tests, so that nothing is compiled twice: MPI where its packages are
/// installed. Where there is no Debian to tell, they are not.
pub fn features() -> &'static [&'static str] {
    match debian::missing(&PACKAGES) {
        Some(missing) if missing.is_empty() => &FEATURES,
        _ => &[],
    }
}

fn model() -> PathBuf {
    root().join("tests/data/models/qwen2-tied")
}

fn serve<'a>(command: &'a mut Command, device: &Device, ranks: usize) -> &'a mut Command {
    command
        .args(["serve", "--log-level", "warn", "--kv-cache-memory", "16MiB"])
        .args(["--tensor-parallel", &ranks.to_string(), "--device", device.name()])
        .arg(model());
    if let Device::Gpu(lib_dir) = device {
        command.env("LD_LIBRARY_PATH", lib_dir).env("VIRTUAL_GPU_DEVICES", ranks.to_string());
    }
    command
}

impl Device {
    fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu(_) => "cuda",
        }
    }

    /// Tokens of a short answer: the Virtual GPU is slow.
    fn num_tokens(&self) -> usize {
        match self {
            Device::Cpu => 48,
            Device::Gpu(_) => 8,
        }
    }
}

/// Two processes of one rank each.
fn start_group(binary: &Path, device: &Device) -> Result<Server> {
    let mut command = Command::new("mpirun");
    command.args(LAUNCHER).arg(binary);
    Server::start(serve(&mut command, device, 2)).context("start two processes")
}

fn body(max_tokens: usize) -> serde_json::Value {
    serde_json::json!({
        "prompt": "The rain", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "logprobs": 1, "return_tokens_as_token_ids": true,
    })
}

/// The text, its tokens and their log-probabilities.
fn complete(url: &str, num_tokens: usize) -> Result<serde_json::Value> {
    let answer = ureq::post(format!("{url}/v1/completions")).send_json(body(num_tokens))?;
    let answer: serde_json::Value = answer.into_body().read_json()?;
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"]["token_logprobs"];
    ensure!(logprobs.as_array().is_some_and(|l| l.len() == num_tokens), "no numbers: {answer}");
    Ok(choice.clone())
}

fn answers_are_those_of_one_process(binary: &Path, device: &Device) -> Result<()> {
    let num_tokens = device.num_tokens();
    let one = Server::start(serve(&mut Command::new(binary), device, 2))?;
    let expected = complete(&one.url, num_tokens)?;
    drop(one);
    let mut server = start_group(binary, device)?;
    for _ in 0..3 {
        let answer = complete(&server.url, num_tokens)?;
        ensure!(answer == expected, "two processes gave another answer: {answer}, not {expected}");
    }
    // Rank 0 tells the others when its last request has ended.
    signal(process_of_rank(0)?, "TERM")?;
    let status = wait(&mut server, LOSS_SECONDS_MAX)?;
    ensure!(status.success(), "the group ended with {status}");
    println!("{}: two processes answer as one does and end in order", device.name());
    Ok(())
}

/// A client streams when the process is lost: it gets an error, /health says so, and every process
/// ends.
fn a_lost_process_ends_the_group_in_time(binary: &Path, device: &Device, how: &str) -> Result<()> {
    let what = format!("{}, SIG{how}", device.name());
    let mut server = start_group(binary, device)?;
    // No new connection is taken once a rank is lost, so half of a request is on its way.
    let mut health = TcpStream::connect(server.url.trim_start_matches("http://"))?;
    health.set_read_timeout(Some(Duration::from_secs(LOSS_SECONDS_MAX)))?;
    health.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n")?;
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
    ensure!(told, "{what}: the client was told nothing: {:?}", rest.last());
    let mut head = [0; 12];
    health.write_all(b"\r\n").and_then(|()| health.read_exact(&mut head)).context("/health")?;
    ensure!(head == *b"HTTP/1.1 503", "{what}: /health says {}", String::from_utf8_lossy(&head));
    let status = wait(&mut server, LOSS_SECONDS_MAX.saturating_sub(answered.as_secs()))?;
    ensure!(!status.success(), "{what}: the group ended as if all were well");
    let seconds = begin.elapsed().as_secs_f32();
    println!("{what}: the client was told after {answered:.1?}, the end came after {seconds:.1} s");
    ensure!(process_of_rank(1).is_err(), "{what}: rank 1 is still there");
    Ok(())
}

fn a_wrong_count_of_processes_is_refused(binary: &Path) -> Result<()> {
    let mut command = Command::new("mpirun");
    let output = serve(command.args(LAUNCHER).arg(binary), &Device::Cpu, 4).output()?;
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
