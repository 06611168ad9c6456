//! The seam between deciding and computing.

use super::plan::{ChunkOutput, Plan, StepOutput};

/// Plans that are launched and not collected, at most.
pub const PLANS_UNDER_WAY_MAX: usize = 2;

/// Computes plans strictly in the order of their launches: what one step writes, the next one
/// reads, and never the other way round. At most `PLANS_UNDER_WAY_MAX` plans are under way.
pub trait Runner: Send {
    /// Starts the step, or queues it behind the one under way, and returns without waiting.
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError>;
    /// Waits for the oldest step that was launched and not collected.
    fn collect(&mut self) -> Result<StepOutput, RunnerError>;
    /// Takes back the room of an output, empty, for one to come.
    fn take_back(&mut self, room: Vec<ChunkOutput>) {
        drop(room);
    }
}

/// Whether the next step is planned and launched while one is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// The plain loop: schedule, launch, collect, commit.
    Disabled,
    /// The device never waits for the engine, which takes it that sequences go on until it sees
    /// that they have ended.
    #[default]
    Enabled,
}

impl Overlap {
    pub fn plans_under_way_max(self) -> usize {
        match self {
            Overlap::Disabled => 1,
            Overlap::Enabled => PLANS_UNDER_WAY_MAX,
        }
    }
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
