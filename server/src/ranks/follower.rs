//! A rank other than 0 as a process of its own: it computes what rank 0 sends until told to end.

use super::group::{RankConfig, RankStartError};
use super::link::{RankLink, Reply};
use super::loaded::thread_ended;
use super::meet::{Breaker, Sums, link_to_others};
use super::peers::Peers;
use super::progress::{Counted, Progress};
use super::wire::{Offer, Setup, Sign, Start, Work, decode};
use super::worker::{self, RankSpec, StartingRank};
use crate::engine::{Plan, RunnerError};
use kernels::comm::messages::{Channel, Messages};
use models::{LoadError, Model};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError, sync_channel};
use std::time::Duration;

/// While a plan is computed the next one may wait for so long: looking takes time from the cores.
const BUSY_INTERVAL: Duration = Duration::from_millis(2);
/// Looks for a plan without a pause, about as long as rank 0 takes between two steps.
const EAGER_LOOKS: u32 = 2_000;
/// Then with this pause, and after some seconds with the longer one.
const SHORT_PAUSE: Duration = Duration::from_micros(50);
const SHORT_PAUSES: u32 = 20_000;
const LONG_PAUSE: Duration = Duration::from_millis(2);
/// Rank 0 gets so long to answer its clients before this process ends, since a launcher may then
/// end all others.
const LAST_WORDS_TIME: Duration = Duration::from_millis(1500);

/// The process of one rank, from the first message to the last.
pub struct Follower {
    rank: usize,
    messages: Arc<dyn Messages>,
    peers: Arc<Peers>,
}

/// A rank with all its memory but that of keys and values.
pub struct LoadedRank<'a> {
    follower: &'a Follower,
    rank: StartingRank,
    replies: Receiver<Reply>,
    breaker: Option<Breaker>,
    free_bytes: Option<u64>,
}

impl LoadedRank<'_> {
    /// Bytes that its GPU has left; `None`: it has none.
    pub fn free_bytes(&self) -> Option<u64> {
        self.free_bytes
    }

    /// Tells rank 0 for how many blocks there is room, starts with as many as it says, and computes
    /// plans until it sends no more.
    ///
    /// Errors: there is no memory; `RankStartError::Process`: rank 0 is lost, or this rank failed
    /// in a step.
    pub fn serve(self, num_blocks: usize) -> Result<(), RankStartError> {
        let LoadedRank { follower, rank, replies, breaker, .. } = self;
        let peers = &follower.peers;
        peers.say(Sign::Loaded { num_blocks });
        let start = follower.wait_for_start().map_err(RankStartError::Process)?;
        // A thread that has ended says so next.
        let _ = rank.start.send(start);
        follower.told(&rank.started)?;
        peers.say(Sign::Ready);
        match follower.serve(&rank.link, &replies) {
            Ok(()) => {
                peers.close();
                rank.link.join();
                Ok(())
            }
            Err(error) => {
                breaker.iter().for_each(Breaker::trip);
                rank.link.abandon();
                Err(RankStartError::Process(error))
            }
        }
    }
}

impl Follower {
    /// Errors: the system has no thread for the watch.
    pub fn new(messages: Arc<dyn Messages>) -> std::io::Result<Follower> {
        let peers = Peers::watch(messages.clone(), [0])?;
        Ok(Follower { rank: messages.rank(), messages, peers })
    }

    /// Tells rank 0 what this rank brings and waits for what it decides.
    ///
    /// Errors: rank 0 is lost or has failed.
    pub fn offer(&self, offer: Offer) -> Result<Setup, RunnerError> {
        self.peers.say(Sign::Offer(offer));
        loop {
            match self.next_work()? {
                Some(Work::Setup(setup)) => return Ok(setup),
                Some(work) => return Err(self.broken(format!("{work:?} before a setup"))),
                None => std::thread::sleep(LONG_PAUSE),
            }
        }
    }

    /// Loads the model.
    ///
    /// Errors: the model cannot be loaded; `RankStartError::Process`: rank 0 is lost.
    pub fn load(
        &self,
        config: RankConfig,
        sums: Sums,
        model: impl FnOnce() -> Result<Box<dyn Model>, LoadError> + Send + 'static,
    ) -> Result<LoadedRank<'_>, RankStartError> {
        let (mut progress, count) = (Progress::default(), Arc::new(AtomicU64::new(0)));
        progress.add(count.clone());
        progress.add_backend(&config.backend);
        self.peers.tell(progress);
        let place = (self.rank, self.messages.world_size());
        let (communicator, breaker) = link_to_others(sums, &config.backend, place, &self.peers)?;
        let communicator = Box::new(Counted { inner: communicator, count });
        let spec = RankSpec { config, communicator, model: Box::new(model) };
        // One answer for each plan that is computed or waits, and one failure.
        let (reply_sender, replies) = sync_channel(2 + super::link::PLANS_WAITING_MAX);
        let rank = worker::spawn(self.rank, spec, reply_sender)?;
        let free_bytes = self.told(&rank.loaded)?;
        Ok(LoadedRank { follower: self, rank, replies, breaker, free_bytes })
    }

    /// Tells rank 0 why this process ends, and lets it answer its clients first.
    pub fn fail(&self, reason: String) {
        self.peers.say(Sign::Failed { reason });
        std::thread::sleep(LAST_WORDS_TIME);
    }

    /// What the rank's thread says.
    fn told<T>(&self, from: &Receiver<Result<T, RankStartError>>) -> Result<T, RankStartError> {
        let told = self.peers.receive(from).map_err(RankStartError::Process)?;
        told.unwrap_or_else(|| Err(thread_ended(self.rank)))
    }

    fn wait_for_start(&self) -> Result<Start, RunnerError> {
        loop {
            match self.next_work()? {
                Some(Work::Start(start)) => return Ok(start),
                Some(work) => return Err(self.broken(format!("{work:?} before the start"))),
                None => std::thread::sleep(LONG_PAUSE),
            }
        }
    }

    /// Hands plans to the rank's thread. Never waits for it without an end: it may wait for a rank
    /// that is lost.
    fn serve(&self, link: &RankLink, replies: &Receiver<Reply>) -> Result<(), RunnerError> {
        let (mut pending, mut num_computing, mut num_looks) = (None::<Arc<Plan>>, 0usize, 0u32);
        let mut has_ended = false;
        while !(has_ended && num_computing == 0) {
            if pending.is_none() && !has_ended {
                match self.next_work()? {
                    Some(Work::Plan(plan)) => pending = Some(plan),
                    Some(Work::End) => has_ended = true,
                    Some(work) => return Err(self.broken(format!("{work:?} in between"))),
                    None => {}
                }
            }
            if let Some(plan) = pending.take() {
                match link.try_send(plan) {
                    Ok(()) => num_computing += 1,
                    Err(TrySendError::Full(plan)) => pending = Some(plan),
                    Err(TrySendError::Disconnected(_)) => {}
                }
                num_looks = 0;
            }
            if num_computing == 0 && !has_ended {
                pause(num_looks);
                num_looks = num_looks.saturating_add(1);
                continue;
            }
            match replies.recv_timeout(BUSY_INTERVAL) {
                Ok(Reply { result, .. }) => {
                    result?;
                    num_computing -= 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.broken("the rank's thread ended".to_string()));
                }
            }
        }
        Ok(())
    }

    fn next_work(&self) -> Result<Option<Work>, RunnerError> {
        if let Some(error) = self.peers.lost() {
            return Err(error);
        }
        let Some((_, bytes)) = self.messages.try_receive(Channel::Work) else { return Ok(None) };
        decode(&bytes).map(Some).map_err(|reason| self.broken(reason))
    }

    fn broken(&self, reason: String) -> RunnerError {
        RunnerError::RankFailed { rank: self.rank, reason }
    }
}

fn pause(num_looks: u32) {
    match num_looks {
        ..EAGER_LOOKS => std::thread::yield_now(),
        EAGER_LOOKS..SHORT_PAUSES => std::thread::sleep(SHORT_PAUSE),
        _ => std::thread::sleep(LONG_PAUSE),
    }
}
