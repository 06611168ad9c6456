//! Ops on the CPU, in the shapes of the default model. `cargo bench -p benches --bench ops`

use benches::{blocks, num_threads};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::device::cpu::CpuDevice;
use kernels::ops::kv_write::{Kind, kv_write};
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

/// One layer's attention over caches of both formats. Decoding sequences have the context each.
fn bench_attention(c: &mut Criterion) {
    let backend = cpu();
    let mut group = c.benchmark_group("attention");
    let cases = [
        ("decode", 1, 1, 2048),
        ("decode32", 32, 1, 320),
        ("prefill512", 1, 512, 512),
        ("prefill2048", 1, 2048, 2048),
        ("chunk at 16k", 1, 512, 16384),
    ];
    for (name, num_seqs, num_queries, context) in cases {
        for dtype in [DType::F16, DType::BF16] {
            let blocks_each = context / BLOCK_SIZE;
            let num_blocks = num_seqs * blocks_each;
            let shape = [num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM];
            let mut k = Tensor::zeros(dtype, &shape).expect("memory");
            let mut v = Tensor::zeros(dtype, &shape).expect("memory");
            let slots: Vec<u32> = (0..(num_blocks * BLOCK_SIZE) as u32).collect();
            let x = tensor(&[slots.len(), KV_HEADS * HEAD_DIM]);
            kv_write(&backend, Kind::Keys, &mut k, &x, &slots).expect("fits");
            kv_write(&backend, Kind::Values, &mut v, &x, &slots).expect("fits");
            let num_rows = num_seqs * num_queries;
            let q = tensor(&[num_rows, HEADS * HEAD_DIM]);
            let mut out = tensor(&[num_rows, HEADS * HEAD_DIM]);
            let block_tables: Vec<u32> = (0..num_blocks as u32).rev().collect();
            let starts = |step: usize| (0..=num_seqs).map(|s| (s * step) as u32).collect();
            let (query_start, block_table_start): (Vec<u32>, Vec<u32>) =
                (starts(num_queries), starts(blocks_each));
            let batch = AttentionBatch {
                query_start: &query_start,
                context_len: &vec![context as u32; num_seqs],
                block_tables: &block_tables,
                block_table_start: &block_table_start,
                device: None,
            };
            group.bench_function(BenchmarkId::new(name, dtype.name()), |b| {
                b.iter(|| attention(&backend, &mut out, &q, &k, &v, &batch, 0.125).expect("fits"));
            });
        }
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
