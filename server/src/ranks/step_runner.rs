//! What a rank's thread drives: plans in, outputs out, on one device.

use super::cuda_runner::CudaRunner;
use super::group::RankConfig;
use super::model_runner::ModelRunner;
use super::sampler::SampleError;
use crate::engine::{Plan, StepOutput};
use kernels::comm::Communicator;
use kernels::{Backend, KernelError};
use models::{LoadError, Model};

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
    /// Queues a plan. On the CPU it is computed when this returns.
    fn launch(&mut self, plan: &Plan) -> Result<(), StepError>;
    /// Whether the oldest plan under way is computed. Does not wait.
    fn is_done(&mut self) -> Result<bool, StepError>;
    /// Does a little of what can wait until there is no plan; says whether there is more.
    fn use_idle_time(&mut self) -> bool {
        false
    }
    /// Waits for the oldest plan under way. Panics when there is none.
    fn collect(&mut self) -> Result<StepOutput, StepError>;
}

/// The runner for the backend of `config`, with all its memory.
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
