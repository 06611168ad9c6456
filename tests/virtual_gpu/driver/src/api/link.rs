//! What the other libraries of the Virtual GPU, NCCL and cuBLASLt, need of the driver. No program
//! calls these.

use crate::abi::{Code, DevicePtr};
use crate::entry::{driver_api, put};
use crate::queue::{External, HostPtr, Ticket, Work};
use crate::state::Driver;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

driver_api! {
    /// Enqueues an operation of such a library; in a capture it becomes a node that runs at each
    /// launch. `start` returns 0, an error, or `EXTERNAL_PENDING` if `virtual_gpu_complete` will
    /// end it.
    ///
    /// A default stream is that of the device's primary context. Errors: `INVALID_HANDLE` if the
    /// stream is of another device.
    fn virtual_gpu_enqueue(
        device: c_int,
        stream: u64,
        start: unsafe extern "C" fn(*mut c_void, Ticket) -> u32,
        data: *mut c_void,
        release: unsafe extern "C" fn(*mut c_void),
    ) {
        // Made first, so that `data` is released on every path.
        let external = Arc::new(External { start, data: HostPtr(data), release });
        let driver = Driver::get()?;
        let ordinal = driver.device(device)?;
        let mut state = driver.lock();
        let primary = state.devices[ordinal].primary.ok_or(Code::INVALID_CONTEXT)?;
        state.check_context(primary)?;
        let stream = state.stream(stream, primary)?;
        if state.device_of(state.streams[&stream].context) != ordinal {
            return Err(Code::INVALID_HANDLE);
        }
        state.submit("a library's operation", stream, Work::External(external))?;
        Ok(())
    }

    /// Ends an operation; an error sticks to its context.
    fn virtual_gpu_complete(ticket: Ticket, error: u32) {
        let driver = Driver::get()?;
        let Some(context) = driver.lock().queue.context_of(ticket) else { return Ok(()) };
        driver.finish(ticket, context, (error != 0).then_some(Code(error)));
        Ok(())
    }

    /// The device whose live allocation holds the range.
    fn virtual_gpu_range_device(address: DevicePtr, bytes: u64, device: *mut c_int) {
        let state = Driver::get()?.lock();
        let (_, allocation) = state.allocation(address, bytes).ok_or(Code::INVALID_VALUE)?;
        put(device, allocation.device as c_int)
    }

    fn virtual_gpu_read(device: c_int, address: DevicePtr, out: *mut u8, bytes: usize) {
        let driver = Driver::get()?;
        let memory = &driver.memories[driver.device(device)?];
        let read = memory.read(address, bytes).map_err(|message| {
            eprintln!("virtual GPU: a library's operation: {message}");
            Code::ILLEGAL_ADDRESS
        })?;
        std::ptr::copy_nonoverlapping(read.as_ptr(), out, bytes);
        Ok(())
    }

    fn virtual_gpu_write(device: c_int, address: DevicePtr, bytes: *const u8, len: usize) {
        let driver = Driver::get()?;
        let memory = &driver.memories[driver.device(device)?];
        memory.write(address, std::slice::from_raw_parts(bytes, len)).map_err(|message| {
            eprintln!("virtual GPU: a library's operation: {message}");
            Code::ILLEGAL_ADDRESS
        })
    }
}
