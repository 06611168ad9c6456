//! What the records add up to.

use super::request::Record;
use crate::config::{BenchConfig, Load};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Requests written one by one to --json at most.
pub const JSON_RECORDS_MAX: usize = 100_000;

pub struct Report {
    pub model: String,
    pub url: String,
    pub load: Load,
    pub wall: Duration,
    pub records: Vec<Record>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Percentiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Percentiles {
    /// By nearest rank; all zero without values.
    pub fn of(mut values: Vec<f64>) -> Percentiles {
        if values.is_empty() {
            return Percentiles::default();
        }
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values[(values.len() * percent).div_ceil(100).max(1) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Percentiles { mean, p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }

    fn to_json(self) -> Value {
        let Percentiles { mean, p50, p90, p99, max } = self;
        json!({"mean": mean, "p50": p50, "p90": p90, "p99": p99, "max": max})
    }
}

impl Report {
    pub fn new(config: &BenchConfig, model: String, records: Vec<Record>, wall: Duration) -> Self {
        let mut records = records;
        records.sort_by_key(|record| record.number);
        Report { model, url: config.url.clone(), load: config.load, wall, records }
    }

    pub fn num_failed(&self) -> usize {
        self.records.iter().filter(|r| r.error.is_some()).count()
    }

    pub fn num_complete(&self) -> usize {
        self.records.iter().filter(|r| r.is_complete()).count()
    }

    fn num_dropped(&self) -> usize {
        self.records.iter().filter(|r| r.is_dropped).count()
    }

    fn num_short(&self) -> usize {
        self.records.iter().filter(|r| r.is_short).count()
    }

    pub fn errors_by_kind(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for error in self.records.iter().filter_map(|r| r.error.as_ref()) {
            *kinds.entry(error.kind()).or_default() += 1;
        }
        kinds
    }

    /// (name, percentiles in ms): time to the first piece of text, gaps between pieces, mean time
    /// per output token of a request after the first, whole request; time to a refusal (status
    /// 429).
    pub fn latencies(&self) -> [(&'static str, Percentiles); 5] {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let with_text =
            || self.records.iter().filter(|r| r.error.is_none() && !r.pieces.is_empty());
        let ttft = with_text().map(|r| ms(r.pieces[0] - r.sent)).collect();
        let gaps = |r: &Record| r.pieces.windows(2).map(|w| ms(w[1] - w[0])).collect::<Vec<_>>();
        let itl = with_text().flat_map(gaps).collect();
        let several = |r: &&Record| r.is_complete() && r.output_tokens > 1;
        let per_token = |r: &Record| {
            let span = *r.pieces.last().expect("has text") - r.pieces[0];
            ms(span) / (r.output_tokens - 1) as f64
        };
        let tpot = with_text().filter(several).map(per_token).collect();
        let complete = self.records.iter().filter(|r| r.is_complete());
        let e2e = complete.map(|r| ms(r.ended - r.sent)).collect();
        let refused = self.records.iter().filter(|r| r.is_refused());
        let refusal = refused.map(|r| ms(r.ended - r.sent)).collect();
        [("TTFT", ttft), ("ITL", itl), ("TPOT", tpot), ("E2E", e2e), ("429", refusal)]
            .map(|(name, values)| (name, Percentiles::of(values)))
    }

    /// (output, prompt) tokens a second over the whole run, those of dropped requests included as
    /// far as they came.
    pub fn throughput(&self) -> (f64, f64) {
        let seconds = self.wall.as_secs_f64().max(1e-9);
        let good = || self.records.iter().filter(|r| r.error.is_none());
        let output: usize = good().map(|r| r.output_tokens).sum();
        let prompt: usize = good().map(|r| r.prompt_tokens).sum();
        (output as f64 / seconds, prompt as f64 / seconds)
    }

    pub fn to_json(&self) -> Value {
        let (output, prompt) = self.throughput();
        let latencies: serde_json::Map<String, Value> = self
            .latencies()
            .iter()
            .map(|(name, values)| (format!("{}_ms", name.to_lowercase()), values.to_json()))
            .collect();
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let record = |r: &Record| {
            json!({
                "number": r.number,
                "sent_ms": ms(r.sent),
                "ttft_ms": r.pieces.first().map(|first| ms(*first - r.sent)),
                "e2e_ms": ms(r.ended - r.sent),
                "prompt_tokens": r.prompt_tokens,
                "cached_tokens": r.cached_tokens,
                "output_tokens": r.output_tokens,
                "dropped": r.is_dropped,
                "error": r.error.as_ref().map(|e| e.to_string()),
            })
        };
        json!({
            "url": self.url,
            "model": self.model,
            "load": format!("{:?}", self.load),
            "wall_s": self.wall.as_secs_f64(),
            "requests": {
                "sent": self.records.len(),
                "complete": self.num_complete(),
                "dropped": self.num_dropped(),
                "short": self.num_short(),
                "failed": self.errors_by_kind(),
            },
            "output_tokens_per_s": output,
            "total_tokens_per_s": output + prompt,
            "latencies": latencies,
            "records": self.records.iter().take(JSON_RECORDS_MAX).map(record).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (output, prompt) = self.throughput();
        let mean = |of: fn(&Record) -> usize| {
            let sum: usize = self.records.iter().filter(|r| r.is_complete()).map(of).sum();
            sum as f64 / self.num_complete().max(1) as f64
        };
        writeln!(f, "model {} at {}, {:?}", self.model, self.url, self.load)?;
        writeln!(
            f,
            "{} requests in {:.1} s: {} complete, {} dropped by the client, {} failed",
            self.records.len(),
            self.wall.as_secs_f64(),
            self.num_complete(),
            self.num_dropped(),
            self.num_failed()
        )?;
        for (kind, count) in self.errors_by_kind() {
            writeln!(f, "  {count} x {kind}")?;
        }
        if let Some(error) = self.records.iter().find_map(|r| r.error.as_ref()) {
            writeln!(f, "  the first: {error}")?;
        }
        if self.num_short() > 0 {
            writeln!(
                f,
                "  {} answers were shorter than asked for (no ignore_eos, or context full)",
                self.num_short()
            )?;
        }
        writeln!(
            f,
            "tokens per complete request: {:.0} in ({:.0} from the prefix cache), {:.0} out",
            mean(|r| r.prompt_tokens),
            mean(|r| r.cached_tokens),
            mean(|r| r.output_tokens)
        )?;
        writeln!(f, "output {output:.1} tok/s, total {:.1} tok/s", output + prompt)?;
        writeln!(
            f,
            "{:6}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "ms", "mean", "p50", "p90", "p99", "max"
        )?;
        for (name, p) in self.latencies() {
            writeln!(
                f,
                "{name:6}{:10.1}{:10.1}{:10.1}{:10.1}{:10.1}",
                p.mean, p.p50, p.p90, p.p99, p.max
            )?;
        }
        Ok(())
    }
}
