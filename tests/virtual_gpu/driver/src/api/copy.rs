//! Copies and fills, asynchronous and (nearly) synchronous ones.
//!
//! Source of what waits for what: CUDA Driver API reference, "API synchronization behavior".

use crate::abi::{Code, DevicePtr, Result, STREAM_LEGACY};
use crate::capture::poison_target;
use crate::entry::{driver_api, refuse};
use crate::queue::{Fill, HostPtr, Place, Work};
use crate::state::{State, current};
use std::ffi::c_void;

driver_api! {
    /// From pageable memory: returns when the bytes are staged. From pinned memory: when they are
    /// copied.
    fn cuMemcpyHtoD_v2(to: DevicePtr, from: *const c_void, bytes: usize) {
        copy_sync("cuMemcpyHtoD", End::Device(to), End::Host(from.cast_mut()), bytes)
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: DevicePtr, bytes: usize) {
        copy_sync("cuMemcpyDtoH", End::Host(to), End::Device(from), bytes)
    }

    /// On the legacy stream, but the host does not wait.
    fn cuMemcpyDtoD_v2(to: DevicePtr, from: DevicePtr, bytes: usize) {
        copy_sync("cuMemcpyDtoD", End::Device(to), End::Device(from), bytes)
    }

    fn cuMemcpyHtoDAsync_v2(to: DevicePtr, from: *const c_void, bytes: usize, stream: u64) {
        copy_async("cuMemcpyHtoDAsync", End::Device(to), End::Host(from.cast_mut()), bytes, stream)
    }

    /// To pageable memory: returns when the copy has run. A pinned target holds poison until then.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePtr, bytes: usize, stream: u64) {
        copy_async("cuMemcpyDtoHAsync", End::Host(to), End::Device(from), bytes, stream)
    }

    fn cuMemcpyDtoDAsync_v2(to: DevicePtr, from: DevicePtr, bytes: usize, stream: u64) {
        copy_async("cuMemcpyDtoDAsync", End::Device(to), End::Device(from), bytes, stream)
    }

    /// Either end may be device or host memory, told apart by the address.
    fn cuMemcpy(to: DevicePtr, from: DevicePtr, bytes: usize) {
        copy_sync("cuMemcpy", any_end(to)?, any_end(from)?, bytes)
    }

    fn cuMemcpyAsync(to: DevicePtr, from: DevicePtr, bytes: usize, stream: u64) {
        copy_async("cuMemcpyAsync", any_end(to)?, any_end(from)?, bytes, stream)
    }

    fn cuMemcpyPeer(
        to: DevicePtr,
        to_context: u64,
        from: DevicePtr,
        from_context: u64,
        bytes: usize,
    ) {
        check_owner(to, to_context)?;
        check_owner(from, from_context)?;
        copy_sync("cuMemcpyPeer", End::Device(to), End::Device(from), bytes)
    }

    fn cuMemcpyPeerAsync(
        to: DevicePtr,
        to_context: u64,
        from: DevicePtr,
        from_context: u64,
        bytes: usize,
        stream: u64,
    ) {
        check_owner(to, to_context)?;
        check_owner(from, from_context)?;
        copy_async("cuMemcpyPeerAsync", End::Device(to), End::Device(from), bytes, stream)
    }

    fn cuMemsetD8_v2(to: DevicePtr, value: u8, count: usize) {
        fill("cuMemsetD8", to, row(u32::from(value), 1, count), STREAM_LEGACY)
    }

    fn cuMemsetD16_v2(to: DevicePtr, value: u16, count: usize) {
        fill("cuMemsetD16", to, row(u32::from(value), 2, count), STREAM_LEGACY)
    }

    fn cuMemsetD32_v2(to: DevicePtr, value: u32, count: usize) {
        fill("cuMemsetD32", to, row(value, 4, count), STREAM_LEGACY)
    }

    fn cuMemsetD8Async(to: DevicePtr, value: u8, count: usize, stream: u64) {
        fill("cuMemsetD8Async", to, row(u32::from(value), 1, count), stream)
    }

    fn cuMemsetD16Async(to: DevicePtr, value: u16, count: usize, stream: u64) {
        fill("cuMemsetD16Async", to, row(u32::from(value), 2, count), stream)
    }

    fn cuMemsetD32Async(to: DevicePtr, value: u32, count: usize, stream: u64) {
        fill("cuMemsetD32Async", to, row(value, 4, count), stream)
    }

    fn cuMemsetD2D8Async(
        to: DevicePtr,
        pitch: usize,
        value: u8,
        width: usize,
        height: usize,
        stream: u64,
    ) {
        let rows = Fill { rows: height as u64, pitch: pitch as u64, ..row(value.into(), 1, width) };
        fill("cuMemsetD2D8Async", to, rows, stream)
    }

    fn cuMemsetD2D32Async(
        to: DevicePtr,
        pitch: usize,
        value: u32,
        width: usize,
        height: usize,
        stream: u64,
    ) {
        let rows = Fill { rows: height as u64, pitch: pitch as u64, ..row(value, 4, width) };
        fill("cuMemsetD2D32Async", to, rows, stream)
    }
}

/// One end of a copy as the program passed it.
#[derive(Clone, Copy)]
enum End {
    Device(DevicePtr),
    Host(*mut c_void),
}

fn any_end(address: u64) -> Result<End> {
    let (_driver, state, _context) = current()?;
    let is_device = state.allocation(address, 0).is_some();
    Ok(if is_device { End::Device(address) } else { End::Host(address as *mut c_void) })
}

fn check_owner(address: DevicePtr, context: u64) -> Result<()> {
    let (_driver, state, _context) = current()?;
    let context = state.contexts.get(&context).ok_or(Code::INVALID_CONTEXT)?;
    match state.allocation(address, 0) {
        Some((_, allocation)) if allocation.device == context.device => Ok(()),
        _ => {
            refuse("cuMemcpyPeer", Code::INVALID_VALUE, "an address is not of its context's device")
        }
    }
}

fn copy_sync(call: &str, to: End, from: End, bytes: usize) -> Result<()> {
    let (driver, mut state, context) = current()?;
    let stream = state.stream(STREAM_LEGACY, context)?;
    state.refuse_implicit(call, stream)?;
    state.refuse_during_capture(call)?;
    if bytes == 0 {
        return Ok(());
    }
    let (ticket, does_wait) = {
        let is_between_devices = matches!((to, from), (End::Device(_), End::Device(_)));
        let work = copy_work(call, &state, to, from, bytes as u64, HostSource::AsNow)?;
        let is_staged = matches!(&work, Work::Copy { from: Place::Staged(_), .. });
        (state.submit(call, stream, work)?, !is_between_devices && !is_staged)
    };
    if does_wait {
        drop(driver.wait_for(context, state, ticket)?);
    }
    Ok(())
}

fn copy_async(call: &str, to: End, from: End, bytes: usize, stream: u64) -> Result<()> {
    let (driver, mut state, context) = current()?;
    let stream = state.stream(stream, context)?;
    if bytes == 0 {
        return Ok(());
    }
    // A graph keeps the address; the bytes are read at each launch.
    let is_capturing = state.streams[&stream].capturing.is_some();
    let source = if is_capturing { HostSource::Later } else { HostSource::AsNow };
    let work = copy_work(call, &state, to, from, bytes as u64, source)?;
    let is_to_pageable = match to {
        End::Host(address) => state.pinned_range(address as u64, bytes as u64).is_none(),
        End::Device(_) => false,
    };
    let ticket = state.submit(call, stream, work.clone())?;
    if is_capturing {
        return Ok(());
    }
    poison_target(&work);
    if is_to_pageable {
        drop(driver.wait_for(context, state, ticket)?);
    } else {
        let device = state.device_of(context);
        driver.limit_queue(device, state);
    }
    Ok(())
}

/// When pageable host memory is read. Pinned memory is always read late.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HostSource {
    AsNow,
    Later,
}

fn copy_work(
    call: &str,
    state: &State,
    to: End,
    from: End,
    bytes: u64,
    source: HostSource,
) -> Result<Work> {
    let to = match to {
        End::Device(address) => device_place(call, state, address, bytes)?,
        End::Host(address) => host_place(address)?,
    };
    let from = match from {
        End::Device(address) => device_place(call, state, address, bytes)?,
        End::Host(address) => {
            let is_pinned = state.pinned_range(address as u64, bytes).is_some();
            if is_pinned || source == HostSource::Later {
                host_place(address)?
            } else {
                host_place(address)?;
                // SAFETY: the program promised that so many bytes can be read now.
                let now = unsafe { std::slice::from_raw_parts(address.cast(), bytes as usize) };
                Place::Staged(now.into())
            }
        }
    };
    Ok(Work::Copy { to, from, bytes })
}

fn host_place(address: *mut c_void) -> Result<Place> {
    if address.is_null() { Err(Code::INVALID_VALUE) } else { Ok(Place::Host(HostPtr(address))) }
}

fn device_place(call: &str, state: &State, address: DevicePtr, bytes: u64) -> Result<Place> {
    match state.allocation(address, bytes) {
        Some((_, allocation)) => Ok(Place::Device { address, device: allocation.device }),
        None => {
            let why = format!("{bytes} bytes at {address:#x} are not inside one live allocation");
            refuse(call, Code::INVALID_VALUE, &why)
        }
    }
}

fn row(value: u32, unit: usize, count: usize) -> Fill {
    let row_bytes = (count * unit) as u64;
    Fill { value, unit, row_bytes, rows: 1, pitch: row_bytes }
}

fn fill(call: &str, to: DevicePtr, fill: Fill, stream: u64) -> Result<()> {
    let (driver, mut state, context) = current()?;
    let stream = state.stream(stream, context)?;
    if fill.row_bytes == 0 || fill.rows == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(fill.unit as u64) || fill.pitch < fill.row_bytes {
        return refuse(call, Code::INVALID_VALUE, "address or pitch does not fit the element");
    }
    let span = (fill.rows - 1) * fill.pitch + fill.row_bytes;
    let Place::Device { device, .. } = device_place(call, &state, to, span)? else {
        unreachable!("a device address gives a device place")
    };
    state.submit(call, stream, Work::Set { to, device, fill })?;
    let device = state.device_of(context);
    driver.limit_queue(device, state);
    Ok(())
}
