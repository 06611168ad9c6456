//! What was turned away, by reason.

use crate::engine::request::Rejected;

#[derive(Default)]
pub struct Rejections {
    pub queue_full: u64,
    pub too_many_tokens: u64,
    pub shutting_down: u64,
    pub engine_stopped: u64,
    pub never_fits: u64,
}

impl Rejections {
    pub fn count(&mut self, rejected: &Rejected) {
        let counter = match rejected {
            Rejected::QueueFull { .. } => &mut self.queue_full,
            Rejected::TooManyTokens { .. } => &mut self.too_many_tokens,
            Rejected::ShuttingDown => &mut self.shutting_down,
            Rejected::EngineStopped => &mut self.engine_stopped,
        };
        *counter += 1;
    }
}
