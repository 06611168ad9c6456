//! Codes and numbers of the NCCL interface. Source: nccl.h 2.27.

use std::ffi::c_char;

/// An `ncclResult_t`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Code(pub u32);

impl Code {
    pub const SUCCESS: Code = Code(0);
    pub const UNHANDLED_CUDA_ERROR: Code = Code(1);
    pub const SYSTEM_ERROR: Code = Code(2);
    pub const INVALID_ARGUMENT: Code = Code(4);
    pub const INVALID_USAGE: Code = Code(5);
    pub const REMOTE_ERROR: Code = Code(6);

    /// What `ncclGetErrorString` says, with its closing zero.
    pub fn text(self) -> &'static str {
        match self.0 {
            0 => "no error\0",
            1 => "unhandled cuda error\0",
            2 => "unhandled system error\0",
            3 => "internal error\0",
            4 => "invalid argument\0",
            5 => "invalid usage\0",
            6 => "remote process exited or there was a network error\0",
            7 => "NCCL operation in progress\0",
            _ => "unknown result code\0",
        }
    }
}

pub type Result<T> = std::result::Result<T, Code>;

/// 2.27.7, the release that came with CUDA 13.0.
pub const VERSION: i32 = 22707;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId {
    pub internal: [c_char; 128],
}

/// Refuses a call, and says why on stderr.
pub fn refuse<T>(code: Code, why: &str) -> Result<T> {
    eprintln!("virtual GPU: NCCL: {why}");
    crate::api::set_last_error(why);
    Err(code)
}
