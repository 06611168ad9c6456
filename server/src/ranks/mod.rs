//! Computes what the engine decided, one worker thread per device, in this process or in others.

mod cuda_pooling;
mod cuda_runner;
mod cuda_sampler;
pub mod follower;
pub mod group;
pub mod leader;
mod link;
mod loaded;
mod meet;
mod model_runner;
mod peers;
mod pooling;
pub mod progress;
mod rows;
pub mod sampler;
mod step_runner;
mod timing;
mod wire;
mod worker;

#[cfg(test)]
mod tests;

pub use follower::Follower;
pub use group::{CudaGraphs, RankConfig, RankGroup, RankStartError};
pub use leader::{GroupWatch, Leader};
pub use loaded::LoadedGroup;
pub use meet::Sums;
pub use timing::{GpuTimes, GpuTimesError, TimingRunner};
pub use wire::{KvFormat, Offer, Room, Setup, Start};
