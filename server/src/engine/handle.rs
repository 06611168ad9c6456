//! The engine as its clients see it: admission, submission, event streams, health.

mod door;
mod rejections;

use super::event_queue::{EventQueue, EventSender};
use super::plan::SequenceId;
use super::request::{Event, Lane, Rejected, Request, Tenant, TenantId};
use super::scheduler::EngineConfig;
use super::stats::EngineStats;
use door::Waiting;
use futures_util::Stream;
use rejections::Rejections;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A step that takes longer than this means that the device hangs.
pub const STEP_TIME_MAX: Duration = Duration::from_secs(8);

/// The way into the engine. Cheap to clone; when the last clone is dropped, the engine drains.
#[derive(Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

/// Places in the waiting queue, reserved before a request is rendered. Dropping it gives back the
/// unused ones.
pub struct Admission {
    shared: Arc<Shared>,
    lane: Lane,
    tenant: Tenant,
    places: usize,
    tokens: usize,
}

/// The events of one request. Dropping it aborts the request.
pub struct TokenStream {
    id: SequenceId,
    events: Arc<EventQueue>,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineHealth {
    Ok,
    /// The oldest step under way has taken longer than `STEP_TIME_MAX`.
    Stuck {
        step_age: Duration,
    },
    Stopped {
        reason: String,
    },
}

impl EngineHandle {
    pub(super) fn new(config: EngineConfig) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared::new(config));
        (Self { owner: Arc::new(Owner(Arc::clone(&shared))) }, shared)
    }

    /// Reserves places in the waiting queue for `num_sequences` requests, all or none, before
    /// anything is rendered. `prompt_tokens_estimate` is over all of them, and counts until the
    /// real lengths are known. Never waits.
    pub fn admit(
        &self,
        num_sequences: usize,
        prompt_tokens_estimate: usize,
    ) -> Result<Admission, Rejected> {
        let tenant = Tenant::default();
        self.admit_for(tenant, Lane::Interactive, num_sequences, prompt_tokens_estimate)
    }

    /// As `admit`, for a tenant and in a lane. Each lane has as many places as the other: neither
    /// takes any from it. Half of each is kept for the tenants by weight.
    pub fn admit_for(
        &self,
        tenant: Tenant,
        lane: Lane,
        num_sequences: usize,
        prompt_tokens_estimate: usize,
    ) -> Result<Admission, Rejected> {
        self.shared().reserve(lane, tenant, num_sequences, prompt_tokens_estimate)?;
        Ok(Admission {
            shared: Arc::clone(self.shared()),
            lane,
            tenant,
            places: num_sequences,
            tokens: prompt_tokens_estimate,
        })
    }

    /// Uses one place of the admission. A request that can never fit fails at once, by an event.
    /// Errors: the real prompt is longer than was reserved and the queue has no room for it, or the
    /// engine has stopped; the place is given back.
    pub fn submit(
        &self,
        admission: &mut Admission,
        request: Request,
    ) -> Result<TokenStream, Rejected> {
        assert_eq!(admission.lane, request.lane, "a request keeps to the lane it was admitted to");
        assert_eq!(admission.tenant, request.tenant, "and to the tenant");
        let reserved_tokens = admission.take_place();
        let shared = self.shared();
        let queue = Arc::new(EventQueue::new(request.sampling.max_new_tokens));
        let events = EventSender::new(&queue);
        let id = match shared.config.check(&request) {
            Ok(()) => shared.submit(request, events, reserved_tokens)?,
            Err(error) => {
                shared.refuse(request.lane, request.tenant.id, reserved_tokens);
                events.send([Event::Failed(error)]);
                SequenceId(u64::MAX)
            }
        };
        Ok(TokenStream { id, events: queue, shared: Arc::clone(shared) })
    }

    pub fn stats(&self) -> EngineStats {
        self.shared().stats()
    }

    pub fn health(&self) -> EngineHealth {
        self.shared().health_at(Instant::now())
    }

    /// Refuses new admissions from now on. What was admitted ends normally, then the engine thread
    /// ends.
    pub fn drain(&self) {
        self.shared().drain();
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }
}

impl Admission {
    /// Requests that may still be submitted.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Returns the place's share of the estimate.
    fn take_place(&mut self) -> usize {
        assert!(self.places > 0, "a request is submitted for each admitted sequence, not more");
        let tokens = self.tokens / self.places;
        self.places -= 1;
        self.tokens -= tokens;
        tokens
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.give_back(self.lane, self.tenant.id, self.places, self.tokens);
    }
}

impl TokenStream {
    /// The next event, in the order `Event` states; None after Finished or Failed.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.events.poll(cx)).await
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_pop()
    }
}

impl Stream for TokenStream {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll(cx)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.events.has_ended() {
            self.shared.abort(self.id);
        }
    }
}

/// What the engine thread finds at its door.
#[derive(Default)]
pub(super) struct Intake {
    /// At most waiting_requests_max of each lane: each has a reservation.
    pub submissions: Vec<Submission>,
    /// At most one for each request in progress.
    pub aborts: Vec<SequenceId>,
}

/// Whether the engine has something to do before something arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    /// All its sequences await their constraints.
    ForConstraints,
    /// It has no sequences.
    Idle,
}

pub(super) struct Submission {
    pub id: SequenceId,
    pub request: Request,
    pub arrival: Instant,
    pub events: EventSender,
}

/// What the handles and the engine thread share. Each lock is held for a few instructions.
pub(super) struct Shared {
    config: EngineConfig,
    door: Mutex<Door>,
    wake: Condvar,
    published: Mutex<EngineStats>,
    created: Instant,
    /// When the oldest step under way started, in milliseconds since `created`, plus 1; 0 while the
    /// engine thread waits for none.
    step_start_ms: AtomicU64,
}

struct Door {
    phase: Phase,
    intake: Intake,
    /// `Shared::wake` was called since the engine last looked.
    is_woken: bool,
    next_id: u64,
    interactive: Waiting,
    background: Waiting,
    rejected: Rejections,
}

enum Phase {
    Open,
    Draining,
    Drained,
    Lost(String),
}

/// Lives as long as there is a handle.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.drain();
    }
}

/// The engine's side.
impl Shared {
    /// Takes what has arrived, and waits for something if there is nothing else to do. None when
    /// drained.
    pub(super) fn take(&self, wait: Wait) -> Option<Intake> {
        let mut door = self.lock();
        loop {
            let is_woken = std::mem::take(&mut door.is_woken);
            let has_news = !door.intake.submissions.is_empty() || !door.intake.aborts.is_empty();
            let may_go_on = is_woken || wait == Wait::No;
            if has_news || may_go_on {
                return Some(std::mem::take(&mut door.intake));
            }
            let is_over = wait == Wait::Idle && door.num_waiting() == 0;
            if matches!(door.phase, Phase::Draining) && is_over {
                door.phase = Phase::Drained;
                return None;
            }
            door = self.wake.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A sequence that awaited its constraint may go on.
    pub(super) fn wake(&self) {
        self.lock().is_woken = true;
        self.wake.notify_one();
    }

    /// A request was scheduled for the first time, or aborted before that.
    pub(super) fn leave_waiting(&self, lane: Lane, tenant: TenantId, prompt_len: usize) {
        self.give_back(lane, tenant, 1, prompt_len);
    }

    /// The engine thread is about to wait for a step that is computed since `start`.
    pub(super) fn step_started(&self, start: Instant) {
        let start_ms = start.duration_since(self.created).as_millis() as u64;
        self.step_start_ms.store(start_ms + 1, Ordering::Relaxed);
    }

    pub(super) fn step_ended(&self, step_time: Duration) {
        self.step_start_ms.store(0, Ordering::Relaxed);
        lock(&self.published).step_time += step_time;
    }

    pub(super) fn publish(&self, stats: EngineStats) {
        let mut published = lock(&self.published);
        let step_time = published.step_time;
        *published = EngineStats { step_time, ..stats };
    }

    /// The device is lost: closes the door. Returns what was not taken yet.
    pub(super) fn stop(&self, reason: String, num_failed: usize) -> Intake {
        let mut door = self.lock();
        door.phase = Phase::Lost(reason);
        (door.interactive, door.background) = (Waiting::default(), Waiting::default());
        let unseen = std::mem::take(&mut door.intake);
        let mut published = lock(&self.published);
        published.failed += (num_failed + unseen.submissions.len()) as u64;
        unseen
    }
}

/// The handles' side.
impl Shared {
    fn new(config: EngineConfig) -> Self {
        let stats = EngineStats {
            blocks_total: config.num_blocks,
            blocks_free: config.num_blocks,
            ..EngineStats::default()
        };
        Self {
            config,
            door: Mutex::new(Door {
                phase: Phase::Open,
                intake: Intake::default(),
                is_woken: false,
                next_id: 0,
                interactive: Waiting::default(),
                background: Waiting::default(),
                rejected: Rejections::default(),
            }),
            wake: Condvar::new(),
            published: Mutex::new(stats),
            created: Instant::now(),
            step_start_ms: AtomicU64::new(0),
        }
    }

    fn reserve(
        &self,
        lane: Lane,
        tenant: Tenant,
        num_sequences: usize,
        num_tokens: usize,
    ) -> Result<(), Rejected> {
        let mut door = self.lock();
        let result = door.reserve(&self.config, lane, tenant, num_sequences, num_tokens);
        if let Err(rejected) = &result {
            door.rejected.count(rejected);
        }
        result
    }

    fn give_back(&self, lane: Lane, tenant: TenantId, places: usize, tokens: usize) {
        let mut door = self.lock();
        door.give_back(lane, tenant, places, tokens);
        if matches!(door.phase, Phase::Draining) {
            self.wake.notify_one();
        }
    }

    fn submit(
        &self,
        request: Request,
        events: EventSender,
        reserved_tokens: usize,
    ) -> Result<SequenceId, Rejected> {
        let mut door = self.lock();
        if let Err(rejected) = door.settle(&self.config, &request, reserved_tokens) {
            door.rejected.count(&rejected);
            self.wake.notify_one();
            return Err(rejected);
        }
        let id = SequenceId(door.next_id);
        door.next_id += 1;
        let arrival = Instant::now();
        door.intake.submissions.push(Submission { id, request, arrival, events });
        self.wake.notify_one();
        Ok(id)
    }

    /// The request of a reserved place can never fit.
    fn refuse(&self, lane: Lane, tenant: TenantId, reserved_tokens: usize) {
        self.lock().rejected.never_fits += 1;
        self.give_back(lane, tenant, 1, reserved_tokens);
    }

    fn abort(&self, id: SequenceId) {
        let mut door = self.lock();
        if matches!(door.phase, Phase::Open | Phase::Draining) {
            door.intake.aborts.push(id);
            self.wake.notify_one();
        }
    }

    fn drain(&self) {
        let mut door = self.lock();
        if matches!(door.phase, Phase::Open) {
            door.phase = Phase::Draining;
            self.wake.notify_one();
        }
    }

    fn stats(&self) -> EngineStats {
        let mut stats = lock(&self.published).clone();
        let door = self.lock();
        stats.waiting = door.num_waiting();
        stats.waiting_tokens = door.num_waiting_tokens();
        stats.rejected_queue_full = door.rejected.queue_full;
        stats.rejected_too_many_tokens = door.rejected.too_many_tokens;
        stats.rejected_shutting_down = door.rejected.shutting_down;
        stats.rejected_engine_stopped = door.rejected.engine_stopped;
        stats.rejected_never_fits = door.rejected.never_fits;
        stats
    }

    fn health_at(&self, now: Instant) -> EngineHealth {
        match &self.lock().phase {
            Phase::Open | Phase::Draining => {}
            Phase::Drained => return EngineHealth::Stopped { reason: "drained".into() },
            Phase::Lost(reason) => return EngineHealth::Stopped { reason: reason.clone() },
        }
        let start_ms = self.step_start_ms.load(Ordering::Relaxed);
        let now_ms = now.duration_since(self.created).as_millis() as u64;
        let step_age = Duration::from_millis((now_ms + 1).saturating_sub(start_ms));
        if start_ms > 0 && step_age > STEP_TIME_MAX {
            return EngineHealth::Stuck { step_age };
        }
        EngineHealth::Ok
    }

    fn lock(&self) -> MutexGuard<'_, Door> {
        lock(&self.door)
    }
}

/// A panic elsewhere leaves these few lines of plain data whole, so the lock is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
