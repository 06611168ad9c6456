//! The seam between deciding and computing.

use super::plan::{Plan, StepOutput};

/// Computes plans, in order. At most one plan is under way.
pub trait Runner: Send {
    /// Starts the step and returns without waiting for it.
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError>;
    /// Waits for the step that was launched.
    fn collect(&mut self) -> Result<StepOutput, RunnerError>;
}

/// The device or a rank is lost; nothing more can be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunnerError {
    #[error("rank {rank} failed: {reason}")]
    RankFailed { rank: usize, reason: String },
    /// A rank hangs, and the others wait for it.
    #[error("no rank has made progress for {seconds} s")]
    Stalled { seconds: u64 },
    #[error("the engine panicked: {reason}")]
    EnginePanicked { reason: String },
}
