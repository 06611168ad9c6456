//! Contexts: current ones, own ones, limits, waiting.

use crate::abi::{Code, Result};
use crate::entry::{driver_api, put, refuse};
use crate::state::{Driver, check_current, current, current_context, with_context_stack};
use std::ffi::{c_int, c_uint, c_void};

driver_api! {
    fn cuCtxGetCurrent(context: *mut u64) {
        Driver::get()?;
        put(context, current_context().unwrap_or(0))
    }

    /// Replaces the top of the thread's stack; 0 removes it.
    fn cuCtxSetCurrent(context: u64) {
        check_exists(context)?;
        with_context_stack(|stack| {
            stack.pop();
            stack.extend((context != 0).then_some(context));
        });
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: u64) {
        if context == 0 {
            return Err(Code::INVALID_CONTEXT);
        }
        check_exists(context)?;
        with_context_stack(|stack| stack.push(context));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: *mut u64) {
        let popped = with_context_stack(|stack| stack.pop());
        put(context, popped.ok_or(Code::INVALID_CONTEXT)?)
    }

    fn cuCtxGetDevice(device: *mut c_int) {
        let driver = Driver::get()?;
        let context = current_context().ok_or(Code::INVALID_CONTEXT)?;
        let state = driver.lock();
        let context = state.contexts.get(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?;
        put(device, context.device as c_int)
    }

    fn cuCtxCreate_v2(context: *mut u64, flags: c_uint, device: c_int) {
        create(context, flags, device)
    }

    fn cuCtxCreate_v3(
        context: *mut u64,
        affinities: *mut c_void,
        num_affinities: c_int,
        flags: c_uint,
        device: c_int,
    ) {
        if !affinities.is_null() || num_affinities != 0 {
            return Err(Code::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(context, flags, device)
    }

    fn cuCtxCreate_v4(context: *mut u64, params: *mut c_void, flags: c_uint, device: c_int) {
        if !params.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        create(context, flags, device)
    }

    fn cuCtxDestroy_v2(context: u64) {
        let driver = Driver::get()?;
        let mut state = driver.lock();
        let device = state.contexts.get(&context).ok_or(Code::INVALID_CONTEXT)?.device;
        if state.devices[device].primary == Some(context) {
            return Err(Code::INVALID_CONTEXT);
        }
        if state.check_context(context).is_ok() {
            state = driver.run_until(device, state, |state| {
                state.queue.context_is_idle(context) || state.check_context(context).is_err()
            });
        }
        state.destroy_context(context, &driver.memories);
        with_context_stack(|stack| stack.retain(|other| *other != context));
        Ok(())
    }

    /// Runs all work of the context.
    fn cuCtxSynchronize() {
        let (driver, mut state, context) = current()?;
        let captures: Vec<u64> = state
            .captures
            .iter()
            .filter(|(_, capture)| capture.context == context)
            .map(|(handle, _)| *handle)
            .collect();
        if !captures.is_empty() {
            state.invalidate(&captures);
            let why = "a stream of the context is capturing";
            return refuse("cuCtxSynchronize", Code::STREAM_CAPTURE_UNSUPPORTED, why);
        }
        state.refuse_during_capture("cuCtxSynchronize")?;
        drop(driver.wait_for_context(context, state)?);
        Ok(())
    }

    fn cuCtxGetApiVersion(context: u64, version: *mut c_uint) {
        check_exists(context)?;
        put(version, 3020)
    }

    fn cuCtxGetId(context: u64, id: *mut u64) {
        check_exists(context)?;
        put(id, context)
    }

    fn cuCtxGetFlags(flags: *mut c_uint) {
        check_current()?;
        put(flags, 0)
    }

    /// Only says how a thread waits, which is always the same here.
    fn cuCtxSetFlags(_flags: c_uint) {
        check_current()?;
        Ok(())
    }

    /// Greatest and least priority, as on hardware.
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        check_current()?;
        put(least, 0)?;
        put(greatest, -5)
    }

    /// The limits that a program may ask for: stack, printf buffer, heap.
    fn cuCtxGetLimit(value: *mut usize, limit: c_uint) {
        check_current()?;
        put(value, match limit {
            0 => 1024,
            1 => 1 << 20,
            2 => 8 << 20,
            _ => return Err(Code::UNSUPPORTED_LIMIT),
        })
    }

    /// Accepted without effect: kernels here have neither printf nor malloc, and any stack they
    /// declare.
    fn cuCtxSetLimit(limit: c_uint, _value: usize) {
        check_current()?;
        if limit <= 2 { Ok(()) } else { Err(Code::UNSUPPORTED_LIMIT) }
    }

    fn cuCtxGetCacheConfig(config: *mut c_uint) {
        check_current()?;
        put(config, 0)
    }

    /// A hint without effect on results.
    fn cuCtxSetCacheConfig(_config: c_uint) {
        check_current()?;
        Ok(())
    }

    /// Refused as on hardware without a link: see `cuDeviceCanAccessPeer`.
    fn cuCtxEnablePeerAccess(peer: u64, _flags: c_uint) {
        check_current()?;
        check_exists(peer)?;
        let why = "kernels reach the memory of their own device only";
        refuse("cuCtxEnablePeerAccess", Code::PEER_ACCESS_UNSUPPORTED, why)
    }

    fn cuCtxDisablePeerAccess(peer: u64) {
        check_current()?;
        check_exists(peer)?;
        Err(Code::PEER_ACCESS_NOT_ENABLED)
    }
}

fn check_exists(context: u64) -> Result<()> {
    let driver = Driver::get()?;
    let exists = context == 0 || driver.lock().contexts.contains_key(&context);
    if exists { Ok(()) } else { Err(Code::INVALID_CONTEXT) }
}

/// # Safety
/// As `put`.
unsafe fn create(context: *mut u64, _flags: c_uint, device: c_int) -> Result<()> {
    let driver = Driver::get()?;
    let ordinal = driver.device(device)?;
    let mut state = driver.lock();
    if let Some(code) = state.devices[ordinal].lost {
        return Err(code);
    }
    let created = state.new_context(ordinal);
    with_context_stack(|stack| stack.push(created));
    // SAFETY: as the caller promised.
    unsafe { put(context, created) }
}
