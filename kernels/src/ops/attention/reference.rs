use super::AttentionBatch;
use crate::ops::kv_write::{Kind, PairedBlock};
use crate::{DType, Tensor};

pub fn attention(
    out: &mut Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    batch: &AttentionBatch,
    scale: f32,
) {
    let &[_, kv_heads, block_size, head_dim] = k_cache.shape() else { unreachable!("checked") };
    let heads = q.row_len() / head_dim;
    for s in 0..batch.num_seqs() {
        let (start, end) = (batch.query_start[s] as usize, batch.query_start[s + 1] as usize);
        let blocks = &batch.block_tables[batch.block_table_start[s] as usize..];
        for t in start..end {
            let num_keys = batch.context_len[s] as usize - (end - 1 - t);
            for head in 0..heads {
                let kv_head = head * kv_heads / heads;
                let row = |kind: Kind, j: usize| {
                    let part = blocks[j / block_size] as usize * kv_heads + kv_head;
                    let cache = if kind == Kind::Keys { k_cache } else { v_cache };
                    read(cache, kind, part, j % block_size)
                };
                let q = &q.f32_row(t)[head * head_dim..(head + 1) * head_dim];
                let scores: Vec<f64> =
                    (0..num_keys).map(|j| f64::from(scale) * dot(q, &row(Kind::Keys, j))).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut mix = vec![0f64; head_dim];
                for (j, weight) in weights.iter().enumerate() {
                    mix.iter_mut()
                        .zip(row(Kind::Values, j))
                        .for_each(|(m, v)| *m += weight * f64::from(v));
                }
                let at = (t * heads + head) * head_dim;
                let out = &mut out.f32_mut()[at..at + head_dim];
                out.iter_mut().zip(&mix).for_each(|(out, m)| *out = (m / sum) as f32);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The key or value in place `offset` of one head's part of a block.
fn read(cache: &Tensor, kind: Kind, part: usize, offset: usize) -> Vec<f32> {
    let &[_, _, block_size, head_dim] = cache.shape() else { unreachable!("checked") };
    let start = (part * block_size + offset) * head_dim;
    match cache.dtype() {
        DType::F16 => cache.f16()[start..start + head_dim].iter().map(|v| v.to_f32()).collect(),
        DType::BF16 => {
            let layout = PairedBlock { block_size, head_dim };
            let part = &cache.bf16()[part * block_size * head_dim..];
            (0..head_dim).map(|d| part[layout.at(kind, offset, d)].to_f32()).collect()
        }
        _ => cache.f32()[start..start + head_dim].to_vec(),
    }
}
