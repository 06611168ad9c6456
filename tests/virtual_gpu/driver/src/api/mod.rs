//! The C interface, by chapter of the CUDA Driver API reference.

pub mod device;
pub mod context;
pub mod memory;
pub mod copy;
pub mod pool;
pub mod module;
pub mod launch;
pub mod stream;
pub mod event;
pub mod graph;
pub mod link;
