//! Sequences whose next token cannot be sampled before their constraints have spoken.

use super::{Aborted, Scheduler};
use crate::engine::plan::SequenceId;
use crate::engine::request::EngineError;
use crate::engine::sequence::Sequence;

impl Scheduler {
    /// Whether some sequence cannot go on before its constraint has spoken.
    pub fn awaits_constraints(&self) -> bool {
        let is_needed = self.num_constrained > 0;
        let running = is_needed.then(|| self.running.iter().map(|sequence| &**sequence));
        let running = running.into_iter().flatten();
        self.waiting.constrained().chain(running).any(Sequence::awaits_constraint)
    }

    /// Sequences that their constraints have ended since the last call.
    pub fn take_failed(&mut self) -> Vec<(SequenceId, Aborted, EngineError)> {
        std::mem::take(&mut self.failed)
    }

    /// Sequences whose constraints have failed end here.
    pub(super) fn ask_constraints(&mut self) {
        let mut failed = Vec::new();
        let is_needed = self.num_constrained > 0;
        let running = is_needed.then(|| self.running.iter_mut().map(|sequence| &mut **sequence));
        let running = running.into_iter().flatten();
        for sequence in running.chain(self.waiting.constrained_mut()) {
            if let Err(error) = sequence.ask_constraint() {
                failed.push((sequence.id(), EngineError::Constraint { reason: error.reason }));
            }
        }
        for (id, error) in failed {
            let aborted = self.remove(id);
            self.stats.failed += 1;
            self.failed.push((id, aborted, error));
        }
    }
}
