//! Which part of each tensor a rank holds. Pure rules: no file, no device.
//!
//! Attention is split by heads, the MLP by intermediate features: the first projections by rows of
//! their weights, the last one by columns, so that one sum over ranks ends each half of a layer.
//! Embedding, norms and the head are on every rank.

#[cfg(test)]
mod tests;

use super::StoredTensor;
use crate::{LoadError, ModelConfig};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// One rank of a tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSpec {
    pub rank: usize,
    pub world_size: usize,
}

impl ShardSpec {
    pub const SOLO: ShardSpec = ShardSpec { rank: 0, world_size: 1 };
}

/// How a tensor is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank holds all of it.
    Whole,
    /// Equal runs of output features: rows of a weight, values of a bias.
    OutFeatures,
    /// Equal runs of input features: columns of a weight. The ranks' results are then summed.
    InFeatures,
    /// Output features by kv head; with more ranks than kv heads, neighbouring ranks hold the same
    /// one.
    KvHeads { num_kv_heads: usize },
}

/// Heads and features of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSizes {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub intermediate_size: usize,
}

/// Errors: `Unsupported` when heads or features cannot be shared out evenly.
pub fn shard_sizes(config: &ModelConfig, spec: ShardSpec) -> Result<ShardSizes, LoadError> {
    let ShardSpec { rank, world_size } = spec;
    assert!(rank < world_size, "rank {rank} of {world_size}");
    let even = |key: &str, count: usize| {
        let supported = format!("divisors of {key} {count}");
        match count.is_multiple_of(world_size) {
            true => Ok(count / world_size),
            false => Err(LoadError::unsupported("tensor parallel size", world_size, supported)),
        }
    };
    let num_kv_heads = config.num_kv_heads;
    if !num_kv_heads.is_multiple_of(world_size) && !world_size.is_multiple_of(num_kv_heads) {
        let supported = format!("divisors and multiples of num_key_value_heads {num_kv_heads}");
        return Err(LoadError::unsupported("tensor parallel size", world_size, supported));
    }
    Ok(ShardSizes {
        num_heads: even("num_attention_heads", config.num_heads)?,
        num_kv_heads: (num_kv_heads / world_size).max(1),
        intermediate_size: even("intermediate_size", config.intermediate_size)?,
    })
}

/// The features out of `len` that a rank holds; `shard_sizes` made sure that they come out even.
pub fn feature_range(split: Split, len: usize, spec: ShardSpec) -> Range<usize> {
    let ShardSpec { rank, world_size } = spec;
    let even = || {
        assert!(len.is_multiple_of(world_size), "{len} features on {world_size} ranks");
        let part = len / world_size;
        rank * part..(rank + 1) * part
    };
    match split {
        Split::Whole => 0..len,
        Split::OutFeatures | Split::InFeatures => even(),
        Split::KvHeads { num_kv_heads } if world_size <= num_kv_heads => even(),
        Split::KvHeads { num_kv_heads } => {
            let head_len = len / num_kv_heads;
            let head = rank * num_kv_heads / world_size;
            head * head_len..(head + 1) * head_len
        }
    }
}

/// The part of `tensor` that a rank holds. Whole rows stay views of the file; columns are copied,
/// block by block.
///
/// Errors: `Unsupported` when the cut would go through a quantisation block.
pub fn slice(
    name: &str,
    tensor: StoredTensor,
    split: Split,
    spec: ShardSpec,
) -> Result<StoredTensor, LoadError> {
    if spec.world_size == 1 || split == Split::Whole {
        return Ok(tensor);
    }
    if split != Split::InFeatures {
        return Ok(slice_rows(tensor, split, spec));
    }
    let row_len = *tensor.shape.last().expect("a tensor has dimensions");
    let range = feature_range(split, row_len, spec);
    let block_len = tensor.dtype.block_len();
    if !range.len().is_multiple_of(block_len) {
        let supported = format!("parts of {name} of a multiple of {block_len} input features");
        return Err(LoadError::unsupported("tensor parallel size", spec.world_size, supported));
    }
    let bytes_of = |len: usize| len / block_len * tensor.dtype.block_bytes();
    let (row_bytes, start, end) = (bytes_of(row_len), bytes_of(range.start), bytes_of(range.end));
    let num_rows = tensor.bytes.len() / row_bytes;
    let mut bytes = BytesMut::with_capacity(num_rows * (end - start));
    for row in tensor.bytes.chunks_exact(row_bytes) {
        bytes.extend_from_slice(&row[start..end]);
    }
    let mut shape = tensor.shape;
    *shape.last_mut().expect("as above") = range.len();
    Ok(StoredTensor { dtype: tensor.dtype, shape, bytes: Bytes::from(bytes) })
}

fn slice_rows(tensor: StoredTensor, split: Split, spec: ShardSpec) -> StoredTensor {
    let rows = feature_range(split, tensor.shape[0], spec);
    let row_bytes = tensor.bytes.len() / tensor.shape[0];
    let bytes = tensor.bytes.slice(rows.start * row_bytes..rows.end * row_bytes);
    let mut shape = tensor.shape;
    shape[0] = rows.len();
    StoredTensor { dtype: tensor.dtype, shape, bytes }
}
