//! The sampler's meaning: slow and obvious, with a full sort and sums in f64.

use super::{BIAS_ORDER, FORCED_BIAS, SampleTask, TEMPERATURE_MIN};
use std::cmp::Ordering;

/// Probabilities after the whole chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// By token id; they add up to 1.
    pub probabilities: Vec<f64>,
    /// Whether min_p or top_p cut so near a token that rounding decides.
    pub is_close_call: bool,
}

/// `pending_token`: the token that `task.pending` stands for. None when no logit is finite.
pub fn distribution(
    row: &[f32],
    task: &SampleTask,
    pending_token: Option<u32>,
) -> Option<Distribution> {
    let logits = edited(row, task, pending_token)?;
    let mut order = order_of(&logits);
    let mut out = Distribution { probabilities: vec![0.0; row.len()], is_close_call: false };
    if task.temperature < TEMPERATURE_MIN || task.top_k == 1 || task.min_p >= 1.0 {
        out.probabilities[order[0]] = 1.0;
        return Some(out);
    }
    let best = f64::from(logits[order[0]]);
    let temperature = f64::from(task.temperature);
    let weight = |i: usize| ((f64::from(logits[i]) - best) / temperature).exp();
    let is_close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
    if task.min_p > 0.0 {
        let min_p = f64::from(task.min_p);
        out.is_close_call |= order[1..].iter().any(|&i| is_close(weight(i), min_p));
        let first = order[0];
        order.retain(|&i| i == first || weight(i) >= min_p);
    }
    if task.top_k > 0 {
        order.truncate(task.top_k as usize);
    }
    if task.top_p < 1.0 {
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut reached = 0.0;
        let mut kept = 0;
        while kept < order.len() && (kept == 0 || reached / total < f64::from(task.top_p)) {
            reached += weight(order[kept]);
            out.is_close_call |= is_close(reached / total, f64::from(task.top_p));
            kept += 1;
        }
        order.truncate(kept);
    }
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    order.iter().for_each(|&i| out.probabilities[i] = weight(i) / total);
    Some(out)
}

impl Distribution {
    /// The id at `uniform`, ids in rising order; none when that is within 1e-5 of the border
    /// between two ids.
    pub fn token(&self, uniform: f64) -> Option<u32> {
        let mut reached = 0.0;
        for (id, &probability) in self.probabilities.iter().enumerate() {
            if probability > 0.0 {
                reached += probability;
                if (reached - uniform).abs() < 1e-5 && reached < 1.0 - 1e-9 {
                    return None;
                }
                if reached > uniform {
                    return Some(id as u32);
                }
            }
        }
        None
    }
}

/// As `Logprobs`, before rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    pub logprob: f64,
    pub rank: u32,
    pub top: Vec<(u32, f64)>,
}

/// Log-probability and rank of `token`, and the `top` best tokens, by the raw logits. None when
/// none of them is finite.
pub fn score(row: &[f32], token: u32, top: usize) -> Option<Score> {
    let logits: Vec<f32> = row.iter().map(|&x| finite(x)).collect();
    let mut order = order_of(&logits);
    let best = f64::from(logits[*order.first()?]);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - best).exp()).sum();
    let logprob = |x: f32| f64::from(x) - best - sum.ln();
    let place = token as usize;
    let logit = logits.get(place).copied().unwrap_or(f32::NEG_INFINITY);
    let higher = logits.iter().filter(|&&x| x > logit).count();
    let equal = logits.iter().take(place).filter(|&&x| x == logit).count();
    order.truncate(top);
    let top = order.into_iter().map(|i| (i as u32, logprob(logits[i]))).collect();
    Some(Score { logprob: logprob(logit), rank: (1 + higher + equal) as u32, top })
}

/// A number in [0, 1) with 53 random bits, a function of its arguments alone.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox 4x32 with ten
/// rounds).
pub fn uniform(seed: u64, position: u64) -> f64 {
    let (mut counter, mut key) = ([position as u32, (position >> 32) as u32, 0, 0], seed);
    for _ in 0..10 {
        let product0 = 0xD251_1F53 * u64::from(counter[0]);
        let product1 = 0xCD9E_8D57 * u64::from(counter[2]);
        let (key0, key1) = (key as u32, (key >> 32) as u32);
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key0,
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key1,
            product0 as u32,
        ];
        let next = [key0.wrapping_add(0x9E37_79B9), key1.wrapping_add(0xBB67_AE85)];
        key = u64::from(next[1]) << 32 | u64::from(next[0]);
    }
    let bits = u64::from(counter[0]) << 32 | u64::from(counter[1]);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Ids of finite logits, best first, the lower id first on a tie.
fn order_of(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i].is_finite()).collect();
    let compare = |a: f32, b: f32| b.partial_cmp(&a).unwrap_or(Ordering::Equal);
    order.sort_by(|&a, &b| compare(logits[a], logits[b]).then(a.cmp(&b)));
    order
}

fn finite(x: f32) -> f32 {
    if x.is_finite() { x } else { f32::NEG_INFINITY }
}

/// Logits after mask, bias, penalties and bans, each step in f32. Bans that leave nothing are void.
fn edited(row: &[f32], task: &SampleTask, pending_token: Option<u32>) -> Option<Vec<f32>> {
    let may_come = |id: usize| {
        let word = |mask: &[u32]| mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
        task.mask.is_none_or(word)
    };
    let masked = |(id, &x): (usize, &f32)| if may_come(id) { finite(x) } else { f32::NEG_INFINITY };
    let mut logits: Vec<f32> = row.iter().enumerate().map(masked).collect();
    for &(id, bias) in task.logit_bias.iter().filter(|(_, bias)| *bias > -BIAS_ORDER) {
        let bias = if bias >= BIAS_ORDER { FORCED_BIAS } else { bias };
        change(&mut logits, id, |logit| logit + bias);
    }
    let history: Vec<u32> = task.history.iter().copied().chain(pending_token).collect();
    let mut seen: Vec<u32> = history.clone();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        let output = history.iter().skip(task.prompt_len);
        let times = output.filter(|&&t| t == id).count() as f32;
        let presence = if times > 0.0 { task.presence_penalty } else { 0.0 };
        change(&mut logits, id, |logit| {
            let repeated = task.repetition_penalty;
            let logit = if logit > 0.0 { logit / repeated } else { logit * repeated };
            logit - task.frequency_penalty * times - presence
        });
    }
    let unbanned = logits.clone();
    let banned = task.logit_bias.iter().filter(|(_, bias)| *bias <= -BIAS_ORDER).map(|b| b.0);
    for id in banned.chain(task.bans.iter().copied()) {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let has_any = |logits: &[f32]| logits.iter().any(|x| x.is_finite());
    let chosen = if has_any(&logits) { logits } else { unbanned };
    has_any(&chosen).then_some(chosen)
}

/// A token without a finite logit stays out; what overflows becomes the largest number instead.
fn change(logits: &mut [f32], id: u32, change: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        let changed = change(*logit).clamp(f32::MIN, f32::MAX);
        if logit.is_finite() && !changed.is_nan() {
            *logit = changed;
        }
    }
}
