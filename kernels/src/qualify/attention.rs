//! Attention over mixed batches: prefills, decodes, splits of long contexts.

use super::Findings;
use super::numbers::{Tolerance, indices_on, on_device, rounded, values};
use crate::ops::{self, AttentionBatch, DeviceAttention};
use crate::{Backend, DType, Indices, KernelError, Tensor};

const BLOCK_SIZE: usize = 16;
/// Queries, keys and values lie between this and its negative.
const VALUE_MAX: f32 = 2.0;

/// kv heads, query heads of each, values of a head.
const HEADS: [[usize; 3]; 4] = [[2, 2, 128], [2, 7, 64], [1, 1, 256], [2, 4, 32]];
/// Context and new tokens of each sequence: a prefill, a chunk, decodes of short and long contexts.
const SEQUENCES: [[usize; 2]; 4] = [[70, 70], [90, 20], [33, 1], [600, 1]];

pub fn attention(findings: &mut Findings) {
    for &heads in findings.cases(&HEADS, 2) {
        let deviation = one(findings, heads);
        let [kv_heads, group, dim] = heads;
        let case = format!("{} heads of {dim} on {kv_heads}, a mixed batch", kv_heads * group);
        findings.add("attention", case, deviation);
    }
}

/// A step over `SEQUENCES`, on the host.
struct Step {
    query_start: Vec<u32>,
    context_len: Vec<u32>,
    block_tables: Vec<u32>,
    block_table_start: Vec<u32>,
    q: Vec<f32>,
    caches: [Vec<f32>; 2],
    q_shape: [usize; 2],
    cache_shape: [usize; 4],
}

impl Step {
    fn new(dtype: DType, [kv_heads, group, head_dim]: [usize; 3]) -> Step {
        let (mut query_start, mut block_table_start) = (vec![0u32], vec![0u32]);
        for [context, new] in SEQUENCES {
            query_start.push(query_start[query_start.len() - 1] + new as u32);
            let blocks = context.div_ceil(BLOCK_SIZE) as u32;
            block_table_start.push(block_table_start[block_table_start.len() - 1] + blocks);
        }
        let last = |list: &[u32]| list[list.len() - 1] as usize;
        let (num_tokens, num_blocks) = (last(&query_start), last(&block_table_start));
        let q_shape = [num_tokens, kv_heads * group * head_dim];
        let cache_shape = [num_blocks, kv_heads, BLOCK_SIZE, head_dim];
        let draw = |seed, shape: &[usize]| {
            rounded(dtype, &values(seed, shape.iter().product(), VALUE_MAX))
        };
        Step {
            query_start,
            context_len: SEQUENCES.map(|[context, _]| context as u32).to_vec(),
            // Back to front, so that a table read in the wrong place shows.
            block_tables: (0..num_blocks as u32).rev().collect(),
            block_table_start,
            q: draw(1, &q_shape),
            caches: [draw(2, &cache_shape), draw(3, &cache_shape)],
            q_shape,
            cache_shape,
        }
    }

    fn batch(&self, device: Option<DeviceAttention>) -> AttentionBatch<'_> {
        AttentionBatch {
            query_start: &self.query_start,
            context_len: &self.context_len,
            block_tables: &self.block_tables,
            block_table_start: &self.block_table_start,
            device,
        }
    }

    /// The block tables as rows of one length, and that length.
    fn padded_tables(&self) -> (Vec<u32>, usize) {
        let tables = self.block_table_start.windows(2);
        let tables = tables.map(|w| &self.block_tables[w[0] as usize..w[1] as usize]);
        let stride = tables.clone().map(<[u32]>::len).max().unwrap_or(0);
        let pad = |table: &[u32]| {
            let mut row = table.to_vec();
            row.resize(stride, u32::MAX);
            row
        };
        (tables.flat_map(pad).collect(), stride)
    }
}

fn one(findings: &Findings, heads: [usize; 3]) -> Result<f64, KernelError> {
    let (dtype, device) = (findings.activation(), &findings.device);
    let step = Step::new(dtype, heads);
    let scale = 1.0 / (heads[2] as f32).sqrt();
    let upload = |list: &[u32]| indices_on(device, list);
    let (tables, stride) = step.padded_tables();
    let (query_start, _query_start) = upload(&step.query_start)?;
    let (context_len, _context_len) = upload(&step.context_len)?;
    let (tables, _tables) = upload(&tables)?;
    let rows_of = |(i, [_, new]): (usize, [usize; 2])| vec![i as u32; new];
    let row_seq: Vec<u32> = SEQUENCES.into_iter().enumerate().flat_map(rows_of).collect();
    let (row_seq, _row_seq) = upload(&row_seq)?;
    let arrays: [&Indices; 4] = [&query_start, &context_len, &tables, &row_seq];
    let [query_start, context_len, block_tables, row_seq] = arrays.map(|list| list.device_ptr());
    let on_gpu = DeviceAttention {
        query_start,
        context_len,
        block_tables,
        block_table_stride: stride as u32,
        row_seq,
        num_seqs: SEQUENCES.len() as u32,
        num_tokens: step.q_shape[0] as u32,
        context_len_max: SEQUENCES.iter().map(|s| s[0]).max().unwrap_or(0) as u32,
        query_len_max: SEQUENCES.iter().map(|s| s[1]).max().unwrap_or(0) as u32,
    };
    let q = on_device(device, dtype, &step.q_shape, &step.q)?;
    let k_cache = on_device(device, dtype, &step.cache_shape, &step.caches[0])?;
    let v_cache = on_device(device, dtype, &step.cache_shape, &step.caches[1])?;
    let backend = findings.backend();
    let mut out = Tensor::zeros_on(&backend, dtype, &step.q_shape)?;
    let batch = step.batch(Some(on_gpu));
    ops::attention(&backend, &mut out, &q, &k_cache, &v_cache, &batch, scale)?;

    let q = Tensor::from_f32(&step.q_shape, &step.q);
    let [k_cache, v_cache] = [0, 1].map(|i| Tensor::from_f32(&step.cache_shape, &step.caches[i]));
    let mut expected = Tensor::zeros(DType::F32, &step.q_shape)?;
    let (reference, batch) = (Backend::Reference, step.batch(None));
    ops::attention(&reference, &mut expected, &q, &k_cache, &v_cache, &batch, scale)?;
    // Each weight is rounded by up to half a unit, and so is their sum: a result may be off by a
    // unit of the largest value.
    Ok(Tolerance::of(dtype, VALUE_MAX).deviation(&out.to_f32()?, expected.f32()))
}
