//! Logits -> token ids.
//!
//! The order, per row: log-probabilities of the raw logits (if asked for); the mask; logit_bias;
//! repetition, then frequency and presence penalties; bans (a bias of -100, and end and stop tokens
//! while min_tokens is not reached); greedy, or temperature, min_p, top_k, top_p, draw. These are
//! the documented steps of vLLM's V1 sampler: bias before penalties, min_p before top_k before
//! top_p. There bans come first, which is the same, for nothing that is added to -inf brings it
//! back.
//!
//! Where the references leave ties open (equal logits at the edge of top_k or top_p, or at the
//! top), the lowest id goes first, so that top_k = 1, min_p = 1 and a tiny top_p are greedy
//! decoding at any temperature.
//!
//! Logits that are not finite can only come from a broken model or an overflow in it. They count as
//! -inf: one bad value must not take the server down. A row without any finite logit ends the rank,
//! for nothing that could be answered would be right.
//!
//! A row is treated alone and in a fixed order of additions, so its result depends neither on the
//! batch nor on the threads.

mod draw;
mod edits;
mod filter;
mod logprobs;
mod random;
mod softmax;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use crate::engine::{SampleStep, SampledToken, SamplingParams, TokenLogprobs};
use edits::Edits;
use filter::Candidate;
use kernels::{Backend, Tensor};
use logprobs::RawDistribution;
use models::TokenId;
use std::sync::Mutex;

/// Temperatures below this are greedy, as in vLLM: dividing by them would only overflow.
const TEMPERATURE_MIN: f32 = 1e-5;

/// What to do with one row of logits.
#[derive(Debug, Clone, Copy)]
pub enum RowTask<'a> {
    /// Choose the next token.
    Sample(&'a SampleStep),
    /// Report the log-probability of `target` and of the `top` best tokens.
    Score { target: TokenId, top: usize },
}

#[derive(Debug, Clone, PartialEq)]
pub enum RowOutput {
    Sampled(SampledToken),
    Scored(TokenLogprobs),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    #[error("none of the {vocab} logits is finite")]
    NoFiniteLogit { vocab: usize },
}

pub struct Sampler {
    backend: Backend,
    sampleable_vocab: usize,
    /// As many as rows were ever under way at once: one per thread.
    scratch: Mutex<Vec<Scratch>>,
}

impl Sampler {
    /// Ids from `sampleable_vocab` on are never sampled and have no probability.
    pub fn new(backend: &Backend, sampleable_vocab: usize) -> Self {
        assert!(sampleable_vocab > 0, "a vocabulary has at least one token");
        Self { backend: backend.clone(), sampleable_vocab, scratch: Mutex::default() }
    }

    /// Carries out `tasks[i]` on row i, rows in parallel on the threads of a CPU device.
    ///
    /// Shapes: `logits` [tasks.len(), at least sampleable_vocab] F32; its values are spent. One
    /// result per task.
    /// Errors: `NoFiniteLogit` for a row without a finite logit.
    pub fn run(
        &self,
        logits: &mut Tensor,
        tasks: &[RowTask],
    ) -> Vec<Result<RowOutput, SampleError>> {
        assert_eq!(logits.rows(), tasks.len(), "one row of logits per task");
        let row_len = logits.row_len();
        let jobs: Vec<_> = logits
            .f32_mut()
            .chunks_exact_mut(row_len)
            .zip(tasks)
            .map(|(row, task)| Mutex::new((&mut row[..self.sampleable_vocab], task, None)))
            .collect();
        let run_one = |i: usize| {
            let mut job = jobs[i].lock().expect("each job is locked once");
            let (row, task, result) = &mut *job;
            let mut scratch = self.take_scratch();
            *result = Some(scratch.run_row(row, task));
            self.scratch.lock().expect("held for a push only").push(scratch);
        };
        match &self.backend {
            Backend::Cpu(device) => device.pool.run(jobs.len(), &run_one),
            _ => (0..jobs.len()).for_each(run_one),
        }
        let done = |job: Mutex<(_, _, Option<_>)>| job.into_inner().expect("no job panicked").2;
        jobs.into_iter().map(|job| done(job).expect("every job ran")).collect()
    }

    fn take_scratch(&self) -> Scratch {
        self.scratch.lock().expect("held for a pop only").pop().unwrap_or_default()
    }
}

/// Memory that a row needs for a while; reused so that a step allocates nothing of the vocabulary's
/// size.
#[derive(Debug, Default)]
struct Scratch {
    edits: Edits,
    candidates: Vec<Candidate>,
    work: Vec<Candidate>,
    block_sums: Vec<f64>,
    /// The row before its mask, to score what was chosen by.
    unmasked: Vec<f32>,
}

impl Scratch {
    fn run_row(&mut self, row: &mut [f32], task: &RowTask) -> Result<RowOutput, SampleError> {
        softmax::replace_non_finite(row);
        match *task {
            RowTask::Sample(step) => self.sample(row, step).map(RowOutput::Sampled),
            RowTask::Score { target, top } => {
                let raw = RawDistribution::of(row, top, &mut self.work)?;
                Ok(RowOutput::Scored(raw.score(row, target)))
            }
        }
    }

    fn sample(&mut self, row: &mut [f32], step: &SampleStep) -> Result<SampledToken, SampleError> {
        let raw = match step.params.logprobs {
            Some(top) => Some(RawDistribution::of(row, top, &mut self.work)?),
            None => None,
        };
        if let Some(mask) = &step.mask {
            self.unmasked.clear();
            if raw.is_some() {
                self.unmasked.extend_from_slice(row);
            }
            mask.apply(row);
        }
        self.edits.apply(row, step);
        let token = self.choose(row, step)?;
        self.edits.undo(row);
        let unmasked = if step.mask.is_some() { self.unmasked.as_slice() } else { row };
        Ok(SampledToken { token, logprobs: raw.map(|raw| raw.score(unmasked, token)) })
    }

    fn choose(&mut self, row: &mut [f32], step: &SampleStep) -> Result<TokenId, SampleError> {
        let mut best = softmax::argmax(row);
        if best.logit == f32::NEG_INFINITY {
            // The request banned every token that may come. It asked for the impossible, and so its
            // bans are void.
            self.edits.undo_bans(row);
            best = softmax::argmax(row);
        }
        if best.logit == f32::NEG_INFINITY {
            return Err(SampleError::NoFiniteLogit { vocab: row.len() });
        }
        if is_greedy(&step.params) {
            return Ok(TokenId(best.id));
        }
        let uniform = random::uniform(step.params.seed, step.position as u64);
        Ok(TokenId(self.draw(row, best.logit, &step.params, uniform)))
    }
}

fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature < TEMPERATURE_MIN || params.top_k == 1 || params.min_p >= 1.0
}
