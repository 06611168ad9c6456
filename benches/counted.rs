//! Fixed work whose instructions are counted by `cargo xtask guard`: `counted NAME` does it once;
//! without a name it lists them. Whatever is done outside `measured` does not count.

use benches::blocks;
use benches::engine::{Busy, Load};
use kernels::device::cpu::CpuDevice;
use kernels::ops::{AttentionBatch, Weight, attention, linear};
use kernels::{Backend, DType, Tensor};
use models::{Checkpoint, TokenId};
use server::engine::{SampleStep, SamplingParams};
use server::ranks::sampler::{RowTask, Sampler};
use server::text::tokenizer::Tokenizer;
use server::text::{SpecialTokens, TextConfig, TextStage};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

/// Of the default model.
const VOCAB: usize = 151_936;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const BLOCK_SIZE: usize = 16;

type Work = Box<dyn FnMut()>;
/// Its name, and what prepares it.
type Workload = (&'static str, fn() -> Work);

const WORKLOADS: [Workload; 11] = [
    ("engine-decode", engine),
    ("sampler-greedy", || sampler(SamplingParams::default())),
    ("sampler-top-k-top-p", || sampler(drawn())),
    ("tokenizer-encode", encode),
    ("tokenizer-decode", decode),
    ("linear-q5_0-1", || product(DType::Q5_0, 1)),
    ("linear-q5_0-32", || product(DType::Q5_0, 32)),
    ("linear-q8_0-1", || product(DType::Q8_0, 1)),
    ("linear-bf16-32", || product(DType::BF16, 32)),
    ("attention-decode", || attend(1)),
    ("attention-prefill", || attend(64)),
];

fn main() {
    let Some(name) = std::env::args().nth(1) else {
        WORKLOADS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let found = WORKLOADS.iter().find(|(known, _)| *known == name);
    let (_, prepare) = found.expect("the name of a workload");
    let mut work = prepare();
    // Once before, so that room is made and what is looked up once is known.
    work();
    measured(&mut work);
}

/// The counter is told this name.
#[inline(never)]
fn measured(work: &mut Work) {
    black_box(work)();
}

fn engine() -> Work {
    let mut busy = Busy::new(Load { num_blocks: 1 << 14, context: 200, ..Load::of(256) });
    Box::new(move || {
        black_box(busy.run(32));
    })
}

fn drawn() -> SamplingParams {
    SamplingParams { temperature: 0.8, top_k: 40, top_p: 0.95, ..SamplingParams::default() }
}

fn sampler(params: SamplingParams) -> Work {
    let sampler = Sampler::new(&cpu(), VOCAB);
    let step = SampleStep {
        params: Arc::new(params),
        position: 9,
        prompt_len: 9,
        history: Vec::new(),
        mask: None,
    };
    Box::new(move || {
        let mut logits = tensor(&[4, VOCAB]);
        let tasks = [RowTask::Sample(&step); 4];
        black_box(sampler.run(&mut logits, &tasks));
    })
}

/// A small model, and the texts of many languages.
fn checkpoint_and_text() -> (Checkpoint, String) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let checkpoint = Checkpoint::open(&data.join("models/qwen2-tied")).expect("a model");
    let text = std::fs::read_to_string(data.join("text/languages.jsonl")).expect("the texts");
    (checkpoint, text.chars().take(20_000).collect())
}

/// What counts is a text that the tokenizer meets for the first time: which of the words it has met
/// are still known depends on a random key.
fn encode() -> Work {
    let (checkpoint, text) = checkpoint_and_text();
    let tokenizer = Tokenizer::load(&checkpoint.tokenizer).expect("a tokenizer");
    let half = text.floor_char_boundary(text.len() / 2);
    let mut halves = [text[..half].to_owned(), text[half..].to_owned()].into_iter();
    Box::new(move || {
        let text = halves.next().expect("two are asked for");
        black_box(tokenizer.encode(&text).expect("its ids"));
    })
}

fn decode() -> Work {
    let (checkpoint, text) = checkpoint_and_text();
    let tokenizer = Tokenizer::load(&checkpoint.tokenizer).expect("a tokenizer");
    let ids: Vec<TokenId> = tokenizer.encode(&text).expect("its ids");
    let (rows, config) = (checkpoint.config.vocab_size, TextConfig::default());
    let stage = TextStage::new(&checkpoint.tokenizer, None, rows, config).expect("a text stage");
    Box::new(move || {
        let mut decoder = stage.decoder(SpecialTokens::Skip);
        ids.iter().for_each(|id| drop(black_box(decoder.push(*id))));
    })
}

/// One thread: what several do depends on who comes first.
fn cpu() -> Backend {
    Backend::Cpu(CpuDevice::new(1, None))
}

fn tensor(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Tensor::from_f32(shape, &values)
}

fn product(dtype: DType, num_rows: usize) -> Work {
    let (backend, outs, ins) = (cpu(), 1024, 896);
    let weight = Weight::load(&backend, dtype, outs, ins, blocks(dtype, outs, ins));
    let weight = weight.expect("legal blocks");
    let (x, mut out) = (tensor(&[num_rows, ins]), tensor(&[num_rows, outs]));
    Box::new(move || linear(&backend, &mut out, &x, &weight, None).expect("shapes fit"))
}

fn attend(num_queries: usize) -> Work {
    let (backend, context) = (cpu(), 512);
    let num_blocks = context / BLOCK_SIZE;
    let shape = [num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM];
    let cache = || Tensor::zeros(DType::F16, &shape).expect("memory");
    let (k, v) = (cache(), cache());
    let q = tensor(&[num_queries, HEADS * HEAD_DIM]);
    let mut out = tensor(&[num_queries, HEADS * HEAD_DIM]);
    let block_tables: Vec<u32> = (0..num_blocks as u32).collect();
    Box::new(move || {
        let batch = AttentionBatch {
            query_start: &[0, num_queries as u32],
            context_len: &[context as u32],
            block_tables: &block_tables,
            block_table_start: &[0, num_blocks as u32],
            device: None,
        };
        attention(&backend, &mut out, &q, &k, &v, &batch, 0.125).expect("fits");
    })
}
