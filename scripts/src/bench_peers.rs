//! `cargo xtask bench-peers`: our server beside others, over HTTP, in turns in one run, and both
//! beside what the machine can do.

mod chart;
mod limits;
mod peers;
mod scenarios;
mod table;

use crate::process::{Server, release_binary};
use anyhow::{Context, Result, ensure};
use limits::Limits;
use peers::{OURS, Peer};
use scenarios::{SCENARIOS, Scenario};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// The GGUF file that all serve
    #[arg(long)]
    model: PathBuf,
    /// How often each server does each scenario
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// Only these scenarios
    #[arg(long, value_delimiter = ',', value_parser = scenarios::names())]
    only: Vec<String>,
    /// Folder where others are installed, and looked for the next time
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Folder for the raw numbers, the table and the chart
    #[arg(long)]
    out: PathBuf,
}

/// One server's part in one scenario of one round.
struct Run {
    scenario: &'static str,
    server: &'static str,
    /// What was measured, under the names of the scenario's measures.
    values: Value,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0 && args.threads > 0, "--rounds and --threads: at least 1");
    let binary = release_binary()?;
    fs::create_dir_all(&args.out)?;
    let contenders = peers::all(args, &binary)?;
    let mut limits = Limits::new(args)?;
    let (mut runs, mut raw) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            if !args.only.is_empty() && !args.only.iter().any(|name| name == scenario.name) {
                continue;
            }
            limits.measure();
            // Prompts of its own for each load, so that none comes out of an earlier one's cache.
            let seed = 1 + round * SCENARIOS.len() + index;
            for turn in 0..contenders.len() {
                // Another one begins in each round.
                let peer = &contenders[(turn + round) % contenders.len()];
                let report = one(peer, scenario, &binary, seed)?;
                let values = scenario.values(&report)?;
                println!("{round} {} {}: {values}", scenario.name, peer.name);
                raw.push(json!({
                    "round": round, "scenario": scenario.name, "server": peer.name,
                    "values": values, "report": without_records(report),
                }));
                runs.push(Run { scenario: scenario.name, server: peer.name, values });
            }
            let whole = json!({"limits": limits.to_json(), "runs": raw});
            fs::write(args.out.join("peers.json"), serde_json::to_string_pretty(&whole)?)?;
        }
    }
    let table = table::write(args, &contenders, &limits, &runs)?;
    print!("{table}");
    fs::write(args.out.join("peers.md"), &table)?;
    Ok(fs::write(args.out.join("peers.svg"), chart::write(&contenders, &runs)?)?)
}

/// Each run has a server of its own, so that none meets what another one left, or is beside
/// another server.
fn one(peer: &Peer, scenario: &Scenario, binary: &Path, seed: usize) -> Result<Value> {
    let begin = Instant::now();
    let server = Server::start(&mut peer.command())?;
    if scenario.load.is_empty() {
        // Health may come before the first token can.
        let body = json!({"model": "m", "prompt": "Hi", "max_tokens": 1, "temperature": 0});
        crate::process::post(
            &format!("{}/v1/completions", server.url),
            "application/json",
            body.to_string().as_bytes(),
        )?;
        let start_s = begin.elapsed().as_secs_f64();
        return Ok(json!({"start_s": start_s, "rss_mib": server.resident_kib()? as f64 / 1024.0}));
    }
    let mut report = load(binary, &server.url, scenario.load, seed)?;
    report["rss_mib"] = (server.resident_kib()? as f64 / 1024.0).into();
    Ok(report)
}

fn load(binary: &Path, url: &str, load: &[&str], seed: usize) -> Result<Value> {
    let file = std::env::temp_dir().join(format!("bench-peers-{}.json", std::process::id()));
    let mut command = Command::new(binary);
    command.args(["bench", "--url", url, "--endpoint", "completions", "--model", "m"]);
    command.args(load).args(["--seed", &seed.to_string(), "--json"]).arg(&file);
    let output = command.output()?;
    // Some servers close a connection that is about to be used again: such a request failed, the
    // others count, and the report says how many there were.
    let text = fs::read_to_string(&file).with_context(|| {
        format!("the load generator failed: {}", String::from_utf8_lossy(&output.stderr))
    })?;
    fs::remove_file(&file)?;
    Ok(serde_json::from_str(&text)?)
}

/// What is kept of a report: that of single requests would be megabytes.
fn without_records(mut report: Value) -> Value {
    report.as_object_mut().map(|report| report.remove("records"));
    report
}

/// Of the runs of `server` in `scenario`; smallest, median and largest.
fn spread(runs: &[Run], scenario: &str, server: &str, measure: &str) -> Option<[f64; 3]> {
    let of_server = runs.iter().filter(|run| run.scenario == scenario && run.server == server);
    let mut values: Vec<f64> = of_server.filter_map(|run| run.values[measure].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

/// How many times better than `peer` we are: by medians.
fn ratio(runs: &[Run], scenario: &Scenario, measure: &str, peer: &str) -> Option<f64> {
    let median = |server| Some(spread(runs, scenario.name, server, measure)?[1]);
    let (ours, theirs) = (median(OURS)?, median(peer)?);
    Some(if scenarios::less_is_better(measure) { theirs / ours } else { ours / theirs })
}
