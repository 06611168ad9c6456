//! `cargo xtask soak`: minutes of load with clients that drop mid-stream, then the books must
//! balance.

use crate::process::{Server, release_binary};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Resident memory may grow by this share between the first and the last quarter of the run.
const RSS_GROWTH_MAX: f64 = 0.05;
const BLOCKS_FREE: &str = "monsoon_kv_cache_blocks_free";

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    #[arg(long, default_value_t = 32)]
    concurrency: usize,
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
    let server = Server::start(command.arg("serve").args(&args.serve))?;
    let blocks_before = server.metric(BLOCKS_FREE)?;
    let report = std::env::temp_dir().join(format!("monsoon-soak-{}.json", std::process::id()));
    let seconds = args.minutes * 60;
    let mut load = Command::new(&binary)
        .args(["bench", "--url", &server.url, "--input-len", "256", "--output-len", "64"])
        .args(["--drop-fraction", "0.2", "--concurrency", &args.concurrency.to_string()])
        .args(["--duration", &seconds.to_string(), "--json"])
        .arg(&report)
        .spawn()?;
    let mut resident = Vec::new();
    while load.try_wait()?.is_none() {
        resident.push(server.resident_kib()?);
        std::thread::sleep(Duration::from_secs(1));
    }
    ensure!(load.wait()?.success(), "the load generator failed");
    let report_text = std::fs::read_to_string(&report).context("the report")?;
    if let Some(path) = &args.json {
        std::fs::write(path, &report_text)?;
    }
    check(&server, blocks_before, &resident, &serde_json::from_str(&report_text)?)
}

fn check(server: &Server, blocks: f64, resident: &[u64], report: &serde_json::Value) -> Result<()> {
    std::thread::sleep(Duration::from_secs(2));
    let blocks_after = server.metric(BLOCKS_FREE)?;
    let quarter = (resident.len() / 4).max(1);
    // The first quarter is warm-up: buffers grow to their largest size once.
    let early = median(&resident[quarter..(2 * quarter).min(resident.len())]);
    let late = median(&resident[resident.len() - quarter..]);
    let growth = late / early - 1.0;
    let requests = &report["requests"];
    let failed = requests["failed"].as_object().context("failed requests in the report")?;
    println!("free blocks before {blocks}, after {blocks_after}");
    println!(
        "resident MiB: {:.0} -> {:.0} ({:+.1} %)",
        early / 1024.0,
        late / 1024.0,
        growth * 100.0
    );
    println!("requests: {requests}");
    ensure!(blocks_after == blocks, "blocks leaked");
    ensure!(growth <= RSS_GROWTH_MAX, "memory grows");
    ensure!(failed.is_empty(), "some requests failed");
    ensure!(server.metric("monsoon_num_requests_running")? == 0.0, "requests still running");
    Ok(())
}

fn median(values: &[u64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(f64::NAN, |&v| v as f64)
}
