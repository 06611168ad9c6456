//! The kernel engine of the Virtual GPU: parses the PTX that nvcc emitted and executes it on the
//! CPU, warp by warp, with the checks of compute-sanitizer (memcheck, initcheck, racecheck,
//! synccheck) and counters of what was executed.
//!
//! It knows the sm_80 instruction set as far as nvcc 13.0 emits it for kernels of an LLM server.
//! What it does not know it refuses by name; it never guesses. It says nothing about speed on
//! hardware.
//!
//! Source of every semantic: "Parallel Thread Execution ISA", version 9.0.

// Lanes index several arrays at once; a warp, its block and an instruction are three arguments.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

pub mod ptx;
pub mod memory;
pub mod checks;
pub mod counters;
pub mod exec;
pub mod link;

pub use checks::{CheckKind, Checks, Violation};
pub use counters::Counters;
pub use exec::{LaunchConfig, launch};
pub use memory::GlobalMemory;
pub use ptx::Module;
