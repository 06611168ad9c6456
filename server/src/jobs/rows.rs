//! Answers the rows of one file, many at a time, each once.

use super::config::{RETRY_FIRST, RETRY_MAX, TRIES_MAX};
use super::lines::{Line, Lines};
use super::results::{DoneLines, LineResult};
use super::{Answer, JobsError, Owner, RowResult, Rows};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

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
    results: mpsc::Sender<LineResult>,
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
            let result = answer(&*rows, &owner, &bytes).await;
            // Nobody receives any more when the job was stopped.
            let _ = results.send(LineResult { number, result }).await;
            drop(place);
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
