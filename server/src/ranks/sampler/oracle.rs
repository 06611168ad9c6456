//! The sampler once more for its tests: slow and obvious, in f64, with a full sort.

use super::random;
use crate::engine::SampleStep;

/// Probabilities after the whole chain, and whether some comparison was too close to call.
pub struct Expected {
    pub probabilities: Vec<f64>,
    pub is_close_call: bool,
}

pub fn expected(row: &[f32], step: &SampleStep) -> Expected {
    let params = &step.params;
    let logits = edited(row, step);
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    order.retain(|&i| logits[i] > f64::NEG_INFINITY);
    let mut out = Expected { probabilities: vec![0.0; row.len()], is_close_call: false };
    if params.temperature == 0.0 {
        out.probabilities[order[0]] = 1.0;
        return out;
    }
    let best = logits[order[0]];
    let weight = |i: usize| ((logits[i] - best) / f64::from(params.temperature)).exp();
    let is_close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
    if params.min_p > 0.0 {
        let min_p = f64::from(params.min_p);
        out.is_close_call |= order[1..].iter().any(|&i| is_close(weight(i), min_p));
        let first = order[0];
        order.retain(|&i| i == first || weight(i) >= min_p);
    }
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut reached = 0.0;
        let mut kept = 0;
        while kept < order.len() && (kept == 0 || reached / total < f64::from(params.top_p)) {
            reached += weight(order[kept]);
            out.is_close_call |= is_close(reached / total, f64::from(params.top_p));
            kept += 1;
        }
        order.truncate(kept);
    }
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    order.iter().for_each(|&i| out.probabilities[i] = weight(i) / total);
    out
}

impl Expected {
    /// The id at the request's own uniform number, ids in rising order; none when it is too close
    /// to the border between two ids.
    pub fn token(&self, step: &SampleStep) -> Option<u32> {
        let uniform = random::uniform(step.params.seed, step.position as u64);
        let mut reached = 0.0;
        for (id, &probability) in self.probabilities.iter().enumerate() {
            if probability > 0.0 {
                reached += probability;
                if (reached - uniform).abs() < 1e-6 && reached < 1.0 - 1e-9 {
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

/// Logits after bias, penalties and bans, rounded to f32 at the end.
fn edited(row: &[f32], step: &SampleStep) -> Vec<f64> {
    let params = &step.params;
    let mut banned = vec![false; row.len()];
    let may_come = |id: usize| {
        let word = |words: &[u32]| words.get(id / 32).is_some_and(|w| w >> (id % 32) & 1 == 1);
        step.mask.as_ref().is_none_or(|mask| word(mask.words()))
    };
    let masked = |(id, &x): (usize, &f32)| match may_come(id) {
        true => f64::from(x),
        false => f64::NEG_INFINITY,
    };
    let mut logits: Vec<f64> = row.iter().enumerate().map(masked).collect();
    for &(token, bias) in &params.logit_bias {
        match bias {
            -100.0 => banned[token.0 as usize] = true,
            100.0 => logits[token.0 as usize] += 1000.0,
            _ => logits[token.0 as usize] += f64::from(bias),
        }
    }
    for (id, logit) in logits.iter_mut().enumerate() {
        let in_history = step.history.iter().any(|t| t.0 as usize == id);
        let output = step.history.iter().skip(step.prompt_len);
        let count = output.filter(|t| t.0 as usize == id).count() as f64;
        if in_history {
            let repetition = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        if count > 0.0 {
            *logit -= f64::from(params.frequency_penalty) * count;
            *logit -= f64::from(params.presence_penalty);
        }
    }
    if step.position - step.prompt_len < params.min_tokens {
        for token in params.eos_token_ids.iter().chain(&params.stop_token_ids) {
            banned[token.0 as usize] = true;
        }
    }
    let is_left = |(&logit, &banned): (&f64, &bool)| logit > f64::NEG_INFINITY && !banned;
    if !logits.iter().zip(&banned).any(is_left) {
        // Bans that leave nothing are void.
        banned.fill(false);
    }
    let value = |(&logit, &banned): (&f64, &bool)| match banned {
        true => f64::NEG_INFINITY,
        false => f64::from(logit as f32),
    };
    logits.iter().zip(&banned).map(value).collect()
}

/// SplitMix64 (Steele et al., 2014): the randomness of the tests.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// About normal, with standard deviation `spread`.
    pub fn normal(&mut self, spread: f32) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f32>() - 6.0) * spread
    }
}
