//! Decides what runs next: no JSON, no clock, no hidden randomness. Async ends at `handle.rs`.

pub mod request;
pub mod plan;
pub mod runner;

pub use plan::{BlockId, Chunk, ChunkOutput, Plan, SampleStep, SequenceId, StepOutput};
pub use request::{
    CacheSalt, EngineError, Event, FinishReason, Rejected, Request, SampledToken, SamplingParams,
    TokenLogprobs,
};
pub use runner::{Runner, RunnerError};
