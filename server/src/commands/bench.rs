//! `monsoon bench`: load on any OpenAI-compatible server, measured where the client's bytes arrive.

pub mod prompt;
pub mod request;
pub mod report;
#[cfg(test)]
mod tests;

use super::CommandError;
use super::http_client::Target;
use crate::config::{BenchConfig, Load, StopAfter};
use prompt::{Prompts, Random};
use report::Report;
use request::{Plan, Record, send};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Requests under way at most when they arrive by the clock; further ones count as failed.
pub const OPEN_REQUESTS_MAX: usize = 8192;

/// What all clients share.
struct Bench {
    config: BenchConfig,
    target: Target,
    model: String,
    prompts: Prompts,
    start: Instant,
    num_started: AtomicUsize,
}

/// Runs the load, prints the result, and writes it where --json says.
///
/// Errors: no server there; `BenchFailed` when a request failed that the client did not drop
/// itself.
pub async fn run(config: BenchConfig) -> Result<(), CommandError> {
    let report = measure(config.clone()).await?;
    match &config.json {
        Some(path) if path.as_os_str() == "-" => println!("{}", report.to_json()),
        Some(path) => {
            print!("{report}");
            std::fs::write(path, report.to_json().to_string())
                .map_err(|source| CommandError::Io { path: path.clone(), source })?;
        }
        None => print!("{report}"),
    }
    match report.num_failed() {
        0 => Ok(()),
        failed => Err(CommandError::BenchFailed { failed, sent: report.records.len() }),
    }
}

pub async fn measure(config: BenchConfig) -> Result<Report, CommandError> {
    let target = Target::new(&config.url, config.api_key.clone())?;
    let model = match &config.model {
        Some(model) => model.clone(),
        None => target.first_model().await?,
    };
    let prompts = Prompts::new(config.seed, config.shared_prefix_len, config.input_len);
    let mut bench = Bench {
        config,
        target,
        model,
        prompts,
        start: Instant::now(),
        num_started: AtomicUsize::new(0),
    };
    bench.warm_up().await?;
    bench.start = Instant::now();
    let bench = Arc::new(bench);
    let records = match bench.config.load {
        Load::Closed { num_clients } => closed_loop(&bench, num_clients).await,
        Load::Open { requests_per_second } => open_loop(&bench, requests_per_second).await,
    };
    let wall = bench.start.elapsed();
    Ok(Report::new(&bench.config, bench.model.clone(), records, wall))
}

impl Bench {
    /// Prompts of the warm-up are those of numbers that the measurement never reaches.
    async fn warm_up(&self) -> Result<(), CommandError> {
        for i in 0..self.config.num_warmup {
            let mut connection = None;
            let plan = Plan { drop_after: None, ..self.plan(usize::MAX - i) };
            if let Some(error) = send(&self.target, &mut connection, &plan, self.start).await.error
            {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The number of the next request, unless enough were sent.
    fn next_number(&self) -> Option<usize> {
        let number = self.num_started.fetch_add(1, Ordering::Relaxed);
        let go_on = match self.config.stop {
            StopAfter::Requests(count) => number < count,
            StopAfter::Time(duration) => self.start.elapsed() < duration,
        };
        go_on.then_some(number)
    }

    fn plan(&self, number: usize) -> Plan {
        let mut random = Random::new(self.config.seed ^ 0x5eed_d209, number as u64);
        let dropped = random.fraction() < self.config.drop_fraction;
        // Somewhere in the first half of the answer: certainly in mid-stream.
        let half = (self.config.output_len / 2).max(1) as u64;
        Plan {
            number,
            endpoint: self.config.endpoint,
            model: self.model.clone(),
            prompt: self.prompts.prompt(number as u64),
            output_len: self.config.output_len,
            drop_after: dropped.then(|| 1 + random.below(half) as usize),
        }
    }
}

async fn closed_loop(bench: &Arc<Bench>, num_clients: usize) -> Vec<Record> {
    let mut clients = JoinSet::new();
    for _ in 0..num_clients {
        let bench = bench.clone();
        clients.spawn(async move {
            let mut connection = None;
            let mut records = Vec::new();
            while let Some(number) = bench.next_number() {
                let plan = bench.plan(number);
                records.push(send(&bench.target, &mut connection, &plan, bench.start).await);
            }
            records
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

async fn open_loop(bench: &Arc<Bench>, requests_per_second: f64) -> Vec<Record> {
    let mut random = Random::new(bench.config.seed, u64::MAX);
    let mut due = Duration::ZERO;
    let mut running = JoinSet::new();
    let mut records = Vec::new();
    while let Some(number) = bench.next_number() {
        // The gaps of a Poisson process are exponential.
        due += Duration::from_secs_f64(-(1.0 - random.fraction()).ln() / requests_per_second);
        tokio::time::sleep_until((bench.start + due).into()).await;
        while let Some(Ok(record)) = running.try_join_next() {
            records.push(record);
        }
        if running.len() >= OPEN_REQUESTS_MAX {
            records.push(Record::not_sent(number, bench.start.elapsed()));
            continue;
        }
        let bench = bench.clone();
        running.spawn(async move {
            let plan = bench.plan(number);
            send(&bench.target, &mut None, &plan, bench.start).await
        });
    }
    records.extend(running.join_all().await);
    records
}
