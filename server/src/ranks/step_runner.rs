//! What a rank's thread drives: plans in, outputs out, on one device.

use super::cuda_runner::CudaRunner;
use super::group::RankConfig;
use super::model_runner::ModelRunner;
use super::sampler::SampleError;
use super::wire::Start;
use crate::engine::{Plan, StepOutput};
use kernels::comm::Communicator;
use kernels::{Backend, KernelError};
use models::weights::shard::num_kv_heads;
use models::{KvCache, LoadError, Model, ShardSpec};

/// Why a step could not be computed. The rank is lost: all of these are broken devices, weights or
/// plans.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("sequence {sequence}: {source}")]
    Sample { sequence: u64, source: SampleError },
}

/// Computes plans in order; up to `PLANS_UNDER_WAY_MAX` may be launched and not collected.
pub(super) trait StepRunner {
    /// Bytes that its GPU has left; `None`: it has none.
    fn free_bytes(&self) -> Result<Option<u64>, KernelError>;
    /// Makes room for keys and values, once, before the first plan.
    ///
    /// Errors: `Kernel` when there is no memory.
    fn start(&mut self, start: &Start) -> Result<(), LoadError>;
    /// Queues a plan. On the CPU it is computed when this returns.
    fn launch(&mut self, plan: &Plan) -> Result<(), StepError>;
    /// Whether the oldest plan under way is computed. Does not wait.
    fn is_done(&mut self) -> Result<bool, StepError>;
    /// Does a little of what can wait, while there is no plan or after one; says whether there is
    /// more.
    fn use_spare_time(&mut self) -> bool {
        false
    }
    /// Waits for the oldest plan under way. Panics when there is none.
    fn collect(&mut self) -> Result<StepOutput, StepError>;
}

/// The runner for the backend of `config`, with all its memory but that of keys and values.
///
/// Errors: those of the runner.
pub(super) fn build(
    config: &RankConfig,
    model: Box<dyn Model>,
    communicator: Box<dyn Communicator>,
) -> Result<Box<dyn StepRunner>, LoadError> {
    Ok(match &config.backend {
        Backend::Cuda(device) => Box::new(CudaRunner::new(config, device, model, communicator)?),
        Backend::Reference | Backend::Cpu(_) => {
            Box::new(ModelRunner::new(config, model, communicator)?)
        }
    })
}

/// The KV cache of a rank with `model`, of `num_blocks` blocks.
///
/// Errors: `Kernel` when there is no memory; `Unsupported` when the heads cannot be shared out
/// among the ranks.
pub(super) fn kv_cache(
    config: &RankConfig,
    model: &dyn Model,
    communicator: &dyn Communicator,
    num_blocks: usize,
) -> Result<KvCache, LoadError> {
    let network = model.config();
    let spec = ShardSpec { rank: communicator.rank(), world_size: communicator.world_size() };
    let heads = num_kv_heads(network, spec)?;
    let (block_size, dtype) = (config.block_size, config.kv_dtype);
    Ok(KvCache::new(&config.backend, network, heads, num_blocks, block_size, dtype)?)
}
