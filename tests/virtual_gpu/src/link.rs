//! How the other libraries of the Virtual GPU reach its driver: by private functions of the
//! `libcuda.so.1` in the process. Signatures as in `virtual_gpu_driver`, `api/link.rs`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// An operation's name in the driver.
pub type Ticket = u64;

/// What a [`Start`] returns when [`complete`] will end the operation; else a code of the driver.
pub const PENDING: u32 = u32::MAX;

pub const CUDA_ERROR_LAUNCH_TIMEOUT: u32 = 702;
pub const CUDA_ERROR_LAUNCH_FAILED: u32 = 719;

pub type Start = unsafe extern "C" fn(*mut c_void, Ticket) -> u32;
pub type Release = unsafe extern "C" fn(*mut c_void);

/// Why the driver did not do what it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkError {
    /// The driver in the process is not the Virtual GPU's.
    OtherDriver,
    /// An error code of the driver.
    Code(u32),
}

type Result<T> = std::result::Result<T, LinkError>;

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
    FUNCTIONS.get_or_init(find).as_ref().ok_or(LinkError::OtherDriver)
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

fn check(code: u32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(LinkError::Code(code)) }
}

/// The device of the calling thread's context.
pub fn current_device() -> Result<i32> {
    let mut device = 0;
    // SAFETY: the result has room.
    check(unsafe { (functions()?.context_device)(&mut device) })?;
    Ok(device)
}

/// Enqueues `start(data)`; `release(data)` is called once in the end, also if this fails.
///
/// # Safety
/// Both functions may be called with `data`, on any thread, `release` last.
pub unsafe fn enqueue(
    device: i32,
    stream: u64,
    start: Start,
    data: *mut c_void,
    release: Release,
) -> Result<()> {
    let found = functions().inspect_err(|_| {
        // SAFETY: as the caller promised.
        unsafe { release(data) }
    })?;
    // SAFETY: the driver calls both functions with this data only.
    check(unsafe { (found.enqueue)(device, stream, start, data, release) })
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

pub fn read(device: i32, address: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    // SAFETY: the buffer has `len` bytes.
    check(unsafe { (functions()?.read)(device, address, bytes.as_mut_ptr(), len) })?;
    Ok(bytes)
}

pub fn write(device: i32, address: u64, bytes: &[u8]) -> Result<()> {
    // SAFETY: the buffer has so many bytes.
    check(unsafe { (functions()?.write)(device, address, bytes.as_ptr(), bytes.len()) })
}
