//! What a request changes in its logits: bias, penalties and bans, each of which can be taken back.

use crate::engine::SampleStep;

/// A bias of this size or more, either way, is an order: "-100 or 100 should result in a ban or
/// exclusive selection" (OpenAI's API).
const BIAS_ORDER: f32 = 100.0;
/// What such an order adds: more than logits, penalties and usual temperatures can outweigh, yet
/// small enough for f32 to keep several forced tokens apart.
const FORCED_BIAS: f32 = 1000.0;

/// Changes only the values of tokens that the request names or has seen, and remembers what they
/// were.
#[derive(Debug, Default)]
pub struct Edits {
    /// Value before each change, in order.
    undo: Vec<(u32, f32)>,
    /// `undo[bans_start..]` are bans.
    bans_start: usize,
    /// By id: 0, or 1 + how often the token is in the output. All 0 between rows.
    counts: Vec<u32>,
}

impl Edits {
    /// Ids beyond the row (padding of the vocabulary) are passed over.
    pub fn apply(&mut self, row: &mut [f32], step: &SampleStep) {
        self.undo.clear();
        self.apply_bias(row, step);
        if step.params.needs_history() {
            self.apply_penalties(row, step);
        }
        self.bans_start = self.undo.len();
        self.apply_bans(row, step);
    }

    /// Brings back every value.
    pub fn undo(&mut self, row: &mut [f32]) {
        undo_from(&mut self.undo, 0, row);
    }

    /// Brings back the values of banned tokens, with bias and penalties.
    pub fn undo_bans(&mut self, row: &mut [f32]) {
        undo_from(&mut self.undo, self.bans_start, row);
    }

    fn apply_bias(&mut self, row: &mut [f32], step: &SampleStep) {
        for &(token, bias) in &step.params.logit_bias {
            if bias > -BIAS_ORDER {
                let bias = if bias >= BIAS_ORDER { FORCED_BIAS } else { bias };
                self.set(row, token.0, |logit| logit + bias);
            }
        }
    }

    fn apply_penalties(&mut self, row: &mut [f32], step: &SampleStep) {
        if self.counts.len() < row.len() {
            self.counts.resize(row.len(), 0);
        }
        let params = &step.params;
        assert_eq!(step.history.len(), step.position, "the history is whole");
        let (prompt, output) = step.history.split_at(step.prompt_len.min(step.history.len()));
        let known = |token: &&models::TokenId| (token.0 as usize) < row.len();
        for token in prompt.iter().filter(known) {
            self.counts[token.0 as usize] = 1;
        }
        for token in output.iter().filter(known) {
            let count = &mut self.counts[token.0 as usize];
            *count = (*count).max(1) + 1;
        }
        for token in &step.history {
            let Some(count) = self.counts.get_mut(token.0 as usize) else { continue };
            let count = std::mem::take(count);
            if count == 0 {
                // Done already, at its first place.
                continue;
            }
            let times = (count - 1) as f32;
            let presence = if count > 1 { params.presence_penalty } else { 0.0 };
            self.set(row, token.0, |logit| {
                let repeated = params.repetition_penalty;
                let logit = if logit > 0.0 { logit / repeated } else { logit * repeated };
                logit - params.frequency_penalty * times - presence
            });
        }
    }

    fn apply_bans(&mut self, row: &mut [f32], step: &SampleStep) {
        let params = &step.params;
        for &(token, bias) in &params.logit_bias {
            if bias <= -BIAS_ORDER {
                self.ban(row, token.0);
            }
        }
        let num_generated = step.position.saturating_sub(step.prompt_len);
        if num_generated < params.min_tokens {
            for token in params.eos_token_ids.iter().chain(&params.stop_token_ids) {
                self.ban(row, token.0);
            }
        }
    }

    /// Changes one value. A token without a finite logit stays out; what overflows becomes the
    /// largest number instead.
    fn set(&mut self, row: &mut [f32], id: u32, change: impl Fn(f32) -> f32) {
        let Some(logit) = row.get_mut(id as usize) else { return };
        let changed = change(*logit).clamp(f32::MIN, f32::MAX);
        if *logit != f32::NEG_INFINITY && !changed.is_nan() {
            self.undo.push((id, *logit));
            *logit = changed;
        }
    }

    fn ban(&mut self, row: &mut [f32], id: u32) {
        let Some(logit) = row.get_mut(id as usize) else { return };
        self.undo.push((id, *logit));
        *logit = f32::NEG_INFINITY;
    }
}

fn undo_from(undo: &mut Vec<(u32, f32)>, start: usize, row: &mut [f32]) {
    // Backwards, for a value that was changed twice.
    for (id, logit) in undo.drain(start..).rev() {
        row[id as usize] = logit;
    }
}
