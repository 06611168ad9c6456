//! Norms of heads, rotary positions, keys and values into the cache.

use super::Findings;
use super::numbers::{Tolerance, indices_on, on_device, rounded, values};
use crate::ops::qkv_rope_write::{HeadNorm, Heads, Positions};
use crate::ops::{self, RopeTable};
use crate::{Backend, DType, Indices, KernelError, Tensor};

/// Puts values of a shape and format where the kernel finds them.
type MakeTensor<'a> = dyn Fn(&[usize], &[f32], DType) -> Result<Tensor, KernelError> + 'a;

const EPS: f32 = 1e-6;
const NUM_BLOCKS: usize = 4;
const BLOCK_SIZE: usize = 8;

/// Heads of queries, of keys, and values of a head: in runs of eight, and not.
const HEADS: [[usize; 3]; 4] = [[4, 2, 128], [7, 1, 64], [2, 2, 256], [3, 1, 40]];

pub fn qkv_rope_write(findings: &mut Findings) {
    for &[heads, kv_heads, head_dim] in findings.cases(&HEADS, 1) {
        for has_norm in [true, false] {
            let deviation = one(findings, [heads, kv_heads, head_dim], has_norm);
            let norm = if has_norm { "normed" } else { "not normed" };
            let case = format!("{heads} and {kv_heads} heads of {head_dim}, {norm}");
            findings.add("qkv_rope_write", case, deviation);
        }
    }
}

/// What the op changes: q and both caches.
type Result3 = Result<[Vec<f32>; 3], KernelError>;

fn one(findings: &Findings, shape: [usize; 3], has_norm: bool) -> Result<f64, KernelError> {
    let dtype = findings.activation();
    let on_gpu = |shape: &[usize], x: &[f32], dtype| on_device(&findings.device, dtype, shape, x);
    let on_host =
        |shape: &[usize], x: &[f32], dtype| Ok(Tensor::from_f32(shape, &rounded(dtype, x)));
    let (positions, _positions) = indices_on(&findings.device, &[0, 5, 11])?;
    let (slots, _slots) = indices_on(&findings.device, &[17, 0, 31])?;
    let steps = [&positions, &slots];
    let actual = run(&findings.backend(), &on_gpu, dtype, shape, steps, has_norm)?;
    let expected = run(&Backend::Reference, &on_host, dtype, shape, steps, has_norm)?;
    let tolerance = Tolerance::of(dtype, 0.5);
    let deviations = actual.iter().zip(&expected).map(|(a, e)| tolerance.deviation(a, e));
    Ok(deviations.fold(0.0, f64::max))
}

fn run(
    backend: &Backend,
    tensor: &MakeTensor,
    dtype: DType,
    [heads, kv_heads, head_dim]: [usize; 3],
    [positions, slots]: [&Indices; 2],
    has_norm: bool,
) -> Result3 {
    let num_tokens = positions.len();
    let rows = |seed, num_heads: usize| {
        let shape = [num_tokens, num_heads * head_dim];
        tensor(&shape, &values(seed, num_tokens * num_heads * head_dim, 2.0), dtype)
    };
    let (mut q, mut k, v) = (rows(1, heads)?, rows(2, kv_heads)?, rows(3, kv_heads)?);
    let cache_shape = [NUM_BLOCKS, kv_heads, BLOCK_SIZE, head_dim];
    let zeros = vec![0.0; cache_shape.iter().product()];
    let cache = || tensor(&cache_shape, &zeros, dtype);
    let (mut k_cache, mut v_cache) = (cache()?, cache()?);
    let table_shape = [16, head_dim / 2];
    let angle = |i: usize| (i / (head_dim / 2)) as f32 / (1.0 + (i % (head_dim / 2)) as f32);
    let table = |f: fn(f32) -> f32| {
        let x: Vec<f32> = (0..16 * head_dim / 2).map(|i| f(angle(i))).collect();
        tensor(&table_shape, &x, DType::F32)
    };
    let table = RopeTable { cos: table(f32::cos)?, sin: table(f32::sin)? };
    let weight = |seed| tensor(&[head_dim], &values(seed, head_dim, 2.0), DType::F32);
    let (q_weight, k_weight) = (weight(4)?, weight(5)?);
    let norm = HeadNorm { q_weight: &q_weight, k_weight: &k_weight, eps: EPS };
    let heads = Heads { head_dim, norm: has_norm.then_some(norm) };
    let positions = Positions { positions, slots, table: &table };
    let caches = [&mut k_cache, &mut v_cache];
    ops::qkv_rope_write(backend, &mut q, &mut k, &v, caches, &positions, &heads)?;
    Ok([q.to_f32()?, k_cache.to_f32()?, v_cache.to_f32()?])
}
