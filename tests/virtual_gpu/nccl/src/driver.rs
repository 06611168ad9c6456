//! The private functions of the Virtual GPU's driver, found in the process.

use crate::abi::{Code, Result, refuse};
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// An operation's name in the driver.
pub type Ticket = u64;

/// What `start` returns when `complete` will end the operation.
pub const PENDING: u32 = u32::MAX;

pub const CUDA_ERROR_LAUNCH_TIMEOUT: u32 = 702;
pub const CUDA_ERROR_LAUNCH_FAILED: u32 = 719;

type Start = unsafe extern "C" fn(*mut c_void, Ticket) -> u32;
type Release = unsafe extern "C" fn(*mut c_void);

/// Signatures as in `virtual_gpu_driver`, `api/nccl.rs`.
struct Functions {
    context_device: unsafe extern "C" fn(*mut c_int) -> u32,
    enqueue: unsafe extern "C" fn(c_int, u64, Start, *mut c_void, Release) -> u32,
    complete: unsafe extern "C" fn(Ticket, u32) -> u32,
    range_device: unsafe extern "C" fn(u64, u64, *mut c_int) -> u32,
    read: unsafe extern "C" fn(c_int, u64, *mut u8, usize) -> u32,
    write: unsafe extern "C" fn(c_int, u64, *const u8, usize) -> u32,
}

fn functions() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    match FUNCTIONS.get_or_init(find) {
        Some(functions) => Ok(functions),
        None => refuse(
            Code::SYSTEM_ERROR,
            "libcuda.so.1 is not the Virtual GPU's; this libnccl.so.2 works with that one only",
        ),
    }
}

fn find() -> Option<Functions> {
    // SAFETY: the name ends with zero; the library is that of the driver beside us, or refused
    // below.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    // SAFETY: the types written above are those of the functions in `virtual_gpu_driver`.
    unsafe {
        Some(Functions {
            context_device: symbol(library, c"cuCtxGetDevice")?,
            enqueue: symbol(library, c"virtual_gpu_enqueue")?,
            complete: symbol(library, c"virtual_gpu_complete")?,
            range_device: symbol(library, c"virtual_gpu_range_device")?,
            read: symbol(library, c"virtual_gpu_read")?,
            write: symbol(library, c"virtual_gpu_write")?,
        })
    }
}

/// # Safety
/// `F` is the type of the function of this name.
unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the library is open; its symbol, if found, is a function of type `F`.
    unsafe {
        let found = libc::dlsym(library, name.as_ptr());
        (!found.is_null()).then(|| std::mem::transmute_copy(&found))
    }
}

/// The device of the calling thread's context.
pub fn current_device() -> Result<i32> {
    let mut device = 0;
    // SAFETY: the result has room.
    match unsafe { (functions()?.context_device)(&mut device) } {
        0 => Ok(device),
        _ => refuse(Code::UNHANDLED_CUDA_ERROR, "the calling thread has no CUDA context"),
    }
}

/// Enqueues `start(data)`; `release(data)` is called once in the end, also if this fails.
pub fn enqueue(
    device: i32,
    stream: u64,
    start: Start,
    data: *mut c_void,
    release: Release,
) -> Result<()> {
    // SAFETY: the driver calls both functions with this data only.
    match unsafe { (functions()?.enqueue)(device, stream, start, data, release) } {
        0 => Ok(()),
        code => refuse(Code::UNHANDLED_CUDA_ERROR, &format!("CUDA error {code} of the stream")),
    }
}

/// Ends an operation; an error sticks to its context.
pub fn complete(ticket: Ticket, error: u32) {
    if let Ok(functions) = functions() {
        // SAFETY: a ticket is only a number.
        unsafe { (functions.complete)(ticket, error) };
    }
}

/// The device whose live allocation holds the range.
pub fn range_device(address: u64, bytes: u64) -> Result<Option<i32>> {
    let mut device = 0;
    // SAFETY: the result has room; the address is only looked up.
    let code = unsafe { (functions()?.range_device)(address, bytes, &mut device) };
    Ok((code == 0).then_some(device))
}

/// Errors: the CUDA code.
pub fn read(device: i32, address: u64, len: usize) -> std::result::Result<Vec<u8>, u32> {
    let mut bytes = vec![0; len];
    let functions = functions().map_err(|_| CUDA_ERROR_LAUNCH_FAILED)?;
    // SAFETY: the buffer has `len` bytes.
    match unsafe { (functions.read)(device, address, bytes.as_mut_ptr(), len) } {
        0 => Ok(bytes),
        code => Err(code),
    }
}

/// Errors: the CUDA code.
pub fn write(device: i32, address: u64, bytes: &[u8]) -> std::result::Result<(), u32> {
    let functions = functions().map_err(|_| CUDA_ERROR_LAUNCH_FAILED)?;
    // SAFETY: the buffer has so many bytes.
    match unsafe { (functions.write)(device, address, bytes.as_ptr(), bytes.len()) } {
        0 => Ok(()),
        code => Err(code),
    }
}
