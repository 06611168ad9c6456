//! Whose turn it is: of several tenants, that of whoever has had the least for their weight.

use crate::engine::request::{Lane, Tenant, TenantId};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Nobody counts as further behind than by so many whole steps of tokens. Who asks for little is
/// served at once out of this credit; who has used it up gets their share.
pub const CREDIT_STEPS: usize = 8;
/// Whoever was there within this time is reckoned with: the steps of others stay short.
pub const RECENT: Duration = Duration::from_secs(10);
/// Whoever was not there for so long starts anew.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// What a token counts at weight 1.
const TOKEN: u64 = 1 << 20;

/// The sequences of one tenant in one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub lane: Lane,
    pub tenant: TenantId,
}

/// What each flow has had: what its computed tokens cost, divided by the tenant's weight.
pub struct FairShare {
    credit_tokens: u64,
    accounts: BTreeMap<Flow, Account>,
    /// What the one has had that has had most, in each lane.
    most: [u64; 2],
    /// Of `begin`.
    round: u64,
}

struct Account {
    had: u64,
    weight: u64,
    last_seen: Instant,
    /// The round in which it was seen last.
    round: u64,
}

impl Account {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_seen) < RECENT
    }
}

impl FairShare {
    /// `step_tokens`: most tokens of a step.
    pub fn new(step_tokens: usize) -> Self {
        let credit_tokens = step_tokens.saturating_mul(CREDIT_STEPS).min(1 << 32) as u64;
        Self { credit_tokens, accounts: BTreeMap::new(), most: [0; 2], round: 0 }
    }

    /// From now on nobody has been seen in this round. Forgets who has not been there for long.
    pub fn begin(&mut self, now: Instant) {
        self.round += 1;
        let is_known =
            |account: &mut Account| now.saturating_duration_since(account.last_seen) < FORGOTTEN;
        self.accounts.retain(|_, account| is_known(account));
    }

    /// The flow has something to compute in this round.
    pub fn see(&mut self, flow: Flow, tenant: Tenant, now: Instant) {
        let weight = u64::from(tenant.weight.max(1));
        let round = self.round;
        let new = Account { had: 0, weight, last_seen: now, round };
        let account = self.accounts.entry(flow).or_insert(new);
        (account.weight, account.last_seen, account.round) = (weight, now, round);
    }

    /// Tokens of the flow, which was seen, are computed; `cost` counts one for each, and more for
    /// those that take longer.
    pub fn charge(&mut self, flow: Flow, cost: usize) {
        let had = self.had(flow);
        let account = self.accounts.get_mut(&flow).expect("a flow is seen before it is charged");
        account.had = had.saturating_add((cost as u64).saturating_mul(TOKEN) / account.weight);
        let most = &mut self.most[flow.lane as usize];
        *most = (*most).max(account.had);
    }

    /// The first goes before the second: by lane, then by what they have had, then by tenant.
    pub fn compare(&self, a: Flow, b: Flow) -> Ordering {
        let had = || self.had(a).cmp(&self.had(b));
        a.lane.cmp(&b.lane).then_with(had).then(a.tenant.cmp(&b.tenant))
    }

    /// Whether another flow of the lane, which has nothing to compute in this round, was there
    /// lately and would go before this one.
    pub fn follows_absent(&self, flow: Flow, now: Instant) -> bool {
        let goes_before = |(&other, account): (&Flow, &Account)| {
            other.lane == flow.lane
                && account.round != self.round
                && account.is_recent(now)
                && self.compare(other, flow) == Ordering::Less
        };
        self.accounts.iter().any(goes_before)
    }

    /// Whether anybody else was there lately.
    pub fn has_company(&self, flow: Flow, now: Instant) -> bool {
        self.accounts.iter().any(|(&other, account)| other != flow && account.is_recent(now))
    }

    /// What counts as had by the flow.
    pub fn had(&self, flow: Flow) -> u64 {
        let most = self.most[flow.lane as usize];
        let Some(account) = self.accounts.get(&flow) else { return 0 };
        account.had.max(most.saturating_sub(self.credit_tokens * TOKEN / account.weight))
    }
}

#[cfg(test)]
mod tests;
