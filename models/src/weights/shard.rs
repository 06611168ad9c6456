//! Which part of each tensor a rank holds. Pure rules: no file, no device.
//!
//! Attention is split by heads, the MLP by intermediate features: the first projections by rows of
//! their weights, the last one by columns, so that one sum over ranks ends each half of a layer.
//! Embedding and head are split by rows of the vocabulary; norms are on every rank.
//!
//! Block formats store up to 256 input features together. The MLP is cut between blocks where it
//! can be, if need be into parts that are not quite equal: which rank holds a feature does not
//! matter. Heads leave no such choice, so there a cut may go through a block.

#[cfg(test)]
mod tests;

use super::StoredTensor;
use crate::{LoadError, ModelConfig};
use bytes::{Bytes, BytesMut};
use kernels::DType;
use kernels::comm::part_range;
use kernels::ops::dequantize;
use std::ops::Range;

/// Features of the MLP that stay together when it cannot be shared out evenly.
const INNER_UNIT_MIN: usize = 32;

/// One rank of a tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSpec {
    pub rank: usize,
    pub world_size: usize,
}

impl ShardSpec {
    pub const SOLO: ShardSpec = ShardSpec { rank: 0, world_size: 1 };
}

/// Embedding and head: rows of the vocabulary, whole, so that any format can be cut.
pub const VOCAB: Split = Split::OutUnits { unit: 1 };

/// How a tensor is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank holds all of it.
    Whole,
    /// Equal runs of output features: rows of a weight, values of a bias.
    OutFeatures,
    /// Equal runs of input features: columns of a weight. The ranks' results are then summed.
    InFeatures,
    /// Runs of output features in whole units, as equal as they come.
    OutUnits { unit: usize },
    /// The same with input features.
    InUnits { unit: usize },
    /// Output features by kv head; with more ranks than kv heads, neighbouring ranks hold the same
    /// one.
    KvHeads { num_kv_heads: usize },
}

/// Heads and features of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSizes {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    /// Features of the MLP on this rank.
    pub intermediate_size: usize,
    /// What the MLP is shared out in.
    pub inner_unit: usize,
}

/// `block_len`: features that the MLP's last projection stores together.
///
/// Errors: `Unsupported` when heads or features cannot be shared out.
pub fn shard_sizes(
    config: &ModelConfig,
    spec: ShardSpec,
    block_len: usize,
) -> Result<ShardSizes, LoadError> {
    let ShardSpec { rank, world_size } = spec;
    assert!(rank < world_size, "rank {rank} of {world_size}");
    let unsupported =
        |supported| Err(LoadError::unsupported("tensor parallel size", world_size, supported));
    let num_kv_heads = num_kv_heads(config, spec)?;
    let num_heads = config.num_heads;
    if !num_heads.is_multiple_of(world_size) {
        return unsupported(format!("divisors of num_attention_heads {num_heads}"));
    }
    let inner = config.intermediate_size;
    let Some(inner_unit) = inner_unit(inner, block_len, world_size) else {
        return unsupported(format!("divisors of intermediate_size {inner}"));
    };
    let split = Split::InUnits { unit: inner_unit };
    Ok(ShardSizes {
        num_heads: num_heads / world_size,
        num_kv_heads,
        intermediate_size: feature_range(split, inner, spec).len(),
        inner_unit,
    })
}

/// The kv heads on one rank: with more ranks than heads, one, which it shares with its neighbours.
///
/// Errors: `Unsupported` when neither count divides the other.
pub fn num_kv_heads(config: &ModelConfig, spec: ShardSpec) -> Result<usize, LoadError> {
    let (num_kv_heads, world_size) = (config.num_kv_heads, spec.world_size);
    if !num_kv_heads.is_multiple_of(world_size) && !world_size.is_multiple_of(num_kv_heads) {
        let supported = format!("divisors and multiples of num_key_value_heads {num_kv_heads}");
        return Err(LoadError::unsupported("tensor parallel size", world_size, supported));
    }
    Ok((num_kv_heads / world_size).max(1))
}

/// Equal parts of whole blocks, else unequal parts of whole blocks, else equal parts whose ends lie
/// inside blocks.
fn inner_unit(len: usize, block_len: usize, world_size: usize) -> Option<usize> {
    let even = len.is_multiple_of(world_size).then_some(len / world_size);
    let small = block_len.max(INNER_UNIT_MIN);
    let is_enough = len.is_multiple_of(small) && len / small >= world_size;
    even.filter(|part| part.is_multiple_of(block_len)).or(is_enough.then_some(small)).or(even)
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
        Split::OutUnits { unit } | Split::InUnits { unit } => {
            assert!(len.is_multiple_of(unit), "{len} features in units of {unit}");
            let units = part_range(len / unit, rank, world_size);
            units.start * unit..units.end * unit
        }
        Split::KvHeads { num_kv_heads } if world_size <= num_kv_heads => even(),
        Split::KvHeads { num_kv_heads } => {
            let head_len = len / num_kv_heads;
            let head = rank * num_kv_heads / world_size;
            head * head_len..(head + 1) * head_len
        }
    }
}

/// The part of `tensor` that a rank holds. Whole rows stay views of the file; columns are copied,
/// block by block. Where the cut goes through a block the part is widened to F32, which is exact
/// but takes more memory.
pub fn slice(
    tensor: StoredTensor,
    split: Split,
    spec: ShardSpec,
) -> Result<StoredTensor, LoadError> {
    if spec.world_size == 1 || split == Split::Whole {
        return Ok(tensor);
    }
    if !matches!(split, Split::InFeatures | Split::InUnits { .. }) {
        return Ok(slice_rows(tensor, split, spec));
    }
    let row_len = *tensor.shape.last().expect("a tensor has dimensions");
    let range = feature_range(split, row_len, spec);
    match is_between_blocks(tensor.dtype, &range) {
        true => Ok(slice_columns(tensor, range)),
        false => widen_columns(tensor, range),
    }
}

/// Whether columns can be cut out as they are.
pub fn is_between_blocks(dtype: DType, columns: &Range<usize>) -> bool {
    let block_len = dtype.block_len();
    columns.start.is_multiple_of(block_len) && columns.end.is_multiple_of(block_len)
}

fn slice_rows(tensor: StoredTensor, split: Split, spec: ShardSpec) -> StoredTensor {
    let rows = feature_range(split, tensor.shape[0], spec);
    let row_bytes = tensor.bytes.len() / tensor.shape[0];
    let bytes = tensor.bytes.slice(rows.start * row_bytes..rows.end * row_bytes);
    let mut shape = tensor.shape;
    shape[0] = rows.len();
    StoredTensor { dtype: tensor.dtype, shape, bytes }
}

/// `range` begins and ends between blocks.
fn slice_columns(tensor: StoredTensor, range: Range<usize>) -> StoredTensor {
    let (num_rows, row_bytes) = rows_of(&tensor);
    let bytes_of = |len: usize| len / tensor.dtype.block_len() * tensor.dtype.block_bytes();
    let (start, end) = (bytes_of(range.start), bytes_of(range.end));
    let mut bytes = BytesMut::with_capacity(num_rows * (end - start));
    for row in tensor.bytes.chunks_exact(row_bytes) {
        bytes.extend_from_slice(&row[start..end]);
    }
    with_columns(tensor.shape, range.len(), tensor.dtype, bytes.freeze())
}

fn widen_columns(tensor: StoredTensor, range: Range<usize>) -> Result<StoredTensor, LoadError> {
    let (num_rows, row_bytes) = rows_of(&tensor);
    let mut values = vec![0f32; *tensor.shape.last().expect("a tensor has dimensions")];
    let mut bytes = BytesMut::with_capacity(num_rows * range.len() * size_of::<f32>());
    for row in tensor.bytes.chunks_exact(row_bytes) {
        dequantize(tensor.dtype, row, &mut values)?;
        values[range.clone()].iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
    }
    Ok(with_columns(tensor.shape, range.len(), DType::F32, bytes.freeze()))
}

/// Count and bytes of the rows of a matrix.
fn rows_of(tensor: &StoredTensor) -> (usize, usize) {
    let row_len = tensor.shape.last().expect("a tensor has dimensions");
    let num_rows = tensor.shape.iter().product::<usize>() / row_len;
    (num_rows, tensor.bytes.len() / num_rows)
}

fn with_columns(
    mut shape: Vec<usize>,
    num_columns: usize,
    dtype: DType,
    bytes: Bytes,
) -> StoredTensor {
    *shape.last_mut().expect("a tensor has dimensions") = num_columns;
    StoredTensor { dtype, shape, bytes }
}
