//! Answers the rows of one file, many at a time, each once.

use super::config::{RETRY_FIRST, RETRY_MAX, TRIES_MAX};
use super::lines::{Line, Lines};
use super::results::{DoneLines, LineResult};
use super::{Answer, JobsError, Owner, RowResult, Rows, Unanswered, Verdict};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

/// A row that was answered. Its place is free when this is dropped, so that answers which wait to
/// be kept are bounded too.
pub struct Answered {
    pub line: LineResult,
    _place: OwnedSemaphorePermit,
}

/// Sends each line that is not done on its way once there is a place for it, and its answer to
/// `results`. Returns when all have been sent there. Dropping it ends the rows under way: they are
/// not done.
///
/// Errors: the file cannot be read any more.
pub async fn answer_lines<R: Rows>(
    rows: &Arc<R>,
    owner: &Owner,
    mut lines: Lines,
    done: &DoneLines,
    places: &Arc<Semaphore>,
    results: mpsc::Sender<Answered>,
) -> Result<(), JobsError> {
    let mut under_way = JoinSet::new();
    while let Some(Line { number, bytes }) = lines.next().await? {
        if done.contains(number) {
            continue;
        }
        let place = Arc::clone(places).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let (rows, owner, results) = (Arc::clone(rows), owner.clone(), results.clone());
        under_way.spawn(async move {
            let answer = AssertUnwindSafe(answer(&*rows, &owner, &bytes)).catch_unwind();
            // The panic itself was told when it happened.
            let result = answer.await.unwrap_or_else(|_| RowResult {
                verdict: Verdict::Failed,
                line: rows.unanswered(&bytes, Unanswered::Lost),
            });
            // Nobody receives any more when the job was stopped.
            let line = LineResult { number, result };
            let _ = results.send(Answered { line, _place: place }).await;
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    Ok(())
}

/// Tries until there is room: a row that was refused for load waits, longer each time.
async fn answer<R: Rows>(rows: &R, owner: &Owner, line: &[u8]) -> RowResult {
    let mut pause = RETRY_FIRST;
    let mut tries = 1;
    loop {
        match rows.answer(owner, line).await {
            Answer::Done(result) => return result,
            Answer::Broken(result) if tries == TRIES_MAX => return result,
            Answer::Broken(_) => {
                tries += 1;
                tokio::time::sleep(pause).await;
            }
            Answer::Busy { retry_after } => {
                tokio::time::sleep(pause.max(retry_after).min(RETRY_MAX)).await;
            }
        }
        pause = (2 * pause).min(RETRY_MAX);
    }
}
