//! The group with models whose every answer is known: token t is followed by t + 1.

mod processes;

use super::group::{CudaGraphs, RankConfig, RankGroup, RankStartError};
use super::loaded::LoadedGroup;
use super::progress::STALL_TIME_MAX;
use super::wire::{Room, Start};
use super::worker::RankSpec;
use crate::engine::plan::PromptScore;
use crate::engine::{
    BlockId, Chunk, ChunkInput, ChunkOutput, Plan, Pooled, Pooling, Runner, RunnerError,
    SampleStep, SamplingParams, SequenceId, StepOutput,
};
use kernels::comm::Communicator;
use kernels::comm::solo::Solo;
use kernels::device::cpu::CpuDevice;
use kernels::{Backend, DType, KernelError, Tensor};
use models::config::{Architecture, RopeConfig};
use models::{ForwardBatch, ForwardContext, LoadError, Model, ModelConfig, TokenId};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const VOCAB: usize = 300;
/// Tokens that make the model fail.
const PANIC: u32 = 290;
const ERROR: u32 = 291;
const NAN: u32 = 292;

#[test]
fn chunks_are_pooled_at_their_last_token() {
    let mut group = start(&config(), Vec::new()).unwrap();
    let pooled = |sequence, token_ids: &[u32], pooling| Chunk {
        pooling: Some(pooling),
        ..chunk(sequence, token_ids)
    };
    // More rows than one group of them has.
    let mut chunks: Vec<Chunk> =
        (0..90).map(|i| pooled(i, &[1, i as u32 + 7], Pooling::Hidden)).collect();
    chunks.insert(3, sampled(200, &[40]));
    let [no, yes] = [TokenId(5), TokenId(22)];
    chunks.push(Chunk {
        prompt_logprobs: Some(PromptScore { targets: vec![TokenId(9)], top: 0 }),
        ..pooled(300, &[8, 21], Pooling::logprobs(&[no, yes]))
    });
    let output = run(&mut group, 0, chunks).unwrap().chunks;
    assert_eq!(
        (output[3].sampled.as_ref().unwrap().token, &output[3].pooled),
        (TokenId(41), &None)
    );
    for i in 0..90 {
        let place = if i < 3 { i } else { i + 1 };
        let expected = Pooled::Hidden(vec![i as f32 + 7.0, 0.5]);
        assert_eq!(output[place].pooled, Some(expected), "sequence {i}");
    }
    let scores = &output[91].prompt_logprobs;
    assert_eq!((scores.len(), scores[0].token, scores[0].rank), (1, TokenId(9), 1));
    let Some(Pooled::Logprobs(answers)) = &output[91].pooled else { panic!("not pooled") };
    assert_eq!((answers[0].token, answers[1].token), (no, yes));
    // Of the fake's logits: 5 for the token after the last one, else 0.
    let difference = answers[1].logprob - answers[0].logprob;
    assert!((difference - 5.0).abs() < 1e-5, "{difference}");
}

#[test]
fn every_chunk_gets_its_own_answers_in_order() {
    let mut group = start(&config(), Vec::new()).unwrap();
    for step in 0..3 {
        // 100 rows to sample: more than one group of logits.
        let mut chunks: Vec<Chunk> = (0..100).map(|i| sampled(i, &[i as u32 + 7])).collect();
        chunks.insert(50, chunk(200, &[1, 2, 3]));
        chunks.push(Chunk {
            prompt_logprobs: Some(PromptScore { targets: vec![TokenId(42), TokenId(9)], top: 2 }),
            ..sampled(300, &[41, 42, 43])
        });
        let output = run(&mut group, step, chunks).unwrap();
        let token = |chunk: &ChunkOutput| chunk.sampled.as_ref().map(|s| s.token.0);
        for i in 0..100 {
            let place = if i < 50 { i } else { i + 1 };
            assert_eq!(token(&output.chunks[place]), Some(i as u32 + 8));
        }
        assert_eq!(output.chunks[50], ChunkOutput::default());
        let last = &output.chunks[101];
        assert_eq!(token(last), Some(44));
        let ranks: Vec<_> = last.prompt_logprobs.iter().map(|p| (p.token.0, p.rank)).collect();
        // After 42 comes 43 with the highest logit; 9 is the tenth of the equal others.
        assert_eq!(ranks, [(42, 1), (9, 11)]);
        assert_eq!(last.prompt_logprobs[1].top[0].0, TokenId(43));
    }
}

#[test]
fn an_empty_plan_has_an_empty_answer() {
    let mut group = start(&config(), Vec::new()).unwrap();
    assert_eq!(run(&mut group, 0, Vec::new()), Ok(StepOutput::default()));
}

#[test]
fn whatever_breaks_in_a_rank_is_told_and_stays_told() {
    let too_many = (0..129).map(|i| chunk(i, &[1])).collect::<Vec<_>>();
    let cases = [
        (vec![chunk(0, &[PANIC])], "panic: token 290 is cursed"),
        (vec![chunk(0, &[ERROR])], "device lost: token 291"),
        (vec![sampled(5, &[NAN])], "sequence 5: none of the 300 logits is finite"),
        (too_many, "panic: the plan has 129 chunks, the limit is 128"),
    ];
    for (chunks, expected) in cases {
        let mut group = start(&config(), Vec::new()).unwrap();
        assert!(run(&mut group, 0, vec![sampled(0, &[1])]).is_ok());
        let failed = Err(RunnerError::RankFailed { rank: 0, reason: expected.to_string() });
        assert_eq!(run(&mut group, 1, chunks), failed);
        assert_eq!(group.launch(&Plan::default()), failed.clone().map(|_| ()));
        assert_eq!(group.collect(), failed);
    }
}

#[test]
fn a_model_that_cannot_start_is_reported() {
    let fails = LoadedGroup::load(config(), || Err(LoadError::MissingTensor { name: "w".into() }));
    assert!(matches!(fails, Err(RankStartError::Load(_))));
    let panics = LoadedGroup::load(config(), || panic!("no such luck"));
    let Err(RankStartError::Panicked { rank: 0, reason }) = panics else { panic!("started") };
    assert_eq!(reason, "no such luck");
    let loaded = LoadedGroup::load(config(), || Ok(Box::new(FakeModel::new()))).unwrap();
    assert_eq!(loaded.free_bytes(), [None]);
    let fails = loaded.start(start_with(usize::MAX / 1024));
    assert!(matches!(fails, Err(RankStartError::Load(LoadError::Kernel(_)))));
}

#[test]
fn every_rank_computes_and_rank_0_answers() {
    let (seen, heard) = channel();
    let mut group = start(&config(), vec![seen.clone(), seen]).unwrap();
    let output = run(&mut group, 3, vec![sampled(0, &[5])]).unwrap();
    assert_eq!(output.chunks[0].sampled.as_ref().unwrap().token, TokenId(6));
    drop(group);
    let mut ranks: Vec<usize> = heard.iter().collect();
    ranks.sort();
    assert_eq!(ranks, [0, 1]);
}

#[test]
fn a_plan_sent_ahead_goes_on_from_what_the_one_before_samples() {
    for world_size in [1, 2] {
        let (seen, heard) = channel();
        let mut group = start(&config(), vec![seen; world_size]).unwrap();
        group.launch(&Plan { step: 0, chunks: vec![sampled(0, &[5]), sampled(1, &[50])] }).unwrap();
        for step in 1..6 {
            // In another order, with a prompt between them.
            let mut chunks = vec![ahead(1, step), sampled(step as u64 + 9, &[7]), ahead(0, step)];
            if step == 3 {
                // The bias would repeat token 8, which the penalty prevents: if it is seen.
                let sample = chunks[2].sample.as_mut().unwrap();
                sample.params = Arc::new(SamplingParams {
                    repetition_penalty: 10.0,
                    logit_bias: vec![(TokenId(8), 6.0)],
                    ..SamplingParams::default()
                });
                sample.history = [5, 6, 7].map(TokenId).to_vec();
            }
            group.launch(&Plan { step: step as u64, chunks }).unwrap();
            let tokens = collect_tokens(&mut group);
            let number = step as u32;
            match step {
                1 => assert_eq!(tokens, [6, 51]),
                _ => assert_eq!(tokens, [50 + number, 8, 5 + number]),
            }
        }
        assert_eq!(collect_tokens(&mut group), [56, 8, 11]);
        drop(group);
        assert_eq!(heard.iter().count(), 6 * world_size, "each rank computed each plan");
    }
}

#[test]
fn a_token_that_was_never_sampled_cannot_be_gone_on_from() {
    let mut group = start(&config(), Vec::new()).unwrap();
    run(&mut group, 0, vec![sampled(0, &[5])]).unwrap();
    run(&mut group, 1, vec![sampled(1, &[5])]).unwrap();
    let reason = "panic: the last step sampled no token for SequenceId(0)".to_string();
    let failed = Err(RunnerError::RankFailed { rank: 0, reason });
    assert_eq!(run(&mut group, 2, vec![ahead(0, 2)]), failed);
}

#[test]
fn one_lost_rank_ends_the_group_while_another_waits_for_it() {
    // Rank 0 waits for a message that nobody sends, as it would in a sum over ranks.
    let (keep_waiting, wait) = channel::<()>();
    let waits = FakeModel { waits_for: Some(wait), ..FakeModel::new() };
    let specs = vec![spec(0, 2, waits), spec(1, 2, FakeModel::new())];
    let mut group = start_all(specs).unwrap();
    let result = run(&mut group, 0, vec![chunk(0, &[PANIC])]);
    let reason = "panic: token 290 is cursed".to_string();
    assert_eq!(result, Err(RunnerError::RankFailed { rank: 1, reason }));
    drop(group);
    drop(keep_waiting);
}

#[test]
fn a_rank_that_stands_still_is_noticed_and_one_that_is_slow_is_not() {
    let on_cpu = || RankConfig { backend: Backend::Cpu(CpuDevice::new(1, None)), ..config() };
    let start = |model: FakeModel| {
        LoadedGroup::load(on_cpu(), || Ok(Box::new(model)))?.start(start_with(2))
    };
    let (keep_waiting, wait) = channel::<()>();
    let waits = FakeModel { waits_for: Some(wait), ..FakeModel::new() };
    let mut group = start(waits).unwrap();
    assert!(group.stall_time_max.is_some_and(|max| max < Duration::from_secs(8)));
    group.stall_time_max = Some(Duration::from_secs(1));
    let begin = Instant::now();
    let stalled = Err(RunnerError::Stalled { seconds: 1 });
    assert_eq!(run(&mut group, 0, vec![chunk(0, &[1])]), stalled);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(group.collect(), stalled);
    drop(keep_waiting);

    let slow = FakeModel { tasks_of_100_ms: 25, ..FakeModel::new() };
    let mut group = start(slow).unwrap();
    group.stall_time_max = Some(Duration::from_secs(1));
    assert!(run(&mut group, 0, vec![chunk(0, &[1])]).is_ok());
}

#[test]
fn ranks_of_one_process_add_up_and_end_with_the_one_that_fails() {
    let configs = vec![config(); 4];
    let loaded = LoadedGroup::load_local(configs, |_, spec| {
        let fails = spec.rank == 2;
        Ok(Box::new(FakeModel { adds: true, fails, ..FakeModel::new() }))
    });
    let mut group = loaded.unwrap().start(start_with(2)).unwrap();
    // The sum over four ranks of token 5, which is then followed by 21.
    let output = run(&mut group, 0, vec![sampled(0, &[5])]).unwrap();
    assert_eq!(output.chunks[0].sampled.as_ref().unwrap().token, TokenId(21));
    let begin = Instant::now();
    let reason = format!("device lost: token {ERROR}");
    let failed = Err(RunnerError::RankFailed { rank: 2, reason });
    assert_eq!(run(&mut group, 1, vec![chunk(0, &[ERROR])]), failed);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

fn run(group: &mut RankGroup, step: u64, chunks: Vec<Chunk>) -> Result<StepOutput, RunnerError> {
    group.launch(&Plan { step, chunks })?;
    group.collect()
}

fn collect_tokens(group: &mut RankGroup) -> Vec<u32> {
    let chunks = group.collect().unwrap().chunks;
    chunks.iter().map(|chunk| chunk.sampled.as_ref().unwrap().token.0).collect()
}

fn chunk(sequence: u64, token_ids: &[u32]) -> Chunk {
    Chunk {
        sequence: SequenceId(sequence),
        input: ChunkInput::Known(token_ids.iter().map(|&t| TokenId(t)).collect()),
        start: 0,
        block_table: Arc::new(vec![BlockId(0)]),
        sample: None,
        prompt_logprobs: None,
        pooling: None,
    }
}

fn sampled(sequence: u64, token_ids: &[u32]) -> Chunk {
    let (position, history) = (token_ids.len(), Vec::new());
    let params = Arc::new(SamplingParams::default());
    let sample = Some(SampleStep { params, position, prompt_len: position, history, mask: None });
    Chunk { sample, ..chunk(sequence, token_ids) }
}

/// The sequence's token at `position`, which the step before samples.
fn ahead(sequence: u64, position: usize) -> Chunk {
    let input = ChunkInput::FromLastStep;
    let mut chunk = Chunk { input, start: position, ..sampled(sequence, &[0]) };
    chunk.sample.as_mut().unwrap().position = position + 1;
    chunk
}

fn config() -> RankConfig {
    RankConfig {
        backend: Backend::Reference,
        block_size: 16,
        kv_dtype: DType::F32,
        max_num_seqs: 128,
        max_num_batched_tokens: 256,
        pin_core: None,
        max_model_len: 1024,
        cuda_graphs: CudaGraphs::On,
        stall_time_max: Some(STALL_TIME_MAX),
    }
}

/// A group of one, or of as many ranks as there are senders.
fn start(config: &RankConfig, seen: Vec<Sender<usize>>) -> Result<RankGroup, RankStartError> {
    if seen.is_empty() {
        let loaded = LoadedGroup::load(config.clone(), || Ok(Box::new(FakeModel::new())));
        return loaded?.start(start_with(2));
    }
    let world_size = seen.len();
    let model = |seen| FakeModel { seen: Some(seen), ..FakeModel::new() };
    let specs = seen.into_iter().enumerate();
    start_all(specs.map(|(rank, seen)| spec(rank, world_size, model(seen))).collect())
}

fn start_all(specs: Vec<RankSpec>) -> Result<RankGroup, RankStartError> {
    LoadedGroup::load_all(specs, Vec::new(), None)?.start(start_with(2))
}

fn start_with(num_blocks: usize) -> Start {
    let room = Room { num_blocks, max_model_len: 1024 };
    Start { room, sampleable_vocab: VOCAB }
}

fn spec(rank: usize, world_size: usize, model: FakeModel) -> RankSpec {
    let communicator: Box<dyn Communicator> = match world_size {
        1 => Box::new(Solo),
        _ => Box::new(Silent { rank, world_size }),
    };
    RankSpec { config: config(), communicator, model: Box::new(|| Ok(Box::new(model))) }
}

/// A communicator for models that never use it.
struct Silent {
    rank: usize,
    world_size: usize,
}

impl Communicator for Silent {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce_sum(&mut self, _x: &mut Tensor) -> Result<(), KernelError> {
        Err(KernelError::Device("nobody is there".to_string()))
    }

    fn all_gather_columns(&mut self, _out: &mut Tensor, _part: &Tensor) -> Result<(), KernelError> {
        Err(KernelError::Device("nobody is there".to_string()))
    }
}

struct FakeModel {
    config: ModelConfig,
    seen: Option<Sender<usize>>,
    waits_for: Option<Receiver<()>>,
    tasks_of_100_ms: usize,
    /// Sums its hidden states over the ranks.
    adds: bool,
    /// Alone of its group: `ERROR` is no matter to the others.
    fails: bool,
}

impl FakeModel {
    fn new() -> Self {
        let rope = RopeConfig { theta: 1e4, rotary_dim: 2, yarn: None };
        let config = ModelConfig {
            architecture: Architecture::Qwen3,
            hidden_size: 2,
            intermediate_size: 2,
            num_layers: 1,
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 2,
            vocab_size: VOCAB,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 64,
            rope,
            qkv_bias: false,
            o_bias: false,
            tie_word_embeddings: true,
            purpose: models::Purpose::Generation,
            eos_token_ids: Vec::new(),
        };
        Self { config, seen: None, waits_for: None, tasks_of_100_ms: 0, adds: false, fails: true }
    }
}

impl Model for FakeModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(
        &self,
        ctx: &mut ForwardContext,
        batch: &ForwardBatch,
        hidden: &mut Tensor,
    ) -> Result<(), KernelError> {
        if let Some(seen) = &self.seen {
            let _ = seen.send(ctx.communicator.rank());
        }
        if let Some(wait) = &self.waits_for {
            let _ = wait.recv();
        }
        if let Backend::Cpu(device) = &ctx.backend {
            let nap = |_| std::thread::sleep(Duration::from_millis(100));
            device.pool.run(self.tasks_of_100_ms, &nap);
        }
        assert_eq!(hidden.rows(), batch.num_tokens());
        for (row, &token) in hidden.f32_mut().chunks_mut(2).zip(batch.token_ids.iter()) {
            assert!(token != PANIC, "token {token} is cursed");
            if token == ERROR && self.fails {
                return Err(KernelError::Device(format!("token {token}")));
            }
            row[0] = token as f32;
        }
        if self.adds {
            ctx.communicator.all_reduce_sum(hidden)?;
        }
        Ok(())
    }

    fn final_norm(
        &self,
        _ctx: &mut ForwardContext,
        rows: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<(), KernelError> {
        assert_eq!(out.shape(), rows.shape());
        for (out, row) in out.f32_mut().chunks_mut(2).zip(rows.f32().chunks(2)) {
            out.copy_from_slice(&[row[0], 0.5]);
        }
        Ok(())
    }

    fn logits(
        &self,
        _ctx: &mut ForwardContext,
        hidden: &Tensor,
        rows: &kernels::Indices,
        logits: &mut Tensor,
    ) -> Result<(), KernelError> {
        assert_eq!(logits.shape(), [rows.len(), VOCAB]);
        for (out, &row) in logits.f32_mut().chunks_mut(VOCAB).zip(rows.iter()) {
            let token = hidden.f32_row(row as usize)[0] as u32;
            out.fill(if token == NAN { f32::NAN } else { 0.0 });
            if token != NAN {
                out[token as usize + 1] = 5.0;
            }
        }
        Ok(())
    }
}
