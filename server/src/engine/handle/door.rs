//! The waiting places: reserved, settled, given back.

use super::{Door, EngineConfig, Lane, Phase, Rejected, Request};
use crate::engine::request::{Tenant, TenantId};
use std::collections::BTreeMap;

/// The waiting places of one lane. Half of them are kept for the tenants by weight, so that none
/// can take another's last place; the other half is for whoever comes first.
#[derive(Debug, Default)]
pub struct Waiting {
    tenants: BTreeMap<TenantId, Share>,
}

/// Requests that were never scheduled, and their prompt tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    pub requests: usize,
    pub tokens: usize,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    reserved: Places,
    kept: Places,
}

impl Waiting {
    pub fn reserved(&self) -> Places {
        let all = self.tenants.values().map(|share| share.reserved);
        all.fold(Places::default(), |sum, of| Places {
            requests: sum.requests + of.requests,
            tokens: sum.tokens + of.tokens,
        })
    }

    /// The tenant's reservations, and the most they may become now.
    fn share(&self, tenant: Tenant, config: &EngineConfig) -> (Places, Places) {
        let all =
            Places { requests: config.waiting_requests_max, tokens: config.waiting_tokens_max };
        let kept = kept_for(tenant, all);
        let mut most = Places {
            requests: kept.requests + all.requests - all.requests / 2,
            tokens: kept.tokens + all.tokens - all.tokens / 2,
        };
        for (id, Share { reserved, kept }) in &self.tenants {
            if *id != tenant.id {
                let beyond = |reserved: usize, kept: usize| reserved.saturating_sub(kept);
                most.requests -= beyond(reserved.requests, kept.requests).min(most.requests);
                most.tokens -= beyond(reserved.tokens, kept.tokens).min(most.tokens);
            }
        }
        most.requests = most.requests.max(kept.requests);
        most.tokens = most.tokens.max(kept.tokens);
        let own = self.tenants.get(&tenant.id).map(|share| share.reserved);
        (own.unwrap_or_default(), most)
    }

    fn reserve(
        &mut self,
        tenant: Tenant,
        config: &EngineConfig,
        num_sequences: usize,
        num_tokens: usize,
    ) -> Result<(), Rejected> {
        let (own, most) = self.share(tenant, config);
        let requests = own.requests.saturating_add(num_sequences);
        if requests > most.requests {
            // Said of all that wait, of which the tenant's own are a part.
            let waiting = self.reserved().requests;
            let waiting_max = waiting - own.requests + most.requests;
            return Err(Rejected::QueueFull { waiting, waiting_max });
        }
        let tokens = own.tokens.saturating_add(num_tokens);
        if tokens > most.tokens {
            return Err(self.too_many_tokens(own, most, tokens));
        }
        self.set(tenant, config, Places { requests, tokens });
        Ok(())
    }

    /// Said of all that wait. `tokens`: what the tenant's own would become.
    fn too_many_tokens(&self, own: Places, most: Places, tokens: usize) -> Rejected {
        let others = self.reserved().tokens - own.tokens;
        let (tokens, tokens_max) = (others.saturating_add(tokens), others + most.tokens);
        Rejected::TooManyTokens { tokens, tokens_max }
    }

    fn set(&mut self, tenant: Tenant, config: &EngineConfig, reserved: Places) {
        let all =
            Places { requests: config.waiting_requests_max, tokens: config.waiting_tokens_max };
        self.tenants.insert(tenant.id, Share { reserved, kept: kept_for(tenant, all) });
    }

    fn give_back(&mut self, tenant: TenantId, places: usize, tokens: usize) {
        let Some(Share { reserved, .. }) = self.tenants.get_mut(&tenant) else {
            assert_eq!((places, tokens), (0, 0), "only what was reserved is given back");
            return;
        };
        reserved.requests -= places;
        reserved.tokens -= tokens;
        if (reserved.requests, reserved.tokens) == (0, 0) {
            self.tenants.remove(&tenant);
        }
    }
}

/// The part of one half of all places that is kept for the tenant.
fn kept_for(tenant: Tenant, all: Places) -> Places {
    let weights = u128::from(tenant.weights.max(tenant.weight).max(1));
    let part = |all: usize| (all as u128 / 2 * u128::from(tenant.weight) / weights) as usize;
    Places { requests: part(all.requests), tokens: part(all.tokens) }
}

impl Door {
    pub(super) fn num_waiting(&self) -> usize {
        self.interactive.reserved().requests + self.background.reserved().requests
    }

    pub(super) fn num_waiting_tokens(&self) -> usize {
        self.interactive.reserved().tokens + self.background.reserved().tokens
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
        tenant: Tenant,
        num_sequences: usize,
        num_tokens: usize,
    ) -> Result<(), Rejected> {
        match self.phase {
            Phase::Open => {}
            Phase::Draining | Phase::Drained => return Err(Rejected::ShuttingDown),
            Phase::Lost(_) => return Err(Rejected::EngineStopped),
        }
        self.lane(lane).reserve(tenant, config, num_sequences, num_tokens)
    }

    /// Puts the real prompt length in place of the reserved one.
    pub(super) fn settle(
        &mut self,
        config: &EngineConfig,
        request: &Request,
        reserved_tokens: usize,
    ) -> Result<(), Rejected> {
        let (lane, tenant, prompt_len) = (request.lane, request.tenant, request.prompt.len());
        let rejected = match self.phase {
            Phase::Open | Phase::Draining => {
                let waiting = self.lane(lane);
                let (own, most) = waiting.share(tenant, config);
                let tokens = own.tokens - reserved_tokens + prompt_len;
                if tokens <= most.tokens || prompt_len <= reserved_tokens {
                    waiting.set(tenant, config, Places { tokens, ..own });
                    return Ok(());
                }
                waiting.too_many_tokens(own, most, tokens)
            }
            Phase::Drained | Phase::Lost(_) => Rejected::EngineStopped,
        };
        self.give_back(lane, tenant.id, 1, reserved_tokens);
        Err(rejected)
    }

    pub(super) fn give_back(&mut self, lane: Lane, tenant: TenantId, places: usize, tokens: usize) {
        // A lost engine has forgotten all reservations.
        if !matches!(self.phase, Phase::Lost(_)) {
            self.lane(lane).give_back(tenant, places, tokens);
        }
    }
}
