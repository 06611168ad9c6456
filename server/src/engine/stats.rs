//! What the engine counts.

use std::time::Duration;

/// Upper bounds (inclusive) of `EngineStats::step_tokens_buckets`; its last bucket holds the rest.
pub const STEP_TOKENS_BOUNDS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096];

/// Gauges of this moment and counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences with blocks, computing; also those that end with the step under way, whose places
    /// in the next one may be taken already.
    pub running: usize,
    /// Places taken in the waiting queue: admitted but never scheduled yet.
    pub waiting: usize,
    /// Prompt tokens of those.
    pub waiting_tokens: usize,
    /// Sequences that were preempted and wait to go on.
    pub waiting_preempted: usize,
    /// Waiting sequences that the last step held back since a running one computes their prefix.
    pub waiting_for_prefix: usize,
    pub blocks_total: usize,
    /// Referenced by no sequence; includes cached blocks that may be overwritten.
    pub blocks_free: usize,
    /// In the prefix cache, referenced or not.
    pub blocks_cached: usize,

    /// Requests scheduled for the first time.
    pub started: u64,
    /// Prompt tokens of those.
    pub prompt_tokens: u64,
    /// Prompt tokens looked up in the prefix cache (requests that score their prompt do not).
    pub prefix_query_tokens: u64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: u64,
    /// Tokens that went through the model, also those recomputed after a preemption and those
    /// computed in vain.
    pub computed_tokens: u64,
    /// Tokens computed in vain: their sequence was aborted meanwhile, or had ended in the step
    /// before.
    pub wasted_tokens: u64,
    pub generated_tokens: u64,
    pub finished_stop: u64,
    pub finished_length: u64,
    /// The client went away.
    pub aborted: u64,
    /// Lost with the device, or ended by a constraint that could not be held.
    pub failed: u64,
    pub preemptions: u64,
    /// Cached blocks that were overwritten.
    pub evicted_blocks: u64,
    pub rejected_queue_full: u64,
    pub rejected_too_many_tokens: u64,
    pub rejected_shutting_down: u64,
    pub rejected_engine_stopped: u64,
    pub rejected_never_fits: u64,

    pub steps: u64,
    /// Steps that were launched while another was under way.
    pub overlapped_steps: u64,
    /// Steps by how many tokens they computed, bounds in `STEP_TOKENS_BOUNDS`, not cumulative. The
    /// sum of all is `computed_tokens`.
    pub step_tokens_buckets: [u64; STEP_TOKENS_BOUNDS.len() + 1],
    /// Sequences in all steps: divided by `steps`, the mean batch size.
    pub step_sequences: u64,
    /// Time in which a step was under way.
    pub step_time: Duration,
    /// From submission to the first schedule, over all started requests.
    pub queue_time: Duration,
}

impl EngineStats {
    pub(super) fn count_step(&mut self, num_tokens: usize, num_sequences: usize) {
        let num_tokens = num_tokens as u64;
        self.steps += 1;
        self.computed_tokens += num_tokens;
        self.step_sequences += num_sequences as u64;
        let bucket = STEP_TOKENS_BOUNDS.partition_point(|bound| *bound < num_tokens);
        self.step_tokens_buckets[bucket] += 1;
    }
}
