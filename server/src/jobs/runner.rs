//! Works on the jobs: each passes through its states, whatever process it was begun in.

use super::batches::{self, BatchRecord};
use super::config::{BATCHES_AT_ONCE, COMMIT_ROWS_MAX, ENDINGS_AT_ONCE, TICK, TROUBLE_PAUSE};
use super::finish::write_files;
use super::lines::Lines;
use super::results::{self, LineResult};
use super::rows::{Answered, answer_lines};
use super::store::Shared;
use super::validate::validate;
use super::{Counts, Jobs, JobsError, LineFault, Rows, Status, files};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{Id, JoinSet};

/// How often files whose time is over are looked for, in ticks.
const SWEEP_TICKS: u64 = 60;

/// Works until it is dropped. What is under way then is done again by the next one.
pub async fn run<R: Rows>(jobs: Jobs, rows: Arc<R>) {
    let shared = jobs.shared;
    while let Err(error) = clean_up(&shared).await {
        tracing::warn!(%error, "what an earlier process left of batch jobs cannot be cleaned up");
        tokio::time::sleep(TROUBLE_PAUSE).await;
    }
    let mut crew = Crew {
        work: Work { shared: Arc::clone(&shared), rows, validating: Arc::default() },
        workers: JoinSet::new(),
        busy: HashMap::new(),
        in_trouble: HashMap::new(),
    };
    let mut changes = shared.changes.subscribe();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut num_ticks = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => num_ticks += 1,
            // The sender lives as long as `shared`.
            _ = changes.changed() => {}
            Some(ended) = crew.workers.join_next_with_id() => match ended {
                Ok((id, result)) => crew.ended(id, result),
                Err(panic) => crew.panicked(&panic),
            },
        }
        if let Err(error) = crew.look(num_ticks % SWEEP_TICKS == 1).await {
            tracing::warn!(%error, "batch jobs cannot be looked at");
            tokio::time::sleep(TROUBLE_PAUSE).await;
        }
    }
}

/// Takes back what a process left when it ended in the middle. The files among it are hidden, and
/// go when they are swept.
async fn clean_up(shared: &Shared) -> Result<(), JobsError> {
    for batch in shared.database.call(|db| results::left_over(db)).await? {
        forget_results(shared, batch).await?;
    }
    Ok(())
}

async fn forget_results(shared: &Shared, batch: i64) -> Result<(), JobsError> {
    while shared.database.call(move |db| results::forget_some(db, batch)).await? {}
    Ok(())
}

/// One worker for each job that is being worked on.
struct Crew<R> {
    work: Work<R>,
    workers: JoinSet<Result<(), JobsError>>,
    busy: HashMap<Id, i64>,
    /// Jobs that met trouble, and until when they rest.
    in_trouble: HashMap<i64, Instant>,
}

impl<R: Rows> Crew<R> {
    async fn look(&mut self, sweeps: bool) -> Result<(), JobsError> {
        let shared = Arc::clone(&self.work.shared);
        let now = shared.clock.now();
        if shared.database.call(move |db| batches::expire(db, now)).await? > 0 {
            shared.tell();
        }
        if sweeps && let Err(error) = sweep(&shared, now).await {
            tracing::warn!(%error, "the bytes of files that are over stay for now");
        }
        let rows = Arc::clone(&self.work.rows);
        let is_resting = |seq: &i64| self.in_trouble.get(seq).is_some_and(|t| *t > Instant::now());
        for batch in shared.database.call(|db| batches::open(db)).await? {
            // A job that ends need not wait for those that go on for hours.
            let at_once = match batch.status {
                Status::Finalizing | Status::Cancelling => BATCHES_AT_ONCE + ENDINGS_AT_ONCE,
                _ => BATCHES_AT_ONCE,
            };
            if self.workers.len() >= at_once {
                continue;
            }
            let can_go_on = match batch.status {
                Status::InProgress => rows.can_run(&batch.owner, &batch.model),
                _ => true,
            };
            let is_busy = self.busy.values().any(|seq| *seq == batch.seq);
            if can_go_on && !is_busy && !is_resting(&batch.seq) {
                let (work, seq) = (self.work.clone(), batch.seq);
                let worker = self.workers.spawn(async move { work.work_on(seq).await });
                self.busy.insert(worker.id(), seq);
            }
        }
        Ok(())
    }

    fn ended(&mut self, id: Id, result: Result<(), JobsError>) {
        let Some(seq) = self.busy.remove(&id) else { return };
        match result {
            Ok(()) => drop(self.in_trouble.remove(&seq)),
            Err(error) => {
                tracing::warn!(%error, job = seq, "a batch job met trouble, and rests");
                self.in_trouble.insert(seq, Instant::now() + TROUBLE_PAUSE);
            }
        }
    }

    fn panicked(&mut self, panic: &tokio::task::JoinError) {
        let Some(seq) = self.busy.remove(&panic.id()) else { return };
        tracing::error!(job = seq, "the work on a batch job failed, and will be tried again");
        self.in_trouble.insert(seq, Instant::now() + TROUBLE_PAUSE);
    }
}

/// Deletes the files whose time is over, and those that were to be deleted before.
async fn sweep(shared: &Shared, now: u64) -> Result<(), JobsError> {
    shared.database.call(move |db| files::hide_expired(db, now)).await?;
    for id in shared.database.call(|db| files::hidden(db)).await? {
        shared.delete_bytes(&id).await?;
    }
    Ok(())
}

/// What a worker needs.
struct Work<R> {
    shared: Arc<Shared>,
    rows: Arc<R>,
    /// One file is validated at a time: the names in it take memory.
    validating: Arc<Mutex<()>>,
}

impl<R> Clone for Work<R> {
    fn clone(&self) -> Self {
        Work {
            shared: Arc::clone(&self.shared),
            rows: Arc::clone(&self.rows),
            validating: Arc::clone(&self.validating),
        }
    }
}

impl<R: Rows> Work<R> {
    /// From state to state, until the job has ended or cannot go on for now.
    async fn work_on(&self, seq: i64) -> Result<(), JobsError> {
        loop {
            let batch = self.batch(seq).await?;
            match batch.status {
                Status::Validating => self.validate(&batch).await?,
                Status::InProgress if !self.rows.can_run(&batch.owner, &batch.model) => {
                    return Ok(());
                }
                Status::InProgress => self.answer_rows(&batch).await?,
                Status::Finalizing | Status::Cancelling => self.finish(&batch).await?,
                Status::Failed | Status::Completed | Status::Expired | Status::Cancelled => {
                    return Ok(());
                }
            }
        }
    }

    async fn batch(&self, seq: i64) -> Result<BatchRecord, JobsError> {
        self.shared.database.call(move |db| batches::by_seq(db, seq)).await
    }

    async fn lines(&self, batch: &BatchRecord) -> Result<Lines, JobsError> {
        let stream = self.shared.bytes.read(&batch.input_file_id).await?;
        Ok(Lines::new(stream, self.shared.limits.line_bytes_max))
    }

    async fn validate(&self, batch: &BatchRecord) -> Result<(), JobsError> {
        let found = async {
            let _turn = self.validating.lock().await;
            let lines = match self.lines(batch).await {
                Ok(lines) => lines,
                Err(JobsError::Gone { id }) => {
                    let message = format!("The file {id} is gone from the store.");
                    let code = "file_not_found".into();
                    return Ok(Err(vec![LineFault { code, message, param: None, line: None }]));
                }
                Err(error) => return Err(error),
            };
            let (endpoint, rows_max) = (Some(&*batch.endpoint), self.shared.limits.rows_max);
            validate(&*self.rows, endpoint, lines, rows_max, |_, _| {}).await
        };
        let found = tokio::select! {
            found = found => found?,
            stopped = self.leaves(batch) => return stopped,
        };
        let (seq, now) = (batch.seq, self.shared.clock.now());
        let settle = move |db: &mut rusqlite::Connection| match found {
            Ok(total) => batches::begin(db, seq, total, now),
            Err(faults) => batches::fail(db, seq, &faults, now),
        };
        self.shared.database.call(settle).await
    }

    async fn answer_rows(&self, batch: &BatchRecord) -> Result<(), JobsError> {
        let (shared, seq) = (&self.shared, batch.seq);
        let done = shared.database.call(move |db| results::done_lines(db, seq)).await?;
        let lines = self.lines(batch).await?;
        let (sender, receiver) = mpsc::channel(COMMIT_ROWS_MAX);
        let places = &shared.row_places;
        let answering = answer_lines(&self.rows, &batch.owner, lines, &done, places, sender);
        tokio::select! {
            done = async { tokio::try_join!(answering, self.commit(seq, receiver)) } => done?,
            stopped = self.leaves(batch) => return stopped,
        };
        let now = shared.clock.now();
        match shared.database.call(move |db| batches::finalize(db, seq, now)).await? {
            true => Ok(()),
            // It was cancelled just now; or rows are left, and are tried again.
            false if self.batch(seq).await?.status != batch.status => Ok(()),
            false => Err(JobsError::RowsLeft),
        }
    }

    /// Until all rows are answered.
    async fn commit(
        &self,
        seq: i64,
        mut answers: mpsc::Receiver<Answered>,
    ) -> Result<(), JobsError> {
        loop {
            let mut page = Vec::with_capacity(COMMIT_ROWS_MAX);
            if answers.recv_many(&mut page, COMMIT_ROWS_MAX).await == 0 {
                return Ok(());
            }
            let record = move |db: &mut rusqlite::Connection| {
                let lines: Vec<&LineResult> = page.iter().map(|answered| &answered.line).collect();
                results::record(db, seq, &lines)
            };
            let new: Counts = self.shared.database.call(record).await?;
            self.shared.rows_answered.fetch_add(new.completed, Ordering::Relaxed);
            self.shared.rows_failed.fetch_add(new.failed, Ordering::Relaxed);
        }
    }

    async fn finish(&self, batch: &BatchRecord) -> Result<(), JobsError> {
        let (shared, seq) = (&self.shared, batch.seq);
        let is_cut = batch.is_expired || batch.status == Status::Cancelling;
        // Until it was validated, nobody knows whether the file has rows at all.
        let lines = match is_cut && batch.counts.total > 0 {
            true => match self.lines(batch).await {
                // What was answered is kept all the same.
                Err(JobsError::Gone { .. }) => None,
                lines => Some(lines?),
            },
            false => None,
        };
        let now = shared.clock.now();
        let rows = &*self.rows;
        let written = write_files(rows, &shared.database, &shared.bytes, batch, lines, now).await?;
        let end = move |db: &mut rusqlite::Connection| {
            let (output, errors) = (written.output.as_ref(), written.errors.as_ref());
            batches::end(db, seq, written.counts, output, errors, now)
        };
        shared.database.call(end).await?;
        forget_results(shared, seq).await
    }

    /// Returns when the job is not in its state any more, because it was cancelled or its time is
    /// over, or when it must not go on: its owner's key was taken away.
    async fn leaves(&self, batch: &BatchRecord) -> Result<(), JobsError> {
        let mut changes = self.shared.changes.subscribe();
        while self.batch(batch.seq).await?.status == batch.status {
            if batch.status == Status::InProgress && !self.rows.can_run(&batch.owner, &batch.model)
            {
                break;
            }
            // The sender lives as long as `shared`.
            let _ = tokio::time::timeout(TICK, changes.changed()).await;
        }
        Ok(())
    }
}
