//! Engine, rank, model and sampler together: the greedy continuations that another implementation
//! gave each sequence alone, for all sequences in one batch.

use kernels::Backend;
use models::TokenId;
use serde_json::Value;
use server::engine::{Request, SamplingParams};
use std::path::Path;
use tests::observed::{Arrivals, run_engine};
use tests::random::Random;
use tests::serving::{Limits, TINY_VOCAB, start_group, tiny_checkpoint};

/// The smallest step from the best logit to the next one that rounding cannot turn around.
const MARGIN_MIN: f64 = 0.01;

#[test]
fn golden_batches_continue_as_they_should() {
    let mut num_models = 0;
    for model in ["qwen2-tied", "qwen2-untied", "qwen3-tied", "qwen3-untied", "qwen3-yarn"] {
        // The first is kept in this repository, the others only beside it.
        if let Some(path) = tiny_checkpoint(&format!("models/{model}")) {
            check_batch(&path);
            num_models += 1;
        }
    }
    assert!(num_models > 0, "no golden model was found");
}

fn check_batch(path: &Path) {
    let text = std::fs::read_to_string(path.join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let cases = golden["batch"].as_array().unwrap();
    let requests: Vec<Request> = cases.iter().map(request_of).collect();
    // Some prompts fit in one step, others take several.
    let limits =
        Limits { num_blocks: 64, block_size: 16, max_num_seqs: 8, max_num_batched_tokens: 48 };
    let group = start_group(&Backend::Reference, path, limits, TINY_VOCAB);
    let (outcomes, _, observed) =
        run_engine(limits.engine_config(), group, &requests, Arrivals::AtOnce, &mut Random(0));
    assert!(observed.mixed_steps > 0);
    let mut num_compared = 0;
    for (index, (case, outcome)) in cases.iter().zip(&outcomes).enumerate() {
        if case["min_margin"].as_f64().unwrap() >= MARGIN_MIN {
            assert_eq!(outcome.token_ids(), ids(&case["greedy16"]), "case {index} of {path:?}");
            num_compared += 1;
        }
    }
    assert!(num_compared > cases.len() / 2, "most cases of {path:?} were left out");
}

fn request_of(case: &Value) -> Request {
    let prompt = ids(&case["ids"]).into_iter().map(TokenId).collect();
    let max_new_tokens = case["greedy16"].as_array().unwrap().len();
    let sampling = SamplingParams { max_new_tokens, ..Default::default() };
    Request {
        prompt,
        sampling,
        pooling: None,
        priority: 0,
        lane: Default::default(),
        tenant: Default::default(),
        cache_salt: Default::default(),
        constraint: None,
    }
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}
