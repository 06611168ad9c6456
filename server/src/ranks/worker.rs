//! A rank's thread: loads the model, makes room for keys and values when it is told how much, then
//! turns plans into answers until the link closes or something breaks.

use super::group::{RankConfig, RankStartError};
use super::link::{PLANS_WAITING_MAX, RankLink, Reply};
use super::step_runner::{self, StepError, StepRunner};
use super::wire::Start;
use crate::engine::{PLANS_UNDER_WAY_MAX, Plan, RunnerError};
use kernels::comm::Communicator;
use kernels::device::thread_pool::pin_current_thread;
use models::{LoadError, Model};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvError, RecvTimeoutError, SyncSender, TryRecvError, sync_channel,
};
use std::time::Duration;

/// While a device computes, the next plan is looked for and the device asked in turn, this often.
const LOOK_INTERVAL: Duration = Duration::from_micros(20);

pub(super) type ModelSource = Box<dyn FnOnce() -> Result<Box<dyn Model>, LoadError> + Send>;

/// All that one rank needs to load.
pub(super) struct RankSpec {
    pub config: RankConfig,
    pub communicator: Box<dyn Communicator>,
    pub model: ModelSource,
}

/// A rank on its way. When this is dropped its thread ends, as soon as it has loaded.
pub(super) struct StartingRank {
    pub link: RankLink,
    /// How loading went, and what its GPU then has left, in bytes.
    pub loaded: Receiver<Result<Option<u64>, RankStartError>>,
    pub start: SyncSender<Start>,
    /// How that went.
    pub started: Receiver<Result<(), RankStartError>>,
}

/// Starts the thread `rank-N`. It loads, starts when told to, then answers each plan on `replies`.
pub(super) fn spawn(
    rank: usize,
    spec: RankSpec,
    replies: SyncSender<Reply>,
) -> Result<StartingRank, RankStartError> {
    let (plan_sender, plans) = sync_channel(PLANS_WAITING_MAX);
    let (loaded_sender, loaded) = sync_channel(1);
    let (start, starts) = sync_channel(1);
    let (started_sender, started) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("rank-{rank}"))
        .spawn(move || {
            // Sending fails when the group was given up before it started, and receiving, too.
            let (mut runner, free_bytes) = match load(rank, spec) {
                Ok(loaded) => loaded,
                Err(error) => return drop(loaded_sender.send(Err(error))),
            };
            let told = loaded_sender.send(Ok(free_bytes));
            let Ok(start) = told.map_or(Err(RecvError), |()| starts.recv()) else { return };
            let result = guard_start(rank, || Ok(runner.start(&start)?));
            let has_started = result.is_ok();
            if started_sender.send(result).is_ok() && has_started {
                serve(rank, &mut *runner, &plans, &replies);
            }
        })
        .map_err(|source| RankStartError::Thread { rank, source })?;
    Ok(StartingRank { link: RankLink::new(plan_sender, thread), loaded, start, started })
}

fn load(rank: usize, spec: RankSpec) -> Result<(Box<dyn StepRunner>, Option<u64>), RankStartError> {
    if let Some(core) = spec.config.pin_core {
        pin_current_thread(core);
    }
    guard_start(rank, || {
        let model = (spec.model)()?;
        let runner = step_runner::build(&spec.config, model, spec.communicator)?;
        let free_bytes = runner.free_bytes().map_err(LoadError::from)?;
        Ok((runner, free_bytes))
    })
}

fn guard_start<T>(
    rank: usize,
    work: impl FnOnce() -> Result<T, RankStartError>,
) -> Result<T, RankStartError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(RankStartError::Panicked { rank, reason: reason_of(panic) }))
}

/// Answers plans in order. While one is under way on a device the next one is queued behind it.
fn serve(
    rank: usize,
    runner: &mut dyn StepRunner,
    plans: &Receiver<Arc<Plan>>,
    replies: &SyncSender<Reply>,
) {
    let mut num_under_way = 0;
    loop {
        let next = match num_under_way {
            0 => wait_for_plan(runner, plans),
            // No further plan is let in, so there is nothing to do but wait for the device.
            PLANS_UNDER_WAY_MAX => Err(RecvTimeoutError::Disconnected),
            _ => plans.recv_timeout(LOOK_INTERVAL),
        };
        let result = match next {
            Ok(plan) => {
                num_under_way += 1;
                guarded(rank, || runner.launch(&plan).map(|()| None))
            }
            Err(RecvTimeoutError::Disconnected) if num_under_way == 0 => return,
            Err(RecvTimeoutError::Disconnected) => guarded(rank, || runner.collect().map(Some)),
            Err(RecvTimeoutError::Timeout) => guarded(rank, || match runner.is_done()? {
                true => runner.collect().map(Some),
                false => Ok(None),
            }),
        };
        let (result, failed) = match result {
            Ok(None) => continue,
            Ok(Some(output)) => (Ok(output), false),
            Err(error) => (Err(error), true),
        };
        num_under_way -= 1;
        if replies.send(Reply { rank, result }).is_err() || failed {
            return;
        }
        // Under load that never ends there is no idle time.
        runner.use_spare_time();
    }
}

/// With nothing under way.
fn wait_for_plan(
    runner: &mut dyn StepRunner,
    plans: &Receiver<Arc<Plan>>,
) -> Result<Arc<Plan>, RecvTimeoutError> {
    loop {
        match plans.try_recv() {
            Ok(plan) => return Ok(plan),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) if runner.use_spare_time() => {}
            Err(TryRecvError::Empty) => {
                return plans.recv().map_err(|_| RecvTimeoutError::Disconnected);
            }
        }
    }
}

/// After a panic the runner is not used again, so that broken state cannot be seen.
fn guarded<T>(rank: usize, work: impl FnOnce() -> Result<T, StepError>) -> Result<T, RunnerError> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| format!("panic: {}", reason_of(panic)))
        .and_then(|result| result.map_err(|error| error.to_string()))
        .map_err(|reason| RunnerError::RankFailed { rank, reason })
}

fn reason_of(panic: Box<dyn Any + Send>) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no reason given".to_string())
}
