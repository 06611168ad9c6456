//! Launches of kernels and host functions, and occupancy.

use crate::abi::{BLOCK_THREADS_MAX, Code, LaunchConfigEx, Result, SHARED_BYTES_DEFAULT};
use crate::device_model::{REGISTERS_PER_SM, SHARED_RESERVED_BYTES};
use crate::entry::{driver_api, put, refuse};
use crate::helper;
use crate::launch::{Geometry, Launch, blocks_per_sm, check, copy_params};
use crate::queue::{HostPtr, Work};
use crate::state::current;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

driver_api! {
    /// Checks the geometry, copies the parameters, and enqueues.
    fn cuLaunchKernel(
        function: u64,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: u64,
        params: *const *const u8,
        extra: *const *const u8,
    ) {
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let geometry = Geometry { grid, block, shared_bytes };
        launch("cuLaunchKernel", function, &geometry, stream, params, extra)
    }

    /// As `cuLaunchKernel`, with attributes; those that change results are refused.
    fn cuLaunchKernelEx(
        config: *const LaunchConfigEx,
        function: u64,
        params: *const *const u8,
        extra: *const *const u8,
    ) {
        if config.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let config = &*config;
        for index in 0..config.num_attributes as usize {
            let attribute = &*config.attributes.add(index);
            let is_refused = match attribute.id {
                // Cooperative launch.
                2 => attribute.value[0] as u32 != 0,
                // Cluster dimensions: three numbers of 32 bits.
                4 => attribute.value[0] != 0x1_0000_0001 || attribute.value[1] as u32 != 1,
                _ => false,
            };
            if is_refused {
                let why = "cooperative launches and clusters are not built";
                return refuse("cuLaunchKernelEx", Code::NOT_SUPPORTED, why);
            }
        }
        let (grid, block) = (config.grid, config.block);
        let geometry = Geometry { grid, block, shared_bytes: config.shared_bytes };
        launch("cuLaunchKernelEx", function, &geometry, config.stream, params, extra)
    }

    /// Cooperative launches are not built; the device's attribute says so.
    fn cuLaunchCooperativeKernel(
        _function: u64,
        _grid_x: c_uint,
        _grid_y: c_uint,
        _grid_z: c_uint,
        _block_x: c_uint,
        _block_y: c_uint,
        _block_z: c_uint,
        _shared_bytes: c_uint,
        _stream: u64,
        _params: *const *const u8,
    ) {
        let why = "cooperative launches are not built";
        refuse("cuLaunchCooperativeKernel", Code::NOT_SUPPORTED, why)
    }

    /// The function is called on some thread; it may not call the driver.
    fn cuLaunchHostFunc(
        stream: u64,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        data: *mut c_void,
    ) {
        let (driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        let work = Work::HostFunction { function, data: HostPtr(data) };
        if let Some(ticket) = state.submit("cuLaunchHostFunc", stream, work)? {
            helper::run_soon(driver, context, ticket);
        }
        Ok(())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: u64,
        block_threads: c_int,
        shared_bytes: usize,
    ) {
        let (driver, state, _context) = current()?;
        let loaded = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let threads = u32::try_from(block_threads).map_err(|_| Code::INVALID_VALUE)?;
        let shared = u32::try_from(shared_bytes).map_err(|_| Code::INVALID_VALUE)?;
        let model = &driver.config.model;
        put(blocks, blocks_per_sm(model, &loaded.function, threads, shared) as c_int)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int,
        function: u64,
        block_threads: c_int,
        shared_bytes: usize,
        _flags: c_uint,
    ) {
        cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_threads, shared_bytes)
            .ok()
    }

    /// Dynamic shared memory that each of `blocks` blocks on one multiprocessor can have.
    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize,
        function: u64,
        blocks: c_int,
        _block_threads: c_int,
    ) {
        let (driver, state, _context) = current()?;
        let loaded = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let blocks = u32::try_from(blocks).ok().filter(|n| *n > 0).ok_or(Code::INVALID_VALUE)?;
        let model = &driver.config.model;
        let share = model.shared_bytes_per_sm / blocks;
        let taken = loaded.function.static_shared_bytes + SHARED_RESERVED_BYTES;
        put(bytes, share.saturating_sub(taken).min(model.shared_optin_bytes) as usize)
    }

    /// The block size that fills a multiprocessor best, the larger one if two are equal.
    fn cuOccupancyMaxPotentialBlockSize(
        min_grid: *mut c_int,
        block: *mut c_int,
        function: u64,
        shared_of_block: Option<unsafe extern "C" fn(c_int) -> usize>,
        shared_bytes: usize,
        block_limit: c_int,
    ) {
        let (driver, state, _context) = current()?;
        let loaded = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let model = &driver.config.model;
        let bound = loaded.function.block_threads_max.min(BLOCK_THREADS_MAX);
        let limit = if block_limit > 0 { bound.min(block_limit as u32) } else { bound };
        let mut best = (0, 0, 0);
        for threads in (32..=limit.max(32)).step_by(32) {
            let shared = match shared_of_block {
                Some(shared_of_block) => shared_of_block(threads as c_int),
                None => shared_bytes,
            };
            let blocks = blocks_per_sm(model, &loaded.function, threads, shared as u32);
            best = best.max((blocks * threads, threads, blocks));
        }
        put(min_grid, (best.2 * model.num_sms) as c_int)?;
        put(block, best.1 as c_int)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        min_grid: *mut c_int,
        block: *mut c_int,
        function: u64,
        shared_of_block: Option<unsafe extern "C" fn(c_int) -> usize>,
        shared_bytes: usize,
        block_limit: c_int,
        _flags: c_uint,
    ) {
        cuOccupancyMaxPotentialBlockSize(
            min_grid, block, function, shared_of_block, shared_bytes, block_limit,
        )
        .ok()
    }
}

const _: () = assert!(SHARED_BYTES_DEFAULT < REGISTERS_PER_SM);

/// # Safety
/// As `copy_params`.
unsafe fn launch(
    call: &str,
    handle: u64,
    geometry: &Geometry,
    stream: u64,
    params: *const *const u8,
    extra: *const *const u8,
) -> Result<()> {
    let (driver, mut state, context) = current()?;
    let stream = state.stream(stream, context)?;
    // SAFETY: as the caller promised.
    let launch = unsafe { state.new_launch(call, handle, geometry, params, extra) }?;
    let stream_context = state.streams[&stream].context;
    if state.functions[&handle].context != stream_context {
        return refuse(call, Code::INVALID_HANDLE, "function and stream are of two contexts");
    }
    state.submit(call, stream, Work::Kernel(Arc::new(launch)))?;
    let device = state.device_of(stream_context);
    driver.limit_queue(device, state);
    Ok(())
}

impl crate::state::State {
    /// A checked launch with its own copy of the parameters.
    ///
    /// Errors: `INVALID_HANDLE`, and those of `launch::check` and `copy_params`.
    ///
    /// # Safety
    /// As `copy_params`.
    pub unsafe fn new_launch(
        &self,
        call: &str,
        handle: u64,
        geometry: &Geometry,
        params: *const *const u8,
        extra: *const *const u8,
    ) -> Result<Launch> {
        let Some(loaded) = self.functions.get(&handle) else {
            return refuse(call, Code::INVALID_HANDLE, "no such function");
        };
        check(loaded, geometry)?;
        // SAFETY: as the caller promised.
        let params = unsafe { copy_params(&loaded.function, params, extra) }?;
        Ok(Launch {
            function: loaded.function.clone(),
            handle,
            grid: geometry.grid,
            block: geometry.block,
            shared_bytes: geometry.shared_bytes,
            params,
        })
    }
}
