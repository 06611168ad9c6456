//! What clients and operators get when a GPU fails: the whole server on the virtual GPU, which
//! fails on command (`cargo xtask virtual-gpu`), and on a machine that has none.

use kernels::device::cuda::images;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tests::data_dir;
use tests::http::{Answer, Body, post_bytes};
use tests::program::{Program, binary};

/// From a failure to the end of the process: a promise to the operator.
const END_TIME_MAX: Duration = Duration::from_secs(10);
/// The server's own limit for ranks that stand still.
const STALL_SECONDS: &str = "4";
/// Two sums in each of four layers, one of the embeddings, and the gathering of the logits.
const COLLECTIVES_PER_STEP: u64 = 2 * 4 + 1 + 1;
/// Kernels after the start, in the middle of an answer.
const LAUNCHES_LATER: u64 = 600;
const EXIT_FAILED: i32 = 1;
const EXIT_STARTUP: i32 = 2;

fn model() -> PathBuf {
    data_dir().join("models/qwen2-tied")
}

/// `serve` with `flags`. What it says on stderr goes to `folder`, as does what it finds out about
/// the GPU.
fn serve(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["serve", "--log-level", "error", "--kv-cache-memory", "8MiB", "--max-num-seqs", "4"])
        .args(["--stall-timeout", STALL_SECONDS, "--offline", "--download-dir"])
        .arg(folder)
        .args(flags)
        .arg(model())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("stderr")).expect("a writable folder"));
    command
}

fn on_two_gpus(folder: &Path, flags: &[&str]) -> Command {
    let flags = [&["--device", "cuda", "--tensor-parallel", "2"], flags].concat();
    let mut command = serve(folder, &flags);
    command.env("VIRTUAL_GPU_DEVICES", "2");
    command
}

/// The one line that says why the program ended.
fn error_line(folder: &Path) -> String {
    let stderr = std::fs::read_to_string(folder.join("stderr")).expect("it was written");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one line says why:\n{stderr}");
    lines[0].to_string()
}

/// What a start without a fault does: kernels on both GPUs, and allocations on the second one. It
/// also leaves a record of the GPU, so that later starts do not try its kernels again.
fn measure_start(folder: &Path) -> (u64, u64) {
    // The first start tries the kernels, the second one does what every later one does.
    let mut report = Value::Null;
    for _ in 0..2 {
        let path = folder.join("report.json");
        let mut server = Program::start(on_two_gpus(folder, &[]).env("VIRTUAL_GPU_REPORT", &path));
        server.terminate();
        assert!(server.wait(END_TIME_MAX).success());
        let text = std::fs::read_to_string(path).expect("a report");
        report = serde_json::from_str(&text).expect("JSON");
    }
    let kernels = report["kernels"].as_object().expect("kernels").values();
    let launches = kernels.map(|kernel| kernel["launches"].as_u64().expect("a count")).sum();
    (launches, report["devices"][1]["allocations"].as_u64().expect("a count"))
}

/// What a client saw of an answer that was cut short, and how the process ended.
struct Seen {
    num_tokens: usize,
    /// The data of the last event before `[DONE]`.
    last: String,
    /// The status of /health, asked for after that.
    health: u16,
    status: ExitStatus,
}

/// Streams one answer of `max_tokens` tokens from a server that fails meanwhile.
fn stream(mut command: Command, max_tokens: usize) -> Seen {
    let mut server = Program::start(&mut command);
    // No new connection is taken once the device is lost, so half of a request is on its way.
    let mut health = server.connect();
    health.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n").expect("a connection");
    let body = json!({
        "prompt": "The rain", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "stream": true,
    });
    let mut answer = server.connect();
    answer.write_all(&post_bytes("/v1/completions", &body.to_string())).expect("a connection");
    let head = Answer::read_head(&mut answer);
    assert_eq!(head.status, 200);
    let mut body = Body::new(&mut answer);
    let (mut num_tokens, mut last, mut since) = (0, String::new(), Instant::now());
    while let Some(piece) = body.chunk() {
        let text = String::from_utf8(piece).expect("text");
        for event in text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "))
        {
            // A stream ends so whether or not it was cut short.
            if event == "[DONE]" {
                continue;
            }
            last = event.to_string();
            if !event.contains("\"error\"") {
                (num_tokens, since) = (num_tokens + 1, Instant::now());
            }
        }
    }
    health.write_all(b"\r\n").expect("a connection");
    let health = Answer::read(&mut health).status;
    let status = server.wait(END_TIME_MAX.saturating_sub(since.elapsed()));
    Seen { num_tokens, last, health, status }
}

#[test]
fn a_gpu_that_fails_ends_the_stream_with_an_error_and_the_process_in_time() {
    if tests::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (launches, allocations) = measure_start(folder);
    let later = launches + LAUNCHES_LATER;
    // In the sixth step the second rank stays away from a sum. The ranks then wait for each other,
    // or meet in collectives that do not match, which NCCL may notice.
    let skipped = COLLECTIVES_PER_STEP * 5 + 2;
    let cases = [
        (format!("lost:{later}"), "", &["ECC_UNCORRECTABLE"][..]),
        (format!("launch:{later}"), "", &["LAUNCH_FAILED"]),
        (
            format!("skip-collective:1:{skipped}"),
            "--enforce-eager",
            &["no rank has made progress", "LAUNCH_FAILED"],
        ),
    ];
    for (fault, flag, causes) in cases {
        let flags: Vec<&str> = Some(flag).into_iter().filter(|flag| !flag.is_empty()).collect();
        let mut command = on_two_gpus(folder, &flags);
        command.env("VIRTUAL_GPU_FAULT", &fault);
        let seen = stream(command, 16);
        assert!(seen.num_tokens > 0, "{fault} came before the first token");
        assert!(seen.last.contains("\"error\""), "{fault}: the client was told {}", seen.last);
        assert_eq!(seen.health, 503, "{fault}");
        assert_eq!(seen.status.code(), Some(EXIT_FAILED), "{fault}");
        let line = error_line(folder);
        assert_eq!(line.matches("rank ").count(), 1, "the cause stands once: {line}");
        let names_one = causes.iter().any(|cause| line.contains(cause));
        assert!(line.contains("device was lost") && names_one, "{fault}: {line}");
    }
    let half = allocations / 2;
    let mut command = on_two_gpus(folder, &["--port", "0"]);
    let started = command.env("VIRTUAL_GPU_FAULT", format!("alloc:{half}@1")).status();
    assert_eq!(started.expect("the binary starts").code(), Some(EXIT_STARTUP));
    let line = error_line(folder);
    assert!(line.contains("bytes cannot be allocated"), "{line}");
}

/// Whether this machine has a driver of its own, which no variable hides.
fn has_driver() -> bool {
    Path::new("/dev/nvidiactl").exists()
}

#[test]
fn without_a_driver_cuda_is_refused_in_one_line_and_auto_serves_on_the_cpu() {
    if has_driver() {
        println!("skipped: this machine has an NVIDIA driver");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut command = serve(folder, &["--device", "cuda", "--port", "0"]);
    let status = command.env_remove("LD_LIBRARY_PATH").status().expect("the binary starts");
    assert_eq!(status.code(), Some(EXIT_STARTUP));
    let stderr = std::fs::read_to_string(folder.join("stderr")).expect("it was written");
    assert_eq!(stderr.lines().count(), 1, "one line says why:\n{stderr}");
    let wanted = match images::has_kernels() {
        true => "libcuda.so.1",
        false => "this build holds no CUDA kernels",
    };
    assert!(stderr.contains("--device") && stderr.contains(wanted), "{stderr}");

    let mut command = serve(folder, &["--device", "auto"]);
    let server = Program::start(command.env_remove("LD_LIBRARY_PATH"));
    let mut client = server.connect();
    let body = json!({"prompt": "The rain", "max_tokens": 4}).to_string();
    client.write_all(&post_bytes("/v1/completions", &body)).expect("a connection");
    assert_eq!(Answer::read(&mut client).status, 200);
}
