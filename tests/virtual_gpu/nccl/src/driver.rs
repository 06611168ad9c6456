//! What NCCL asks of the Virtual GPU's driver, with its own codes for what went wrong.

use crate::abi::{Code, Result, refuse};
use std::ffi::c_void;
use virtual_gpu::link::{self, LinkError, Release, Start};
pub use virtual_gpu::link::{
    CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_TIMEOUT, PENDING, Ticket, complete,
};

fn refuse_other_driver<T>() -> Result<T> {
    let why = "libcuda.so.1 is not the Virtual GPU's; this libnccl.so.2 works with that one only";
    refuse(Code::SYSTEM_ERROR, why)
}

/// The device of the calling thread's context.
pub fn current_device() -> Result<i32> {
    match link::current_device() {
        Ok(device) => Ok(device),
        Err(LinkError::OtherDriver) => refuse_other_driver(),
        Err(LinkError::Code(_)) => {
            refuse(Code::UNHANDLED_CUDA_ERROR, "the calling thread has no CUDA context")
        }
    }
}

/// Enqueues `start(data)`; `release(data)` is called once in the end, also if this fails.
///
/// # Safety
/// As `link::enqueue`.
pub unsafe fn enqueue(
    device: i32,
    stream: u64,
    start: Start,
    data: *mut c_void,
    release: Release,
) -> Result<()> {
    // SAFETY: as the caller promised.
    match unsafe { link::enqueue(device, stream, start, data, release) } {
        Ok(()) => Ok(()),
        Err(LinkError::OtherDriver) => refuse_other_driver(),
        Err(LinkError::Code(code)) => {
            refuse(Code::UNHANDLED_CUDA_ERROR, &format!("CUDA error {code} of the stream"))
        }
    }
}

/// The device whose live allocation holds the range.
pub fn range_device(address: u64, bytes: u64) -> Result<Option<i32>> {
    link::range_device(address, bytes).or_else(|_| refuse_other_driver())
}

/// Errors: the CUDA code.
pub fn read(device: i32, address: u64, len: usize) -> std::result::Result<Vec<u8>, u32> {
    link::read(device, address, len).map_err(code_of)
}

/// Errors: the CUDA code.
pub fn write(device: i32, address: u64, bytes: &[u8]) -> std::result::Result<(), u32> {
    link::write(device, address, bytes).map_err(code_of)
}

fn code_of(error: LinkError) -> u32 {
    match error {
        LinkError::OtherDriver => CUDA_ERROR_LAUNCH_FAILED,
        LinkError::Code(code) => code,
    }
}
