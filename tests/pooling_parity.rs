//! Embeddings and scores of an outside implementation: they must come out here, on the reference to
//! f32 tolerance, on the CPU to that of its arithmetic.

use kernels::Backend;
use kernels::device::cpu::{CpuDevice, Isa};
use models::{Checkpoint, Purpose, TokenId};
use server::engine::{Pooled, Pooling, Request, SamplingParams};
use server::http::{embeddings, judge};
use server::text::{Frame, FramedText, TextConfig, TextStage};
use std::path::{Path, PathBuf};
use tests::golden::{Golden, ids};
use tests::observed::{Arrivals, run_engine};
use tests::random::Random;
use tests::serving::{Limits, TINY_VOCAB, start_group};

/// Of the data, for a float32 server.
const EMBEDDING_TOLERANCE: f32 = 1e-5;
const SCORE_TOLERANCE: f64 = 1e-4;
/// The CPU keeps keys and values in F16, and multiplies BF16 weights in its own way. Measured over
/// its instruction sets: 0.0008 of values up to 0.43, and 0.0007 of a score.
const EMBEDDING_TOLERANCE_CPU: f32 = 2e-3;
const SCORE_TOLERANCE_CPU: f64 = 1.5e-3;
/// Of the data, on both.
const COSINE_MIN: f32 = 0.99999;

#[test]
fn reference_gives_the_golden_embeddings() {
    check_embeddings(&Backend::Reference, EMBEDDING_TOLERANCE);
}

#[test]
fn cpu_gives_the_golden_embeddings_within_the_noise_of_its_arithmetic() {
    for backend in cpus() {
        check_embeddings(&backend, EMBEDDING_TOLERANCE_CPU);
    }
}

#[test]
fn reference_gives_the_golden_scores() {
    check_scores(&Backend::Reference, SCORE_TOLERANCE);
}

#[test]
fn cpu_gives_the_golden_scores_within_the_noise_of_its_arithmetic() {
    for backend in cpus() {
        check_scores(&backend, SCORE_TOLERANCE_CPU);
    }
}

#[test]
fn texts_to_embed_become_the_golden_tokens() {
    let (path, golden) = open("qwen3-embedding");
    let inputs = golden.json["inputs"].as_array().unwrap();
    let texts = inputs.iter().map(|input| {
        let text = input["text"].as_str().unwrap();
        let text = match input["kind"].as_str().unwrap() {
            "query" => embeddings::as_query(text, golden.json["instruction"].as_str()),
            _ => text.to_owned(),
        };
        assert_eq!(text, input["model_input"].as_str().unwrap());
        FramedText::Text(text)
    });
    let prompts = encode(&path, Frame::Tokenizer, texts.collect());
    for (prompt, input) in prompts.iter().zip(inputs) {
        assert_eq!(*prompt, ids(&input["ids"]), "{input}");
    }
    assert_eq!(embeddings::INSTRUCTION_DEFAULT, golden.json["instruction"].as_str().unwrap());
}

#[test]
fn pairs_to_judge_become_the_golden_tokens() {
    let (path, golden) = open("qwen3-reranker");
    let pairs = golden.json["pairs"].as_array().unwrap();
    let text = |name: &str, pair: &serde_json::Value| pair[name].as_str().unwrap().to_owned();
    let bodies = pairs.iter().map(|pair| {
        let [instruction, query, document] =
            ["instruction", "query", "document"].map(|name| text(name, pair));
        FramedText::Text(judge::body(&instruction, &query, &document))
    });
    let prompts = encode(&path, judge::FRAME, bodies.collect());
    for (prompt, pair) in prompts.iter().zip(pairs) {
        assert_eq!(*prompt, ids(&pair["ids"]), "{}", pair["document"]);
    }
}

#[test]
fn the_head_of_an_embedding_model_is_not_loaded() {
    let (path, _) = open("qwen3-embedding");
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.config.purpose, Purpose::Embedding);
    let bytes = |checkpoint: &Checkpoint| {
        let form = kernels::ops::WeightForm::Reference;
        checkpoint.loaded_bytes(models::ShardSpec::SOLO, form).unwrap()
    };
    let without = bytes(&checkpoint);
    checkpoint.config.purpose = Purpose::Generation;
    assert!(bytes(&checkpoint) > without);
}

fn check_embeddings(backend: &Backend, tolerance: f32) {
    let (path, golden) = open("qwen3-embedding");
    let inputs = golden.json["inputs"].as_array().unwrap();
    let prompts = inputs.iter().map(|input| ids(&input["ids"])).collect();
    let mut worst = 0f32;
    for (i, pooled) in pool(backend, &path, prompts, &Pooling::Hidden).iter().enumerate() {
        let Pooled::Hidden(hidden) = pooled else { panic!("{pooled:?}") };
        let mut check = |name: String, len: usize| {
            let expected = golden.tensor(&name).unwrap();
            let norm = hidden[..len].iter().map(|x| x * x).sum::<f32>().sqrt();
            assert_eq!(expected.len(), len, "{name}");
            let cosine: f32 = hidden.iter().zip(&expected).map(|(x, y)| x / norm * y).sum();
            assert!(cosine >= COSINE_MIN, "{backend:?}, {name}: cosine {cosine}");
            for (x, expected) in hidden.iter().zip(&expected) {
                worst = worst.max((x / norm - expected).abs());
            }
        };
        check(format!("embedding.{i}"), hidden.len());
        let short = inputs[i]["truncated_dim"].as_u64().unwrap() as usize;
        check(format!("embedding_dim{short}.{i}"), short);
    }
    println!("{backend:?}: embeddings differ by up to {worst}");
    assert!(worst <= tolerance, "{backend:?}: {worst} above {tolerance}");
}

fn check_scores(backend: &Backend, tolerance: f64) {
    let (path, golden) = open("qwen3-reranker");
    let pairs = golden.json["pairs"].as_array().unwrap();
    let prompts = pairs.iter().map(|pair| ids(&pair["ids"])).collect();
    let token = |name: &str| TokenId(golden.json[name].as_u64().unwrap() as u32);
    let pooling = Pooling::logprobs(&[token("no_id"), token("yes_id")]);
    let mut worst = 0f64;
    for (pooled, pair) in pool(backend, &path, prompts, &pooling).iter().zip(pairs) {
        let score = judge::score(pooled).unwrap();
        worst = worst.max((score - pair["score"].as_f64().unwrap()).abs());
    }
    println!("{backend:?}: scores differ by up to {worst}");
    assert!(worst <= tolerance, "{backend:?}: {worst} above {tolerance}");
}

/// All prompts in one engine: some fit in a step, others take several.
fn pool(backend: &Backend, path: &Path, prompts: Vec<Vec<u32>>, pooling: &Pooling) -> Vec<Pooled> {
    let request = |prompt: Vec<u32>| Request {
        prompt: prompt.into_iter().map(TokenId).collect(),
        sampling: SamplingParams { max_new_tokens: 0, ..SamplingParams::default() },
        pooling: Some(pooling.clone()),
        priority: 0,
        lane: Default::default(),
        tenant: Default::default(),
        cache_salt: Default::default(),
        constraint: None,
    };
    let requests: Vec<Request> = prompts.into_iter().map(request).collect();
    let limits =
        Limits { num_blocks: 64, block_size: 16, max_num_seqs: 8, max_num_batched_tokens: 48 };
    let config = limits.engine_config();
    let group = start_group(backend, path, limits, TINY_VOCAB);
    let (outcomes, stats, _) =
        run_engine(config, group, &requests, Arrivals::AtOnce, &mut Random(0));
    assert!(stats.prefix_hit_tokens > 0, "prompts share their beginnings");
    outcomes.into_iter().map(|outcome| outcome.pooled.expect("pooled")).collect()
}

fn encode(path: &Path, frame: Frame, texts: Vec<FramedText>) -> Vec<Vec<u32>> {
    let source = Checkpoint::open(path).unwrap().tokenizer;
    let stage = TextStage::new(&source, None, 1152, TextConfig::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let prompts = runtime.block_on(stage.encode_framed(frame, texts, None)).unwrap();
    prompts.into_iter().map(|ids| ids.into_iter().map(|id| id.0).collect()).collect()
}

fn open(model: &str) -> (PathBuf, Golden) {
    let path = tests::data_dir().join("models").join(model);
    let golden = Golden::read(&path.join("golden.json"), &path.join("golden.safetensors"));
    (path, golden)
}

fn cpus() -> Vec<Backend> {
    let device = CpuDevice::new(2, None);
    Isa::available().into_iter().map(|isa| Backend::Cpu(device.with_isa(isa))).collect()
}
