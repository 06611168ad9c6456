//! Ops on the CPU, in the shapes of the default model. `cargo bench -p benches --bench ops`

use benches::{blocks, num_threads};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::device::cpu::CpuDevice;
use kernels::ops::{AttentionBatch, Weight, attention, linear, rms_norm, silu_mul};
use kernels::{Backend, DType, Tensor};

const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const BLOCK_SIZE: usize = 16;

fn cpu() -> Backend {
    Backend::Cpu(CpuDevice::new(num_threads(), None))
}

fn tensor(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Tensor::from_f32(shape, &values)
}

/// Decode is bound by the bytes of the weights, prefill by the products: each has its own unit.
fn bench_linear(c: &mut Criterion) {
    let backend = cpu();
    let mut group = c.benchmark_group("linear");
    for dtype in [DType::Q5_0, DType::Q8_0, DType::Q4K, DType::Q6K, DType::BF16] {
        // K-quants have blocks of 256, which 896 is no multiple of.
        let in_features = if dtype.block_len() == 256 { 1024 } else { HIDDEN };
        let bytes = blocks(dtype, INTERMEDIATE, in_features);
        let num_bytes = bytes.len() as u64;
        let weight = Weight::load(&backend, dtype, INTERMEDIATE, in_features, bytes);
        let weight = weight.expect("legal blocks");
        for num_tokens in [1, 8, 32, 512] {
            let x = tensor(&[num_tokens, in_features]);
            let mut out = tensor(&[num_tokens, INTERMEDIATE]);
            let products = (num_tokens * INTERMEDIATE * in_features) as u64;
            group.throughput(match num_tokens {
                1 => Throughput::Bytes(num_bytes),
                _ => Throughput::Elements(2 * products),
            });
            let id = BenchmarkId::new(dtype.name(), num_tokens);
            group.bench_function(id, |b| {
                b.iter(|| linear(&backend, &mut out, &x, &weight, None).expect("shapes fit"));
            });
        }
    }
    group.finish();
}

fn bench_attention(c: &mut Criterion) {
    let backend = cpu();
    let mut group = c.benchmark_group("attention");
    for (name, num_queries, context) in [("decode", 1, 2048), ("prefill", 512, 512)] {
        let num_blocks = context / BLOCK_SIZE;
        let shape = [num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM];
        let k = Tensor::zeros(DType::F16, &shape).expect("memory");
        let v = Tensor::zeros(DType::F16, &shape).expect("memory");
        let q = tensor(&[num_queries, HEADS * HEAD_DIM]);
        let mut out = tensor(&[num_queries, HEADS * HEAD_DIM]);
        let block_tables: Vec<u32> = (0..num_blocks as u32).rev().collect();
        let batch = AttentionBatch {
            query_start: &[0, num_queries as u32],
            context_len: &[context as u32],
            block_tables: &block_tables,
            block_table_start: &[0, num_blocks as u32],
            device: None,
        };
        group.bench_function(name, |b| {
            b.iter(|| attention(&backend, &mut out, &q, &k, &v, &batch, 0.125).expect("fits"));
        });
    }
    group.finish();
}

fn bench_elementwise(c: &mut Criterion) {
    let backend = cpu();
    let (x, weight) = (tensor(&[512, HIDDEN]), tensor(&[HIDDEN]));
    let mut out = tensor(&[512, HIDDEN]);
    c.bench_function("rms_norm/512", |b| {
        b.iter(|| rms_norm(&backend, &mut out, &x, &weight, 1e-6).expect("fits"));
    });
    let (gate, up) = (tensor(&[512, INTERMEDIATE]), tensor(&[512, INTERMEDIATE]));
    let mut out = tensor(&[512, INTERMEDIATE]);
    c.bench_function("silu_mul/512", |b| {
        b.iter(|| silu_mul(&backend, &mut out, &gate, &up).expect("fits"));
    });
}

criterion_group!(benches, bench_linear, bench_attention, bench_elementwise);
criterion_main!(benches);
