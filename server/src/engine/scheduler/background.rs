//! How much of each step the background gets.

use std::time::{Duration, Instant};

/// While somebody waits for an answer, or did so lately, the background gets one part in so many of
/// a step's tokens: such a step takes hardly longer than one without it.
pub const BACKGROUND_PARTS: usize = 16;
/// While somebody waits for an answer, the background is in one of so many steps. It is never
/// starved, and fewer than one in a hundred tokens of the others come in a step that has it.
pub const BACKGROUND_INTERVAL: u64 = 128;
/// When nobody has waited for an answer for so long, the background gets whole steps.
pub const QUIET: Duration = Duration::from_secs(2);

/// What the background has had, and what is due to it.
#[derive(Debug, Default)]
pub struct Background {
    last_interactive: Option<Instant>,
    steps_without: u64,
    /// Somebody waits for a prefix that a sequence in the background may be computing.
    is_awaited: bool,
}

impl Background {
    /// Somebody waits for a prefix that is being computed. Holds until it is looked for again.
    pub fn await_prefix(&mut self) {
        self.is_awaited = true;
    }

    /// Whoever waits is looked at anew.
    pub fn look_again(&mut self) {
        self.is_awaited = false;
    }

    /// Tokens of the background in the next plan while somebody waits for an answer, or has work
    /// in progress; `tokens_max` are those of a step.
    pub fn beside_interactive(&mut self, tokens_max: usize, now: Instant) -> usize {
        self.last_interactive = Some(now);
        if self.is_awaited {
            // What is computed for somebody who waits is computed at their pace.
            return tokens_max;
        }
        self.steps_without += 1;
        if self.steps_without < BACKGROUND_INTERVAL {
            return 0;
        }
        self.steps_without = 0;
        part_of(tokens_max)
    }

    /// The same while nobody does.
    pub fn alone(&self, tokens_max: usize, now: Instant) -> usize {
        if self.is_quiet(now) { tokens_max } else { part_of(tokens_max) }
    }

    /// Whether nobody has waited for an answer for a while.
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.last_interactive.is_none_or(|last| now.saturating_duration_since(last) >= QUIET)
    }
}

pub fn part_of(tokens_max: usize) -> usize {
    tokens_max.div_ceil(BACKGROUND_PARTS)
}
