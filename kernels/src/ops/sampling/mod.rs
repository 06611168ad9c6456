//! Logits -> token ids on a GPU, without a host round trip per token.
//!
//! The meaning is that of the CPU's sampler (`server/src/ranks/sampler.rs`), step by step:
//! log-probabilities of the raw logits (if asked for); the mask; bias; repetition, then frequency
//! and presence penalties; bans; greedy, or temperature, min_p, top_k, top_p, draw. Greedy choices
//! are the same token; draws differ only where the random number lies within rounding of the border
//! between two tokens. A step's rows travel as `SampleRow`s in one array, with their lists in
//! another.

pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub use cuda::{SampleArrays, SampleScratch, feed_tokens, sample};

/// Most alternatives that are reported beside a token.
pub const TOP_MAX: usize = 20;
/// Largest vocabulary that the kernels have room for.
pub const VOCAB_MAX: usize = 1 << 18;
/// Words of a row's record on the device.
pub const ROW_WORDS: usize = 26;
/// Words of a row's result on the device.
pub const RESULT_WORDS: usize = 5 + 2 * TOP_MAX;

/// Temperatures below this are greedy, as in vLLM: dividing by them would only overflow.
const TEMPERATURE_MIN: f32 = 1e-5;
/// A bias of this size or more, either way, is an order: "-100 or 100 should result in a ban or
/// exclusive selection" (OpenAI's API).
const BIAS_ORDER: f32 = 100.0;
/// What such an order adds.
const FORCED_BIAS: f32 = 1000.0;
/// Says that something is absent, in fields that hold a number else.
const NONE: u32 = u32::MAX;

/// How to choose the token of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleTask<'a> {
    /// 0 is greedy: the highest logit, the lowest id on a tie.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// Over all tokens so far; 1: off.
    pub repetition_penalty: f32,
    /// Over tokens from `prompt_len` on; 0: off.
    pub presence_penalty: f32,
    /// Over tokens from `prompt_len` on; 0: off.
    pub frequency_penalty: f32,
    /// Added to logits, each id once; -100 is a ban, 100 an order.
    pub logit_bias: &'a [(u32, f32)],
    /// Bit `i % 32` of word `i / 32`: whether id i may come; ids beyond it may not. None: all may.
    pub mask: Option<&'a [u32]>,
    /// Tokens that must not come, in any order, each any number of times. They are void when they
    /// leave none of those that may come.
    pub bans: &'a [u32],
    pub seed: u64,
    /// Place of the token in its sequence. With `seed` it decides the draw.
    pub position: u64,
    /// Tokens so far; needed when there are penalties.
    pub history: &'a [u32],
    pub prompt_len: usize,
    /// One more token of the history, which only the device knows: its place in the array of token
    /// ids that the launch is given.
    pub pending: Option<u32>,
    /// Report the token's log-probability and those of so many best tokens.
    pub logprobs: Option<usize>,
}

/// One row's record.
#[derive(Debug, Clone, Copy, PartialEq)]
struct SampleRow {
    seed: u64,
    position: u64,
    /// temperature * ln(min_p): how far below the best logit min_p cuts; -inf when off.
    min_p_depth: f64,
    task: u32,
    /// Alternatives to report; NONE: no log-probabilities at all.
    top: u32,
    /// What `TASK_SCORE` scores.
    target: u32,
    has_edits: u32,
    temperature: f32,
    top_p: f32,
    top_k: u32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// Ids, then as many values; start and length in the lists.
    bias: [u32; 2],
    bans: [u32; 2],
    history: [u32; 2],
    prompt_len: u32,
    /// NONE, or a place in the token ids.
    pending: u32,
    /// Start and length in the lists; without a mask the length is 0.
    mask: [u32; 2],
}

const TASK_NONE: u32 = 0;
const TASK_GREEDY: u32 = 1;
const TASK_DRAW: u32 = 2;
const TASK_SCORE: u32 = 3;

/// The rows of a step, as the device reads them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleBatch {
    rows: Vec<u32>,
    lists: Vec<u32>,
    ids: Vec<u32>,
}

impl SampleBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.lists.clear();
    }

    pub fn num_rows(&self) -> usize {
        self.rows.len() / ROW_WORDS
    }

    /// `ROW_WORDS` words a row.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// What the rows refer to: bias, bans and histories.
    pub fn lists(&self) -> &[u32] {
        &self.lists
    }

    /// A row whose token is chosen.
    pub fn push_sample(&mut self, task: &SampleTask) {
        let is_greedy = task.temperature < TEMPERATURE_MIN || task.top_k == 1 || task.min_p >= 1.0;
        let min_p_depth = match task.min_p > 0.0 {
            true => f64::from(task.temperature) * f64::from(task.min_p).ln(),
            false => f64::NEG_INFINITY,
        };
        let bias = self.push_bias(task.logit_bias);
        let bans = self.push_bans(task);
        // Even a mask without a word is one: it allows nothing.
        let mask = task
            .mask
            .map_or([0, 0], |words| self.push_list(if words.is_empty() { &[0] } else { words }));
        let has_penalties = task.repetition_penalty != 1.0
            || task.presence_penalty != 0.0
            || task.frequency_penalty != 0.0;
        let history = if has_penalties { self.push_list(task.history) } else { [0, 0] };
        let pending = task.pending.filter(|_| has_penalties).unwrap_or(NONE);
        let has_history = history[1] > 0 || pending != NONE;
        let has_edits = bias[1] > 0 || bans[1] > 0 || mask[1] > 0 || has_history;
        self.push_row(SampleRow {
            seed: task.seed,
            position: task.position,
            min_p_depth,
            task: if is_greedy { TASK_GREEDY } else { TASK_DRAW },
            top: task.logprobs.map_or(NONE, top_of),
            target: 0,
            has_edits: u32::from(has_edits),
            temperature: task.temperature,
            top_p: task.top_p,
            top_k: task.top_k,
            repetition_penalty: task.repetition_penalty,
            presence_penalty: task.presence_penalty,
            frequency_penalty: task.frequency_penalty,
            bias,
            bans,
            history,
            prompt_len: u32::try_from(task.prompt_len).unwrap_or(u32::MAX),
            pending,
            mask,
        });
    }

    /// A row whose logits give the log-probability of `target` and the `top` best tokens.
    pub fn push_score(&mut self, target: u32, top: usize) {
        self.push_row(SampleRow { task: TASK_SCORE, target, top: top_of(top), ..SampleRow::NONE });
    }

    /// A row of padding: nothing is done with it.
    pub fn push_none(&mut self) {
        self.push_row(SampleRow::NONE);
    }

    fn push_bias(&mut self, logit_bias: &[(u32, f32)]) -> [u32; 2] {
        let start = self.lists.len();
        // A bias that is a ban is among the bans.
        let added = logit_bias.iter().filter(|(_, bias)| *bias > -BIAS_ORDER);
        self.lists.extend(added.clone().map(|(id, _)| id));
        let len = self.lists.len() - start;
        let value = |&(_, bias): &(u32, f32)| if bias >= BIAS_ORDER { FORCED_BIAS } else { bias };
        self.lists.extend(added.map(|entry| value(entry).to_bits()));
        [start as u32, len as u32]
    }

    /// Each ban once: two threads would else write one place.
    fn push_bans(&mut self, task: &SampleTask) -> [u32; 2] {
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        let banned = task.logit_bias.iter().filter(|(_, bias)| *bias <= -BIAS_ORDER);
        ids.extend(banned.map(|(id, _)| id));
        ids.extend_from_slice(task.bans);
        ids.sort_unstable();
        ids.dedup();
        let list = self.push_list(&ids);
        self.ids = ids;
        list
    }

    fn push_list(&mut self, ids: &[u32]) -> [u32; 2] {
        let start = self.lists.len();
        self.lists.extend_from_slice(ids);
        [start as u32, ids.len() as u32]
    }

    fn push_row(&mut self, row: SampleRow) {
        self.rows.extend(row.words());
    }
}

fn top_of(top: usize) -> u32 {
    assert!(top <= TOP_MAX, "{top} alternatives are too many, the limit is {TOP_MAX}");
    top as u32
}

impl SampleRow {
    const NONE: SampleRow = SampleRow {
        seed: 0,
        position: 0,
        min_p_depth: f64::NEG_INFINITY,
        task: TASK_NONE,
        top: NONE,
        target: 0,
        has_edits: 0,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        bias: [0; 2],
        bans: [0; 2],
        history: [0; 2],
        prompt_len: 0,
        pending: NONE,
        mask: [0; 2],
    };

    /// In the order of `SampleRow` in row.cuh, little endian.
    fn words(&self) -> [u32; ROW_WORDS] {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let [seed_low, seed_high] = halves(self.seed);
        let [position_low, position_high] = halves(self.position);
        let [depth_low, depth_high] = halves(self.min_p_depth.to_bits());
        [
            seed_low,
            seed_high,
            position_low,
            position_high,
            depth_low,
            depth_high,
            self.task,
            self.top,
            self.target,
            self.has_edits,
            self.temperature.to_bits(),
            self.top_p.to_bits(),
            self.top_k,
            self.repetition_penalty.to_bits(),
            self.presence_penalty.to_bits(),
            self.frequency_penalty.to_bits(),
            self.bias[0],
            self.bias[1],
            self.bans[0],
            self.bans[1],
            self.history[0],
            self.history[1],
            self.prompt_len,
            self.pending,
            self.mask[0],
            self.mask[1],
        ]
    }
}

/// What a row gave.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleResult {
    /// Chosen, or scored.
    pub token: u32,
    /// Present when asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log-probability of one token and of its best alternatives, by the raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    /// Best first, lowest id first on a tie.
    pub top: Vec<(u32, f32)>,
}

impl SampleResult {
    /// From `RESULT_WORDS` words as the device wrote them; none when no logit of the row was
    /// finite.
    pub fn from_words(words: &[u32]) -> Option<SampleResult> {
        let &[token, failed, logprob, rank, num_top] = &words[..5] else { unreachable!("5 words") };
        if failed != 0 {
            return None;
        }
        let (ids, values) = words[5..RESULT_WORDS].split_at(TOP_MAX);
        let top = ids.iter().zip(values).take(num_top as usize);
        let top = top.map(|(&id, &value)| (id, f32::from_bits(value))).collect();
        // Ranks begin at 1: none was asked for.
        let logprobs = Logprobs { logprob: f32::from_bits(logprob), rank, top };
        Some(SampleResult { token, logprobs: (rank > 0).then_some(logprobs) })
    }
}
