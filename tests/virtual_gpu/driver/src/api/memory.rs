//! Device memory and pinned host memory.

use crate::abi::{Code, DevicePtr, Result};
use crate::config::FaultKind;
use crate::entry::{driver_api, put, put_if_asked, refuse};
use crate::state::{Allocation, AllocationOwner, Driver, Pinned, PinnedOwner, State, current};
use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_uint, c_void};
use std::sync::MutexGuard;

driver_api! {
    fn cuMemAlloc_v2(address: *mut DevicePtr, bytes: usize) {
        let (driver, mut state, context) = current()?;
        state.refuse_during_capture("cuMemAlloc")?;
        let (_state, allocated) = allocate(driver, state, context, bytes as u64)?;
        put(address, allocated)
    }

    /// Waits for the work of the context first, as the real driver does.
    fn cuMemFree_v2(address: DevicePtr) {
        let (driver, mut state, context) = current()?;
        if address == 0 {
            return Ok(());
        }
        state.refuse_during_capture("cuMemFree")?;
        check_freeable("cuMemFree", &state, address)?;
        let mut state = driver.wait_for_context(context, state)?;
        state.free(address, &driver.memories);
        Ok(())
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (driver, state, context) = current()?;
        let used = state.devices[state.device_of(context)].used_bytes;
        put(free, (driver.config.memory_bytes - used) as usize)?;
        put(total, driver.config.memory_bytes as usize)
    }

    fn cuMemGetAddressRange_v2(base: *mut DevicePtr, bytes: *mut usize, address: DevicePtr) {
        let (_driver, state, _context) = current()?;
        let (start, allocation) = state.allocation(address, 0).ok_or(Code::NOT_FOUND)?;
        put_if_asked(base, start);
        put_if_asked(bytes, allocation.bytes as usize);
        Ok(())
    }

    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let (_driver, mut state, context) = current()?;
        state.refuse_during_capture("cuMemHostAlloc")?;
        let pinned = alloc_pinned(&mut state, context, bytes)?;
        put(address, pinned)
    }

    fn cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize) {
        cuMemHostAlloc(address, bytes, 0).ok()
    }

    /// Waits for the work of the context first, as the real driver does.
    fn cuMemFreeHost(address: *mut c_void) {
        let (driver, mut state, context) = current()?;
        state.refuse_during_capture("cuMemFreeHost")?;
        let is_ours = |state: &State| {
            let pinned = state.pinned.get(&(address as u64));
            pinned.is_some_and(|pinned| pinned.owner == PinnedOwner::Driver)
        };
        if !is_ours(&state) {
            return refuse("cuMemFreeHost", Code::INVALID_VALUE, "not from cuMemHostAlloc");
        }
        let mut state = driver.wait_for_context(context, state)?;
        let pinned = state.pinned.remove(&(address as u64)).ok_or(Code::INVALID_VALUE)?;
        dealloc(address.cast(), pinned_layout(pinned.bytes as usize)?);
        Ok(())
    }

    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, _flags: c_uint) {
        let (_driver, mut state, context) = current()?;
        state.refuse_during_capture("cuMemHostRegister")?;
        if address.is_null() || bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let end = address as u64 + bytes as u64;
        let before_end = state.pinned.range(..end).next_back();
        let overlaps = before_end.is_some_and(|(start, pinned)| {
            start + pinned.bytes > address as u64
        });
        if overlaps {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        let pinned = Pinned { bytes: bytes as u64, context, owner: PinnedOwner::Program };
        state.pinned.insert(address as u64, pinned);
        Ok(())
    }

    fn cuMemHostUnregister(address: *mut c_void) {
        let (driver, mut state, context) = current()?;
        state.refuse_during_capture("cuMemHostUnregister")?;
        let pinned = state.pinned.get(&(address as u64));
        if pinned.is_none_or(|pinned| pinned.owner == PinnedOwner::Driver) {
            return Err(Code::HOST_MEMORY_NOT_REGISTERED);
        }
        let mut state = driver.wait_for_context(context, state)?;
        state.pinned.remove(&(address as u64));
        Ok(())
    }

    fn cuMemHostGetFlags(flags: *mut c_uint, address: *mut c_void) {
        let (_driver, state, _context) = current()?;
        state.pinned_range(address as u64, 1).ok_or(Code::INVALID_VALUE)?;
        put(flags, 0)
    }

    /// Kernels here cannot reach host memory.
    fn cuMemHostGetDevicePointer_v2(_to: *mut DevicePtr, _address: *mut c_void, _flags: c_uint) {
        let why = "kernels cannot reach host memory here";
        refuse("cuMemHostGetDevicePointer", Code::NOT_SUPPORTED, why)
    }

    /// Context, kind, device, and range of a pointer.
    fn cuPointerGetAttribute(value: *mut c_void, attribute: c_uint, address: DevicePtr) {
        let (_driver, state, _context) = current()?;
        let device = state.allocation(address, 0);
        let host = state.pinned_range(address, 1);
        let (context, kind) = match (device, host) {
            (Some((_, allocation)), _) => (allocation.context, 2u32),
            (None, Some(pinned)) => (pinned.context, 1u32),
            (None, None) => return Err(Code::INVALID_VALUE),
        };
        match attribute {
            1 => put(value.cast(), context),
            2 => put(value.cast(), kind),
            3 if kind == 2 => put(value.cast(), address),
            4 if kind == 1 => put(value.cast(), address),
            8 => put(value.cast(), 0u32),
            9 => put(value.cast(), state.device_of(context) as u32),
            11 => put(value.cast(), device.ok_or(Code::NOT_SUPPORTED)?.0),
            12 => put(value.cast(), device.ok_or(Code::NOT_SUPPORTED)?.1.bytes),
            _ => Err(Code::NOT_SUPPORTED),
        }
    }
}

/// Takes device memory, after waiting for frees that are still queued if there is none.
///
/// Errors: `OUT_OF_MEMORY`, by size or by an injected fault; `INVALID_VALUE` for 0 bytes.
pub fn allocate<'a>(
    driver: &'a Driver,
    mut state: MutexGuard<'a, State>,
    context: u64,
    bytes: u64,
) -> Result<(MutexGuard<'a, State>, DevicePtr)> {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let device = state.device_of(context);
    state.num_allocations += 1;
    state.devices[device].num_allocations += 1;
    let (nth, nth_anywhere) = (state.devices[device].num_allocations, state.num_allocations);
    if driver.has_fault(FaultKind::Alloc, device, nth, nth_anywhere) {
        eprintln!("virtual GPU: injected fault: allocation of {bytes} bytes finds no memory");
        return Err(Code::OUT_OF_MEMORY);
    }
    let limit = driver.config.memory_bytes;
    if state.devices[device].used_bytes.saturating_add(bytes) > limit {
        state = driver.wait_for_context(context, state)?;
    }
    let used = &mut state.devices[device];
    if used.used_bytes.saturating_add(bytes) > limit {
        return Err(Code::OUT_OF_MEMORY);
    }
    used.used_bytes += bytes;
    used.used_bytes_high = used.used_bytes_high.max(used.used_bytes);
    let address = driver.memories[device].alloc(bytes);
    let allocation = Allocation { bytes, device, context, owner: AllocationOwner::Program };
    state.allocations.insert(address, allocation);
    Ok((state, address))
}

/// Errors: `INVALID_VALUE` for what is not the start of a live allocation.
pub fn check_freeable(call: &str, state: &State, address: DevicePtr) -> Result<()> {
    match state.allocations.get(&address) {
        Some(allocation) if allocation.owner == AllocationOwner::Program => Ok(()),
        _ => {
            let why = format!("{address:#x} is not the start of a live allocation");
            refuse(call, Code::INVALID_VALUE, &why)
        }
    }
}

const PAGE_BYTES: usize = 4096;

fn pinned_layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes, PAGE_BYTES).map_err(|_| Code::OUT_OF_MEMORY)
}

fn alloc_pinned(state: &mut State, context: u64, bytes: usize) -> Result<*mut c_void> {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the size is not 0.
    let address = unsafe { alloc(pinned_layout(bytes)?) };
    if address.is_null() {
        return Err(Code::OUT_OF_MEMORY);
    }
    let pinned = Pinned { bytes: bytes as u64, context, owner: PinnedOwner::Driver };
    state.pinned.insert(address as u64, pinned);
    Ok(address.cast())
}
