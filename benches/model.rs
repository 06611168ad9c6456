//! The whole default model without a server, ours beside candle's: prefill of 128 tokens and one
//! decode step. Needs the model: `MONSOON_TEST_MODEL=FILE cargo bench -p benches --bench model`

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
use models::{ForwardBatch, ForwardContext, KvCache, Model};
use std::path::{Path, PathBuf};

const PROMPT_LEN: usize = 128;
const BLOCK_SIZE: usize = 16;
const CONTEXT_MAX: usize = 1024;

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
        let num_blocks = CONTEXT_MAX / BLOCK_SIZE;
        let kv_cache = KvCache::new(
            &backend,
            &config,
            config.num_kv_heads,
            num_blocks,
            BLOCK_SIZE,
            DType::F16,
        )
        .expect("memory");
        let hidden = Tensor::zeros(DType::F32, &[PROMPT_LEN, config.hidden_size]);
        let logits = Tensor::zeros(DType::F32, &[1, config.vocab_size]).expect("memory");
        let ctx = ForwardContext { backend, communicator: Box::new(Solo), kv_cache };
        Ours { ctx, model, hidden: hidden.expect("memory"), logits }
    }

    fn step(&mut self, token_ids: &[u32], start: usize) {
        let block_table: Vec<u32> = (0..(CONTEXT_MAX / BLOCK_SIZE) as u32).collect();
        let mut batch = ForwardBatch::default();
        batch.push_sequence(token_ids.iter().copied(), start, &block_table, BLOCK_SIZE);
        self.hidden.set_rows(token_ids.len());
        self.model.forward(&mut self.ctx, &batch, &mut self.hidden).expect("a step");
        let last = vec![token_ids.len() as u32 - 1].into();
        let logits = &mut self.logits;
        self.model.logits(&mut self.ctx, &self.hidden, &last, logits).expect("logits");
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
    let (mut ours, mut candle) = (Ours::open(&path), Candle::open(&path));
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
