//! `RankGroup`: the engine's `Runner` over one or more ranks.

use super::link::{RankLink, Reply};
use super::worker::{self, RankSpec};
use crate::engine::{PLANS_UNDER_WAY_MAX, Plan, Runner, RunnerError, StepOutput};
use kernels::comm::solo::Solo;
use kernels::{Backend, DType};
use models::{LoadError, Model};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// What a rank allocates before it serves.
#[derive(Debug, Clone)]
pub struct RankConfig {
    pub backend: Backend,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// F32 or F16.
    pub kv_dtype: DType,
    /// Most chunks in a plan.
    pub max_num_seqs: usize,
    /// Most tokens in a plan.
    pub max_num_batched_tokens: usize,
    /// Core the rank's thread binds itself to.
    pub pin_core: Option<usize>,
    /// Token ids from here on are padding of the embedding and never sampled.
    pub sampleable_vocab: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum RankStartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot start the thread of rank {rank}: {source}")]
    Thread { rank: usize, source: std::io::Error },
    #[error("rank {rank} panicked while it loaded the model: {reason}")]
    Panicked { rank: usize, reason: String },
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
}

impl RankGroup {
    /// Starts a group of one. The model is loaded on the rank's own thread, which touches its
    /// memory first; returns when it is loaded and the cache is allocated.
    ///
    /// Errors: whatever `model` returns, memory for cache or buffers, the thread itself.
    pub fn start(
        config: RankConfig,
        model: impl FnOnce() -> Result<Box<dyn Model>, LoadError> + Send + 'static,
    ) -> Result<RankGroup, RankStartError> {
        let communicator = Box::new(Solo);
        Self::start_all(vec![RankSpec { config, communicator, model: Box::new(model) }])
    }

    /// Starts one rank per spec, in rank order; all load at the same time.
    pub(super) fn start_all(specs: Vec<RankSpec>) -> Result<RankGroup, RankStartError> {
        assert!(!specs.is_empty(), "a group has at least one rank");
        // A rank has an answer outstanding to each plan under way and, when it ends, one failure.
        let (reply_sender, replies) = sync_channel((PLANS_UNDER_WAY_MAX + 1) * specs.len());
        let mut links = Vec::with_capacity(specs.len());
        let mut started = Vec::with_capacity(specs.len());
        for (rank, spec) in specs.into_iter().enumerate() {
            let (started_sender, started_receiver) = sync_channel(1);
            links.push(worker::spawn(rank, spec, started_sender, reply_sender.clone())?);
            started.push(started_receiver);
        }
        for (rank, receiver) in started.into_iter().enumerate() {
            receiver.recv().unwrap_or_else(|_| {
                let reason = "its thread ended".to_string();
                Err(RankStartError::Panicked { rank, reason })
            })?;
        }
        let (num_answered, outputs) = (vec![0; links.len()], VecDeque::new());
        Ok(RankGroup { links, replies, num_under_way: 0, num_answered, outputs, lost: None })
    }

    fn lose(&mut self, error: RunnerError) -> RunnerError {
        self.num_under_way = 0;
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
            match self.replies.recv() {
                Ok(Reply { rank, result: Ok(step) }) => {
                    self.num_answered[rank] += 1;
                    if rank == 0 {
                        self.outputs.push_back(step);
                    }
                }
                Ok(Reply { result: Err(error), .. }) => return Err(self.lose(error)),
                Err(_) => {
                    let error = self.failure_of(0);
                    return Err(self.lose(error));
                }
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
        let healthy = self.lost.is_none();
        self.links.drain(..).for_each(|link| {
            if healthy {
                link.join()
            }
        });
    }
}
