//! When a client that waits is told that somebody is still there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Ends after a time without anything. One timer does for the whole answer: it is set anew only
/// when it goes off, not with every token.
pub struct Patience {
    interval: Duration,
    /// Since when nothing has come.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub fn new(interval: Duration) -> Self {
        Self { interval, since: None, timer: None }
    }

    /// Something has come.
    pub fn begin_anew(&mut self) {
        self.since = None;
    }

    /// Ready when nothing has come for the whole time; then it begins anew.
    pub fn poll_end(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let end = *self.since.get_or_insert_with(Instant::now) + self.interval;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        loop {
            ready!(timer.as_mut().poll(task));
            if timer.deadline() >= end {
                break;
            }
            timer.as_mut().reset(end);
        }
        // The next end is later.
        timer.as_mut().reset(end + self.interval);
        self.since = None;
        Poll::Ready(())
    }
}
