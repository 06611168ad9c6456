//! `cargo xtask beside`: what a batch job costs those who wait: the same load without and with one,
//! in turns.

use crate::load::Load;
use crate::process::{self, Server, post, release_binary};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const LATENCIES: [&str; 2] = ["ttft_ms", "itl_ms"];
const BOUNDARY: &str = "beside-boundary";

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    load: Load,
    /// Rows of the job; it must outlast a run
    #[arg(long, default_value_t = 20_000)]
    rows: usize,
    /// Folder for the raw reports
    #[arg(long)]
    out: PathBuf,
    /// Arguments for the server, after `--`
    #[arg(last = true)]
    serve: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let binary = release_binary()?;
    std::fs::create_dir_all(&args.out)?;
    let jobs = args.out.join("jobs");
    let mut command = Command::new(&binary);
    command.arg("serve").arg("--jobs-dir").arg(&jobs).args(&args.serve);
    let server = Server::start(&mut command)?;
    let report = |kind: &str, turn: usize| args.out.join(format!("{kind}-{turn}.json"));
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for turn in 0..args.load.turns {
        alone.push(args.load.run(&binary, &server, &report("alone", turn))?);
        let id = start_job(args, &server)?;
        beside.push(args.load.run(&binary, &server, &report("beside", turn))?);
        let batch: Value =
            serde_json::from_str(&process::get(&format!("{}/v1/batches/{id}", server.url))?)?;
        let (status, counts) = (&batch["status"], &batch["request_counts"]);
        println!("turn {turn}: the job is {status}, {counts}");
        ensure!(status == "in_progress", "the job ended before the load did: more --rows");
        post(&format!("{}/v1/batches/{id}/cancel", server.url), "application/json", b"{}")?;
        // Its rows are gone from the engine.
        while server.metric("monsoon_num_requests_running")? > 0.0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for latency in LATENCIES {
        args.load.check(&args.load.compare(latency, &alone, &beside)?)?;
    }
    std::fs::remove_dir_all(&jobs).context("the jobs' folder")
}

/// The id of a job whose prompts and answers are as long as those of the load.
fn start_job(args: &Args, server: &Server) -> Result<String> {
    let words = "word ".repeat(args.load.input_len);
    let mut rows = String::new();
    for i in 0..args.rows {
        let body = json!({
            "messages": [{"role": "user", "content": format!("{i} {words}")}],
            "max_tokens": args.load.output_len, "ignore_eos": true,
        });
        let row = json!({
            "custom_id": i.to_string(), "method": "POST", "url": "/v1/chat/completions",
            "body": body,
        });
        rows.push_str(&format!("{row}\n"));
    }
    let part = "content-disposition: form-data; name=";
    let form = format!(
        "--{BOUNDARY}\r\n{part}\"purpose\"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n{part}\"file\"; \
         filename=\"rows.jsonl\"\r\n\r\n{rows}\r\n--{BOUNDARY}--\r\n"
    );
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let file = post(&format!("{}/v1/files", server.url), &kind, form.as_bytes())?;
    let body = json!({
        "input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h",
    });
    let url = format!("{}/v1/batches", server.url);
    let batch = post(&url, "application/json", body.to_string().as_bytes())?;
    while server.metric("monsoon_num_requests_running")? == 0.0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(batch["id"].as_str().context("an id")?.to_owned())
}
