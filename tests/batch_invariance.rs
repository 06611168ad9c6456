//! A request's tokens and log-probabilities are the same to the bit whatever runs beside it,
//! however it is cut into chunks and blocks, and also when it has to start again.

use kernels::Backend;
use kernels::device::cpu::CpuDevice;
use models::TokenId;
use server::engine::{EngineConfig, Overlap, PolicyKind, PrefixCaching, Request, SamplingParams};
use std::path::Path;
use tests::observed::{Arrivals, run_engine};
use tests::random::Random;
use tests::random_plans::{self, Cut};
use tests::serving::random_requests;
use tests::serving::{Limits, Outcome, TINY_VOCAB, backends, start_group, tiny_checkpoint};

#[test]
fn hand_made_plans_on_the_reference() {
    let path = tiny_checkpoint("models/qwen2-tied").unwrap();
    check_plans(&path, &backends(1)[..1], 12);
}

#[test]
fn hand_made_plans_on_the_cpu() {
    for part in CHECKPOINTS {
        let path = tiny_checkpoint(part).unwrap();
        for backends in cpu_backends() {
            check_plans(&path, &backends, 64);
        }
    }
}

#[test]
fn random_schedules_of_the_engine_on_the_reference() {
    let path = tiny_checkpoint("models/qwen2-tied").unwrap();
    check_schedules(&path, &backends(1)[..1], 16);
}

#[test]
fn random_schedules_of_the_engine_on_the_cpu() {
    for part in CHECKPOINTS {
        let path = tiny_checkpoint(part).unwrap();
        for backends in cpu_backends() {
            check_schedules(&path, &backends, 64);
        }
    }
}

#[test]
fn hand_made_plans_on_a_gpu() {
    let Some(device) = tests::gpu() else { return };
    for part in CHECKPOINTS {
        let path = tiny_checkpoint(part).unwrap();
        check_plans(&path, &[Backend::Cuda(device.clone())], 12);
    }
}

#[test]
fn random_schedules_of_the_engine_on_a_gpu() {
    let Some(device) = tests::gpu() else { return };
    let path = tiny_checkpoint("models/qwen2-tied").unwrap();
    check_schedules(&path, &[Backend::Cuda(device)], 8);
}

#[test]
fn real_model_on_the_cpu() {
    let Some(path) = tests::real_model() else { return };
    let backend = Backend::Cpu(CpuDevice::new(2, None));
    let limits =
        Limits { num_blocks: 14, block_size: 4, max_num_seqs: 4, max_num_batched_tokens: 9 };
    let requests: Vec<Request> = (0..5).map(real_request).collect();
    // Ids from here on are padding in this model's vocabulary.
    let vocab = 151_665;
    let mut group = start_group(&backend, &path, limits, vocab);
    let alone = requests.iter().map(|request| {
        let request = std::slice::from_ref(request);
        random_plans::run(&mut group, limits, request, Cut::Plain, &mut Random(0)).0.remove(0)
    });
    let alone: Vec<Outcome> = alone.collect();
    drop(group);
    for overlap in [Overlap::Disabled, Overlap::Enabled] {
        let config = engine_config(limits, PolicyKind::Fcfs, PrefixCaching::Enabled, overlap);
        let group = start_group(&backend, &path, limits, vocab);
        let (together, stats, observed) =
            run_engine(config, group, &requests, Arrivals::AtOnce, &mut Random(1));
        check_equal(&together, &alone, &format!("the real model, overlap {overlap:?}"));
        assert!(stats.preemptions > 0 && stats.prefix_hit_tokens > 0 && observed.mixed_steps > 0);
    }
}

/// Short, with a prefix that all share.
fn real_request(index: u32) -> Request {
    let prompt = (0..8 + 2 * index).map(|i| TokenId(if i < 8 { 700 + i } else { 90 * index + i }));
    let sampling = SamplingParams {
        max_new_tokens: 12,
        temperature: if index.is_multiple_of(2) { 0.0 } else { 0.8 },
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed: u64::from(index),
        logprobs: Some(3),
        ..Default::default()
    };
    Request {
        prompt: prompt.collect(),
        sampling,
        pooling: None,
        priority: 0,
        lane: Default::default(),
        tenant: Default::default(),
        cache_salt: Default::default(),
        constraint: None,
    }
}

/// Two formats, both kept in this repository.
const CHECKPOINTS: [&str; 2] = ["models/qwen2-tied", "gguf/tiny-qwen3-q4_k.gguf"];

/// Groups of backends that compute with the same instructions: each instruction set on two
/// threads, and the best one on three threads as well.
fn cpu_backends() -> Vec<Vec<Backend>> {
    let mut groups: Vec<_> = backends(2).into_iter().skip(1).map(|backend| vec![backend]).collect();
    let best = groups.last_mut().expect("portable code runs everywhere");
    best.extend(backends(3).pop());
    groups
}

/// Every way to run `num_requests` gives what each gets alone; so do all backends, which compute
/// with the same instructions.
fn check_plans(path: &Path, backends: &[Backend], num_requests: usize) {
    let mut random = Random(11);
    let requests = random_requests(&mut random, num_requests, 40);
    let alone = run_alone(&backends[0], path, &requests);
    for (seed, backend) in (0..).zip(backends.iter().cycle().take(2 * backends.len())) {
        let mut random = Random(seed);
        let limits = Limits {
            num_blocks: random.pick(&[40, 600]),
            block_size: random.pick(&[4, 16, 32]),
            max_num_seqs: num_requests,
            max_num_batched_tokens: random.pick(&[64, 300]),
        };
        let mut group = start_group(backend, path, limits, TINY_VOCAB);
        let cut = if seed == 0 { Cut::Plain } else { Cut::Random };
        let (together, seen) = random_plans::run(&mut group, limits, &requests, cut, &mut random);
        check_equal(&together, &alone, &format!("{path:?}, {backend:?}, seed {seed}"));
        assert!(seen.mixed_steps > 0, "no step mixed prompts and generation");
        assert!(cut == Cut::Plain || seen.restarts > 0, "nothing was ever thrown back");
    }
}

/// The engine gives each request what hand-made plans give it alone, by the plain loop and with
/// overlap.
fn check_schedules(path: &Path, backends: &[Backend], num_requests: usize) {
    let requests = random_requests(&mut Random(12), num_requests, 40);
    let alone = run_alone(&backends[0], path, &requests);
    for overlap in [Overlap::Disabled, Overlap::Enabled] {
        check_schedules_by(overlap, path, backends, &requests, &alone);
    }
}

fn check_schedules_by(
    overlap: Overlap,
    path: &Path,
    backends: &[Backend],
    requests: &[Request],
    alone: &[Outcome],
) {
    let (mut preemptions, mut hit_tokens, mut mixed_steps, mut batch_len_max) = (0, 0, 0, 0);
    let mut from_last_step = 0;
    for (seed, backend) in (0..).zip(backends.iter().cycle().take(5.max(2 * backends.len()))) {
        let mut random = Random(seed);
        let (limits, arrivals) = if seed == 0 { (ROOMY, Arrivals::AtOnce) } else { tight(seed) };
        let policy = random.pick(&[PolicyKind::Fcfs, PolicyKind::Priority]);
        let caching = if seed == 0 { PrefixCaching::Disabled } else { PrefixCaching::Enabled };
        let config = EngineConfig {
            // Chunks deep in a prompt get shorter.
            double_cost_context: if seed % 2 == 1 { 32 } else { usize::MAX },
            ..engine_config(limits, policy, caching, overlap)
        };
        let group = start_group(backend, path, limits, TINY_VOCAB);
        let what = format!("{path:?}, {backend:?}, seed {seed}, {config:?}");
        let (together, stats, observed) =
            run_engine(config, group, requests, arrivals, &mut random);
        check_equal(&together, alone, &what);
        assert_eq!(stats.blocks_free, stats.blocks_total, "blocks are missing: {what}");
        preemptions += stats.preemptions;
        hit_tokens += stats.prefix_hit_tokens;
        mixed_steps += observed.mixed_steps;
        from_last_step += observed.from_last_step;
        batch_len_max = batch_len_max.max(observed.batch_len_max);
    }
    assert!(preemptions > 0, "nothing was preempted");
    assert!(hit_tokens > 0, "no prefix was shared");
    assert!(mixed_steps > 0, "no step mixed prompts and generation");
    assert_eq!(batch_len_max, requests.len(), "all requests never ran in one step");
    assert_eq!(from_last_step > 0, overlap == Overlap::Enabled, "tokens left to the runner");
}

/// All requests fit in one step.
const ROOMY: Limits =
    Limits { num_blocks: 400, block_size: 16, max_num_seqs: 64, max_num_batched_tokens: 2560 };

/// Room for three or four requests of the usual length, and for any one.
fn tight(seed: u64) -> (Limits, Arrivals) {
    let mut random = Random(seed);
    let block_size = random.pick(&[2, 4, 8]);
    let limits = Limits {
        num_blocks: 104 / block_size,
        block_size,
        max_num_seqs: random.pick(&[4, 16]),
        max_num_batched_tokens: random.pick(&[16, 50, 128]),
    };
    (limits, Arrivals::Random)
}

fn engine_config(
    limits: Limits,
    policy: PolicyKind,
    prefix_caching: PrefixCaching,
    overlap: Overlap,
) -> EngineConfig {
    EngineConfig { policy, prefix_caching, overlap, ..limits.engine_config() }
}

fn run_alone(backend: &Backend, path: &Path, requests: &[Request]) -> Vec<Outcome> {
    let limits =
        Limits { num_blocks: 8, block_size: 16, max_num_seqs: 1, max_num_batched_tokens: 128 };
    let mut group = start_group(backend, path, limits, TINY_VOCAB);
    let run = |request: &Request| {
        let request = std::slice::from_ref(request);
        random_plans::run(&mut group, limits, request, Cut::Plain, &mut Random(0)).0.remove(0)
    };
    requests.iter().map(run).collect()
}

fn check_equal(got: &[Outcome], expected: &[Outcome], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got, expected, "request {index} of {what}");
    }
}
