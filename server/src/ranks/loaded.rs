//! The start of a group: its ranks load, which shows how much room there is for keys and values,
//! and then start with as much as the smallest has.

use super::group::{RankConfig, RankGroup, RankStartError};
use super::leader::Leader;
use super::link::Reply;
use super::meet::{Breaker, Sums, links_between};
use super::progress::{Counted, Progress};
use super::wire::Start;
use super::worker::{self, RankSpec, StartingRank};
use crate::engine::PLANS_UNDER_WAY_MAX;
use kernels::Backend;
use kernels::comm::solo::Solo;
use models::{LoadError, Model, ShardSpec};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Ranks with all their memory but that of keys and values. When this is dropped their threads end.
pub struct LoadedGroup {
    /// Of this process.
    pub(super) ranks: Vec<StartingRank>,
    /// By rank of this process: bytes that its GPU has left; `None`: it has none.
    free_bytes: Vec<Option<u64>>,
    reply_sender: SyncSender<Reply>,
    pub(super) replies: Receiver<Reply>,
    pub(super) progress: Progress,
    pub(super) stall_time_max: Option<Duration>,
    pub(super) breakers: Vec<Breaker>,
    pub(super) leader: Option<Leader>,
}

impl LoadedGroup {
    /// Loads a group of one, on the rank's own thread, which touches its memory first.
    ///
    /// Errors: whatever `model` returns, memory for buffers, the thread itself.
    pub fn load(
        config: RankConfig,
        model: impl FnOnce() -> Result<Box<dyn Model>, LoadError> + Send + 'static,
    ) -> Result<LoadedGroup, RankStartError> {
        let communicator = Box::new(Solo);
        let spec = RankSpec { config, communicator, model: Box::new(model) };
        Self::load_all(vec![spec], Vec::new(), None)
    }

    /// Loads one rank per configuration, all in this process. `model` loads the part of each.
    ///
    /// Errors: as `load`; GPUs that cannot be joined.
    pub fn load_local<F>(configs: Vec<RankConfig>, model: F) -> Result<LoadedGroup, RankStartError>
    where
        F: Fn(&Backend, ShardSpec) -> Result<Box<dyn Model>, LoadError> + Send + Sync + 'static,
    {
        if let [config] = &configs[..] {
            let config = config.clone();
            let backend = config.backend.clone();
            return Self::load(config, move || model(&backend, ShardSpec::SOLO));
        }
        let (links, breakers) = links_between(&configs)?;
        let model = Arc::new(model);
        let specs = configs.into_iter().zip(links).map(|(config, communicator)| {
            let spec =
                ShardSpec { rank: communicator.rank(), world_size: communicator.world_size() };
            let (model, backend) = (model.clone(), config.backend.clone());
            let model = Box::new(move || model(&backend, spec));
            RankSpec { config, communicator, model }
        });
        Self::load_all(specs.collect(), breakers, None)
    }

    /// Loads rank 0 of a group whose other ranks are processes of their own.
    ///
    /// Errors: as `load`; a process was lost.
    pub fn load_leading<F>(
        leader: Leader,
        config: RankConfig,
        sums: Sums,
        model: F,
    ) -> Result<LoadedGroup, RankStartError>
    where
        F: FnOnce(&Backend, ShardSpec) -> Result<Box<dyn Model>, LoadError> + Send + 'static,
    {
        let (communicator, breaker) = leader.meet(sums, &config.backend)?;
        let spec = ShardSpec { rank: 0, world_size: communicator.world_size() };
        let backend = config.backend.clone();
        let model = Box::new(move || model(&backend, spec));
        let spec = RankSpec { config, communicator, model };
        Self::load_all(vec![spec], breaker.into_iter().collect(), Some(leader))
    }

    /// Loads one rank per spec, in rank order; all load at the same time.
    pub(super) fn load_all(
        specs: Vec<RankSpec>,
        breakers: Vec<Breaker>,
        leader: Option<Leader>,
    ) -> Result<LoadedGroup, RankStartError> {
        assert!(!specs.is_empty(), "a group has at least one rank");
        let num_others = leader.as_ref().map_or(0, Leader::num_others);
        // A rank has an answer outstanding to each plan under way and, when it ends, one failure.
        let num_ranks = specs.len() + num_others;
        let (reply_sender, replies) = sync_channel((PLANS_UNDER_WAY_MAX + 1) * num_ranks);
        let stall_time_max = stall_time_max(&specs[0].config);
        let mut progress = Progress::default();
        let mut ranks = Vec::with_capacity(specs.len());
        for (rank, spec) in specs.into_iter().enumerate() {
            let spec = count(spec, &mut progress);
            ranks.push(worker::spawn(rank, spec, reply_sender.clone())?);
        }
        let mut group = LoadedGroup {
            ranks,
            free_bytes: Vec::new(),
            reply_sender,
            replies,
            progress,
            stall_time_max,
            breakers,
            leader,
        };
        for (rank, starting) in group.ranks.iter().enumerate() {
            let free_bytes = group.told(rank, &starting.loaded)?;
            group.free_bytes.push(free_bytes);
        }
        Ok(group)
    }

    /// By rank of this process: bytes that its GPU has left; `None`: it has none.
    pub fn free_bytes(&self) -> &[Option<u64>] {
        &self.free_bytes
    }

    /// The smaller of `num_blocks`, for which this process has room, and of what every other one
    /// has room for, once all have loaded.
    ///
    /// Errors: a process was lost or could not load.
    pub fn least_blocks(&self, num_blocks: usize) -> Result<usize, RankStartError> {
        let Some(leader) = &self.leader else { return Ok(num_blocks) };
        Ok(leader.loaded().map_err(RankStartError::Process)?.min(num_blocks))
    }

    /// Makes room for keys and values on every rank, and waits until plans may come.
    ///
    /// Errors: memory for the cache; a process was lost.
    pub fn start(self, start: Start) -> Result<RankGroup, RankStartError> {
        let others = self.start_ranks(start);
        if others.is_err() {
            // A rank may wait for one that could not start.
            self.breakers.iter().for_each(Breaker::trip);
        }
        let (others, progress) = others?;
        Ok(RankGroup::new(self, others, progress))
    }

    /// Gives the links to the ranks of other processes, and what all ranks count.
    fn start_ranks(
        &self,
        start: Start,
    ) -> Result<(Vec<super::link::RankLink>, Progress), RankStartError> {
        if let Some(leader) = &self.leader {
            leader.start(start);
        }
        for rank in &self.ranks {
            // A thread that has ended says so below.
            let _ = rank.start.send(start);
        }
        for (rank, starting) in self.ranks.iter().enumerate() {
            self.told(rank, &starting.started)?;
        }
        let mut progress = self.progress.clone();
        let others = match &self.leader {
            Some(leader) => leader.links(&mut progress, &self.reply_sender)?,
            None => Vec::new(),
        };
        Ok((others, progress))
    }

    /// What a rank of this process says.
    fn told<T>(
        &self,
        rank: usize,
        from: &Receiver<Result<T, RankStartError>>,
    ) -> Result<T, RankStartError> {
        let told = match &self.leader {
            Some(leader) => leader.receive(from).map_err(RankStartError::Process)?,
            None => from.recv().ok(),
        };
        told.unwrap_or_else(|| Err(thread_ended(rank)))
    }
}

pub(super) fn thread_ended(rank: usize) -> RankStartError {
    RankStartError::Panicked { rank, reason: "its thread ended".to_string() }
}

/// Wraps what the rank counts.
fn count(mut spec: RankSpec, progress: &mut Progress) -> RankSpec {
    let count = Arc::new(AtomicU64::new(0));
    progress.add(count.clone());
    progress.add_backend(&spec.config.backend);
    spec.communicator = Box::new(Counted { inner: spec.communicator, count });
    spec
}

/// The reference is for checking and counts only sums: with a large model they are far apart.
fn stall_time_max(config: &RankConfig) -> Option<Duration> {
    match config.backend {
        Backend::Reference => None,
        Backend::Cpu(_) | Backend::Cuda(_) => config.stall_time_max,
    }
}
