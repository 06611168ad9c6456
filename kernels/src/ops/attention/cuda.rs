//! Launches: one kernel for sequences with many query rows, and for the others a kernel that splits
//! contexts over thread blocks and one that merges the splits. Each skips the other's sequences, so
//! a mixed step launches all three, and the results do not depend on who took which.

use super::{AttentionBatch, DeviceAttention, OP};
use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{DType, KernelError, Tensor};
use Param::{F32, Ptr, U32};

/// Keys of one split, as in attention_tile.cuh.
const SPLIT_KEYS: usize = 256;
/// Query rows of a thread block that walks whole contexts, and of one that takes splits.
const PREFILL_ROWS: usize = 64;
const DECODE_ROWS: usize = 16;
const DECODE_THREADS: u32 = 128;
const COMBINE_THREADS: u32 = 128;
/// Shared memory that the driver keeps for itself, for each block.
const RESERVED_SHARED_BYTES: usize = 1 << 10;
/// Three numbers of each sequence lie in shared memory.
const NUM_SEQS_MAX: usize = 2048;
/// Partial results begin on such borders.
const ALIGN: u64 = 256;

const PREFILL: &[Param] = &[
    Ptr, Ptr, Ptr, Ptr, Ptr, Ptr,
    Ptr, // out, q, caches, query_start, context_len, block_tables
    F32, U32, U32, U32, U32, U32, U32, // scale, ..., num_seqs, split_tokens_max
];
const DECODE: &[Param] = &[
    Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr,
    Ptr, // out, the partial results, then as above
    F32, U32, U32, U32, U32, U32, U32, U32, // as above, and partial_splits_max
];
const COMBINE: &[Param] = &[Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, U32, U32, U32];

const fn kernel(module: &'static str, name: &'static str, params: &'static [Param]) -> KernelSpec {
    KernelSpec { module, name, params }
}

const fn prefill_kernel(name: &'static str) -> KernelSpec {
    kernel("attention_prefill", name, PREFILL)
}

const fn decode_kernel(name: &'static str) -> KernelSpec {
    kernel("attention_decode", name, DECODE)
}

const fn combine_kernel(name: &'static str) -> KernelSpec {
    kernel("attention_decode", name, COMBINE)
}

/// Three kernels for each head_dim: those of BF16, then those of F16.
pub const KERNELS: &[KernelSpec] = &[
    prefill_kernel("attention_prefill_32_bf16"),
    decode_kernel("attention_decode_32_bf16"),
    combine_kernel("attention_combine_32_bf16"),
    prefill_kernel("attention_prefill_64_bf16"),
    decode_kernel("attention_decode_64_bf16"),
    combine_kernel("attention_combine_64_bf16"),
    prefill_kernel("attention_prefill_128_bf16"),
    decode_kernel("attention_decode_128_bf16"),
    combine_kernel("attention_combine_128_bf16"),
    prefill_kernel("attention_prefill_256_bf16"),
    decode_kernel("attention_decode_256_bf16"),
    combine_kernel("attention_combine_256_bf16"),
    prefill_kernel("attention_prefill_32_f16"),
    decode_kernel("attention_decode_32_f16"),
    combine_kernel("attention_combine_32_f16"),
    prefill_kernel("attention_prefill_64_f16"),
    decode_kernel("attention_decode_64_f16"),
    combine_kernel("attention_combine_64_f16"),
    prefill_kernel("attention_prefill_128_f16"),
    decode_kernel("attention_decode_128_f16"),
    combine_kernel("attention_combine_128_f16"),
    prefill_kernel("attention_prefill_256_f16"),
    decode_kernel("attention_decode_256_f16"),
    combine_kernel("attention_combine_256_f16"),
];

const HEAD_DIMS: [usize; 4] = [32, 64, 128, 256];

/// Errors: `Shape` for a head_dim, block size or number of sequences that no kernel takes;
/// `OutOfMemory` for the partial results, at the first call; `Device`.
pub fn attention(
    device: &CudaDevice,
    out: &mut Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    batch: &AttentionBatch,
    scale: f32,
) -> Result<(), KernelError> {
    assert!(scale > 0.0, "the largest product is taken for the largest score");
    let arrays = batch.device.expect("the step's arrays were copied to the device");
    let call = Call::new(device, q, k_cache, arrays)?;
    if q.is_empty() || arrays.num_seqs == 0 {
        return Ok(());
    }
    let inputs = [q, k_cache, v_cache].map(|t| Arg::Ptr(t.device_ptr()));
    let out = Arg::Ptr(out.device_ptr());
    if arrays.query_len_max as usize > call.split_tokens_max {
        call.prefill(out, inputs, scale)?;
    }
    let scratch = call.scratch()?;
    call.decode(out, &scratch, inputs, scale)?;
    if arrays.context_len_max as usize > SPLIT_KEYS {
        call.combine(out, &scratch)?;
    }
    Ok(())
}

/// What the three launches share.
struct Call<'a> {
    device: &'a CudaDevice,
    arrays: DeviceAttention,
    kernels: &'static [KernelSpec],
    heads: usize,
    kv_heads: usize,
    block_shift: u32,
    head_dim: usize,
    /// Sequences with more tokens than this in the step are not split.
    split_tokens_max: usize,
}

/// Where the partial results of splits lie: addresses, and the splits there is room for.
struct Scratch {
    sums: Arg,
    stats: Arg,
    item_start: Arg,
    partial_splits_max: usize,
}

impl<'a> Call<'a> {
    fn new(
        device: &'a CudaDevice,
        q: &Tensor,
        k_cache: &Tensor,
        arrays: DeviceAttention,
    ) -> Result<Call<'a>, KernelError> {
        let &[_, kv_heads, block_size, head_dim] = k_cache.shape() else { unreachable!("checked") };
        let refuse = |what, got, expected: String| {
            Err(KernelError::Shape { op: OP, what, got: vec![got], expected })
        };
        let Some(place) = HEAD_DIMS.iter().position(|&dim| dim == head_dim) else {
            return refuse("head_dim", head_dim, format!("one of {HEAD_DIMS:?} on a GPU"));
        };
        if !block_size.is_power_of_two() {
            return refuse("block_size", block_size, "a power of two on a GPU".into());
        }
        if arrays.num_seqs as usize > NUM_SEQS_MAX {
            let expected = format!("at most {NUM_SEQS_MAX} on a GPU");
            return refuse("num_seqs", arrays.num_seqs as usize, expected);
        }
        let format = usize::from(k_cache.dtype() == DType::F16);
        let first = (format * HEAD_DIMS.len() + place) * 3;
        let heads = q.row_len() / head_dim;
        let group = heads / kv_heads;
        // Rows of several tokens share the tile that one token needs anyway.
        let fit = (DECODE_ROWS / group).max(1);
        Ok(Call {
            device,
            arrays,
            kernels: &KERNELS[first..first + 3],
            heads,
            kv_heads,
            block_shift: block_size.trailing_zeros(),
            head_dim,
            split_tokens_max: fit.min(arrays.query_len_max as usize).max(1),
        })
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Addresses and numbers that the first two kernels have in common.
    fn common_args(&self, inputs: [Arg; 3], scale: f32) -> [Arg; 13] {
        let DeviceAttention { query_start, context_len, block_tables, .. } = self.arrays;
        let [q, k_cache, v_cache] = inputs;
        [
            q,
            k_cache,
            v_cache,
            Arg::Ptr(query_start),
            Arg::Ptr(context_len),
            Arg::Ptr(block_tables),
            Arg::F32(scale),
            Arg::U32(self.heads as u32),
            Arg::U32(self.kv_heads as u32),
            Arg::U32(self.block_shift),
            Arg::U32(self.arrays.block_table_stride),
            Arg::U32(self.arrays.num_seqs),
            Arg::U32(self.split_tokens_max as u32),
        ]
    }

    fn prefill(&self, out: Arg, inputs: [Arg; 3], scale: f32) -> Result<(), KernelError> {
        let num_tiles = self.arrays.num_tokens as usize * self.group() / PREFILL_ROWS;
        let (dim_warps, _) = prefill_plan(self.head_dim);
        let warps = PREFILL_ROWS / 16 * dim_warps;
        let geometry = Geometry {
            grid: [num_tiles as u32 + self.arrays.num_seqs, self.kv_heads as u32, 1],
            block_threads: 32 * warps as u32,
            shared_bytes: prefill_shared_bytes(self.head_dim) as u32,
        };
        let mut args = vec![out];
        args.extend(self.common_args(inputs, scale));
        self.device.launch(&self.kernels[0], geometry, &args)
    }

    fn decode(
        &self,
        out: Arg,
        scratch: &Scratch,
        inputs: [Arg; 3],
        scale: f32,
    ) -> Result<(), KernelError> {
        let num_seqs = self.arrays.num_seqs as usize;
        let shared_bytes = decode_shared_bytes(self.head_dim, num_seqs);
        let splits_max = (self.arrays.context_len_max as usize).div_ceil(SPLIT_KEYS).max(1);
        let row_tiles = (self.split_tokens_max * self.group()).div_ceil(DECODE_ROWS);
        let units_max = num_seqs * splits_max * row_tiles * self.kv_heads;
        let shared_in_all = self.device.shared_bytes_per_multiprocessor()?;
        let resident = shared_in_all / (shared_bytes + RESERVED_SHARED_BYTES);
        // What registers allow, by the kernels' launch bounds.
        let resident_max = if self.head_dim > 64 { 3 } else { 4 };
        let resident = resident.clamp(1, resident_max) * self.device.num_multiprocessors()?;
        let geometry = Geometry {
            grid: [units_max.min(resident) as u32, 1, 1],
            block_threads: DECODE_THREADS,
            shared_bytes: shared_bytes as u32,
        };
        let mut args = vec![out, scratch.sums, scratch.stats, scratch.item_start];
        args.extend(self.common_args(inputs, scale));
        args.push(Arg::U32(scratch.partial_splits_max as u32));
        self.device.launch(&self.kernels[1], geometry, &args)
    }

    fn combine(&self, out: Arg, scratch: &Scratch) -> Result<(), KernelError> {
        let num_units = self.arrays.num_seqs as usize * self.heads;
        let geometry = Geometry {
            grid: [num_units.div_ceil(COMBINE_THREADS as usize / 32) as u32, 1, 1],
            block_threads: COMBINE_THREADS,
            shared_bytes: 0,
        };
        let args = [
            out,
            scratch.sums,
            scratch.stats,
            scratch.item_start,
            Arg::Ptr(self.arrays.query_start),
            Arg::Ptr(self.arrays.context_len),
            Arg::U32(self.heads as u32),
            Arg::U32(self.arrays.num_seqs),
            Arg::U32(self.split_tokens_max as u32),
        ];
        self.device.launch(&self.kernels[2], geometry, &args)
    }

    /// Divides the device's scratch memory. Splits that find no room are not made.
    fn scratch(&self) -> Result<Scratch, KernelError> {
        let (address, len) = self.device.scratch()?;
        let item_start_bytes = (u64::from(self.arrays.num_seqs) + 1) * size_of::<u32>() as u64;
        let stats = address + item_start_bytes.next_multiple_of(ALIGN);
        let states_per_split = (self.split_tokens_max * self.heads) as u64;
        let stats_bytes = states_per_split * 2 * size_of::<f32>() as u64;
        let sums_bytes = states_per_split * (self.head_dim * size_of::<f32>()) as u64;
        let room = (address + len as u64).saturating_sub(stats + ALIGN);
        let partial_splits_max = room / (stats_bytes + sums_bytes);
        let sums = (stats + partial_splits_max * stats_bytes).next_multiple_of(ALIGN);
        Ok(Scratch {
            sums: Arg::Ptr(sums),
            stats: Arg::Ptr(stats),
            item_start: Arg::Ptr(address),
            partial_splits_max: partial_splits_max as usize,
        })
    }
}

/// Warps that share the dimensions of a row, and tiles in shared memory at once.
fn prefill_plan(head_dim: usize) -> (usize, usize) {
    (if head_dim > 128 { 2 } else { 1 }, if head_dim > 64 { 2 } else { 4 })
}

/// Dynamic shared memory of the kernel that walks whole contexts.
pub fn prefill_shared_bytes(head_dim: usize) -> usize {
    let (dim_warps, buffers) = prefill_plan(head_dim);
    shared_bytes(head_dim, PREFILL_ROWS, dim_warps, buffers)
}

/// Dynamic shared memory of the kernel that takes splits of `num_seqs` sequences.
pub fn decode_shared_bytes(head_dim: usize, num_seqs: usize) -> usize {
    let sequences_bytes = (3 * num_seqs + 2) * size_of::<u32>();
    shared_bytes(head_dim, DECODE_ROWS, 4, 4) + sequences_bytes
}

/// SHARED_BYTES of `Plan` in attention_tile.cuh.
const fn shared_bytes(head_dim: usize, rows: usize, dim_warps: usize, buffers: usize) -> usize {
    let keys = if head_dim > 128 { 32 } else { 64 };
    let exchanged = if dim_warps > 1 { rows * keys * 2 + rows * dim_warps * 4 } else { 0 };
    rows * head_dim * 2 + buffers * keys * head_dim * 2 + exchanged
}
