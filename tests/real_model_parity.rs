//! The default model, Qwen2.5-Coder-0.5B-Instruct Q4_K_M, against logits and continuations of an
//! outside implementation that runs it in f32. Skipped where the model is not in the cache.

use kernels::Backend;
use kernels::device::cpu::CpuDevice;
use models::Checkpoint;
use serde_json::Value;
use tests::golden::{Golden, GreedyCase, ids};
use tests::session::{Session, argmax, log_probability, max_abs_difference};

/// Of a logit, in f32 from dequantised weights.
const REFERENCE_TOLERANCE: f32 = 2e-3;
/// The plain loops take about a second a token: prompts longer than this wait for
/// `MONSOON_REFERENCE_FULL=1`.
const REFERENCE_PROMPT_MAX: usize = 20;
/// Top-1 must be the same where the margin is this wide, with activations rounded to 8 bits.
const MARGIN_MIN: f32 = 0.5;
const TOP1_SHARE_MIN: f64 = 0.95;
const LOG_PROBABILITY_TOLERANCE: f64 = 0.01;

#[test]
fn reference_gives_the_golden_logits_of_the_real_model() {
    let Some(path) = tests::real_model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let golden = golden();
    let full = std::env::var("MONSOON_REFERENCE_FULL").as_deref() == Ok("1");
    let mut session = Session::new(&Backend::Reference, &checkpoint, 1, 2048);
    for (case, json) in cases(&golden) {
        if !full && case.ids.len() > REFERENCE_PROMPT_MAX {
            continue;
        }
        session.reset(0);
        let mut logits = session.step(&[(0, &case.ids)]).remove(0);
        check_top20(json, &logits);
        if let Some(expected) = whole_logits(json["name"].as_str().unwrap()) {
            assert!(max_abs_difference(&logits, &expected) <= REFERENCE_TOLERANCE);
        }
        let steps = if full { case.continuation.len() } else { 4 };
        let mut log_probabilities = Vec::new();
        for (&token, &margin) in case.continuation[..steps].iter().zip(&case.margins) {
            assert!(argmax(&logits) == token || margin < 0.01, "{}", json["name"]);
            log_probabilities.push(log_probability(&logits, token));
            logits = session.step(&[(0, &[token])]).remove(0);
        }
        check_stored_log_probabilities(json, &log_probabilities);
    }
}

#[test]
fn cpu_follows_the_golden_continuations_of_the_real_model() {
    let Some(path) = tests::real_model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let backend = Backend::Cpu(CpuDevice::new(threads, None));
    let mut session = Session::new(&backend, &checkpoint, 1, 2048);
    let golden = golden();
    let (mut same, mut steps, mut sum, mut expected_sum) = (0, 0, 0.0, 0.0);
    for (case, json) in cases(&golden) {
        session.reset(0);
        let mut logits = session.step(&[(0, &case.ids)]).remove(0);
        let expected = stored_log_probabilities(json);
        for (step, (&token, &margin)) in case.continuation.iter().zip(&case.margins).enumerate() {
            let is_same = argmax(&logits) == token;
            let what = &json["name"];
            assert!(is_same || margin < MARGIN_MIN, "{what} step {step}: margin {margin}");
            same += usize::from(is_same);
            steps += 1;
            sum += log_probability(&logits, token);
            expected_sum += expected[step];
            logits = session.step(&[(0, &[token])]).remove(0);
        }
    }
    let share = same as f64 / steps as f64;
    let (mean, expected_mean) = (sum / steps as f64, expected_sum / steps as f64);
    println!("top-1 {same} of {steps}; mean log-probability {mean}, in f32 {expected_mean}");
    assert!(share >= TOP1_SHARE_MIN, "top-1 equal at {share} of {steps} steps");
    let difference = (mean - expected_mean).abs();
    assert!(difference <= LOG_PROBABILITY_TOLERANCE, "mean {mean}, in f32 {expected_mean}");
}

fn golden() -> Value {
    let path = tests::data_dir().join("real/qwen2.5-coder-0.5b-q4_k_m.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn cases(golden: &Value) -> impl Iterator<Item = (GreedyCase, &Value)> {
    let prompts = golden["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 12);
    prompts.iter().map(|json| (tests::golden::greedy_case(json), json))
}

/// The largest logits, and the sum that all of them go into.
fn check_top20(json: &Value, logits: &[f32]) {
    let expected = json["top20_logits"].as_array().unwrap();
    for (id, expected) in ids(&json["top20_ids"]).into_iter().zip(expected) {
        let difference = logits[id as usize] - expected.as_f64().unwrap() as f32;
        assert!(difference.abs() <= REFERENCE_TOLERANCE, "{}: {id}: {difference}", json["name"]);
    }
    let log_sum = f64::from(logits[0]) - log_probability(logits, 0);
    let difference = log_sum - json["logsumexp"].as_f64().unwrap();
    assert!(difference.abs() <= f64::from(REFERENCE_TOLERANCE), "{}", json["name"]);
}

/// All logits after a prompt, where the full reference data is there and has them.
fn whole_logits(name: &str) -> Option<Vec<f32>> {
    let folder = tests::golden_dir()?.join("real");
    let stem = "qwen2.5-coder-0.5b-q4_k_m";
    let json = folder.join(format!("{stem}.json"));
    let golden = Golden::read(&json, &folder.join(format!("{stem}.logits.safetensors")));
    golden.tensor(name)
}

/// What f32 arithmetic gives to each token of the continuation. The golden data has the margins
/// alone, so these come from candle; `candle_parity.rs` can compute them again.
fn stored_log_probabilities(json: &Value) -> Vec<f64> {
    let list = json["reference_logprobs"].as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn check_stored_log_probabilities(json: &Value, computed: &[f64]) {
    for (computed, stored) in computed.iter().zip(stored_log_probabilities(json)) {
        assert!((computed - stored).abs() < 1e-3, "{}: {computed} {stored}", json["name"]);
    }
}
