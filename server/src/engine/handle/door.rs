//! The waiting places: reserved, settled, given back.

use super::{Door, EngineConfig, Lane, Phase, Rejected, Request, Waiting};

impl Door {
    pub(super) fn num_waiting(&self) -> usize {
        self.interactive.requests + self.background.requests
    }

    pub(super) fn lane(&mut self, lane: Lane) -> &mut Waiting {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Background => &mut self.background,
        }
    }

    pub(super) fn reserve(
        &mut self,
        config: &EngineConfig,
        lane: Lane,
        num_sequences: usize,
        num_tokens: usize,
    ) -> Result<(), Rejected> {
        match self.phase {
            Phase::Open => {}
            Phase::Draining | Phase::Drained => return Err(Rejected::ShuttingDown),
            Phase::Lost(_) => return Err(Rejected::EngineStopped),
        }
        let waiting = self.lane(lane);
        let requests = waiting.requests.saturating_add(num_sequences);
        if requests > config.waiting_requests_max {
            let waiting_max = config.waiting_requests_max;
            return Err(Rejected::QueueFull { waiting: waiting.requests, waiting_max });
        }
        let tokens = waiting.tokens.saturating_add(num_tokens);
        if tokens > config.waiting_tokens_max {
            let tokens_max = config.waiting_tokens_max;
            return Err(Rejected::TooManyTokens { tokens, tokens_max });
        }
        *waiting = Waiting { requests, tokens };
        Ok(())
    }

    /// Puts the real prompt length in place of the reserved one.
    pub(super) fn settle(
        &mut self,
        config: &EngineConfig,
        request: &Request,
        reserved_tokens: usize,
    ) -> Result<(), Rejected> {
        let (lane, prompt_len) = (request.lane, request.prompt.len());
        let rejected = match self.phase {
            Phase::Open | Phase::Draining => {
                let waiting = self.lane(lane);
                let tokens = waiting.tokens - reserved_tokens + prompt_len;
                let tokens_max = config.waiting_tokens_max;
                if tokens <= tokens_max || prompt_len <= reserved_tokens {
                    waiting.tokens = tokens;
                    return Ok(());
                }
                Rejected::TooManyTokens { tokens, tokens_max }
            }
            Phase::Drained | Phase::Lost(_) => Rejected::EngineStopped,
        };
        self.give_back(lane, 1, reserved_tokens);
        Err(rejected)
    }

    pub(super) fn give_back(&mut self, lane: Lane, places: usize, tokens: usize) {
        // A lost engine has forgotten all reservations.
        if !matches!(self.phase, Phase::Lost(_)) {
            let waiting = self.lane(lane);
            waiting.requests -= places;
            waiting.tokens -= tokens;
        }
    }
}
