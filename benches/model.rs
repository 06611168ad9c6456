//! The whole default model without a server: prefill of 128 tokens and one decode step beside
//! candle's, then steps with caches of F16 and BF16 in turns. Needs the model:
//! `MONSOON_TEST_MODEL=FILE cargo bench -p benches --bench model`

use benches::num_threads;
use candle_core::quantized::gguf_file;
use candle_transformers::models::quantized_qwen2::ModelWeights;
use criterion::{Criterion, criterion_group, criterion_main};
use kernels::comm::solo::Solo;
use kernels::device::cpu::CpuDevice;
use kernels::{Backend, DType, Tensor};
use models::registry::load_model;
use models::weights::Checkpoint;
use models::weights::shard::ShardSpec;
use models::{ForwardBatch, ForwardContext, KvCache, Model, ModelConfig};
use server::text::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::time::Instant;

const PROMPT_LEN: usize = 128;
const BLOCK_SIZE: usize = 16;
const CONTEXT_MAX: usize = 16384;
const CHUNK_MAX: usize = 2048;
const ROWS_MAX: usize = 32;
/// Turns of each cache format; of prompts of 16k, which take minutes, one.
const NUM_TURNS: usize = 5;

fn prompt() -> Vec<u32> {
    (0..PROMPT_LEN as u32).map(|i| 1000 + i * 7).collect()
}

struct Ours {
    ctx: ForwardContext,
    model: Box<dyn Model>,
    hidden: Tensor,
    logits: Tensor,
}

impl Ours {
    fn open(path: &Path) -> Ours {
        let backend = Backend::Cpu(CpuDevice::new(num_threads(), None));
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        let shard = ShardSpec { rank: 0, world_size: 1 };
        let model = load_model(&backend, &checkpoint, shard, CONTEXT_MAX).expect("a model");
        let config = model.config().clone();
        let kv_cache = cache(&backend, &config, DType::F16);
        let hidden = Tensor::zeros(DType::F32, &[CHUNK_MAX, config.hidden_size]);
        let logits = Tensor::zeros(DType::F32, &[ROWS_MAX, config.vocab_size]).expect("memory");
        let ctx = ForwardContext { backend, communicator: Box::new(Solo), kv_cache };
        Ours { ctx, model, hidden: hidden.expect("memory"), logits }
    }

    fn step(&mut self, token_ids: &[u32], start: usize) {
        self.steps(&[(token_ids, start)]);
    }

    /// One step of several sequences, each with tokens from a position on and blocks of its own.
    fn steps(&mut self, sequences: &[(&[u32], usize)]) {
        let blocks_each = CONTEXT_MAX / BLOCK_SIZE / sequences.len();
        let mut batch = ForwardBatch::default();
        let mut last_rows = Vec::new();
        for (i, &(token_ids, start)) in sequences.iter().enumerate() {
            let first = i * blocks_each;
            let block_table: Vec<u32> = (first..first + blocks_each).map(|b| b as u32).collect();
            batch.push_sequence(token_ids.iter().copied(), start, &block_table, BLOCK_SIZE);
            last_rows.push(batch.token_ids.len() as u32 - 1);
        }
        self.hidden.set_rows(batch.token_ids.len());
        self.model.forward(&mut self.ctx, &batch, &mut self.hidden).expect("a step");
        self.logits.set_rows(sequences.len());
        let logits = &mut self.logits;
        self.model.logits(&mut self.ctx, &self.hidden, &last_rows.into(), logits).expect("logits");
    }

    fn prefill(&mut self, num_tokens: usize) {
        let token_ids: Vec<u32> = (0..num_tokens as u32).map(|i| 1000 + i * 7 % 50_000).collect();
        for (i, chunk) in token_ids.chunks(CHUNK_MAX).enumerate() {
            self.step(chunk, i * CHUNK_MAX);
        }
    }

    /// Of each token after those before it.
    fn perplexity(&mut self, token_ids: &[u32]) -> f64 {
        self.step(token_ids, 0);
        let (mut sum, targets) = (0.0, &token_ids[1..]);
        for (i, targets) in targets.chunks(ROWS_MAX).enumerate() {
            let first = (i * ROWS_MAX) as u32;
            let rows: Vec<u32> = (first..first + targets.len() as u32).collect();
            self.logits.set_rows(rows.len());
            let logits = &mut self.logits;
            self.model.logits(&mut self.ctx, &self.hidden, &rows.into(), logits).expect("logits");
            for (row, &target) in targets.iter().enumerate() {
                let logits = self.logits.f32_row(row);
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights = logits.iter().map(|x| f64::from(x - largest).exp());
                let target = logits[target as usize] - largest;
                sum += weights.sum::<f64>().ln() - f64::from(target);
            }
        }
        (sum / targets.len() as f64).exp()
    }

    fn decode32(&mut self) {
        self.steps(&[(&[42][..], 320); 32]);
    }
}

fn cache(backend: &Backend, config: &ModelConfig, dtype: DType) -> KvCache {
    let num_blocks = CONTEXT_MAX / BLOCK_SIZE;
    KvCache::new(backend, config, config.num_kv_heads, num_blocks, BLOCK_SIZE, dtype)
        .expect("memory")
}

/// Prints what the formats do to a text, then medians of steps with each of them in turns.
fn compare_caches(ours: &mut Ours, path: &Path) {
    let mut other = cache(&ours.ctx.backend, ours.model.config(), DType::BF16);
    type Work = fn(&mut Ours);
    let works: [(&str, usize, Work); 5] = [
        ("decode, 1 sequence of 2048", NUM_TURNS, |ours| ours.step(&[42], 2048)),
        ("decode, 32 sequences of 320", NUM_TURNS, Ours::decode32),
        ("prefill 512", NUM_TURNS, |ours| ours.prefill(512)),
        ("prefill 2048", NUM_TURNS, |ours| ours.prefill(2048)),
        ("prefill 16k", 1, |ours| ours.prefill(16384)),
    ];
    let source = Checkpoint::open(path).expect("a checkpoint").tokenizer;
    let tokenizer = Tokenizer::load(&source).expect("a tokenizer");
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md"));
    let token_ids = tokenizer.encode(&text.expect("the repository")).expect("a short text");
    let token_ids: Vec<u32> = token_ids.iter().map(|id| id.0).take(CHUNK_MAX).collect();
    let f16 = ours.perplexity(&token_ids);
    std::mem::swap(&mut ours.ctx.kv_cache, &mut other);
    let bf16 = ours.perplexity(&token_ids);
    std::mem::swap(&mut ours.ctx.kv_cache, &mut other);
    println!("perplexity of {} tokens: F16 {f16:.4}, BF16 {bf16:.4}", token_ids.len());
    for (name, num_turns, work) in works {
        let mut times = [Vec::new(), Vec::new()];
        for turn in 0..2 * num_turns {
            let start = Instant::now();
            work(ours);
            times[turn % 2].push(start.elapsed().as_secs_f64() * 1e3);
            std::mem::swap(&mut ours.ctx.kv_cache, &mut other);
        }
        let [f16, bf16] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        println!("{name}: F16 {f16:.1} ms, BF16 {bf16:.1} ms, ratio {:.3}", f16 / bf16);
    }
}

struct Candle(ModelWeights);

impl Candle {
    fn open(path: &Path) -> Candle {
        let mut file = std::fs::File::open(path).expect("the model");
        let content = gguf_file::Content::read(&mut file).expect("a GGUF file");
        let device = candle_core::Device::Cpu;
        Candle(ModelWeights::from_gguf(content, &mut file, &device).expect("weights"))
    }

    fn step(&mut self, token_ids: &[u32], start: usize) {
        let input = candle_core::Tensor::new(token_ids, &candle_core::Device::Cpu);
        let input = input.and_then(|ids| ids.unsqueeze(0)).expect("a tensor");
        self.0.forward(&input, start).expect("a step");
    }
}

fn bench_model(c: &mut Criterion) {
    let Some(path) = std::env::var_os("MONSOON_TEST_MODEL").map(PathBuf::from) else {
        println!("skipped: MONSOON_TEST_MODEL names no model");
        return;
    };
    let mut ours = Ours::open(&path);
    compare_caches(&mut ours, &path);
    let mut candle = Candle::open(&path);
    let mut group = c.benchmark_group("model");
    group.sample_size(10);
    group.bench_function("prefill128/monsoon", |b| b.iter(|| ours.step(&prompt(), 0)));
    group.bench_function("prefill128/candle", |b| b.iter(|| candle.step(&prompt(), 0)));
    group.bench_function("decode/monsoon", |b| b.iter(|| ours.step(&[42], PROMPT_LEN)));
    // candle's cache grows with each call, so each decode gets a little longer: a few samples only.
    candle.step(&prompt(), 0);
    group.bench_function("decode/candle", |b| b.iter(|| candle.step(&[42], PROMPT_LEN)));
    group.finish();
}

criterion_group!(benches, bench_model);
criterion_main!(benches);
