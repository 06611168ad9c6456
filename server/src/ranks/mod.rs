//! Computes what the engine decided, one worker thread per device.

pub mod group;
mod link;
mod model_runner;
pub mod sampler;
mod worker;

#[cfg(test)]
mod tests;

pub use group::{RankConfig, RankGroup, RankStartError};
