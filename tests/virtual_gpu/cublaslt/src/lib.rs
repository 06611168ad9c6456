//! The cuBLASLt third of the Virtual GPU: a `libcublasLt.so.13` with what a program needs that
//! multiplies matrices of bf16 or f16 into one of their format or of f32.
//!
//! A product becomes an operation of its stream, through private functions of the Virtual GPU's
//! `libcuda.so.1`; in a capture it becomes a node of the graph. Descriptors are checked at the
//! call, and so is that every matrix lies in live memory of the device. Sums are made in f32, in an
//! order that depends on the number of summands alone.
//!
//! `VIRTUAL_GPU_FAULT` may hold `cublaslt-wrong`: one output of each row is wrong; and
//! `cublaslt-batch`: above 16 columns (rows of x, as row-major callers see it) sums are made in
//! another order, as the real library may.
//!
//! It encodes what we believe of the real library, so what passes here has not been "tested on
//! cuBLASLt". Not built: other formats, epilogues, scale pointers, batches, factors in device
//! memory, products without a chosen algorithm.
#![allow(unsafe_code)]

pub mod api;
mod objects;
mod multiply;
mod faults;
mod abi;
