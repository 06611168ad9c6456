//! `monsoon batch`: a file of requests to a file of results, in one process.

use super::serve::{self, Signals, jobs::line_bytes_max};
use super::{CommandError, StartupError};
use crate::config::BatchConfig;
use crate::http::state::Context;
use crate::http::{AppState, HttpConfig, KeyRing, RowRouter, name_of_result};
use crate::jobs::Counts;
use crate::jobs::offline::{OfflineJob, Prepared};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often progress is told where there is no terminal to draw a bar on.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Validates the input before anything large is loaded, takes up the results of an earlier run, and
/// answers the rest. A signal stops it: the results so far are good, and a second run goes on.
///
/// Errors: an input or output that cannot be used (exit code 2); requests that failed, a signal, a
/// lost device or a full disk (1).
pub async fn run(config: BatchConfig) -> Result<(), CommandError> {
    serve::start_logging(&config.serve.log);
    let mut signals = Signals::new()
        .map_err(|source| StartupError::Io { path: "signal handlers".into(), source })?;
    let state = AppState::new();
    // Nobody is asked for a key, so the rows are nobody's.
    let http = HttpConfig { keys: KeyRing::default(), ..serve::http_config(&config.serve) };
    let rows = Arc::new(RowRouter::new(Context::new(http, state.clone())));
    let job = OfflineJob {
        input: config.input,
        output: config.output,
        errors: config.errors.clone(),
        line_bytes_max: line_bytes_max(&config.serve),
        rows_max: config.serve.jobs.rows_max,
        rows_in_flight_max: config.rows_in_flight_max,
    };
    let prepared = tokio::select! {
        prepared = job.prepare(&*rows, name_of_result) => {
            prepared.map_err(StartupError::Batch)?
        }
        () = signals.next() => return Err(CommandError::BatchStopped),
    };
    let begun = prepared.counts;
    let done = begun.completed + begun.failed;
    if done > 0 {
        eprintln!("{done} of {} requests have their results already", begun.total);
    }
    let counts = match done < begun.total {
        true => load_and_answer(&config.serve, &state, &rows, prepared, &mut signals).await?,
        false => begun,
    };
    eprintln!("{} of {} requests were answered", counts.completed, counts.total);
    match counts.failed {
        0 => Ok(()),
        failed => {
            Err(CommandError::RowsFailed { failed, total: counts.total, errors: config.errors })
        }
    }
}

async fn load_and_answer(
    config: &crate::config::ServeConfig,
    state: &AppState,
    rows: &Arc<RowRouter>,
    prepared: Prepared,
    signals: &mut Signals,
) -> Result<Counts, CommandError> {
    let loaded = tokio::select! {
        loaded = serve::load_on_thread(config.clone(), None) => loaded?,
        () = signals.next() => return Err(CommandError::BatchStopped),
    };
    state.set_serving(loaded.serving);
    let engine_end = serve::watch_engine(loaded.engine_thread);
    let progress = Progress::new(prepared.counts);
    let answered = tokio::select! {
        answered = prepared.run(rows, |counts| progress.tell(counts)) => answered,
        () = signals.next() => return Err(CommandError::BatchStopped),
        ended = engine_end => {
            ended.expect("the watching thread always answers")?;
            return Err(CommandError::BatchStopped);
        }
    };
    answered.map_err(CommandError::Batch)
}

/// A bar in a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    begun: Counts,
    start: Instant,
    last_line: Mutex<Instant>,
}

impl Progress {
    fn new(begun: Counts) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(begun.total);
            let template = "{wide_bar} {pos}/{len} requests {per_sec} {eta} {msg}";
            let style = ProgressStyle::with_template(template).expect("a fixed, valid template");
            bar.set_style(style);
            // What was there does not count for the speed.
            bar.set_position(begun.completed + begun.failed);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Progress { bar, begun, start: now, last_line: Mutex::new(now) }
    }

    fn tell(&self, counts: Counts) {
        let done = counts.completed + counts.failed;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if counts.failed > 0 {
                bar.set_message(format!("{} failed", counts.failed));
            }
            return;
        }
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() < LINE_INTERVAL && done < counts.total {
            return;
        }
        *last_line = Instant::now();
        let new = done - self.begun.completed - self.begun.failed;
        let per_second = new as f64 / self.start.elapsed().as_secs_f64().max(1e-3);
        let (total, failed) = (counts.total, counts.failed);
        eprintln!("{done} of {total} requests, {failed} failed, {per_second:.1} a second");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
