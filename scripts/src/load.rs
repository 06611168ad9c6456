//! The load of those who wait, alone and beside something else in turns, and what the other costs.

use crate::process::{self, Server};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[derive(clap::Args)]
pub struct Load {
    /// Runs of each kind
    #[arg(long, default_value_t = 5)]
    pub turns: usize,
    /// Clients of the load that waits
    #[arg(long, default_value_t = 4)]
    pub concurrency: usize,
    #[arg(long, default_value_t = 200)]
    pub requests: usize,
    #[arg(long, default_value_t = 256)]
    pub input_len: usize,
    #[arg(long, default_value_t = 64)]
    pub output_len: usize,
    /// Fail if a 99th percentile is more than this share above that of the load alone
    #[arg(long)]
    pub share_max: Option<f64>,
}

impl Load {
    /// Runs it once, and returns the report that it writes.
    pub fn run(&self, binary: &Path, server: &Server, report: &Path) -> Result<Value> {
        let number = |n: usize| n.to_string();
        process::run(
            Command::new(binary)
                .args(["bench", "--url", &server.url, "--concurrency", &number(self.concurrency)])
                .args(["--num-requests", &number(self.requests)])
                .args(["--input-len", &number(self.input_len)])
                .args(["--output-len", &number(self.output_len), "--json"])
                .arg(report),
        )?;
        Ok(serde_json::from_str(&std::fs::read_to_string(report)?)?)
    }

    /// Prints how a latency's 99th percentile changed, as the median of the turns.
    pub fn compare(&self, latency: &str, alone: &[Value], beside: &[Value]) -> Result<Change> {
        let change = Change { alone: median(alone, latency)?, beside: median(beside, latency)? };
        let Change { alone, beside } = change;
        println!("{latency} p99, median of turns: {alone:.2} alone, {beside:.2} beside");
        println!("  {:+.1} %", change.share() * 100.0);
        Ok(change)
    }

    /// Errors: it rose by more than `share_max`.
    pub fn check(&self, change: &Change) -> Result<()> {
        let Some(most) = self.share_max else { return Ok(()) };
        ensure!(change.share() <= most, "it rose by more than {:.0} %", most * 100.0);
        Ok(())
    }
}

/// A 99th percentile, in milliseconds.
pub struct Change {
    pub alone: f64,
    pub beside: f64,
}

impl Change {
    /// 0.1: it is a tenth longer.
    pub fn share(&self) -> f64 {
        self.beside / self.alone - 1.0
    }
}

fn median(reports: &[Value], latency: &str) -> Result<f64> {
    let p99 = reports.iter().map(|r| r["latencies"][latency]["p99"].as_f64().context("a p99"));
    let mut values = p99.collect::<Result<Vec<f64>>>()?;
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("a turn")
}
