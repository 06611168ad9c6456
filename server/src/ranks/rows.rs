//! Which rows of a step need logits, and what for.

use super::sampler::RowTask;
use crate::engine::{Plan, Pooling, SampleStep};
use std::borrow::Cow;

/// One row of logits to compute, and whose it is.
pub(super) struct RowRef<'a> {
    /// In the batch.
    pub row: u32,
    pub chunk: usize,
    pub task: RowTask<'a>,
}

impl RowRef<'_> {
    pub fn samples(&self) -> bool {
        matches!(self.task, RowTask::Sample(_))
    }
}

/// The rows whose logits are asked for, chunk by chunk and in order of position. `steps[i]` says
/// how chunk i is sampled. A row that is scored for several tokens is there several times.
pub(super) fn rows_of<'a>(plan: &'a Plan, steps: &'a [Option<Cow<SampleStep>>]) -> Vec<RowRef<'a>> {
    let mut rows = Vec::new();
    let mut first = 0;
    for (index, chunk) in plan.chunks.iter().enumerate() {
        let mut push = |place: usize, task| {
            rows.push(RowRef { row: (first + place) as u32, chunk: index, task });
        };
        if let Some(score) = &chunk.prompt_logprobs {
            assert!(score.targets.len() <= chunk.num_tokens(), "more targets than tokens");
            for (place, &target) in score.targets.iter().enumerate() {
                push(place, RowTask::Score { target, top: score.top });
            }
        }
        if let Some(Pooling::Logprobs(tokens)) = &chunk.pooling {
            for &target in tokens {
                push(chunk.num_tokens() - 1, RowTask::Score { target, top: 0 });
            }
        }
        if let Some(step) = &steps[index] {
            push(chunk.num_tokens() - 1, RowTask::Sample(step));
        }
        first += chunk.num_tokens();
    }
    rows
}
