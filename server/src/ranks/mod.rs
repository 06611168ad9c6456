//! Computes what the engine decided, one worker thread per device, in this process or in others.

pub mod follower;
pub mod group;
pub mod leader;
mod link;
mod model_runner;
mod peers;
pub mod progress;
pub mod sampler;
mod wire;
mod worker;

#[cfg(test)]
mod tests;

pub use follower::Follower;
pub use group::{RankConfig, RankGroup, RankStartError};
pub use leader::{GroupWatch, Leader};
pub use wire::{Offer, Room, Setup};
