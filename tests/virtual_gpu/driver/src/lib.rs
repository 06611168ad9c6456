//! The driver half of the Virtual GPU: a `libcuda.so.1` without hardware, for tests.
//!
//! It keeps the real driver's rules (what is asynchronous, what a capture forbids, which errors
//! stick, which limits hold) and runs kernels by interpreting the PTX in the module image. It
//! encodes what we believe of the real driver, so what passes here has not been "tested on CUDA".
//!
//! A call enters in `api/`, is checked, and becomes an operation in `queue`; `run` executes
//! operations on the thread that waits for them. Environment variables are described in `config`.
//!
//! Errors of the program are told by the code that the real driver would return and, unlike there,
//! by a line on stderr that begins with `virtual GPU:`.
#![allow(unsafe_code)]

pub mod api;
mod entry;
mod config;
mod device_model;
mod state;
mod fatbin;
mod module;
mod launch;
mod capture;
mod queue;
mod run;
mod helper;
mod engine;
mod report;
mod abi;
