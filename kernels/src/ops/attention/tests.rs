use super::*;
use crate::device::cpu::{CpuDevice, Isa};
use crate::device::cuda::CudaDevice;
use crate::ops::kv_write::{Kind, kv_write};
use crate::ops::testing::*;
use half::{bf16, f16};

/// The heads of a model and the form of its cache.
#[derive(Debug, Clone, Copy)]
struct Model {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    dtype: DType,
}

const fn model(kv_heads: usize, group: usize, head_dim: usize, dtype: DType) -> Model {
    Model { kv_heads, group, head_dim, dtype }
}

/// The last `num_queries` tokens of the first `context_len` tokens of sequence `id`.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    id: u64,
    context_len: usize,
    num_queries: usize,
}

const fn chunk(id: u64, context_len: usize, num_queries: usize) -> Chunk {
    Chunk { id, context_len, num_queries }
}

/// A step over `chunks`, each sequence in blocks scattered over a cache that is NaN elsewhere.
struct Step {
    model: Model,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Vec<u32>,
    context_len: Vec<u32>,
    block_tables: Vec<u32>,
    block_table_start: Vec<u32>,
}

impl Step {
    fn new(model: Model, chunks: &[Chunk], block_size: usize) -> Step {
        let Model { kv_heads, group, head_dim, dtype } = model;
        let num_held = |c: &Chunk| c.context_len.div_ceil(block_size) + 1;
        let num_blocks = chunks.iter().map(num_held).sum::<usize>() + 3;
        let (mut query_start, mut block_table_start) = (vec![0], vec![0]);
        let (mut block_tables, mut q) = (Vec::new(), Vec::new());
        let mut caches = [
            nan_cache(dtype, num_blocks, model, block_size),
            nan_cache(dtype, num_blocks, model, block_size),
        ];
        for c in chunks {
            // A stride without common factor with the number of blocks visits each block once.
            let stride = (7..).find(|s| gcd(*s, num_blocks) == 1).expect("there is a prime");
            let first = block_tables.len();
            block_tables
                .extend((first..first + num_held(c)).map(|i| (i * stride % num_blocks) as u32));
            let slot = |p: usize| {
                block_tables[first + p / block_size] * block_size as u32 + (p % block_size) as u32
            };
            let slots: Vec<u32> = (0..c.context_len).map(slot).collect();
            for (i, cache) in caches.iter_mut().enumerate() {
                let x = tensor(c.id * 3 + i as u64, &[c.context_len, kv_heads * head_dim], 2.0);
                let kind = [Kind::Keys, Kind::Values][i];
                kv_write(&Backend::Reference, kind, cache, &x, &slots).expect("fits");
            }
            let row_len = kv_heads * group * head_dim;
            let queries = values(c.id * 3 + 2, c.context_len * row_len, 2.0);
            q.extend_from_slice(&queries[(c.context_len - c.num_queries) * row_len..]);
            query_start.push((q.len() / row_len) as u32);
            block_table_start.push(block_tables.len() as u32);
        }
        let [k_cache, v_cache] = caches;
        let rows = *query_start.last().expect("not empty") as usize;
        Step {
            model,
            q: Tensor::from_f32(&[rows, kv_heads * group * head_dim], &q),
            k_cache,
            v_cache,
            query_start,
            context_len: chunks.iter().map(|c| c.context_len as u32).collect(),
            block_tables,
            block_table_start,
        }
    }

    fn run(&self, backend: &Backend) -> Tensor {
        let batch = AttentionBatch {
            query_start: &self.query_start,
            context_len: &self.context_len,
            block_tables: &self.block_tables,
            block_table_start: &self.block_table_start,
            device: None,
        };
        let mut out = Tensor::zeros(DType::F32, self.q.shape()).expect("small");
        let scale = 1.0 / (self.model.head_dim as f32).sqrt();
        attention(backend, &mut out, &self.q, &self.k_cache, &self.v_cache, &batch, scale)
            .expect("the batch is consistent");
        out
    }
}

/// Sequences and rows that a step on a GPU is padded with.
const PADDING_SEQS: usize = 2;
const PADDING_ROWS: usize = 3;
/// What lies in `out` before.
const UNTOUCHED: f32 = 7.0;

impl Step {
    /// The same with all numbers rounded to `dtype`, widened again.
    fn rounded(&self, dtype: DType) -> Step {
        let round = |t: &Tensor| {
            let values = t.to_f32().expect("on the host");
            Tensor::from_f32(t.shape(), &rounded(dtype, &values))
        };
        Step {
            model: self.model,
            q: round(&self.q),
            k_cache: round(&self.k_cache),
            v_cache: round(&self.v_cache),
            query_start: self.query_start.clone(),
            context_len: self.context_len.clone(),
            block_tables: self.block_tables.clone(),
            block_table_start: self.block_table_start.clone(),
        }
    }

    /// The step on a GPU, in its activation format and padded as a recorded step is.
    fn run_on(&self, device: &CudaDevice) -> Vec<f32> {
        let dtype = device.activation_dtype();
        let num_seqs = self.context_len.len() + PADDING_SEQS;
        let starts = || self.block_table_start.windows(2);
        let stride = starts().map(|w| w[1] - w[0]).max().expect("not empty") as usize;
        // A block that no context reaches is never looked at.
        let mut tables = vec![u32::MAX; num_seqs * stride];
        for ((table, w), &len) in
            tables.chunks_exact_mut(stride).zip(starts()).zip(&self.context_len)
        {
            let num_used = (len as usize).div_ceil(self.k_cache.shape()[2]);
            let blocks = &self.block_tables[w[0] as usize..][..num_used];
            table[..num_used].copy_from_slice(blocks);
        }
        let rows = self.q.rows();
        let padded = |values: &[u32], len: usize, with: u32| {
            let mut values = values.to_vec();
            values.resize(len, with);
            indices_on(device, &values)
        };
        let (query_start, _query_start) = padded(&self.query_start, num_seqs + 1, rows as u32);
        let (context_len, _context_len) = padded(&self.context_len, num_seqs, 0);
        let (block_tables, _block_tables) = indices_on(device, &tables);
        let chunk_lens = self.query_start.windows(2).map(|w| w[1] - w[0]);
        let batch = AttentionBatch {
            query_start: &self.query_start,
            context_len: &self.context_len,
            block_tables: &self.block_tables,
            block_table_start: &self.block_table_start,
            device: Some(DeviceAttention {
                query_start: query_start.device_ptr(),
                context_len: context_len.device_ptr(),
                block_tables: block_tables.device_ptr(),
                block_table_stride: stride as u32,
                row_seq: 0,
                num_seqs: num_seqs as u32,
                num_tokens: (rows + PADDING_ROWS) as u32,
                context_len_max: 3 + *self.context_len.iter().max().expect("not empty"),
                query_len_max: chunk_lens.max().expect("not empty"),
            }),
        };
        let shape = [rows + PADDING_ROWS, self.q.row_len()];
        let mut q = self.q.f32().to_vec();
        q.resize(shape[0] * shape[1], f32::NAN);
        let q = on_device(device, dtype, &shape, &q);
        let cache = |cache: &Tensor| {
            on_device(device, dtype, cache.shape(), &cache.to_f32().expect("on the host"))
        };
        let (k_cache, v_cache) = (cache(&self.k_cache), cache(&self.v_cache));
        let mut out = on_device(device, dtype, &shape, &vec![UNTOUCHED; shape[0] * shape[1]]);
        let scale = 1.0 / (self.model.head_dim as f32).sqrt();
        let backend = Backend::Cuda(device.clone());
        attention(&backend, &mut out, &q, &k_cache, &v_cache, &batch, scale)
            .expect("the batch is consistent");
        let mut out = out.to_f32().expect("the device answers");
        let padding = out.split_off(rows * shape[1]);
        assert!(padding.iter().all(|&x| x == UNTOUCHED), "rows of no sequence are not written");
        out
    }
}

fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    let round = |&x: &f32| match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => f16::from_f32(x).to_f32(),
    };
    values.iter().map(round).collect()
}

/// Half a unit in the last place of the result, and as much for the rounding of weights.
fn assert_close_on(device: &CudaDevice, out: &[f32], expected: &[f32], case: &str) {
    let unit = if device.activation_dtype() == DType::BF16 { 8e-3 } else { 1e-3 };
    assert_close(out, expected, unit, unit / 2.0, case);
}

fn nan_cache(dtype: DType, num_blocks: usize, model: Model, block_size: usize) -> Tensor {
    let shape = [num_blocks, model.kv_heads, block_size, model.head_dim];
    let mut cache = Tensor::zeros(dtype, &shape).expect("small");
    match dtype {
        DType::F16 => cache.f16_mut().fill(f16::NAN),
        DType::BF16 => cache.bf16_mut().fill(bf16::NAN),
        _ => cache.f32_mut().fill(f32::NAN),
    }
    cache
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One backend for each instruction set and number of threads.
fn backends(num_threads: &[usize]) -> Vec<(Isa, Vec<Backend>)> {
    let devices: Vec<CpuDevice> = num_threads.iter().map(|&n| CpuDevice::new(n, None)).collect();
    let backend = |isa| devices.iter().map(|d| Backend::Cpu(d.with_isa(isa))).collect();
    Isa::available().into_iter().map(|isa| (isa, backend(isa))).collect()
}

const MIXED: [Chunk; 6] = [
    chunk(1, 33, 33),
    chunk(2, 130, 1),
    chunk(3, 1, 1),
    chunk(4, 90, 20),
    chunk(5, 16, 1),
    chunk(6, 64, 64),
];

const MIXED_CASES: [(Model, &[Chunk], usize); 14] = [
    (model(2, 7, 64, DType::F16), &MIXED, 16),
    (model(2, 7, 64, DType::F32), &MIXED, 16),
    (model(2, 4, 32, DType::F16), &MIXED, 8),
    (model(4, 1, 32, DType::F32), &MIXED, 32),
    (model(1, 4, 128, DType::F16), &MIXED, 32),
    (model(2, 1, 128, DType::F32), &MIXED, 16),
    (model(1, 2, 256, DType::F16), &MIXED, 16),
    (model(1, 3, 40, DType::F16), &MIXED, 5),
    (model(1, 3, 8, DType::F32), &MIXED, 1),
    (model(1, 150, 16, DType::F32), &[chunk(1, 20, 3)], 16),
    (model(1, 2, 64, DType::F16), &[chunk(1, 1, 1)], 16),
    (model(2, 7, 64, DType::F16), &[chunk(1, 1300, 1), chunk(2, 600, 5)], 16),
    (model(2, 2, 64, DType::F16), &[chunk(1, 10, 0), chunk(2, 5, 2)], 16),
    (model(1, 20, 32, DType::F16), &[chunk(1, 270, 1), chunk(2, 30, 4)], 8),
];

#[test]
fn mixed_batches_are_close_to_the_reference() {
    let backends = backends(&[1, 3]);
    for (model, chunks, block_size) in MIXED_CASES {
        let step = Step::new(model, chunks, block_size);
        let expected = step.run(&Backend::Reference);
        for backend in backends.iter().flat_map(|(_, same_isa)| same_isa) {
            let case = format!("{backend:?} {model:?} {chunks:?} {block_size}");
            assert_close(step.run(backend).f32(), expected.f32(), 1e-5, 3e-6, &case);
        }
    }
    for device in cuda_devices() {
        let on_gpu = |&(m, _, size): &(Model, _, usize)| takes(m, size);
        for (model, chunks, block_size) in MIXED_CASES.into_iter().filter(on_gpu) {
            let step = Step::new(model, chunks, block_size).rounded(device.activation_dtype());
            let case = format!("{device:?} {model:?} {chunks:?} {block_size}");
            let expected = step.run(&Backend::Reference);
            assert_close_on(&device, &step.run_on(&device), expected.f32(), &case);
        }
    }
}

#[test]
fn bf16_caches_give_the_reference_within_the_rounding_of_queries_and_weights() {
    let cases: [(Model, &[Chunk], usize); 9] = [
        (model(2, 7, 64, DType::BF16), &MIXED, 16),
        (model(2, 7, 64, DType::BF16), &MIXED, 128),
        (model(2, 4, 32, DType::BF16), &MIXED, 32),
        (model(1, 4, 128, DType::BF16), &MIXED, 16),
        (model(1, 2, 256, DType::BF16), &MIXED, 16),
        (model(1, 3, 80, DType::BF16), &MIXED, 64),
        // Not in vectors of 16.
        (model(1, 3, 40, DType::BF16), &MIXED, 16),
        (model(2, 3, 24, DType::BF16), &MIXED, 32),
        (model(2, 7, 64, DType::BF16), &[chunk(1, 1300, 1), chunk(2, 601, 5)], 16),
    ];
    let backends = backends(&[1, 3]);
    for (model, chunks, block_size) in cases {
        let mut step = Step::new(model, chunks, block_size);
        // With a scale that is a power of two, rounded queries stay what they are.
        let has_exact_scale = [64, 256].contains(&model.head_dim);
        if has_exact_scale {
            step.q = Tensor::from_f32(step.q.shape(), &rounded(DType::BF16, step.q.f32()));
        }
        // Values lie within 2 and weights add up to 1, of which rounding takes 1/512 at most.
        // Scores of rounded queries are off by half a percent.
        let error_max = if has_exact_scale { 4e-3 } else { 16e-3 };
        let expected = step.run(&Backend::Reference);
        for backend in backends.iter().flat_map(|(_, same_isa)| same_isa) {
            let case = format!("{backend:?} {model:?} {chunks:?} {block_size}");
            assert_close(step.run(backend).f32(), expected.f32(), 0.0, error_max, &case);
        }
    }
}

/// Whether there is a kernel for the model on a GPU.
fn takes(model: Model, block_size: usize) -> bool {
    [32, 64, 128, 256].contains(&model.head_dim) && block_size.is_power_of_two()
}

/// Rows of sequence 1 in every way to cut and place it, against one prefill on one thread.
fn check_bits(model: Model, context_len: usize, cuts: &[&[usize]]) {
    // BF16 caches have whole sixteens.
    let block_sizes = if model.dtype == DType::BF16 { [16, 32, 64] } else { [8, 16, 32] };
    for (isa, backends) in backends(&[1, 2, 4]) {
        let expected =
            Step::new(model, &[chunk(1, context_len, context_len)], 16).run(&backends[0]);
        for (i, backend) in backends.iter().enumerate() {
            for (j, cut) in cuts.iter().enumerate() {
                let block_size = block_sizes[(i + j) % 3];
                let mut start = 0;
                for (k, &end) in cut.iter().chain([&context_len]).enumerate() {
                    // Neighbours before and after, other ones in each step.
                    let others = [chunk(9, 70 + 5 * k, 1 + i), chunk(8, 40 + k, 3)];
                    let chunks = [others[0], chunk(1, end, end - start), others[1]];
                    let out = Step::new(model, &chunks, block_size).run(backend);
                    let row_len = out.row_len();
                    let rows = &out.f32()[(1 + i) * row_len..][..(end - start) * row_len];
                    let expected = &expected.f32()[start * row_len..end * row_len];
                    let case = format!("{isa:?} {model:?} {backend:?} {block_size} {start}..{end}");
                    assert_same_bits(rows, expected, &case);
                    start = end;
                }
            }
        }
    }
}

/// The same on GPUs, where a prefill of all tokens is one kernel's work, single tokens another's.
fn check_bits_on_gpus(model: Model, context_len: usize, cuts: &[&[usize]]) {
    for device in cuda_devices() {
        let expected = Step::new(model, &[chunk(1, context_len, context_len)], 16).run_on(&device);
        for (i, cut) in cuts.iter().enumerate() {
            let block_size = [8, 16, 32][i % 3];
            let mut start = 0;
            for (k, &end) in cut.iter().chain([&context_len]).enumerate() {
                let others = [chunk(9, 70 + 5 * k, 1 + i), chunk(8, 40 + k, 1)];
                let chunks = [others[0], chunk(1, end, end - start), others[1]];
                let out = Step::new(model, &chunks, block_size).run_on(&device);
                let row_len = model.kv_heads * model.group * model.head_dim;
                let rows = &out[(1 + i) * row_len..][..(end - start) * row_len];
                let expected = &expected[start * row_len..end * row_len];
                let case = format!("{device:?} {model:?} {block_size} {start}..{end}");
                assert_same_bits(rows, expected, &case);
                start = end;
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_in_any_chunk_batch_block_and_thread() {
    let cuts: [&[usize]; 4] = [&[], &[1, 2, 3], &[64, 127], &[17, 100, 101, 149]];
    check_bits(model(2, 7, 64, DType::F16), 150, &cuts);
    check_bits(model(1, 4, 32, DType::F32), 150, &cuts);
    check_bits(model(2, 1, 128, DType::F16), 150, &cuts);
    check_bits(model(1, 2, 24, DType::F16), 150, &cuts);
    check_bits(model(2, 7, 64, DType::BF16), 150, &cuts);
    check_bits(model(1, 3, 48, DType::BF16), 150, &cuts);
    check_bits(model(1, 2, 24, DType::BF16), 150, &cuts);
    check_bits_on_gpus(model(2, 7, 64, DType::F16), 150, &cuts);
    check_bits_on_gpus(model(1, 4, 32, DType::F16), 150, &cuts);
    check_bits_on_gpus(model(1, 1, 128, DType::F16), 100, &[&[1, 2], &[64, 99]]);
    check_bits_on_gpus(model(1, 2, 256, DType::F16), 80, &[&[1, 2], &[33, 79]]);
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    let Some(device) = cuda_devices().into_iter().next() else { return };
    for head_dim in [32, 64, 128, 256] {
        // A prefill of more than one tile of keys, and a decode whose keys are split.
        let chunks = [chunk(1, 70, 20), chunk(9, 270, 1)];
        let step = Step::new(model(1, 2, head_dim, DType::F16), &chunks, 16);
        check_schedules(&format!("head_dim {head_dim}"), || step.run_on(&device));
    }
}

#[test]
fn long_contexts_have_the_same_bits_split_over_threads_or_not() {
    check_bits(model(1, 2, 64, DType::F16), 1100, &[&[1099], &[511, 512, 513, 1090], &[1030]]);
    check_bits(model(1, 2, 64, DType::BF16), 1100, &[&[1099], &[511, 512, 513, 1090], &[1030]]);
    let cuts: [&[usize]; 2] = [&[599], &[255, 256, 257, 512, 513, 597]];
    check_bits_on_gpus(model(1, 2, 64, DType::F16), 600, &cuts);
    check_bits_on_gpus(model(1, 2, 128, DType::F16), 300, &[&[256, 299]]);
    check_bits_on_gpus(model(1, 1, 256, DType::F16), 300, &[&[299]]);
}

#[test]
fn one_key_gives_its_value() {
    for backend in cpu_backends() {
        let step = Step::new(model(1, 1, 64, DType::BF16), &[chunk(1, 1, 1)], 16);
        let value = rounded(DType::BF16, &values(4, 64, 2.0));
        assert_same_bits(step.run(&backend).f32(), &value, &format!("{backend:?}"));
        let step = Step::new(model(1, 1, 64, DType::F32), &[chunk(1, 1, 1)], 16);
        let value = values(4, 64, 2.0);
        assert_same_bits(step.run(&backend).f32(), &value, &format!("{backend:?}"));
    }
    for device in cuda_devices() {
        let step = Step::new(model(1, 1, 64, DType::F32), &[chunk(1, 1, 1)], 16);
        let value = rounded(device.activation_dtype(), &values(4, 64, 2.0));
        assert_same_bits(&step.run_on(&device), &value, &format!("{device:?}"));
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for backend in cpu_backends() {
        let mut step = Step::new(model(1, 2, 32, DType::F32), &[chunk(1, 80, 80)], 16);
        step.q.f32_mut().iter_mut().for_each(|q| *q *= 1e4);
        let (out, expected) = (step.run(&backend), step.run(&Backend::Reference));
        assert_close(out.f32(), expected.f32(), 1e-2, 1e-2, &format!("{backend:?}"));
        // One key outweighs all others, whatever rounding does to its score.
        let mut step = Step::new(model(1, 2, 32, DType::BF16), &[chunk(1, 80, 80)], 16);
        step.q.f32_mut().iter_mut().for_each(|q| *q *= 1e4);
        step.q = Tensor::from_f32(step.q.shape(), &rounded(DType::BF16, step.q.f32()));
        let out = step.run(&backend);
        assert!(out.f32().iter().all(|x| x.abs() <= 2.001), "{backend:?}: values are mixed");
    }
    for device in cuda_devices() {
        let mut step = Step::new(model(1, 2, 32, DType::F32), &[chunk(1, 80, 80)], 16);
        step.q.f32_mut().iter_mut().for_each(|q| *q *= 1e4);
        let step = step.rounded(device.activation_dtype());
        let (out, expected) = (step.run_on(&device), step.run(&Backend::Reference));
        assert_close(&out, expected.f32(), 1e-2, 1e-2, &format!("{device:?}"));
    }
}

#[test]
fn a_gpu_refuses_what_it_has_no_kernel_for() {
    for device in cuda_devices() {
        let step = Step::new(model(1, 1, 40, DType::F16), &[chunk(1, 3, 1)], 16);
        let dtype = device.activation_dtype();
        let on = |t: &Tensor| on_device(&device, dtype, t.shape(), &t.to_f32().expect("host"));
        let (q, cache) = (on(&step.q), on(&step.k_cache));
        let mut out = on(&step.q);
        let (lens, _lens) = indices_on(&device, &[0, 1, 3, 0]);
        let batch = AttentionBatch {
            query_start: &step.query_start,
            context_len: &step.context_len,
            block_tables: &step.block_tables,
            block_table_start: &step.block_table_start,
            device: Some(DeviceAttention {
                query_start: lens.device_ptr(),
                context_len: lens.device_ptr() + 8,
                block_tables: lens.device_ptr() + 12,
                block_table_stride: 1,
                row_seq: 0,
                num_seqs: 1,
                num_tokens: 1,
                context_len_max: 3,
                query_len_max: 1,
            }),
        };
        let backend = Backend::Cuda(device.clone());
        let error = attention(&backend, &mut out, &q, &cache, &cache, &batch, 1.0);
        assert!(
            matches!(error, Err(KernelError::Shape { what: "head_dim", .. })),
            "{device:?}: {error:?}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let good = || Step::new(model(1, 2, 32, DType::F16), &[chunk(1, 40, 3), chunk(2, 5, 1)], 16);
    type Spoil = fn(&mut Step);
    let cases: [(&str, Spoil); 7] = [
        ("block", |s| s.block_tables[1] = 99),
        ("context_len", |s| s.context_len[0] = 2),
        ("context_len", |s| s.context_len[0] = 999),
        ("query_start", |s| s.query_start[2] = 9),
        ("query_start", |s| s.query_start.push(4)),
        ("block_table_start", |s| s.block_table_start[1] = 1000),
        ("v_cache", |s| s.k_cache = Tensor::zeros(DType::BF16, s.k_cache.shape()).expect("small")),
    ];
    for (expected, spoil) in cases {
        let mut step = good();
        spoil(&mut step);
        let batch = AttentionBatch {
            query_start: &step.query_start,
            context_len: &step.context_len,
            block_tables: &step.block_tables,
            block_table_start: &step.block_table_start,
            device: None,
        };
        let mut out = Tensor::zeros(DType::F32, step.q.shape()).expect("small");
        let (q, k, v) = (&step.q, &step.k_cache, &step.v_cache);
        match attention(&Backend::Reference, &mut out, q, k, v, &batch, 1.0) {
            Err(KernelError::Shape { what, .. } | KernelError::Index { what, .. }) => {
                assert_eq!(what, expected);
            }
            Err(KernelError::DType { what, .. }) => assert_eq!(what, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
