//! `RankGroup`: the engine's `Runner` over one or more ranks.

use super::leader::Leader;
use super::link::{RankLink, Reply};
use super::loaded::LoadedGroup;
use super::meet::Breaker;
use super::progress::{LOOK_INTERVAL, Progress, Watch};
use crate::engine::{PLANS_UNDER_WAY_MAX, Plan, Runner, RunnerError, StepOutput};
use kernels::{Backend, DType};
use models::LoadError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// What a rank loads before it is told how much room there is for keys and values.
#[derive(Debug, Clone)]
pub struct RankConfig {
    pub backend: Backend,
    /// Tokens in a block.
    pub block_size: usize,
    /// F32 or F16; on a GPU its activation format.
    pub kv_dtype: DType,
    /// Most chunks in a plan.
    pub max_num_seqs: usize,
    /// Most tokens in a plan.
    pub max_num_batched_tokens: usize,
    /// Core the rank's thread binds itself to.
    pub pin_core: Option<usize>,
    /// Most tokens of a sequence; it may start with fewer.
    pub max_model_len: usize,
    /// On a GPU.
    pub cuda_graphs: CudaGraphs,
    /// Ranks that stand still for so long count as lost; `None`: never.
    pub stall_time_max: Option<Duration>,
}

/// Whether decode steps are recorded once and replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CudaGraphs {
    #[default]
    On,
    /// Every kernel is launched by itself: the plain form, for checking.
    Off,
}

#[derive(Debug, thiserror::Error)]
pub enum RankStartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot start the thread of rank {rank}: {source}")]
    Thread { rank: usize, source: std::io::Error },
    #[error("rank {rank} panicked while it loaded the model: {reason}")]
    Panicked { rank: usize, reason: String },
    #[error("rank {rank} computes on {other}, rank 0 on {own}; they would not get the same bits")]
    Unlike { rank: usize, other: String, own: String },
    /// In another process.
    #[error("the group could not start: {0}")]
    Process(RunnerError),
}

/// All ranks of one model. Every rank gets every plan; rank 0's answer is the step's output.
pub struct RankGroup {
    links: Vec<RankLink>,
    /// Shared by all ranks, so that the first failure is seen even while others wait for the failed
    /// one.
    replies: Receiver<Reply>,
    /// Plans sent and not collected.
    num_under_way: usize,
    /// By rank: plans it has answered that are not collected. One rank may be ahead of another.
    num_answered: Vec<usize>,
    /// Rank 0's answers to them.
    outputs: VecDeque<StepOutput>,
    /// Set once, when a rank is lost; every later call answers the same.
    lost: Option<RunnerError>,
    progress: Progress,
    /// `None`: no limit.
    pub(super) stall_time_max: Option<Duration>,
    /// Of ranks that wait for each other in this process.
    breakers: Vec<Breaker>,
    /// Of ranks in other processes.
    leader: Option<Leader>,
}

impl RankGroup {
    /// `others`: the links to the ranks of other processes. `progress`: of all ranks.
    pub(super) fn new(loaded: LoadedGroup, others: Vec<RankLink>, progress: Progress) -> RankGroup {
        let LoadedGroup { ranks, replies, stall_time_max, breakers, leader, .. } = loaded;
        let links: Vec<RankLink> = ranks.into_iter().map(|rank| rank.link).chain(others).collect();
        RankGroup {
            replies,
            num_under_way: 0,
            num_answered: vec![0; links.len()],
            outputs: VecDeque::new(),
            links,
            lost: None,
            progress,
            stall_time_max,
            breakers,
            leader,
        }
    }

    /// The next answer of any rank, unless all stand still or a process is lost.
    fn next_reply(&mut self) -> Result<Reply, RunnerError> {
        let mut watch = Watch::new(self.progress.total(), Instant::now());
        loop {
            match self.replies.recv_timeout(LOOK_INTERVAL) {
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure_of(0)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(error) = self.leader.as_ref().and_then(Leader::lost) {
                return Err(error);
            }
            let still = watch.still(self.progress.total(), Instant::now());
            if self.stall_time_max.is_some_and(|max| still >= max) {
                return Err(RunnerError::Stalled { seconds: still.as_secs() });
            }
        }
    }

    fn lose(&mut self, error: RunnerError) -> RunnerError {
        self.num_under_way = 0;
        self.breakers.iter().for_each(Breaker::trip);
        if let Some(leader) = &self.leader {
            leader.fail(error.to_string());
        }
        self.lost.get_or_insert(error).clone()
    }

    /// The reason that a rank left behind when it ended.
    fn failure_of(&mut self, rank: usize) -> RunnerError {
        while let Ok(reply) = self.replies.try_recv() {
            if let Err(error) = reply.result {
                return error;
            }
        }
        RunnerError::RankFailed { rank, reason: "its thread ended".to_string() }
    }
}

impl Runner for RankGroup {
    /// Panics when `PLANS_UNDER_WAY_MAX` plans are under way already.
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        assert!(self.num_under_way < PLANS_UNDER_WAY_MAX, "too many plans are under way");
        let shared = Arc::new(plan.clone());
        for rank in 0..self.links.len() {
            if !self.links[rank].send(shared.clone()) {
                let error = self.failure_of(rank);
                return Err(self.lose(error));
            }
        }
        self.num_under_way += 1;
        Ok(())
    }

    /// Panics when no plan is under way.
    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        assert!(self.num_under_way > 0, "no plan is under way");
        while self.num_answered.contains(&0) {
            match self.next_reply() {
                Ok(Reply { rank, result: Ok(step) }) => {
                    self.num_answered[rank] += 1;
                    if rank == 0 {
                        self.outputs.push_back(step);
                    }
                }
                Ok(Reply { result: Err(error), .. }) | Err(error) => return Err(self.lose(error)),
            }
        }
        self.num_under_way -= 1;
        self.num_answered.iter_mut().for_each(|count| *count -= 1);
        Ok(self.outputs.pop_front().expect("every rank answered, rank 0 among them"))
    }
}

impl Drop for RankGroup {
    fn drop(&mut self) {
        // When one rank is lost, another may wait for it for ever; then the threads are left to the
        // end of the process.
        let lost = self.lost.is_some() || self.leader.as_ref().is_some_and(|l| l.lost().is_some());
        if let Some(leader) = self.leader.as_ref().filter(|_| !lost) {
            leader.close();
        }
        self.links.drain(..).for_each(|link| if lost { link.abandon() } else { link.join() });
    }
}
