//! What a tenant may ask for: models, urgency, requests and tokens a minute, requests at a time.

use super::auth::Client;
use super::error::{ApiError, RequestError, excerpt};
use crate::engine::{CacheSalt, Lane, Tenant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Largest weight of a tenant.
pub const WEIGHT_MAX: u32 = 1000;
const MINUTE_S: f64 = 60.0;
/// How long a client waits before it asks again whether one of its requests has ended.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

/// One entry of the tenants file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSpec {
    pub name: String,
    /// SHA-256 of the keys, at least one; several while one takes another's place.
    pub key_digests: Vec<[u8; 32]>,
    /// 1 to `WEIGHT_MAX`: what is short is shared out by it.
    pub weight: u32,
    pub limits: TenantLimits,
}

/// `None`: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantLimits {
    pub requests_per_minute: Option<u32>,
    /// Of prompts and answers.
    pub tokens_per_minute: Option<u64>,
    /// Requests that are answered at a time.
    pub concurrent: Option<u32>,
    /// Names by which the model may be asked for.
    pub models: Option<Vec<String>>,
    /// The smallest priority number, which is the most urgent.
    pub priority_ceiling: Option<i32>,
}

/// The limit that a tenant has reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    #[error("this key has sent its {limit} requests a minute")]
    Requests { limit: u32 },
    #[error("this key has used its {limit} tokens a minute")]
    Tokens { limit: u64 },
    #[error("{limit} requests of this key are being answered, that is its limit")]
    Concurrent { limit: u32 },
}

impl TenantLimits {
    pub fn allows_model(&self, name: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|allowed| allowed == name))
    }

    fn check_model(&self, name: &str) -> Result<(), RequestError> {
        if self.allows_model(name) {
            return Ok(());
        }
        let allowed = excerpt(&self.models.as_deref().unwrap_or_default().join(", "));
        Err(RequestError::ModelNotAllowed { name: excerpt(name), allowed })
    }

    /// 0, which is also what a request has that names no priority, is taken for the ceiling where
    /// that is less urgent.
    fn check_priority(&self, priority: i32) -> Result<i32, RequestError> {
        match self.priority_ceiling {
            Some(ceiling) if priority == 0 => Ok(ceiling.max(0)),
            Some(ceiling) if priority < ceiling => Err(RequestError::OutOfRange {
                field: "priority".into(),
                value: priority.to_string(),
                range: format!("at least {ceiling}, the most urgent that this key may ask for"),
            }),
            _ => Ok(priority),
        }
    }
}

/// What a tenant uses; it outlives changes of the limits.
#[derive(Debug)]
pub struct Usage {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    concurrent: u32,
    requests: Bucket,
    tokens: Bucket,
}

/// What is left of a minute's worth, which comes back evenly. It may be overdrawn: how long an
/// answer gets is not known before.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Nothing was used so far.
    fn new(now: Instant) -> Bucket {
        Bucket { left: f64::INFINITY, at: now }
    }

    fn refill(&mut self, per_minute: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * per_minute / MINUTE_S).min(per_minute);
        self.at = self.at.max(now);
    }

    /// How long until so much is left.
    fn wait_for(&self, amount: f64, per_minute: f64) -> Option<Duration> {
        let missing = amount - self.left;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing * MINUTE_S / per_minute))
    }
}

impl Usage {
    pub fn new(now: Instant) -> Usage {
        let (requests, tokens) = (Bucket::new(now), Bucket::new(now));
        Usage { counts: Mutex::new(Counts { concurrent: 0, requests, tokens }) }
    }

    /// Counts a request that begins.
    ///
    /// Errors: a limit, and how long to wait.
    fn enter(&self, limits: &TenantLimits, now: Instant) -> Result<(), (LimitReached, Duration)> {
        let mut counts = self.lock();
        if let Some(limit) = limits.concurrent.filter(|limit| counts.concurrent >= *limit) {
            return Err((LimitReached::Concurrent { limit }, CONCURRENT_RETRY));
        }
        if let Some(limit) = limits.tokens_per_minute {
            counts.tokens.refill(limit as f64, now);
            if let Some(wait) = counts.tokens.wait_for(1.0, limit as f64) {
                return Err((LimitReached::Tokens { limit }, wait));
            }
        }
        if let Some(limit) = limits.requests_per_minute {
            let per_minute = f64::from(limit);
            counts.requests.refill(per_minute, now);
            if let Some(wait) = counts.requests.wait_for(1.0, per_minute) {
                return Err((LimitReached::Requests { limit }, wait));
            }
            counts.requests.left -= 1.0;
        }
        counts.concurrent += 1;
        Ok(())
    }

    fn charge(&self, num_tokens: usize) {
        self.lock().tokens.left -= num_tokens as f64;
    }

    fn leave(&self) {
        self.lock().concurrent -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing in here can panic half-way through a change.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In whose name the engine is asked for something. While it lives, the request counts as being
/// answered.
#[derive(Debug)]
pub struct Account {
    pub tenant: Tenant,
    pub cache_salt: CacheSalt,
    pub priority: i32,
    /// `None` in the background, where there are no such limits.
    counted: Option<Arc<Usage>>,
}

impl Client {
    /// Opens the account of a request that names this model and priority.
    ///
    /// Errors: what the tenant may not ask for, or not now.
    pub fn open(
        &self,
        lane: Lane,
        model: &str,
        priority: i32,
        cache_salt: Option<&str>,
    ) -> Result<Account, ApiError> {
        let limits = self.limits();
        limits.check_model(model)?;
        let priority = limits.check_priority(priority)?;
        let counted = match lane {
            Lane::Background => None,
            Lane::Interactive => {
                let entered = self.usage().enter(limits, Instant::now());
                entered.map_err(|(limit, wait)| ApiError::Limit {
                    limit,
                    retry_after_s: wait.as_secs_f64().ceil().max(1.0) as u64,
                })?;
                Some(Arc::clone(self.usage()))
            }
        };
        let cache_salt = self.cache_salt(cache_salt);
        Ok(Account { tenant: self.tenant(), cache_salt, priority, counted })
    }
}

impl Account {
    /// Tokens of the prompt or the answer.
    pub fn charge(&self, num_tokens: usize) {
        if let Some(usage) = &self.counted {
            usage.charge(num_tokens);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(usage) = &self.counted {
            usage.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> TenantLimits {
        TenantLimits {
            requests_per_minute: Some(3),
            tokens_per_minute: Some(600),
            concurrent: Some(2),
            ..TenantLimits::default()
        }
    }

    #[test]
    fn requests_come_back_evenly_and_no_more_than_a_minutes_worth() {
        let limits = TenantLimits { concurrent: None, ..limits() };
        let start = Instant::now();
        let usage = Usage::new(start);
        for _ in 0..3 {
            usage.enter(&limits, start).expect("a minute's worth at once");
        }
        let (limit, wait) = usage.enter(&limits, start).unwrap_err();
        assert_eq!((limit, wait), (LimitReached::Requests { limit: 3 }, Duration::from_secs(20)));
        usage.enter(&limits, start + Duration::from_secs(21)).expect("one came back");
        let later = start + Duration::from_secs(3600);
        for _ in 0..3 {
            usage.enter(&limits, later).expect("they came back");
        }
        usage.enter(&limits, later).expect_err("an hour gives no more");
    }

    #[test]
    fn tokens_may_be_overdrawn_once() {
        let limits = TenantLimits { requests_per_minute: None, ..limits() };
        let start = Instant::now();
        let usage = Usage::new(start);
        usage.enter(&limits, start).expect("nothing is used");
        usage.charge(900);
        let (limit, wait) = usage.enter(&limits, start).unwrap_err();
        assert_eq!(limit, LimitReached::Tokens { limit: 600 });
        // 300 are owed, and one must be there; ten come back a second.
        assert_eq!(wait, Duration::from_millis(30_100));
        usage.enter(&limits, start + wait).expect("as was said");
    }

    #[test]
    fn places_come_back_when_answers_end_and_refusals_take_none() {
        let limits = limits();
        let start = Instant::now();
        let usage = Usage::new(start);
        for _ in 0..2 {
            usage.enter(&limits, start).expect("two at a time");
        }
        for _ in 0..5 {
            let (limit, _) = usage.enter(&limits, start).unwrap_err();
            assert_eq!(limit, LimitReached::Concurrent { limit: 2 });
        }
        usage.leave();
        usage.enter(&limits, start).expect("refusals have used none of the three");
    }

    #[test]
    fn smaller_limits_hold_at_once() {
        let start = Instant::now();
        let usage = Usage::new(start);
        let large = TenantLimits { requests_per_minute: Some(1000), ..TenantLimits::default() };
        usage.enter(&large, start).expect("the first");
        let small = TenantLimits { requests_per_minute: Some(1), ..TenantLimits::default() };
        usage.enter(&small, start).expect("a minute's worth");
        usage.enter(&small, start).expect_err("no more");
    }

    #[test]
    fn models_and_priorities_are_those_that_are_allowed() {
        let limits = TenantLimits {
            models: Some(vec!["a".into(), "b".into()]),
            priority_ceiling: Some(-2),
            ..TenantLimits::default()
        };
        assert_eq!(limits.check_model("b"), Ok(()));
        let refusal = limits.check_model("c").unwrap_err().to_string();
        assert!(refusal.contains("'c'") && refusal.contains("a, b"), "{refusal}");
        assert_eq!(limits.check_priority(-2), Ok(-2));
        assert_eq!(limits.check_priority(5), Ok(5));
        assert!(limits.check_priority(-3).unwrap_err().to_string().contains("-3"));
        let late = TenantLimits { priority_ceiling: Some(5), ..limits };
        assert_eq!(late.check_priority(0), Ok(5), "what names none");
        assert!(late.check_priority(1).is_err());
    }
}
