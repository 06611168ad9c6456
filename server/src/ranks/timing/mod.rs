//! A runner that computes no model and takes the time that a described GPU would take: for loading
//! HTTP, text and engine as on a cluster.

mod times;

pub use times::{GpuTimes, GpuTimesError};

use crate::engine::{
    Chunk, ChunkOutput, PLANS_UNDER_WAY_MAX, Plan, Runner, RunnerError, SampleStep, SampledToken,
    StepOutput, TokenLogprobs, TokenMask,
};
use models::TokenId;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Its tokens are noise. Each depends on its request's seed and its position alone, so that they
/// are the same in every batch.
pub struct TimingRunner {
    times: GpuTimes,
    /// What may be sampled.
    tokens: Vec<TokenId>,
    /// Outputs not collected, the oldest first, and when the device will have them.
    under_way: VecDeque<(StepOutput, Option<Instant>)>,
    /// Room for the next output.
    spare: Vec<ChunkOutput>,
    /// When the device has computed all that it was given.
    free_at: Option<Instant>,
}

impl TimingRunner {
    /// `tokens`: the ones it samples from, at least one.
    pub fn new(times: GpuTimes, tokens: Vec<TokenId>) -> Self {
        assert!(!tokens.is_empty(), "there is something to sample");
        Self { times, tokens, under_way: VecDeque::new(), spare: Vec::new(), free_at: None }
    }

    /// When a step that is launched now and takes so long is done; None: it takes no time.
    fn done_at(&mut self, step_time: Duration) -> Option<Instant> {
        if step_time.is_zero() {
            return self.free_at;
        }
        let now = Instant::now();
        self.free_at = Some(self.free_at.map_or(now, |free| free.max(now)) + step_time);
        self.free_at
    }

    fn output(&self, chunk: &Chunk) -> ChunkOutput {
        assert!(chunk.pooling.is_none(), "models that pool are refused at the start");
        let sampled = chunk.sample.as_ref().map(|step| {
            let token = self.token(step);
            let logprobs = step.params.logprobs.map(|top| self.logprobs(token, top));
            SampledToken { token, logprobs }
        });
        let scores = chunk.prompt_logprobs.iter();
        let scores = scores.flat_map(|score| score.targets.iter().map(|id| (*id, score.top)));
        let prompt_logprobs = scores.map(|(target, top)| self.logprobs(target, top)).collect();
        ChunkOutput { sampled, prompt_logprobs, pooled: None }
    }

    fn token(&self, step: &SampleStep) -> TokenId {
        let params = &step.params;
        let draw = scatter(params.seed ^ scatter(step.position as u64)) as usize;
        if let Some(mask) = &step.mask {
            return allowed(mask, draw);
        }
        let num_generated = step.position - step.prompt_len;
        let is_over = |len: usize| num_generated + 1 >= len.max(params.min_tokens + 1);
        match params.eos_token_ids.first() {
            Some(eos) if self.times.answer_tokens().is_some_and(is_over) => *eos,
            // An answer ends where it is told to, never by chance.
            _ => {
                let (before, from) = self.tokens.split_at(draw % self.tokens.len());
                let goes_on = |token: &&TokenId| !params.stops_at(**token);
                *from.iter().chain(before).find(goes_on).unwrap_or(&self.tokens[0])
            }
        }
    }

    /// One half for the token itself, and half of the rest for each further one.
    fn logprobs(&self, token: TokenId, top: usize) -> TokenLogprobs {
        let others = self.tokens.iter().copied().filter(|other| *other != token);
        let all = std::iter::once(token).chain(others).take(top);
        let halves = |count: usize| -(count as f32) * std::f32::consts::LN_2;
        let top = all.enumerate().map(|(place, token)| (token, halves(place + 1))).collect();
        TokenLogprobs { token, logprob: halves(1), rank: 1, top }
    }
}

impl Runner for TimingRunner {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        assert!(self.under_way.len() < PLANS_UNDER_WAY_MAX, "too many plans are under way");
        let done_at = self.done_at(self.times.of_plan(plan));
        let mut chunks = std::mem::take(&mut self.spare);
        chunks.extend(plan.chunks.iter().map(|chunk| self.output(chunk)));
        self.under_way.push_back((StepOutput { chunks }, done_at));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        let (output, done_at) = self.under_way.pop_front().expect("a plan is under way");
        if let Some(done_at) = done_at {
            std::thread::sleep(done_at.saturating_duration_since(Instant::now()));
        }
        Ok(output)
    }

    fn take_back(&mut self, room: Vec<ChunkOutput>) {
        self.spare = room;
    }
}

/// One of the tokens that may come.
fn allowed(mask: &TokenMask, draw: usize) -> TokenId {
    let words = mask.words();
    let (before, from) = words.split_at(draw % words.len());
    let numbered = (before.len()..).zip(from).chain((0..).zip(before));
    let (place, word) = { numbered }.find(|(_, word)| **word != 0).expect("a mask allows a token");
    TokenId(place as u32 * u32::BITS + word.trailing_zeros())
}

/// Mixes all bits (the finaliser of SplitMix64).
fn scatter(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
