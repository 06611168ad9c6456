//! What a step pools: rows whose hidden state is asked for, and scores that are no prompt's.

use crate::engine::{ChunkOutput, Plan, Pooled, Pooling};

/// A row whose hidden state is asked for, after the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PooledRow {
    /// In the batch.
    pub row: u32,
    pub chunk: usize,
}

/// In the plan's order: at most one for each chunk.
pub(super) fn pooled_rows(plan: &Plan) -> Vec<PooledRow> {
    let mut rows = Vec::new();
    let mut end = 0;
    for (chunk, work) in plan.chunks.iter().enumerate() {
        end += work.num_tokens();
        if work.pooling == Some(Pooling::Hidden) {
            rows.push(PooledRow { row: end as u32 - 1, chunk });
        }
    }
    rows
}

/// By chunk: the number of tokens whose log-probabilities are pooled. `rows_of` scores them after
/// those of the prompt.
pub(super) fn num_pooled_scores(plan: &Plan) -> Vec<usize> {
    let count = |pooling: &Option<Pooling>| match pooling {
        Some(Pooling::Logprobs(tokens)) => tokens.len(),
        Some(Pooling::Hidden) | None => 0,
    };
    plan.chunks.iter().map(|chunk| count(&chunk.pooling)).collect()
}

/// Moves the scores that were pooled to where they belong.
pub(super) fn split_pooled_scores(counts: &[usize], outputs: &mut [ChunkOutput]) {
    for (&count, output) in counts.iter().zip(outputs).filter(|(count, _)| **count > 0) {
        let scores = &mut output.prompt_logprobs;
        let pooled = scores.split_off(scores.len() - count);
        output.pooled = Some(Pooled::Logprobs(pooled));
    }
}
