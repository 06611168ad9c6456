//! The NCCL half of the Virtual GPU: a `libnccl.so.2` whose ranks are devices of the Virtual GPU,
//! in one process or in several on one machine.
//!
//! A call becomes an operation of its stream, through private functions of the Virtual GPU's
//! `libcuda.so.1`; in a capture it becomes a node of the graph. When it runs, it meets the
//! operations of the other ranks: the n-th that each rank runs belong together, as with the real
//! library. The last to arrive computes for all, adding in rank order. A rank that stays away
//! leaves the others hanging, until `ncclCommAbort`, or until `VIRTUAL_GPU_NCCL_TIMEOUT_S` seconds
//! have passed.
//!
//! The operations of a clique meet in the process that made its id. A rank of another process finds
//! that one by a socket, and sends along with its calls what lies in their buffers (`remote`); what
//! it receives comes back the same way (`hub`). The sums are those of one process, to the bit.
//!
//! Not built: ranks on other machines, splitting, non-blocking communicators, user-defined
//! reductions.
#![allow(unsafe_code)]

pub mod api;
mod group;
mod clique;
mod remote;
mod hub;
mod wire;
mod watchdog;
mod reduce;
mod driver;
mod abi;
