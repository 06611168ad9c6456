//! Requests, backends and rank groups for tests that run the server below HTTP.

use crate::random::Random;
use crate::session::kv_dtype;
use kernels::Backend;
use kernels::device::cpu::{CpuDevice, Isa};
use models::{Checkpoint, TokenId, load_model};
use server::engine::{
    CacheSalt, EngineConfig, Event, FinishReason, Lane, Overlap, PolicyKind, Pooled, Pooling,
    PrefixCaching, Request, SampledToken, SamplingParams, TokenLogprobs,
};
use server::ranks::{CudaGraphs, LoadedGroup, RankConfig, RankGroup, Room, Start};
use std::path::{Path, PathBuf};

/// Ids that the tokenizer of the tiny checkpoints knows; the embedding has more rows.
pub const TINY_VOCAB: usize = 1100;
/// Positions that the tests load models for; the smallest tiny model has no more.
pub const MODEL_LEN_MAX: usize = 256;

/// A tiny checkpoint such as "models/qwen2-tied" or "gguf/tiny-qwen3-q4_k.gguf": this repository's
/// copy, else the one beside it. Only the copies are certain to exist.
pub fn tiny_checkpoint(part: &str) -> Option<PathBuf> {
    let roots = [Some(crate::data_dir()), crate::golden_dir()];
    roots.into_iter().flatten().map(|root| root.join(part)).find(|path| path.exists())
}

/// The reference, and the CPU with each instruction set this machine has.
pub fn backends(num_threads: usize) -> Vec<Backend> {
    let device = CpuDevice::new(num_threads, None);
    let on_cpu = Isa::available().into_iter().map(|isa| Backend::Cpu(device.with_isa(isa)));
    std::iter::once(Backend::Reference).chain(on_cpu).collect()
}

/// The limits of one group.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub num_blocks: usize,
    pub block_size: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
}

impl Limits {
    /// An engine within them that shares prefixes and works ahead.
    pub fn engine_config(&self) -> EngineConfig {
        EngineConfig {
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: MODEL_LEN_MAX,
            double_cost_context: usize::MAX,
            waiting_requests_max: 1000,
            waiting_tokens_max: 1_000_000,
            policy: PolicyKind::Fcfs,
            prefix_caching: PrefixCaching::Enabled,
            overlap: Overlap::Enabled,
        }
    }
}

/// One rank with the checkpoint at `path`.
pub fn start_group(
    backend: &Backend,
    path: &Path,
    limits: Limits,
    sampleable_vocab: usize,
) -> RankGroup {
    start_ranks(std::slice::from_ref(backend), path, limits, sampleable_vocab)
}

/// As `start_group` with a rank on each of `backends`.
pub fn start_ranks(
    backends: &[Backend],
    path: &Path,
    limits: Limits,
    sampleable_vocab: usize,
) -> RankGroup {
    let config = |backend: &Backend| RankConfig {
        backend: backend.clone(),
        block_size: limits.block_size,
        kv_dtype: kv_dtype(backend),
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        pin_core: None,
        max_model_len: MODEL_LEN_MAX,
        cuda_graphs: CudaGraphs::On,
        stall_time_max: None,
    };
    let checkpoint = Checkpoint::open(path).unwrap();
    let configs = backends.iter().map(config).collect();
    let loaded = LoadedGroup::load_local(configs, move |backend, spec| {
        load_model(backend, &checkpoint, spec, MODEL_LEN_MAX)
    });
    let room = Room { num_blocks: limits.num_blocks, max_model_len: MODEL_LEN_MAX };
    loaded.unwrap().start(Start { room, sampleable_vocab }).unwrap()
}

/// All that one request gets back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    pub prompt_logprobs: Vec<TokenLogprobs>,
    pub pooled: Option<Pooled>,
    pub tokens: Vec<SampledToken>,
    pub finish: Option<FinishReason>,
}

impl Outcome {
    pub fn push(&mut self, event: Event) {
        match event {
            Event::Started { .. } => {}
            Event::PromptLogprobs(logprobs) => self.prompt_logprobs = logprobs,
            Event::Pooled(pooled) => self.pooled = Some(pooled),
            Event::Token(token) => self.tokens.push(token),
            Event::Finished { reason } => self.finish = Some(reason),
            Event::Failed(error) => panic!("a request failed: {error}"),
        }
    }

    pub fn token_ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.token.0).collect()
    }
}

/// Requests of every kind: greedy and seeded, with and without penalties, scores and stops; one in
/// five is pooled and generates nothing. Every other one begins with one of a few prefixes, so that
/// they can share blocks.
pub fn random_requests(random: &mut Random, count: usize, prompt_len_max: usize) -> Vec<Request> {
    let token = |random: &mut Random| TokenId(random.below(TINY_VOCAB) as u32);
    let tokens = |random: &mut Random, len| -> Vec<TokenId> {
        std::iter::repeat_with(|| token(random)).take(len).collect()
    };
    let prefixes: Vec<_> = (0..3).map(|_| tokens(random, prompt_len_max * 2 / 3)).collect();
    let mut requests = Vec::with_capacity(count);
    for index in 0..count {
        let mut prompt = if index % 2 == 0 { random.pick(&prefixes) } else { Vec::new() };
        let rest = 1 + random.below(prompt_len_max - prompt.len());
        prompt.extend(tokens(random, rest));
        let sampling = random_sampling(random);
        let pooling = match index % 10 {
            4 => Some(Pooling::Hidden),
            9 => Some(Pooling::logprobs(&[TokenId(263), TokenId(265)])),
            _ => None,
        };
        requests.push(Request {
            prompt,
            sampling: match pooling {
                Some(_) => SamplingParams { max_new_tokens: 0, ..sampling },
                None => sampling,
            },
            pooling,
            priority: random.below(3) as i32,
            lane: Lane::Interactive,
            tenant: Default::default(),
            cache_salt: CacheSalt::default(),
            constraint: None,
        });
    }
    requests
}

fn random_sampling(random: &mut Random) -> SamplingParams {
    let is_greedy = random.below(3) == 0;
    SamplingParams {
        max_new_tokens: 4 + random.below(30),
        min_tokens: random.pick(&[0, 3]),
        temperature: if is_greedy { 0.0 } else { random.pick(&[0.7, 1.0, 2.0]) },
        top_k: random.pick(&[0, 20, 300]),
        top_p: random.pick(&[1.0, 0.9, 0.99]),
        min_p: random.pick(&[0.0, 0.01]),
        repetition_penalty: random.pick(&[1.0, 1.1]),
        presence_penalty: random.pick(&[0.0, 0.5]),
        frequency_penalty: random.pick(&[0.0, 0.25]),
        logit_bias: vec![(TokenId(random.below(TINY_VOCAB) as u32), 3.0)],
        seed: random.next(),
        // One in fifty tokens ends the sequence, so that ends are spread over the steps.
        eos_token_ids: (0..TINY_VOCAB as u32 / 50).map(|i| TokenId(i * 50)).collect(),
        stop_token_ids: vec![TokenId(7)],
        logprobs: random.pick(&[None, Some(0), Some(5)]),
        prompt_logprobs: random.pick(&[None, None, None, Some(2)]),
    }
}
