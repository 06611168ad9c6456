//! Causal attention over the paged cache, for mixed batches of prefill chunks and decodes.

mod cpu;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::expect;
use super::kv_write::expect_cache_dtype;
use crate::device::cpu::Isa;
use crate::{Backend, DType, KernelError, Tensor};

const OP: &str = "attention";

/// Which tokens belong to which sequence, as flat arrays. Sequence s owns query rows
/// query_start[s]..query_start[s + 1]; they are its last tokens, so the last row sees
/// context_len[s] keys, the row before it one less, and so on.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBatch<'a> {
    /// [num_seqs + 1], from 0, not falling.
    pub query_start: &'a [u32],
    /// [num_seqs]: tokens in the cache, those of this step included.
    pub context_len: &'a [u32],
    /// Block ids of all sequences, one after the other; at least context_len / block_size, rounded
    /// up, each.
    pub block_tables: &'a [u32],
    /// [num_seqs + 1]: where each sequence's block ids start.
    pub block_table_start: &'a [u32],
    /// The same on a GPU; present when the step was copied there.
    pub device: Option<DeviceAttention>,
}

/// The arrays of an `AttentionBatch` as a GPU's kernels read them, by address. Each may be longer
/// than the step at hand: a recorded step is padded with sequences of context and query length 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceAttention {
    /// u32 [num_seqs + 1]
    pub query_start: u64,
    /// u32 [num_seqs]
    pub context_len: u64,
    /// u32 [num_seqs, block_table_stride]
    pub block_tables: u64,
    pub block_table_stride: u32,
    /// u32 [num_tokens]: the sequence of each row.
    pub row_seq: u64,
    /// Sequences, padding included.
    pub num_seqs: u32,
    /// Rows, padding included.
    pub num_tokens: u32,
    /// No sequence has more keys than this; a recorded step has the largest that may come.
    pub context_len_max: u32,
    /// No sequence has more query rows than this in the step: 1 when all decode.
    pub query_len_max: u32,
}

impl AttentionBatch<'_> {
    pub fn num_seqs(&self) -> usize {
        self.context_len.len()
    }
}

/// Whether BF16 caches are the fastest on a CPU with `isa`, because it multiplies bf16 pairs.
pub fn multiplies_bf16(isa: Isa) -> bool {
    isa == Isa::Avx512Bf16
}

/// Softmax attention of each query row over its own sequence's cached keys, query head h using kv
/// head h * kv_heads / heads.
///
/// out[t, h] = sum over j <= p(t) of softmax_j(scale * q[t, h] . k[j]) v[j]
///
/// Shapes: `q`, `out` [num_tokens, heads * head_dim] F32; `k_cache`, `v_cache` [num_blocks,
/// kv_heads, block_size, head_dim], F32, F16 or BF16, as `kv_write` fills them. On a GPU all are in
/// the device's activation format,
/// `head_dim` is 32, 64, 128 or 256, `block_size` a power of two, and `q` and `out` have the rows
/// of the padded step, of which those of no sequence are neither read nor written.
/// Numbers: sums in f32 (reference: f64); on a GPU weights are rounded to the activation format, on
/// a CPU that multiplies bf16 pairs queries and weights are rounded to bf16 if the caches are BF16.
/// With finite numbers in the cache a row's result depends, to the bit, on its own query, keys and
/// values alone: not on how the sequence was cut into chunks and blocks, nor on other sequences or
/// the number of threads.
/// Errors: `Shape`, `DType`, `Index` for a block outside the cache or a batch that contradicts
/// itself.
/// Source: Vaswani et al., 2017; Ainslie et al., "GQA", 2023; Kwon et al., "PagedAttention", 2023.
pub fn attention(
    backend: &Backend,
    out: &mut Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    batch: &AttentionBatch,
    scale: f32,
) -> Result<(), KernelError> {
    check(backend, out, q, k_cache, v_cache, batch)?;
    match backend {
        Backend::Reference => reference::attention(out, q, k_cache, v_cache, batch, scale),
        Backend::Cpu(device) => {
            cpu::attention(device, out, q, k_cache, v_cache, batch, scale);
        }
        Backend::Cuda(device) => {
            return cuda::attention(device, out, q, k_cache, v_cache, batch, scale);
        }
    }
    Ok(())
}

fn check(
    backend: &Backend,
    out: &Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    batch: &AttentionBatch,
) -> Result<(), KernelError> {
    let &[num_blocks, kv_heads, block_size, head_dim] = k_cache.shape() else {
        let (got, expected) = (k_cache.shape().to_vec(), "four dimensions".into());
        return Err(KernelError::Shape { op: OP, what: "k_cache", got, expected });
    };
    let activation = backend.activation_dtype();
    if activation != DType::F32 {
        expect(OP, "k_cache", k_cache, activation, k_cache.shape())?;
    } else {
        expect_cache_dtype(OP, "k_cache", k_cache)?;
    }
    expect(OP, "v_cache", v_cache, k_cache.dtype(), k_cache.shape())?;
    expect(OP, "q", q, activation, out.shape())?;
    expect(OP, "out", out, activation, q.shape())?;
    if !q.row_len().is_multiple_of(kv_heads * head_dim) {
        let expected = format!("[_, heads * {head_dim}], heads a multiple of {kv_heads}");
        return Err(KernelError::Shape { op: OP, what: "q", got: q.shape().to_vec(), expected });
    }
    let num_seqs = batch.num_seqs();
    // Rows that pad a recorded step belong to no sequence.
    let num_padding = batch.device.map_or(0, |device| {
        (device.num_tokens as usize)
            .saturating_sub(batch.query_start.last().map_or(0, |&n| n as usize))
    });
    let starts = [
        ("query_start", batch.query_start, q.rows() - num_padding.min(q.rows())),
        ("block_table_start", batch.block_table_start, batch.block_tables.len()),
    ];
    for (what, start, end) in starts {
        let ordered = start.len() == num_seqs + 1 && start[0] == 0 && start.is_sorted();
        if !ordered || start[num_seqs] as usize != end {
            let expected = format!("{} rising numbers from 0 to {end}", num_seqs + 1);
            return Err(KernelError::Shape { op: OP, what, got: vec![start.len()], expected });
        }
    }
    for s in 0..num_seqs {
        let num_queries = batch.query_start[s + 1] - batch.query_start[s];
        let num_blocks_held =
            (batch.block_table_start[s + 1] - batch.block_table_start[s]) as usize;
        let context_len = batch.context_len[s] as usize;
        if context_len.div_ceil(block_size) > num_blocks_held || num_queries as usize > context_len
        {
            let (what, len) = ("context_len", num_blocks_held * block_size);
            return Err(KernelError::Index { op: OP, what, index: context_len, len });
        }
    }
    super::expect_indices(OP, "block", batch.block_tables, num_blocks)
}
