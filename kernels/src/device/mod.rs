//! The machines that ops run on, and their memory.

pub mod arena;
pub mod cpu;
pub mod cuda;
pub mod library;
pub mod limits;
pub mod memory;
pub mod simd;
pub mod thread;
pub mod thread_pool;
