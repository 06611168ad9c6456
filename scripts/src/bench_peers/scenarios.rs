//! What is asked of each server, and what is measured.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

pub struct Scenario {
    pub name: &'static str,
    pub says: &'static str,
    /// Arguments of the load generator; none: only the server's start is measured.
    pub load: &'static [&'static str],
    /// The first is the one that the chart shows.
    pub measures: &'static [&'static str],
}

/// Milliseconds, seconds and MiB; the others are rates.
pub fn less_is_better(measure: &str) -> bool {
    !measure.ends_with("tokens_per_s")
}

pub fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}

const THROUGHPUT: [&str; 4] = ["tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms"];

pub const SCENARIOS: [Scenario; 10] = [
    Scenario {
        name: "start",
        says: "From the process's start to its first token, model in the page cache",
        load: &[],
        measures: &["start_s", "rss_mib"],
    },
    Scenario {
        name: "decode",
        says: "1 client, 128 tokens in, 128 out",
        load: &["--num-requests", "3", "--input-len", "128", "--output-len", "128"],
        measures: &["tpot_p50_ms", "rss_mib"],
    },
    Scenario {
        name: "prefill-512",
        says: "1 client, 512 in, 1 out",
        load: &["--num-requests", "5", "--input-len", "512", "--output-len", "1"],
        measures: &["ttft_p50_ms"],
    },
    Scenario {
        name: "prefill-2048",
        says: "1 client, 2048 in, 1 out",
        load: &["--num-requests", "3", "--input-len", "2048", "--output-len", "1"],
        measures: &["ttft_p50_ms"],
    },
    Scenario {
        name: "serve-1",
        says: "1 client, 256 in, 64 out",
        load: &["--num-requests", "4", "--input-len", "256", "--output-len", "64"],
        measures: &THROUGHPUT,
    },
    Scenario {
        name: "serve-8",
        says: "8 clients, 256 in, 64 out",
        load: &[
            "--concurrency",
            "8",
            "--num-requests",
            "16",
            "--input-len",
            "256",
            "--output-len",
            "64",
        ],
        measures: &THROUGHPUT,
    },
    Scenario {
        name: "serve-32",
        says: "32 clients, 256 in, 64 out",
        load: &[
            "--concurrency",
            "32",
            "--num-requests",
            "32",
            "--input-len",
            "256",
            "--output-len",
            "64",
        ],
        measures: &THROUGHPUT,
    },
    Scenario {
        name: "prefix",
        says: "32 clients at once, one prefix of 1024, 32 of their own, 32 out",
        load: &[
            "--concurrency",
            "32",
            "--num-requests",
            "32",
            "--shared-prefix-len",
            "1024",
            "--input-len",
            "1056",
            "--output-len",
            "32",
            "--warmup",
            "0",
        ],
        measures: &THROUGHPUT,
    },
    Scenario {
        name: "long",
        says: "1 client, 15,000 in, 32 out",
        load: &[
            "--num-requests",
            "1",
            "--input-len",
            "15000",
            "--output-len",
            "32",
            "--warmup",
            "0",
        ],
        measures: &["ttft_p50_ms", "tpot_p50_ms"],
    },
    Scenario {
        name: "short",
        says: "64 clients, 16 in, 16 out",
        load: &[
            "--concurrency",
            "64",
            "--num-requests",
            "256",
            "--input-len",
            "16",
            "--output-len",
            "16",
        ],
        measures: &THROUGHPUT,
    },
];

impl Scenario {
    /// Reads them off what a run reported.
    pub fn values(&self, report: &Value) -> Result<Value> {
        let mut values = Map::new();
        for measure in self.measures {
            let value = match *measure {
                "tokens_per_s" => &report["output_tokens_per_s"],
                "ttft_p50_ms" => &report["latencies"]["ttft_ms"]["p50"],
                "ttft_p99_ms" => &report["latencies"]["ttft_ms"]["p99"],
                "tpot_p50_ms" => &report["latencies"]["tpot_ms"]["p50"],
                other => &report[other],
            };
            let value = value.as_f64().with_context(|| format!("no {measure} in {report}"))?;
            values.insert((*measure).to_owned(), value.into());
        }
        Ok(values.into())
    }
}
