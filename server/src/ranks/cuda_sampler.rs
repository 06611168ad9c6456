//! The sampler on a GPU: a step's rows out, tokens and log-probabilities back, without waiting.

use super::rows::RowRef;
use super::sampler::{RowTask, SampleError};
use super::step_runner::StepError;
use crate::engine::{
    ChunkInput, ChunkOutput, PLANS_UNDER_WAY_MAX, Plan, SampleStep, SampledToken, StepOutput,
    TokenLogprobs, TokenMask,
};
use kernels::device::cuda::{CudaDevice, DeviceBuffer, PinnedBuffer};
use kernels::ops::sampling::{
    self, RESULT_WORDS, ROW_WORDS, SampleArrays, SampleBatch, SampleResult, SampleScratch,
    SampleTask,
};
use kernels::{KernelError, Tensor};
use models::TokenId;
use models::batch::StepShape;

const WORD_BYTES: usize = size_of::<u32>();
/// Room for bias, bans and histories at first, in words; it grows when a step needs more.
const LIST_WORDS_MIN: usize = 64 << 10;

pub(super) struct CudaSampler {
    device: CudaDevice,
    vocab: usize,
    rows_max: usize,
    scratch: SampleScratch,
    batch: SampleBatch,
    /// Records of the rows, then for each token where it is fed from.
    rows: DeviceBuffer,
    lists: DeviceBuffer,
    /// u32 [rows_max]: the tokens of the last step, which feed the next one.
    sampled: DeviceBuffer,
    results: DeviceBuffer,
    /// Used in turns, as steps may overlap.
    turns: [Turn; PLANS_UNDER_WAY_MAX],
    turn: usize,
}

/// Host memory of one step under way.
struct Turn {
    rows: PinnedBuffer,
    lists: PinnedBuffer,
    results: PinnedBuffer,
}

/// Whose the rows of a step are, to be read when it is done.
pub(super) struct SampledRows {
    turn: usize,
    num_chunks: usize,
    /// By row: sequence, chunk and kind.
    rows: Vec<(u64, usize, Kind)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sample,
    Score,
}

/// Whether buffers were replaced: recordings of the old ones must not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    No,
    Yes,
}

impl CudaSampler {
    /// For steps of up to `rows_max` rows and tokens, `rows_at_once` of them in one launch. Ids
    /// from `vocab` on are never sampled.
    pub fn new(
        device: &CudaDevice,
        rows_max: usize,
        rows_at_once: usize,
        vocab: usize,
    ) -> Result<CudaSampler, KernelError> {
        let row_bytes = rows_max * (ROW_WORDS + 1) * WORD_BYTES;
        let (list_bytes, result_bytes) =
            (LIST_WORDS_MIN * WORD_BYTES, rows_max * RESULT_WORDS * WORD_BYTES);
        let turn = || {
            Ok::<Turn, KernelError>(Turn {
                rows: PinnedBuffer::new(device, row_bytes)?,
                lists: PinnedBuffer::new(device, list_bytes)?,
                results: PinnedBuffer::new(device, result_bytes)?,
            })
        };
        Ok(CudaSampler {
            vocab,
            rows_max,
            scratch: SampleScratch::new(device, rows_at_once, vocab)?,
            batch: SampleBatch::default(),
            rows: DeviceBuffer::zeroed(device, row_bytes)?,
            lists: DeviceBuffer::zeroed(device, list_bytes)?,
            sampled: DeviceBuffer::zeroed(device, rows_max * WORD_BYTES)?,
            results: DeviceBuffer::zeroed(device, result_bytes)?,
            turns: [turn()?, turn()?],
            turn: 0,
            device: device.clone(),
        })
    }

    /// From now on ids from `vocab` on are never sampled.
    pub fn limit(&mut self, vocab: usize) {
        self.vocab = vocab;
        self.scratch.limit(vocab);
    }

    /// Queues the copy of the step's rows, padded to `shape`, and of `feed`: for each token the row
    /// of the last step it comes from, or u32::MAX.
    pub fn upload(
        &mut self,
        plan: &Plan,
        rows: &[RowRef],
        feed: &[u32],
        shape: StepShape,
    ) -> Result<(SampledRows, Moved), KernelError> {
        self.batch.clear();
        for row in rows {
            match row.task {
                RowTask::Sample(step) => self.push_sample(plan, row, step),
                RowTask::Score { target, top } => self.batch.push_score(target.0, top),
            }
        }
        (rows.len()..shape.num_rows).for_each(|_| self.batch.push_none());
        let moved = self.make_room_for_lists()?;
        self.turn = (self.turn + 1) % self.turns.len();
        let turn = &mut self.turns[self.turn];
        let mut words = self.batch.rows().to_vec();
        words.resize(shape.num_rows * ROW_WORDS, 0);
        words.extend_from_slice(feed);
        words.resize(shape.num_rows * ROW_WORDS + shape.num_tokens, u32::MAX);
        send(&words, &mut turn.rows, &self.rows)?;
        send(self.batch.lists(), &mut turn.lists, &self.lists)?;
        let kind = |row: &RowRef| if row.samples() { Kind::Sample } else { Kind::Score };
        let whose = |row: &RowRef| (plan.chunks[row.chunk].sequence.0, row.chunk, kind(row));
        let rows = rows.iter().map(whose).collect();
        Ok((SampledRows { turn: self.turn, num_chunks: plan.chunks.len(), rows }, moved))
    }

    fn push_sample(&mut self, plan: &Plan, row: &RowRef, step: &SampleStep) {
        let params = &step.params;
        let bias: Vec<_> = params.logit_bias.iter().map(|&(id, bias)| (id.0, bias)).collect();
        let history: Vec<u32> = step.history.iter().map(|token| token.0).collect();
        let num_generated = step.position.saturating_sub(step.prompt_len);
        let stops = params.eos_token_ids.iter().chain(&params.stop_token_ids);
        let bans: Vec<u32> = match num_generated < params.min_tokens {
            true => stops.map(|token| token.0).collect(),
            false => Vec::new(),
        };
        let is_unknown = plan.chunks[row.chunk].input == ChunkInput::FromLastStep;
        let in_vocab = |id: &u32| (*id as usize) < self.vocab;
        self.batch.push_sample(&SampleTask {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            logit_bias: &bias.into_iter().filter(|(id, _)| in_vocab(id)).collect::<Vec<_>>(),
            mask: step.mask.as_deref().map(TokenMask::words),
            bans: &bans.into_iter().filter(in_vocab).collect::<Vec<_>>(),
            seed: params.seed,
            position: step.position as u64,
            history: &history,
            prompt_len: step.prompt_len,
            // The chunk's only token is the history's last one.
            pending: is_unknown.then_some(row.row),
            logprobs: params.logprobs,
        });
    }

    fn make_room_for_lists(&mut self) -> Result<Moved, KernelError> {
        let bytes = self.batch.lists().len() * WORD_BYTES;
        if bytes <= self.lists.len() {
            return Ok(Moved::No);
        }
        let bytes = bytes.next_power_of_two();
        // Dropping waits for the steps that still use the old ones.
        self.device.synchronize()?;
        self.lists = DeviceBuffer::zeroed(&self.device, bytes)?;
        for turn in &mut self.turns {
            turn.lists = PinnedBuffer::new(&self.device, bytes)?;
        }
        Ok(Moved::Yes)
    }

    /// Queues the tokens of the last step into the places that wait for them.
    pub fn feed(&self, token_ids: u64, shape: StepShape) -> Result<(), KernelError> {
        let from = self.rows.ptr() + (shape.num_rows * ROW_WORDS * WORD_BYTES) as u64;
        let sampled = self.sampled.ptr();
        sampling::feed_tokens(&self.device, token_ids, sampled, from, shape.num_tokens)
    }

    /// Queues the tasks of rows `first`.. on their logits.
    pub fn sample(&self, logits: &Tensor, first: usize, token_ids: u64) -> Result<(), KernelError> {
        assert!(first + logits.rows() <= self.rows_max, "too many rows");
        let arrays = SampleArrays {
            sampled: self.sampled.ptr(),
            results: self.results.ptr(),
            rows: self.rows.ptr(),
            lists: self.lists.ptr(),
            token_ids,
        };
        sampling::sample(&self.device, &self.scratch, logits, &arrays.from_row(first))
    }

    /// Queues the copy of the results to the host.
    pub fn download(&mut self, step: &SampledRows) -> Result<(), KernelError> {
        let bytes = step.rows.len() * RESULT_WORDS * WORD_BYTES;
        self.turns[step.turn].results.download(&self.results, 0, bytes)
    }

    /// The step's answer, once it is done.
    ///
    /// Errors: `Sample` for a row without a finite logit.
    pub fn read(&self, step: &SampledRows) -> Result<StepOutput, StepError> {
        let mut chunks = vec![ChunkOutput::default(); step.num_chunks];
        let bytes = self.turns[step.turn].results.bytes();
        let results = bytes.chunks_exact(RESULT_WORDS * WORD_BYTES);
        for (&(sequence, chunk, kind), result) in step.rows.iter().zip(results) {
            let words = result
                .chunks_exact(WORD_BYTES)
                .map(|b| u32::from_ne_bytes(b.try_into().expect("four bytes")));
            let words: Vec<u32> = words.collect();
            let Some(result) = SampleResult::from_words(&words) else {
                let source = SampleError::NoFiniteLogit { vocab: self.vocab };
                return Err(StepError::Sample { sequence, source });
            };
            let chunk = &mut chunks[chunk];
            match kind {
                Kind::Sample => chunk.sampled = Some(sampled_token(result)),
                Kind::Score => chunk.prompt_logprobs.extend(sampled_token(result).logprobs),
            }
        }
        Ok(StepOutput { chunks })
    }
}

fn sampled_token(result: SampleResult) -> SampledToken {
    let token = TokenId(result.token);
    let logprobs = result.logprobs.map(|found| TokenLogprobs {
        token,
        logprob: found.logprob,
        rank: found.rank,
        top: found.top.into_iter().map(|(id, logprob)| (TokenId(id), logprob)).collect(),
    });
    SampledToken { token, logprobs }
}

fn send(words: &[u32], through: &mut PinnedBuffer, to: &DeviceBuffer) -> Result<(), KernelError> {
    let bytes = size_of_val(words);
    if bytes == 0 {
        return Ok(());
    }
    let places = through.bytes_mut()[..bytes].chunks_exact_mut(WORD_BYTES);
    places.zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_ne_bytes()));
    through.upload(to, 0, bytes)
}
