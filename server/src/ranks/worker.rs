//! A rank's thread: loads the model, then turns plans into answers until the link closes or
//! something breaks.

use super::group::{RankConfig, RankStartError};
use super::link::{PLANS_WAITING_MAX, RankLink, Reply};
use super::model_runner::ModelRunner;
use crate::engine::{Plan, RunnerError};
use kernels::comm::Communicator;
use kernels::device::thread_pool::pin_current_thread;
use models::{LoadError, Model};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

pub(super) type ModelSource = Box<dyn FnOnce() -> Result<Box<dyn Model>, LoadError> + Send>;

/// All that one rank needs to start.
pub(super) struct RankSpec {
    pub config: RankConfig,
    pub communicator: Box<dyn Communicator>,
    pub model: ModelSource,
}

/// Starts the thread `rank-N`. It says on `started` how loading went, then answers each plan on
/// `replies`.
pub(super) fn spawn(
    rank: usize,
    spec: RankSpec,
    started: SyncSender<Result<(), RankStartError>>,
    replies: SyncSender<Reply>,
) -> Result<RankLink, RankStartError> {
    let (plan_sender, plans) = sync_channel(PLANS_WAITING_MAX);
    let thread = std::thread::Builder::new()
        .name(format!("rank-{rank}"))
        .spawn(move || {
            let result = load(rank, spec);
            let (told, runner) = match result {
                Ok(runner) => (Ok(()), Some(runner)),
                Err(error) => (Err(error), None),
            };
            // Sending fails only when the group was given up before it started.
            if started.send(told).is_ok()
                && let Some(mut runner) = runner
            {
                serve(rank, &mut runner, &plans, &replies);
            }
        })
        .map_err(|source| RankStartError::Thread { rank, source })?;
    Ok(RankLink::new(plan_sender, thread))
}

fn load(rank: usize, spec: RankSpec) -> Result<ModelRunner, RankStartError> {
    if let Some(core) = spec.config.pin_core {
        pin_current_thread(core);
    }
    catch_unwind(AssertUnwindSafe(|| {
        let model = (spec.model)()?;
        Ok(ModelRunner::new(&spec.config, model, spec.communicator)?)
    }))
    .unwrap_or_else(|panic| Err(RankStartError::Panicked { rank, reason: reason_of(panic) }))
}

fn serve(
    rank: usize,
    runner: &mut ModelRunner,
    plans: &Receiver<Arc<Plan>>,
    replies: &SyncSender<Reply>,
) {
    while let Ok(plan) = plans.recv() {
        // After a panic the runner is not used again, so that broken state cannot be seen.
        let result = catch_unwind(AssertUnwindSafe(|| runner.run(&plan)))
            .map_err(|panic| format!("panic: {}", reason_of(panic)))
            .and_then(|result| result.map_err(|error| error.to_string()))
            .map_err(|reason| RunnerError::RankFailed { rank, reason });
        let failed = result.is_err();
        if replies.send(Reply { rank, result }).is_err() || failed {
            return;
        }
    }
}

fn reason_of(panic: Box<dyn Any + Send>) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no reason given".to_string())
}
