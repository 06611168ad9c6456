//! Decides what runs next: no JSON, no clock, no hidden randomness. Async ends at `handle.rs`.

pub mod constraint;
pub mod request;
pub mod pooling;
pub mod handle;
mod event_queue;
pub mod engine_loop;
pub mod scheduler;
pub mod sequence;
pub mod policy;
pub mod blocks;
pub mod plan;
pub mod runner;
pub mod stats;

pub use blocks::PrefixCaching;
pub use constraint::{Allowed, Constraint, ConstraintError, ConstraintSource, TokenMask, Wake};
pub use engine_loop::{Engine, EngineThread, start};
pub use handle::{Admission, EngineHandle, EngineHealth, TokenStream};
pub use plan::{
    BlockId, Chunk, ChunkInput, ChunkOutput, LastStep, Plan, PromptScore, SampleStep, SequenceId,
    StepOutput,
};
pub use policy::PolicyKind;
pub use pooling::{Pooled, Pooling};
pub use request::{
    CacheSalt, EngineError, Event, FinishReason, Lane, Rejected, Request, SampledToken,
    SamplingParams, Tenant, TenantId, TokenLogprobs,
};
pub use runner::{Overlap, PLANS_UNDER_WAY_MAX, Runner, RunnerError};
pub use scheduler::EngineConfig;
pub use stats::{EngineStats, STEP_TOKENS_BOUNDS};
