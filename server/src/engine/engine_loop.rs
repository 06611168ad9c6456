//! The engine thread: intake, schedule, launch, collect, commit, events.

use super::constraint::Wake;
use super::event_queue::EventSender;
use super::handle::{EngineHandle, Intake, Shared, Wait};
use super::plan::{Plan, SequenceId, Spread};
use super::request::{EngineError, Event, Lane, Request, TenantId};
use super::runner::{Overlap, Runner, RunnerError};
use super::scheduler::{Aborted, EngineConfig, Scheduler};
use super::stats::EngineStats;
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A scheduler and the runner that computes its plans: the whole engine, without thread or clock.
pub struct Engine<R: Runner> {
    scheduler: Scheduler,
    runner: R,
    overlap: Overlap,
    /// Launched and not collected, the oldest first.
    under_way: VecDeque<Plan>,
}

impl<R: Runner> Engine<R> {
    pub fn new(config: EngineConfig, runner: R) -> Self {
        Self::waking(config, runner, Arc::new(|| ()))
    }

    /// `wake` is called, from any thread, when `awaits_constraints` may have ended.
    pub fn waking(config: EngineConfig, runner: R, wake: Wake) -> Self {
        let (overlap, under_way) = (config.overlap, VecDeque::new());
        Self { scheduler: Scheduler::new(config, wake), runner, overlap, under_way }
    }

    /// Takes in a request that has passed `EngineConfig::check`. `id` is new.
    pub fn submit(&mut self, id: SequenceId, request: Request, arrival: Instant) {
        self.scheduler.add(id, request, arrival);
    }

    /// Drops a request and frees its blocks at once; nothing happens if it has ended.
    pub fn abort(&mut self, id: SequenceId) -> Aborted {
        self.scheduler.abort(id)
    }

    /// Runs one step: schedules it, launches it, collects and commits its results. That is the
    /// plain loop; with overlap the next step is launched as well before this one is collected, so
    /// that the device goes on while the host commits and schedules. The results are the same.
    ///
    /// The events of one sequence are side by side.
    pub fn step(&mut self, now: Instant) -> Result<Vec<(SequenceId, Event)>, RunnerError> {
        self.launch(now)?;
        let failed = self.scheduler.take_failed();
        let mut events = self.collect()?;
        events.extend(failed.into_iter().map(|(id, _, error)| (id, Event::Failed(error))));
        Ok(events)
    }

    /// Starts a step, or as many as may be under way, while there is work that can be planned.
    /// Returns the sequences scheduled for the first time.
    pub fn launch(&mut self, now: Instant) -> Result<Vec<SequenceId>, RunnerError> {
        while self.under_way.len() < self.overlap.plans_under_way_max()
            && let Some(plan) = self.scheduler.schedule(now)
        {
            self.runner.launch(&plan)?;
            self.under_way.push_back(plan);
        }
        Ok(self.scheduler.take_started())
    }

    /// Waits for the oldest step under way, if there is one, and takes in its results.
    pub fn collect(&mut self) -> Result<Vec<(SequenceId, Event)>, RunnerError> {
        let mut events = Vec::new();
        self.collect_into(&mut events)?;
        Ok(events)
    }

    /// As `collect`; adds the events to others.
    pub fn collect_into(
        &mut self,
        events: &mut Vec<(SequenceId, Event)>,
    ) -> Result<(), RunnerError> {
        let Some(plan) = self.under_way.pop_front() else { return Ok(()) };
        let mut output = self.runner.collect()?;
        self.scheduler.commit_into(events, plan, &mut output.chunks);
        output.chunks.clear();
        self.runner.take_back(output.chunks);
        Ok(())
    }

    /// Requests that have failed alone since the last call.
    pub fn take_failed(&mut self) -> Vec<(SequenceId, Aborted, EngineError)> {
        self.scheduler.take_failed()
    }

    /// Whether a step is launched and not collected.
    pub fn is_computing(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether there is nothing to compute or to collect.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && !self.is_computing()
    }

    pub fn stats(&self) -> EngineStats {
        self.scheduler.stats()
    }

    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// Asserts the engine's invariants between steps; for tests.
    pub fn assert_consistent(&self) {
        self.scheduler.assert_consistent();
    }
}

/// Starts the engine thread. It ends when it is drained, or when all handles are dropped and all
/// requests have ended, or when the device is lost.
pub fn start<R: Runner + 'static>(config: EngineConfig, runner: R) -> (EngineHandle, EngineThread) {
    config.assert_valid();
    let (handle, shared) = EngineHandle::new(config.clone());
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            let door = Arc::downgrade(&shared);
            let wake = move || {
                if let Some(shared) = door.upgrade() {
                    shared.wake();
                }
            };
            serve(Engine::waking(config, runner, Arc::new(wake)), &shared)
        })
        .expect("the system can start a thread");
    (handle, EngineThread(thread))
}

/// The engine thread, to be waited for.
pub struct EngineThread(JoinHandle<Result<(), RunnerError>>);

impl EngineThread {
    /// Waits for the end. Errors: the device was lost, or the engine panicked; all requests in
    /// progress got `Event::Failed`.
    pub fn join(self) -> Result<(), RunnerError> {
        self.0.join().unwrap_or_else(|panic| Err(panicked(&*panic)))
    }

    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// A request in progress as the thread sees it.
struct Client {
    events: EventSender,
    lane: Lane,
    tenant: TenantId,
    prompt_len: usize,
}

impl Client {
    fn leave_waiting(&self, shared: &Shared) {
        shared.leave_waiting(self.lane, self.tenant, self.prompt_len);
    }
}

/// Looked up for every event; those that are left in the end are told by their ids.
type Clients = HashMap<SequenceId, Client, Spread>;

fn serve<R: Runner>(mut engine: Engine<R>, shared: &Arc<Shared>) -> Result<(), RunnerError> {
    let mut clients = Clients::default();
    let run = AssertUnwindSafe(|| run(&mut engine, shared, &mut clients));
    let result = catch_unwind(run).unwrap_or_else(|panic| Err(panicked(&*panic)));
    if let Err(error) = &result {
        let unseen = shared.stop(error.to_string(), clients.len());
        let lost = EngineError::DeviceLost(error.to_string());
        let unseen = unseen.submissions.into_iter().map(|submission| submission.events);
        let mut clients: Vec<(SequenceId, Client)> = clients.into_iter().collect();
        clients.sort_unstable_by_key(|(id, _)| *id);
        let seen = clients.into_iter().map(|(_, client)| client.events);
        for events in seen.chain(unseen) {
            events.send([Event::Failed(lost.clone())]);
        }
    }
    result
}

fn run<R: Runner>(
    engine: &mut Engine<R>,
    shared: &Shared,
    clients: &mut Clients,
) -> Result<(), RunnerError> {
    // Since then the oldest step under way is being computed.
    let mut step_start = None;
    let mut wait = Wait::Idle;
    let mut events = Vec::new();
    while let Some(intake) = shared.take(wait) {
        take_in(engine, shared, clients, intake);
        if engine.is_idle() {
            shared.publish(engine.stats());
            wait = Wait::Idle;
            continue;
        }
        let now = Instant::now();
        let start = step_start.unwrap_or(now);
        shared.step_started(start);
        for id in engine.launch(now)? {
            clients[&id].leave_waiting(shared);
        }
        fail(engine, shared, clients);
        shared.publish(engine.stats());
        if !engine.is_computing() {
            shared.step_ended(Duration::ZERO);
            wait = if engine.is_idle() { Wait::Idle } else { Wait::ForConstraints };
            continue;
        }
        engine.collect_into(&mut events)?;
        let end = Instant::now();
        shared.step_ended(end - start);
        step_start = engine.is_computing().then_some(end);
        wait = if engine.is_idle() { Wait::Idle } else { Wait::No };
        // Before the events: a client that has seen its end finds it counted.
        shared.publish(engine.stats());
        deliver(&mut events, clients);
    }
    Ok(())
}

fn take_in<R: Runner>(
    engine: &mut Engine<R>,
    shared: &Shared,
    clients: &mut Clients,
    intake: Intake,
) {
    for submission in intake.submissions {
        let prompt_len = submission.request.prompt.len();
        let Request { lane, tenant, .. } = submission.request;
        let client = Client { events: submission.events, lane, tenant: tenant.id, prompt_len };
        clients.insert(submission.id, client);
        engine.submit(submission.id, submission.request, submission.arrival);
    }
    for id in intake.aborts {
        // A request may end in the step in which its client leaves.
        let Some(client) = clients.remove(&id) else { continue };
        if engine.abort(id) == Aborted::Unstarted {
            client.leave_waiting(shared);
        }
    }
}

/// Tells the clients of requests that have failed alone.
fn fail<R: Runner>(engine: &mut Engine<R>, shared: &Shared, clients: &mut Clients) {
    for (id, aborted, error) in engine.take_failed() {
        let client = clients.remove(&id).expect("sequences have a client");
        if aborted == Aborted::Unstarted {
            client.leave_waiting(shared);
        }
        client.events.send([Event::Failed(error)]);
    }
}

/// Hands each sequence its events in one go.
fn deliver(events: &mut Vec<(SequenceId, Event)>, clients: &mut Clients) {
    let mut events = events.drain(..).peekable();
    while let Some((id, first)) = events.next() {
        let rest = std::iter::from_fn(|| events.next_if(|(other, _)| *other == id));
        let client = clients.get(&id).expect("running sequences have a client");
        let has_ended = client.events.send(std::iter::once(first).chain(rest.map(|(_, e)| e)));
        if has_ended {
            clients.remove(&id);
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> RunnerError {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let reason = text.or_else(|| panic.downcast_ref::<String>().cloned());
    RunnerError::EnginePanicked { reason: reason.unwrap_or_else(|| "no message".into()) }
}
