//! What the NCCL library of the Virtual GPU needs of the driver. No program calls these.

use crate::abi::{Code, DevicePtr};
use crate::entry::{driver_api, put};
use crate::queue::{External, HostPtr, Ticket, Work};
use crate::state::{Driver, current};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

driver_api! {
    /// Enqueues an operation of the NCCL library; in a capture it becomes a node that runs at each launch.
    /// `start` returns 0, an error, or `EXTERNAL_PENDING` if `virtual_gpu_complete` will end it.
    fn virtual_gpu_enqueue(
        stream: u64,
        start: unsafe extern "C" fn(*mut c_void, Ticket) -> u32,
        data: *mut c_void,
        release: unsafe extern "C" fn(*mut c_void),
    ) {
        // Made first, so that `data` is released on every path.
        let external = Arc::new(External { start, data: HostPtr(data), release });
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        state.submit("ncclCollective", stream, Work::External(external))?;
        Ok(())
    }

    /// Ends an operation; an error sticks to its context.
    fn virtual_gpu_complete(ticket: Ticket, error: u32) {
        let driver = Driver::get()?;
        let Some(context) = driver.lock().queue.context_of(ticket) else { return Ok(()) };
        driver.finish(ticket, context, (error != 0).then_some(Code(error)));
        Ok(())
    }

    /// The device of a stream as the calling thread passes it.
    fn virtual_gpu_stream_device(stream: u64, device: *mut c_int) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        let context = state.streams[&stream].context;
        put(device, state.device_of(context) as c_int)
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
            eprintln!("virtual GPU: collective: {message}");
            Code::ILLEGAL_ADDRESS
        })?;
        std::ptr::copy_nonoverlapping(read.as_ptr(), out, bytes);
        Ok(())
    }

    fn virtual_gpu_write(device: c_int, address: DevicePtr, bytes: *const u8, len: usize) {
        let driver = Driver::get()?;
        let memory = &driver.memories[driver.device(device)?];
        memory.write(address, std::slice::from_raw_parts(bytes, len)).map_err(|message| {
            eprintln!("virtual GPU: collective: {message}");
            Code::ILLEGAL_ADDRESS
        })
    }
}
