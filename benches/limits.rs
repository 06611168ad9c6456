//! Products, attention and the whole default model beside what the machine can do at the most, all
//! measured in turns in one run: the machine's limits drift. A line is what was run, its shape and
//! rows, the median time, the rate and its share of the limit that binds it: reading memory for one
//! row, 8-bit (bf16 weights: bf16) products for 512, and for those between the sum of both, as if
//! nothing overlapped.
//!
//! `cargo bench -p benches --bench limits [-- PART_OF_A_NAME]`. The model's own lines need the
//! model: `MONSOON_TEST_MODEL=FILE`. `MONSOON_BENCH_ROUNDS` (7) and `MONSOON_BENCH_THREADS`.

use benches::{blocks, num_threads};
use kernels::comm::solo::Solo;
use kernels::device::cpu::CpuDevice;
use kernels::device::limits::{Reader, bf16_ops_per_second, int8_ops_per_second};
use kernels::ops::{AttentionBatch, Weight, attention, linear_many};
use kernels::{Backend, DType, Tensor};
use models::registry::load_model;
use models::weights::Checkpoint;
use models::weights::shard::ShardSpec;
use models::{ForwardBatch, ForwardContext, KvCache, Model};
use std::path::Path;
use std::time::Instant;

/// dtype, out_features (of each of the weights that share their input), in_features. The first are
/// those of the default model by their share of it, the others stand for other files.
const PRODUCTS: [(DType, &[usize], usize); 11] = [
    (DType::Q5_0, &[4864, 4864], 896),
    (DType::Q5_0, &[896], 896),
    (DType::Q5_0, &[896, 128, 128], 896),
    (DType::Q8_0, &[151_936], 896),
    (DType::Q6K, &[896], 4864),
    (DType::Q4K, &[896], 4864),
    (DType::Q4_0, &[4864, 4864], 896),
    (DType::Q8_0, &[4864, 4864], 896),
    (DType::Q5K, &[896], 4864),
    (DType::BF16, &[4864, 4864], 896),
    (DType::BF16, &[896], 4864),
];
const NUM_ROWS: [usize; 5] = [1, 2, 8, 32, 512];
/// Copies of a weight together have at least this size, so that none is in a cache when its turn
/// comes.
const WEIGHT_BYTES: usize = 256 << 20;
/// Operations after which a sample ends, however many copies are left.
const SAMPLE_OPS: usize = 30_000_000_000;

const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const BLOCK_SIZE: usize = 16;
/// Query rows of a sequence, context, sequences.
const ATTENTIONS: [[usize; 3]; 7] = [
    [1, 512, 1],
    [1, 2048, 1],
    [1, 16_384, 1],
    [1, 512, 32],
    [512, 512, 1],
    [512, 2048, 1],
    [512, 16_384, 1],
];
/// New tokens of a sequence, context before them, sequences.
const STEPS: [[usize; 3]; 7] = [
    [1, 128, 1],
    [1, 2048, 1],
    [1, 256, 8],
    [1, 256, 32],
    [512, 0, 1],
    [2048, 0, 1],
    [512, 15_360, 1],
];
const CONTEXT_MAX: usize = 16_384;

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let rounds = number("MONSOON_BENCH_ROUNDS").unwrap_or(7);
    let device = CpuDevice::new(number("MONSOON_BENCH_THREADS").unwrap_or(num_threads()), None);
    println!("# {device:?}, medians of {rounds} rounds");
    let reader = Reader::new(&device);
    let bench = Bench { backend: Backend::Cpu(device.clone()), device, reader, rounds, filter };
    bench.products();
    bench.attentions();
    if let Some(path) = std::env::var_os("MONSOON_TEST_MODEL") {
        bench.steps(Path::new(&path));
    }
}

struct Bench {
    backend: Backend,
    device: CpuDevice,
    reader: Reader,
    rounds: usize,
    /// Only names that contain this are run.
    filter: String,
}

/// What a case asks of the machine.
#[derive(Clone, Copy)]
struct Work {
    bytes: usize,
    ops: usize,
    is_bf16: bool,
}

impl Bench {
    /// Times `run` and the limits in turns and prints a line.
    fn measure(&self, name: &str, work: Work, mut run: impl FnMut() -> f64) {
        if !name.contains(&self.filter) {
            return;
        }
        run();
        let (mut times, mut bandwidths, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            bandwidths.push(self.reader.bytes_per_second(&self.device));
            let rate = match work.is_bf16 {
                true => bf16_ops_per_second(&self.device),
                false => int8_ops_per_second(&self.device),
            };
            rates.extend(rate);
            times.push(run());
        }
        let [time, bandwidth] = [times, bandwidths].map(median);
        let reading = work.bytes as f64 / bandwidth;
        let computing = match rates.is_empty() {
            true => 0.0,
            false => work.ops as f64 / median(rates),
        };
        println!(
            "{name:44} {:10.1} us {:7.1} GB/s {:7.1} GOP/s  \
             read {:4.2}  compute {:4.2}  both {:4.2}",
            time * 1e6,
            work.bytes as f64 / time * 1e-9,
            work.ops as f64 / time * 1e-9,
            reading / time,
            computing / time,
            (reading + computing) / time,
        );
    }

    fn products(&self) {
        for (dtype, outs, in_features) in PRODUCTS {
            let name = format!("linear/{dtype}{outs:?}x{in_features}");
            if !name.contains(&self.filter) && !self.filter.starts_with(&name) {
                continue;
            }
            let one: Vec<_> = outs.iter().map(|&n| blocks(dtype, n, in_features)).collect();
            let bytes: usize = one.iter().map(|bytes| bytes.len()).sum();
            let load = |(&n, bytes): (&usize, &bytes::Bytes)| {
                Weight::load(&self.backend, dtype, n, in_features, bytes.clone()).expect("legal")
            };
            let copies: Vec<Vec<Weight>> = (0..WEIGHT_BYTES.div_ceil(bytes))
                .map(|_| outs.iter().zip(&one).map(load).collect())
                .collect();
            for num_rows in NUM_ROWS.into_iter().filter(|&n| n * outs[0] < 6_000_000) {
                let ops = 2 * num_rows * outs.iter().sum::<usize>() * in_features;
                let num_copies = (SAMPLE_OPS / ops).clamp(1, copies.len());
                let x = tensor(&[num_rows, in_features]);
                let mut out: Vec<Tensor> = outs.iter().map(|&n| tensor(&[num_rows, n])).collect();
                let mut next = copies.iter().cycle();
                let work = Work { bytes, ops, is_bf16: dtype == DType::BF16 };
                self.measure(&format!("{name} rows {num_rows}"), work, || {
                    let start = Instant::now();
                    for copy in next.by_ref().take(num_copies) {
                        let mut outs: Vec<&mut Tensor> = out.iter_mut().collect();
                        let weights: Vec<_> = copy.iter().map(|w| (w, None)).collect();
                        linear_many(&self.backend, &mut outs, &x, &weights).expect("shapes fit");
                    }
                    start.elapsed().as_secs_f64() / num_copies as f64
                });
            }
        }
    }

    /// Operations are counted as the model's: keys a row sees, not those of whole tiles.
    fn attentions(&self) {
        for [num_queries, context, num_seqs] in ATTENTIONS {
            let blocks_each = context / BLOCK_SIZE;
            let num_blocks = blocks_each * num_seqs;
            let shape = [num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM];
            let k = Tensor::zeros(DType::F16, &shape).expect("memory");
            let v = Tensor::zeros(DType::F16, &shape).expect("memory");
            let q = tensor(&[num_queries * num_seqs, HEADS * HEAD_DIM]);
            let mut out = tensor(q.shape());
            let starts = |each: usize| (0..=num_seqs).map(|i| (i * each) as u32).collect();
            let [query_start, block_table_start]: [Vec<u32>; 2] =
                [starts(num_queries), starts(blocks_each)];
            let block_tables: Vec<u32> = (0..num_blocks as u32).rev().collect();
            let context_len = vec![context as u32; num_seqs];
            let batch = AttentionBatch {
                query_start: &query_start,
                context_len: &context_len,
                block_tables: &block_tables,
                block_table_start: &block_table_start,
                device: None,
            };
            let seen = num_queries * (2 * context - num_queries + 1) / 2 * num_seqs;
            let bytes = 2 * 2 * num_blocks * KV_HEADS * BLOCK_SIZE * HEAD_DIM;
            let work = Work { bytes, ops: 4 * seen * HEADS * HEAD_DIM, is_bf16: true };
            let name = format!("attention/{num_queries} of {context} x {num_seqs}");
            self.measure(&name, work, || {
                let runs = (400_000_000 / work.ops).clamp(1, 100);
                let start = Instant::now();
                for _ in 0..runs {
                    attention(&self.backend, &mut out, &q, &k, &v, &batch, 0.125).expect("fits");
                }
                start.elapsed().as_secs_f64() / runs as f64
            });
        }
    }

    fn steps(&self, path: &Path) {
        let mut model = Loaded::open(self.backend.clone(), path);
        let (bytes, values) = read_by_a_step(path);
        for [num_new, before, num_seqs] in STEPS {
            let name = format!("model/{num_new} after {before} x {num_seqs}");
            // The head is computed for one token of each sequence.
            let linear_ops = 2 * num_seqs * (num_new * values[0] + values[1]);
            let kv_bytes = num_seqs * (before + num_new) * 12_288;
            let work = Work { bytes: bytes + kv_bytes, ops: linear_ops, is_bf16: false };
            let runs = if num_new * num_seqs == 1 { 10 } else { 1 };
            self.measure(&name, work, || {
                let start = Instant::now();
                (0..runs).for_each(|_| model.step(num_new, before, num_seqs));
                start.elapsed().as_secs_f64() / runs as f64
            });
        }
    }
}

/// Bytes of the matrices that a step reads, and values of those of layers and of the head.
fn read_by_a_step(path: &Path) -> (usize, [usize; 2]) {
    let file = std::fs::metadata(path).expect("the model");
    // The embedding, of which a row is read, and the rest that is no matrix.
    let unread = 151_936 * 896 / 32 * 22 + 6_000_000;
    let layer = 896 * (896 * 2 + 128 * 2) + 3 * 896 * 4864;
    (file.len() as usize - unread, [24 * layer, 151_936 * 896])
}

struct Loaded {
    ctx: ForwardContext,
    model: Box<dyn Model>,
    hidden: Tensor,
    logits: Tensor,
}

impl Loaded {
    fn open(backend: Backend, path: &Path) -> Loaded {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        let shard = ShardSpec { rank: 0, world_size: 1 };
        let model = load_model(&backend, &checkpoint, shard, CONTEXT_MAX).expect("a model");
        let config = model.config().clone();
        let num_blocks = CONTEXT_MAX / BLOCK_SIZE;
        let kv_heads = config.num_kv_heads;
        let kv_cache =
            KvCache::new(&backend, &config, kv_heads, num_blocks, BLOCK_SIZE, DType::F16);
        let hidden = Tensor::zeros(DType::F32, &[2048, config.hidden_size]).expect("memory");
        let logits = Tensor::zeros(DType::F32, &[32, config.vocab_size]).expect("memory");
        let kv_cache = kv_cache.expect("memory");
        let ctx = ForwardContext { backend, communicator: Box::new(Solo), kv_cache };
        Loaded { ctx, model, hidden, logits }
    }

    fn step(&mut self, num_new: usize, before: usize, num_seqs: usize) {
        let mut batch = ForwardBatch::default();
        let blocks_each = (CONTEXT_MAX / BLOCK_SIZE / num_seqs) as u32;
        for seq in 0..num_seqs as u32 {
            let table: Vec<u32> = (seq * blocks_each..(seq + 1) * blocks_each).collect();
            let token_ids = (0..num_new as u32).map(|i| 1000 + i * 7 + seq);
            batch.push_sequence(token_ids, before, &table, BLOCK_SIZE);
        }
        self.hidden.set_rows(num_new * num_seqs);
        self.model.forward(&mut self.ctx, &batch, &mut self.hidden).expect("a step");
        let last: Vec<u32> = (1..=num_seqs).map(|i| (i * num_new) as u32 - 1).collect();
        self.logits.set_rows(num_seqs);
        let logits = &mut self.logits;
        self.model.logits(&mut self.ctx, &self.hidden, &last.into(), logits).expect("logits");
    }
}

fn tensor(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Tensor::from_f32(shape, &values)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
