//! `cargo xtask overload`: far more requests at once than the queue takes.

use crate::process::{Server, release_binary};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 500)]
    requests: usize,
    /// The server's --max-waiting-requests
    #[arg(long, default_value_t = 64)]
    queue: usize,
    /// Fail if a refusal takes longer, from before the connection is opened; the load generator
    /// shares the cores with the server
    #[arg(long)]
    refusal_ms: Option<f64>,
    /// Where to keep the load generator's report
    #[arg(long)]
    json: Option<PathBuf>,
    /// Arguments for the server, after `--`
    #[arg(last = true)]
    serve: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let binary = release_binary()?;
    let mut command = Command::new(&binary);
    command.arg("serve").args(["--max-waiting-requests", &args.queue.to_string()]);
    let server = Server::start(command.args(&args.serve))?;
    let file = std::env::temp_dir().join(format!("monsoon-overload-{}.json", std::process::id()));
    let requests = args.requests.to_string();
    // It fails because requests are refused, which is what is wanted here.
    Command::new(&binary)
        .args(["bench", "--url", &server.url, "--input-len", "64", "--output-len", "16"])
        .args(["--concurrency", &requests, "--num-requests", &requests, "--json"])
        .arg(&file)
        .status()?;
    let text = std::fs::read_to_string(&file).context("the report")?;
    if let Some(path) = &args.json {
        std::fs::write(path, &text)?;
    }
    check(args, &server, &serde_json::from_str(&text)?)
}

fn check(args: &Args, server: &Server, report: &Value) -> Result<()> {
    let requests = &report["requests"];
    let failed = requests["failed"].as_object().context("failed requests in the report")?;
    let refused = failed.get("status 429").and_then(Value::as_u64).unwrap_or(0) as usize;
    let complete = requests["complete"].as_u64().context("complete")? as usize;
    let slowest = report["latencies"]["429_ms"]["max"].as_f64().context("429_ms")?;
    println!("{complete} answered, {refused} refused, the slowest refusal after {slowest:.1} ms");
    ensure!(complete + refused == args.requests, "not each was answered or refused: {requests}");
    ensure!(requests["short"] == 0, "some answers are short");
    ensure!(refused > 0, "nothing was refused");
    if let Some(most) = args.refusal_ms {
        ensure!(slowest <= most, "a refusal took longer than {most} ms");
    }
    // What the server counted is what the client saw: nothing lost, nothing doubled.
    let counted = server.metric("monsoon_requests_rejected_total")?;
    ensure!(counted == refused as f64, "the server counted {counted} refusals");
    ensure!(server.metric("monsoon_num_requests_running")? == 0.0, "requests still running");
    Ok(())
}
