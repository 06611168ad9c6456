//! A request's tokens and log-probabilities are the same to the bit whatever runs beside it,
//! however it is cut into chunks and blocks, and also when it has to start again.

use kernels::Backend;
use server::engine::Request;
use std::path::Path;
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
    let requests = random_requests(&mut random, num_requests, 60);
    let alone = run_alone(&backends[0], path, &requests);
    for (seed, backend) in (0..).zip(backends.iter().cycle().take(2 * backends.len())) {
        let mut random = Random(seed);
        let limits = Limits {
            num_blocks: random.pick(&[40, 400]),
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
