//! The link to a rank: a channel to its thread, or to the thread that sends to its process.

use crate::engine::{PLANS_UNDER_WAY_MAX, Plan, RunnerError, StepOutput};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;

/// Plans that wait in a link: all that the engine has under way.
pub(super) const PLANS_WAITING_MAX: usize = PLANS_UNDER_WAY_MAX;

/// What a rank says after each plan; an error is its last word.
#[derive(Debug)]
pub(super) struct Reply {
    pub rank: usize,
    pub result: Result<StepOutput, RunnerError>,
}

pub(super) struct RankLink {
    plans: SyncSender<Arc<Plan>>,
    thread: JoinHandle<()>,
}

impl RankLink {
    pub fn new(plans: SyncSender<Arc<Plan>>, thread: JoinHandle<()>) -> Self {
        Self { plans, thread }
    }

    /// Whether the plan is on its way; not so when the rank has ended.
    pub fn send(&self, plan: Arc<Plan>) -> bool {
        self.plans.send(plan).is_ok()
    }

    /// As `send`, without waiting: gives the plan back when the link is full.
    pub fn try_send(&self, plan: Arc<Plan>) -> Result<(), TrySendError<Arc<Plan>>> {
        self.plans.try_send(plan)
    }

    /// Closes the link and waits until the rank has finished its step and ended.
    pub fn join(self) {
        drop(self.plans);
        // A panic of the rank was already reported as its reply.
        let _ = self.thread.join();
    }

    /// Leaves the rank to itself, without a word: it may never answer.
    pub fn abandon(self) {
        std::mem::forget(self.plans);
    }
}
