//! Every metric, with its unit. Names follow vLLM's, with the prefix `monsoon_`.
//!
//! What the engine counts is read from it at each scrape; what only the HTTP side can know (times
//! as the client sees them, status codes) is counted here.

use crate::engine::{EngineStats, Lane, STEP_TOKENS_BOUNDS};
use crate::jobs::Status;
use crate::jobs::store::JobsStats;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PREFIX: &str = "monsoon";

const SECONDS_SHORT: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0];
const SECONDS_LONG: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];
const TOKENS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0,
];
const CHOICES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 128.0];

type Label = (&'static str, String);
/// One series per set of labels; routes, codes and reasons are few and ours, never a client's.
type LabelledCounter = Family<Vec<Label>, Counter>;

/// The HTTP side's metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    http_requests: LabelledCounter,
    rejected: LabelledCounter,
    finished: LabelledCounter,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    end_to_end: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let mut counter = |name: &str, help: &str| {
            let family = LabelledCounter::default();
            registry.register(name, help, family.clone());
            family
        };
        let http_requests = counter("http_requests", "Answers by route and status code");
        let rejected = counter("requests_rejected", "Requests turned away for load, by reason");
        let finished =
            counter("request_success", "Sequences that ended, by why (abort: the client left)");
        begin_at_zero(&finished, "finished_reason", &["stop", "length", "abort", "error"]);
        begin_at_zero(&rejected, "reason", &["queue_full", "too_many_tokens_waiting"]);
        let mut histogram = |name: &str, unit: Option<Unit>, help: &str, bounds: &[f64]| {
            let histogram = Histogram::new(bounds.iter().copied());
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, histogram.clone()),
                None => registry.register(name, help, histogram.clone()),
            }
            histogram
        };
        let tokens = || Some(Unit::Other("tokens".into()));
        let mut seconds = |name: &str, help: &str, bounds: &[f64]| {
            histogram(name, Some(Unit::Seconds), help, bounds)
        };
        let time_to_first_token =
            seconds("time_to_first_token", "From the request to its first token", &SECONDS_LONG);
        let inter_token_latency =
            seconds("inter_token_latency", "Between tokens of a sequence", &SECONDS_SHORT);
        let end_to_end =
            seconds("e2e_request_latency", "From the request to its last token", &SECONDS_LONG);
        let queue = seconds("request_queue_time", "Waiting to be scheduled", &SECONDS_LONG);
        let prefill =
            seconds("request_prefill_time", "From the schedule to the first token", &SECONDS_LONG);
        let decode =
            seconds("request_decode_time", "From the first token to the last", &SECONDS_LONG);
        let inference =
            seconds("request_inference_time", "From the schedule to the last token", &SECONDS_LONG);
        let prompt_tokens =
            histogram("request_prompt", tokens(), "Prompt length of ended sequences", &TOKENS);
        let generation_tokens =
            histogram("request_generation", tokens(), "Answer length of ended sequences", &TOKENS);
        let params_n = histogram("request_params_n", None, "Answers asked for (n)", &CHOICES);
        let params_max_tokens = histogram(
            "request_params_max",
            tokens(),
            "Most tokens a sequence may generate",
            &TOKENS,
        );
        Self {
            registry: Arc::new(registry),
            http_requests,
            rejected,
            finished,
            time_to_first_token,
            inter_token_latency,
            end_to_end,
            queue,
            prefill,
            decode,
            inference,
            prompt_tokens,
            generation_tokens,
            params_n,
            params_max_tokens,
        }
    }

    /// `route` is a pattern of the router's, not what a client sent.
    pub fn count_answer(&self, route: &str, code: u16) {
        let labels = vec![("route", route.to_owned()), ("code", code.to_string())];
        self.http_requests.get_or_create(&labels).inc();
    }

    pub fn count_rejection(&self, reason: &'static str) {
        self.rejected.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    pub fn observe_request(&self, num_choices: usize) {
        self.params_n.observe(num_choices as f64);
    }

    /// Follows one sequence, from when its request arrived. Of one in the background nobody feels
    /// the times, so they are not counted.
    pub fn sequence(
        &self,
        lane: Lane,
        arrived: Instant,
        prompt_tokens: usize,
        max_new_tokens: usize,
    ) -> SequenceTimer {
        self.params_max_tokens.observe(max_new_tokens as f64);
        SequenceTimer {
            metrics: self.clone(),
            lane,
            arrived,
            submitted: Instant::now(),
            started: None,
            first_token: None,
            last_token: None,
            prompt_tokens,
            generated_tokens: 0,
            outcome: "abort",
        }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode_open_metrics(
        &self,
        engine: Option<&EngineStats>,
        jobs: Option<&JobsStats>,
    ) -> String {
        let mut text = String::new();
        let written = encode_registry(&mut text, &self.registry)
            .and_then(|()| match engine {
                Some(stats) => encode_registry(&mut text, &engine_registry(stats)),
                None => Ok(()),
            })
            .and_then(|()| match jobs {
                Some(stats) => encode_registry(&mut text, &jobs_registry(stats)),
                None => Ok(()),
            })
            .and_then(|()| encode_eof(&mut text));
        written.expect("writing to a string does not fail");
        text
    }

    /// All metrics in the older Prometheus text format, version 0.0.4.
    pub fn encode_prometheus(
        &self,
        engine: Option<&EngineStats>,
        jobs: Option<&JobsStats>,
    ) -> String {
        to_prometheus(&self.encode_open_metrics(engine, jobs))
    }
}

/// Times of one sequence as its client sees them; recorded when dropped.
pub struct SequenceTimer {
    metrics: Metrics,
    lane: Lane,
    arrived: Instant,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    prompt_tokens: usize,
    generated_tokens: usize,
    outcome: &'static str,
}

impl SequenceTimer {
    pub fn started(&mut self) {
        let now = Instant::now();
        self.started = Some(now);
        self.observe(&self.metrics.queue, now - self.submitted);
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token {
            Some(last) => self.observe(&self.metrics.inter_token_latency, now - last),
            None => {
                self.first_token = Some(now);
                self.observe(&self.metrics.time_to_first_token, now - self.arrived);
            }
        }
        self.last_token = Some(now);
        self.generated_tokens += 1;
    }

    /// How the sequence ended: `stop`, `length` or `error`. Without it: `abort`.
    pub fn ended(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }

    fn observe(&self, histogram: &Histogram, time: Duration) {
        if self.lane == Lane::Interactive {
            histogram.observe(time.as_secs_f64());
        }
    }
}

impl Drop for SequenceTimer {
    fn drop(&mut self) {
        let metrics = &self.metrics;
        metrics.finished.get_or_create(&vec![("finished_reason", self.outcome.to_owned())]).inc();
        if self.outcome == "abort" || self.outcome == "error" {
            return;
        }
        let now = Instant::now();
        self.observe(&metrics.end_to_end, now - self.arrived);
        metrics.prompt_tokens.observe(self.prompt_tokens as f64);
        metrics.generation_tokens.observe(self.generated_tokens as f64);
        let last = self.last_token.unwrap_or(now);
        if let Some(started) = self.started {
            self.observe(&metrics.inference, last - started);
            if let Some(first) = self.first_token {
                self.observe(&metrics.prefill, first - started);
                self.observe(&metrics.decode, last - first);
            }
        }
    }
}

/// A series that begins at 0 shows its first event as a rise; one that begins at 1 does not.
fn begin_at_zero(family: &LabelledCounter, label: &'static str, values: &[&str]) {
    for value in values {
        drop(family.get_or_create(&vec![(label, (*value).to_owned())]));
    }
}

/// The engine's numbers of this moment.
fn engine_registry(stats: &EngineStats) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    engine_gauges(&mut registry, stats);
    engine_counters(&mut registry, stats);
    registry.register(
        "iteration_tokens_total",
        "Tokens computed in a step of the engine",
        StepTokens { buckets: stats.step_tokens_buckets, sum: stats.computed_tokens },
    );
    registry
}

/// The numbers of files and batch jobs of this moment.
fn jobs_registry(stats: &JobsStats) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let by_status = Family::<Vec<Label>, prometheus_client::metrics::gauge::Gauge>::default();
    for status in Status::ALL {
        let found = stats.by_status.iter().find(|(found, _)| *found == status);
        let count = found.map_or(0, |(_, count)| *count as i64);
        by_status.get_or_create(&vec![("status", status.name().to_owned())]).set(count);
    }
    registry.register("jobs", "Batch jobs kept, by state", by_status);
    let rows = LabelledCounter::default();
    for (result, count) in [("answered", stats.rows_answered), ("failed", stats.rows_failed)] {
        rows.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
    }
    registry.register("job_rows", "Rows of batch jobs that have a result", rows);
    let mut gauge = |name: &str, help: &str, value: u64| {
        registry.register(name, help, ConstGauge::new(value as i64));
    };
    gauge("job_rows_in_flight", "Rows of batch jobs under way", stats.rows_in_flight);
    gauge("job_files", "Files kept for batch jobs", stats.files);
    let unit = Unit::Bytes;
    let bytes = ConstGauge::new(stats.file_bytes as i64);
    registry.register_with_unit("job_files", "Size of the files kept for batch jobs", unit, bytes);
    registry
}

fn engine_gauges(registry: &mut Registry, stats: &EngineStats) {
    let mut gauge = |name: &str, help: &str, value: usize| {
        registry.register(name, help, ConstGauge::new(value as i64));
    };
    let waiting = stats.waiting + stats.waiting_preempted;
    gauge("num_requests_running", "Sequences being computed", stats.running);
    gauge("num_requests_waiting", "Sequences waiting, preempted ones included", waiting);
    gauge("num_requests_preempted", "Sequences preempted and not yet resumed", {
        stats.waiting_preempted
    });
    gauge("kv_cache_blocks", "Blocks of the key-value cache", stats.blocks_total);
    gauge("kv_cache_blocks_free", "Blocks held by no sequence", stats.blocks_free);
    gauge("kv_cache_blocks_cached", "Blocks in the prefix cache", stats.blocks_cached);
    let unit = Unit::Other("tokens".into());
    let waiting_tokens = ConstGauge::new(stats.waiting_tokens as i64);
    registry.register_with_unit("waiting_prompt", "Prompt tokens waiting", unit, waiting_tokens);
    let used = stats.blocks_total - stats.blocks_free.min(stats.blocks_total);
    registry.register(
        "kv_cache_usage_perc",
        "Share of the key-value cache held by sequences; 1 is full",
        ConstGauge::new(used as f64 / stats.blocks_total.max(1) as f64),
    );
    let by_reason = Family::<Vec<Label>, prometheus_client::metrics::gauge::Gauge>::default();
    let deferred = stats.waiting_for_prefix.min(waiting);
    for (reason, value) in [("capacity", waiting - deferred), ("deferred", deferred)] {
        by_reason.get_or_create(&vec![("reason", reason.to_owned())]).set(value as i64);
    }
    registry.register(
        "num_requests_waiting_by_reason",
        "Sequences waiting for room (capacity) or for another's prefix (deferred)",
        by_reason,
    );
    registry.register(
        "cache_config",
        "Settings of the key-value cache",
        Info::new(vec![("num_blocks", stats.blocks_total.to_string())]),
    );
}

fn engine_counters(registry: &mut Registry, stats: &EngineStats) {
    let mut counter = |name: &str, unit: Option<&str>, help: &str, value: u64| {
        let metric = ConstCounter::new(value);
        match unit {
            None => registry.register(name, help, metric),
            Some(unit) => {
                registry.register_with_unit(name, help, Unit::Other(unit.into()), metric);
            }
        }
    };
    let tokens = Some("tokens");
    counter("prompt", tokens, "Prompt tokens of scheduled sequences", stats.prompt_tokens);
    counter("generation", tokens, "Tokens generated", stats.generated_tokens);
    counter("computed", tokens, "Tokens that went through the model", stats.computed_tokens);
    counter("wasted", tokens, "Tokens computed for sequences that had ended or gone by then", {
        stats.wasted_tokens
    });
    counter("prefix_cache_queries", None, "Prompt tokens looked up in the prefix cache", {
        stats.prefix_query_tokens
    });
    counter("prefix_cache_hits", None, "Prompt tokens found in the prefix cache", {
        stats.prefix_hit_tokens
    });
    counter("prefix_cache_evictions", None, "Cached blocks overwritten", stats.evicted_blocks);
    counter("num_preemptions", None, "Sequences sent back to wait for room", stats.preemptions);
    counter("requests_started", None, "Sequences scheduled for the first time", stats.started);
    counter("requests_aborted", None, "Sequences whose client went away", stats.aborted);
    counter("requests_failed", None, "Sequences lost with the device", stats.failed);
    counter("engine_steps", None, "Steps of the engine", stats.steps);
    counter("engine_steps_overlapped", None, "Steps started while another was under way", {
        stats.overlapped_steps
    });
    counter("engine_step_sequences", None, "Sequences in all steps", stats.step_sequences);
    registry.register_with_unit(
        "engine_step",
        "Time in which a step was under way",
        Unit::Seconds,
        ConstCounter::new(stats.step_time.as_secs_f64()),
    );
}

/// The engine's histogram of tokens per step.
#[derive(Debug)]
struct StepTokens {
    buckets: [u64; STEP_TOKENS_BOUNDS.len() + 1],
    sum: u64,
}

impl EncodeMetric for StepTokens {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = STEP_TOKENS_BOUNDS.iter().map(|b| *b as f64).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets).collect();
        let count = self.buckets.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum as f64, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The older format names a counter's family with its suffix and knows neither units nor `info`.
fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            let help = help.take().unwrap_or_default();
            text.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
