//! Stream-ordered allocation. Each device has its default pool and no other.

use crate::abi::{Code, DevicePtr, Result};
use crate::api::memory::{allocate, check_freeable};
use crate::entry::{driver_api, put, refuse};
use crate::queue::Work;
use crate::state::{AllocationOwner, Driver, current};
use std::ffi::{c_int, c_uint, c_void};

driver_api! {
    /// The memory is there at once; only giving it back is ordered by the stream.
    fn cuMemAllocAsync(address: *mut DevicePtr, bytes: usize, stream: u64) {
        let (driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        if let Some(capturing) = state.sound_capture("cuMemAllocAsync", stream)? {
            state.invalidate(&[capturing.capture]);
            let why = "memory nodes of graphs are not built";
            return refuse("cuMemAllocAsync", Code::NOT_SUPPORTED, why);
        }
        let (_state, allocated) = allocate(driver, state, context, bytes as u64)?;
        put(address, allocated)
    }

    fn cuMemFreeAsync(address: DevicePtr, stream: u64) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        if address == 0 {
            return Ok(());
        }
        if let Some(capturing) = state.sound_capture("cuMemFreeAsync", stream)? {
            state.invalidate(&[capturing.capture]);
            let why = "memory nodes of graphs are not built";
            return refuse("cuMemFreeAsync", Code::NOT_SUPPORTED, why);
        }
        check_freeable("cuMemFreeAsync", &state, address)?;
        state.submit("cuMemFreeAsync", stream, Work::Free(address))?;
        if let Some(allocation) = state.allocations.get_mut(&address) {
            allocation.owner = AllocationOwner::Queue;
        }
        Ok(())
    }

    fn cuMemAllocFromPoolAsync(
        address: *mut DevicePtr,
        bytes: usize,
        pool: u64,
        stream: u64,
    ) {
        device_of_pool(pool)?;
        cuMemAllocAsync(address, bytes, stream).ok()
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut u64, device: c_int) {
        let ordinal = Driver::get()?.device(device)?;
        put(pool, POOLS + ordinal as u64)
    }

    fn cuDeviceGetMemPool(pool: *mut u64, device: c_int) {
        cuDeviceGetDefaultMemPool(pool, device).ok()
    }

    fn cuDeviceSetMemPool(device: c_int, pool: u64) {
        let ordinal = Driver::get()?.device(device)?;
        if device_of_pool(pool)? == ordinal { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    /// Freed memory always goes back at once.
    fn cuMemPoolTrimTo(pool: u64, _keep_bytes: usize) {
        device_of_pool(pool)?;
        Ok(())
    }

    /// The threshold and the reuse flags are kept; the high-water marks can be set to 0.
    fn cuMemPoolSetAttribute(pool: u64, attribute: c_uint, value: *mut c_void) {
        let device = device_of_pool(pool)?;
        if value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut state = Driver::get()?.lock();
        let device = &mut state.devices[device];
        match attribute {
            1..=3 => Ok(()),
            4 => {
                device.pool_release_threshold = value.cast::<u64>().read_unaligned();
                Ok(())
            }
            6 | 8 => {
                device.used_bytes_high = device.used_bytes;
                Ok(())
            }
            _ => Err(Code::INVALID_VALUE),
        }
    }

    fn cuMemPoolGetAttribute(pool: u64, attribute: c_uint, value: *mut c_void) {
        let device = device_of_pool(pool)?;
        let state = Driver::get()?.lock();
        let device = &state.devices[device];
        match attribute {
            1..=3 => put(value.cast(), 1u32),
            4 => put(value.cast(), device.pool_release_threshold),
            5 | 7 => put(value.cast(), device.used_bytes),
            6 | 8 => put(value.cast(), device.used_bytes_high),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

/// The handle of device 0's pool; the others follow.
const POOLS: u64 = 0x5648_0000_0000_0000;

fn device_of_pool(pool: u64) -> Result<usize> {
    let ordinal = pool.checked_sub(POOLS).and_then(|ordinal| i32::try_from(ordinal).ok());
    Driver::get()?.device(ordinal.ok_or(Code::INVALID_VALUE)?).map_err(|_| Code::INVALID_VALUE)
}
