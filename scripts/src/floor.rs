//! `cargo xtask floor`: our speed against llama.cpp's server, in turns on the same file.

use crate::process::{Server, release_binary};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// llama.cpp's server binary, built for this machine's own processor
    #[arg(long)]
    llama_server: PathBuf,
    /// The GGUF file both serve
    #[arg(long)]
    model: PathBuf,
    /// How often each of the two runs
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where the raw numbers go
    #[arg(long)]
    json: PathBuf,
}

/// One load: its name and the load generator's arguments.
const SCENARIOS: [(&str, &[&str]); 4] = [
    (
        "decode_128_128_x1",
        &["--concurrency", "1", "--num-requests", "3", "--input-len", "128", "--output-len", "128"],
    ),
    (
        "prefill_512_x1",
        &["--concurrency", "1", "--num-requests", "3", "--input-len", "512", "--output-len", "1"],
    ),
    (
        "serve_256_64_x8",
        &["--concurrency", "8", "--num-requests", "16", "--input-len", "256", "--output-len", "64"],
    ),
    (
        "serve_256_64_x32",
        &[
            "--concurrency",
            "32",
            "--num-requests",
            "32",
            "--input-len",
            "256",
            "--output-len",
            "64",
        ],
    ),
];

pub fn run(args: &Args) -> Result<()> {
    let binary = release_binary()?;
    let mut rows = Vec::new();
    for round in 0..args.rounds {
        for peer in ["monsoon", "llama.cpp"] {
            let server = Server::start(&mut serve_command(args, &binary, peer))?;
            for (i, (scenario, load)) in SCENARIOS.iter().enumerate() {
                // A seed of its own for each load, so that no prompt comes out of an earlier one's
                // cache.
                let seed = (round * SCENARIOS.len() + i + 1).to_string();
                let report = bench(&binary, &server.url, load, &seed)?;
                println!("{round} {peer} {scenario}: {}", summary(&report));
                rows.push(
                    json!({"round": round, "peer": peer, "scenario": scenario, "report": report}),
                );
                std::fs::write(&args.json, serde_json::to_string_pretty(&rows)?)?;
            }
        }
    }
    for (scenario, _) in SCENARIOS {
        println!("{}", ratios(&rows, scenario));
    }
    Ok(())
}

fn serve_command(args: &Args, binary: &Path, peer: &str) -> Command {
    let threads = args.threads.to_string();
    if peer == "monsoon" {
        let mut command = Command::new(binary);
        command.arg("serve").arg(&args.model).args(["--threads", &threads, "--log-level", "warn"]);
        return command;
    }
    let mut command = Command::new(&args.llama_server);
    command.arg("-m").arg(&args.model).args(["-t", &threads, "-tb", &threads]);
    command.args(["-c", "16384", "-np", "32", "-kvu", "--alias", "m"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command
}

fn bench(binary: &Path, url: &str, load: &[&str], seed: &str) -> Result<Value> {
    let file = std::env::temp_dir().join(format!("monsoon-floor-{}.json", std::process::id()));
    let mut command = Command::new(binary);
    command.args(["bench", "--url", url, "--seed", seed, "--endpoint", "completions"]);
    let output = command.args(load).arg("--json").arg(&file).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "the load generator failed: {complaint}");
    Ok(serde_json::from_str(&std::fs::read_to_string(&file)?)?)
}

fn summary(report: &Value) -> String {
    let of = |key: &str| report["latencies"][key]["p50"].as_f64().unwrap_or(f64::NAN);
    let rate = report["output_tokens_per_s"].as_f64().unwrap_or(f64::NAN);
    format!("{rate:.1} tok/s, TTFT p50 {:.0} ms, TPOT p50 {:.1} ms", of("ttft_ms"), of("tpot_ms"))
}

/// Ratios of medians, ours over theirs; for times a ratio below 1 is ours to the good.
fn ratios(rows: &[Value], scenario: &str) -> String {
    let median = |peer: &str, read: &dyn Fn(&Value) -> Option<f64>| -> Result<f64> {
        let of_peer = rows.iter().filter(|r| r["peer"] == peer && r["scenario"] == scenario);
        let mut values: Vec<f64> = of_peer.filter_map(|r| read(&r["report"])).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("no values")
    };
    let ratio = |read: &dyn Fn(&Value) -> Option<f64>| match (
        median("monsoon", read),
        median("llama.cpp", read),
    ) {
        (Ok(ours), Ok(theirs)) => format!("{:.2}", ours / theirs),
        _ => "-".into(),
    };
    let rate = ratio(&|r| r["output_tokens_per_s"].as_f64());
    let decode = ratio(&|r| r["latencies"]["tpot_ms"]["p50"].as_f64().map(|ms| 1.0 / ms));
    let ttft = ratio(&|r| r["latencies"]["ttft_ms"]["p50"].as_f64());
    format!("{scenario}: throughput x{rate}, decode speed x{decode}, TTFT x{ttft}")
}
