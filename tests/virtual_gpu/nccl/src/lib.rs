//! The NCCL half of the Virtual GPU: a `libnccl.so.2` whose ranks are devices of the Virtual GPU in
//! one process.
//!
//! A call becomes an operation of its stream, through private functions of the Virtual GPU's
//! `libcuda.so.1`; in a capture it becomes a node of the graph. When it runs, it meets the
//! operations of the other ranks: the n-th that each rank runs belong together, as with the real
//! library. The last to arrive computes for all, adding in rank order. A rank that stays away
//! leaves the others hanging, until `ncclCommAbort`, or until `VIRTUAL_GPU_NCCL_TIMEOUT_S` seconds
//! have passed.
//!
//! Not built: ranks in other processes, splitting, non-blocking communicators, user-defined
//! reductions.
#![allow(unsafe_code)]

pub mod api;
mod group;
mod clique;
mod watchdog;
mod reduce;
mod driver;
mod abi;
