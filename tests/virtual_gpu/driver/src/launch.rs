//! Kernel launches: the checks at the call, and the parameters copied at the call.

use crate::abi::{BLOCK_THREADS_MAX, Code, GRID_YZ_MAX, Result, SHARED_BYTES_DEFAULT};
use crate::device_model::{DeviceModel, REGISTERS_PER_SM, SHARED_RESERVED_BYTES};
use crate::module::Function;
use crate::state::LoadedFunction;
use std::sync::Arc;

/// A launch as asked for, with its own copy of the parameters.
pub struct Launch {
    pub function: Arc<Function>,
    /// The handle it was launched by.
    pub handle: u64,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub params: Vec<u8>,
}

/// Grid, block and dynamic shared memory.
#[derive(Clone, Copy)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
}

const BLOCK_Z_MAX: u32 = 64;

/// Refuses what the device refuses.
///
/// Errors: `INVALID_VALUE`, with a line on stderr that names the limit.
pub fn check(function: &LoadedFunction, geometry: &Geometry) -> Result<()> {
    let Geometry { grid, block, shared_bytes } = *geometry;
    let name = &function.function.name;
    let refuse = |what: String| {
        eprintln!("virtual GPU: launch of {name} refused: {what}");
        Err(Code::INVALID_VALUE)
    };
    if grid.contains(&0) || block.contains(&0) {
        return refuse(format!("grid {grid:?}, block {block:?} hold a zero"));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > GRID_YZ_MAX || grid[2] > GRID_YZ_MAX {
        return refuse(format!("grid {grid:?} exceeds [2147483647, 65535, 65535]"));
    }
    let threads = block.iter().fold(1u64, |product, side| product * u64::from(*side));
    if threads > u64::from(BLOCK_THREADS_MAX) || block[2] > BLOCK_Z_MAX {
        return refuse(format!("block {block:?} exceeds 1024 threads, or 64 in z"));
    }
    let bounds = function.function.block_threads_max;
    if threads > u64::from(bounds) {
        return refuse(format!("block {block:?} exceeds its launch bounds of {bounds} threads"));
    }
    let allowed = function.dynamic_shared_bytes_max;
    if shared_bytes > allowed {
        return refuse(format!(
            "{shared_bytes} bytes of shared memory, {allowed} are allowed (cuFuncSetAttribute)"
        ));
    }
    Ok(())
}

/// Dynamic shared memory that a kernel gets without asking.
pub fn dynamic_shared_default(function: &Function) -> u32 {
    SHARED_BYTES_DEFAULT.saturating_sub(function.static_shared_bytes)
}

/// Copies the parameters of a launch, by the sizes that the PTX declares.
///
/// Errors: `INVALID_VALUE` if neither way of passing them is used, or the packed form has another
/// size.
///
/// # Safety `params` points at one pointer per parameter, each to a value of its size; or `extra`
/// at the list that `cuLaunchKernel` describes.
pub unsafe fn copy_params(
    function: &Function,
    params: *const *const u8,
    extra: *const *const u8,
) -> Result<Vec<u8>> {
    let mut block = vec![0; function.param_bytes];
    if params.is_null() && !extra.is_null() {
        // SAFETY: as the caller promised.
        let packed = unsafe { packed_params(extra) }?;
        if packed.len() != function.param_bytes {
            eprintln!(
                "virtual GPU: {} takes {} bytes of parameters, {} were passed",
                function.name,
                function.param_bytes,
                packed.len()
            );
            return Err(Code::INVALID_VALUE);
        }
        block.copy_from_slice(packed);
        return Ok(block);
    }
    if params.is_null() && !function.params.is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    for (i, (offset, size)) in function.params.iter().copied().enumerate() {
        // SAFETY: the caller promised one pointer per parameter.
        let value = unsafe { *params.add(i) };
        if value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promised `size` bytes behind it; the block has room by the PTX's
        // offsets.
        unsafe { std::ptr::copy_nonoverlapping(value, block.as_mut_ptr().add(offset), size) };
    }
    Ok(block)
}

/// The list of (key, value) pairs that ends with 0: 1 is followed by the buffer, 2 by the address
/// of its size.
///
/// # Safety
/// As `cuLaunchKernel` says of `extra`.
unsafe fn packed_params<'a>(extra: *const *const u8) -> Result<&'a [u8]> {
    let (mut buffer, mut bytes) = (std::ptr::null::<u8>(), 0usize);
    for pair in 0..2 {
        // SAFETY: the list has an end mark; two pairs lie before it.
        let (key, value) = unsafe { (*extra.add(2 * pair), *extra.add(2 * pair + 1)) };
        match key as usize {
            1 => buffer = value,
            // SAFETY: the value of key 2 is the address of a size.
            2 => bytes = unsafe { *value.cast::<usize>() },
            _ => return Err(Code::INVALID_VALUE),
        }
    }
    if buffer.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the list says that the buffer has so many bytes.
    Ok(unsafe { std::slice::from_raw_parts(buffer, bytes) })
}

/// Registers are given to warps in units of 256.
const REGISTERS_UNIT: u32 = 256;

/// Blocks of a kernel that fit on a multiprocessor together. Without a cubin the registers are
/// unknown and do not count.
///
/// Source: cuda_occupancy.h, without its rounding of warps to the four sub-partitions.
pub fn blocks_per_sm(
    model: &DeviceModel,
    function: &Function,
    block_threads: u32,
    shared_bytes: u32,
) -> u32 {
    let warps = block_threads.div_ceil(32).max(1);
    let by_threads = model.threads_per_sm / (warps * 32);
    let shared = function.static_shared_bytes + shared_bytes + SHARED_RESERVED_BYTES;
    let by_shared = model.shared_bytes_per_sm / shared.next_multiple_of(128);
    let by_registers = function.registers.map_or(u32::MAX, |registers| {
        let per_warp = (registers * 32).next_multiple_of(REGISTERS_UNIT).max(REGISTERS_UNIT);
        REGISTERS_PER_SM / per_warp / warps
    });
    let fits = block_threads <= function.block_threads_max;
    if fits { by_threads.min(by_shared).min(by_registers).min(model.blocks_per_sm) } else { 0 }
}
