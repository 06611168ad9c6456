//! Runs operations: on the threads that wait for them, and on one helper for host functions.

use crate::abi::{Code, Result};
use crate::config::FaultKind;
use crate::launch::Launch;
use crate::queue::{EXTERNAL_PENDING, Fill, Job, Place, Ticket, Work, mix};
use crate::state::{Driver, State, as_callback};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What became of an operation.
enum Outcome {
    Done,
    Failed(Code),
    DeviceLost(Code),
    /// `virtual_gpu_complete` will end it.
    Pending,
}

/// A wait longer than this says on stderr what it waits for.
const SILENT_WAIT_MAX: Duration = Duration::from_secs(10);
/// Somebody else's operation may end without a signal of its own: look again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Operations that may be queued before the calling thread runs some.
const QUEUED_MAX: usize = 1 << 16;

impl Driver {
    /// Runs ready operations until `done`. When there are none (another thread runs them, or a
    /// collective waits for its partners), sleeps until something changes.
    pub fn run_until<'a>(
        &'a self,
        device: usize,
        mut state: MutexGuard<'a, State>,
        done: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let mut idle_since: Option<Instant> = None;
        let mut is_reported = false;
        while !done(&state) {
            if let Some(job) = state.queue.take_ready(device) {
                drop(state);
                self.run_and_finish(job);
                state = self.lock();
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() > SILENT_WAIT_MAX && !is_reported {
                is_reported = true;
                eprintln!(
                    "virtual GPU: a call waits for device {device} since {} s: {} operations are \
                     queued and none can run (a collective that not all ranks have joined?)",
                    SILENT_WAIT_MAX.as_secs(),
                    state.queue.len()
                );
            }
            state = match self.wake.wait_timeout(state, LOOK_AGAIN) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        state
    }

    /// Waits for one operation.
    ///
    /// Errors: the sticky error of the context it ran in.
    pub fn wait_for<'a>(
        &'a self,
        context: u64,
        state: MutexGuard<'a, State>,
        ticket: Option<Ticket>,
    ) -> Result<MutexGuard<'a, State>> {
        let Some(ticket) = ticket else { return Ok(state) };
        let device = state.device_of(context);
        let state = self.run_until(device, state, |state| {
            !state.queue.is_pending(ticket) || state.check_context(context).is_err()
        });
        state.check_context(context)?;
        Ok(state)
    }

    /// Waits for all work of a context.
    pub fn wait_for_context<'a>(
        &'a self,
        context: u64,
        state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>> {
        let device = state.device_of(context);
        let state = self.run_until(device, state, |state| {
            state.check_context(context).is_err() || state.queue.context_is_idle(context)
        });
        state.check_context(context)?;
        Ok(state)
    }

    /// Runs one ready operation, so that a program that only polls gets on.
    pub fn run_one<'a>(
        &'a self,
        device: usize,
        mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        if let Some(job) = state.queue.take_ready(device) {
            drop(state);
            self.run_and_finish(job);
            state = self.lock();
        }
        state
    }

    /// Keeps the queue bounded: a program that never waits runs its own work.
    pub fn limit_queue<'a>(&'a self, device: usize, mut state: MutexGuard<'a, State>) {
        while state.queue.len() > QUEUED_MAX {
            let before = state.queue.len();
            state = self.run_one(device, state);
            if state.queue.len() >= before {
                break;
            }
        }
    }

    fn run_and_finish(&self, job: Job) {
        let (ticket, context, device) = (job.ticket, job.context, job.device);
        let is_sound = self.lock().check_context(context).is_ok();
        // After an error nothing of the context runs any more; its operations only leave the queue.
        let outcome = if is_sound { self.run(job) } else { Outcome::Done };
        match outcome {
            Outcome::Done => self.finish(ticket, context, None),
            Outcome::Failed(code) => self.finish(ticket, context, Some(code)),
            Outcome::DeviceLost(code) => {
                self.lock().devices[device].lost = Some(code);
                self.finish(ticket, context, None);
            }
            Outcome::Pending => {}
        }
    }

    /// Ends an operation, with an error that its context keeps.
    pub fn finish(&self, ticket: Ticket, context: u64, error: Option<Code>) {
        let mut state = self.lock();
        if let (Some(code), Some(context)) = (error, state.contexts.get_mut(&context)) {
            context.sticky.get_or_insert(code);
        }
        state.queue.complete(ticket);
        drop(state);
        self.wake.notify_all();
    }

    fn run(&self, job: Job) -> Outcome {
        match job.work {
            Work::Join => Outcome::Done,
            Work::RecordEvent(at) => {
                let _ = at.set(Instant::now());
                Outcome::Done
            }
            Work::Kernel(launch) => self.run_kernel(&launch, job.device),
            Work::Copy { to, from, bytes } => report("copy", self.run_copy(&to, &from, bytes)),
            Work::Set { to, device, fill } => report("memset", self.run_fill(to, device, fill)),
            Work::HostFunction { function, data } => {
                // SAFETY: `cuLaunchHostFunc` took a function that may be called with this argument.
                as_callback(|| unsafe { function(data.0) });
                Outcome::Done
            }
            Work::Free(address) => {
                self.lock().free(address, &self.memories);
                Outcome::Done
            }
            Work::External(external) => {
                // SAFETY: the library enqueued this function with this argument.
                match unsafe { (external.start)(external.data.0, job.ticket) } {
                    0 => Outcome::Done,
                    EXTERNAL_PENDING => Outcome::Pending,
                    code => Outcome::Failed(Code(code)),
                }
            }
        }
    }

    fn run_kernel(&self, launch: &Launch, device: usize) -> Outcome {
        let nth = self.launches[device].fetch_add(1, Ordering::Relaxed) + 1;
        let nth_anywhere = LAUNCHES.fetch_add(1, Ordering::Relaxed) + 1;
        if self.has_fault(FaultKind::Lost, device, nth, nth_anywhere) {
            eprintln!("virtual GPU: injected fault: device {device} is lost");
            return Outcome::DeviceLost(Code::ECC_UNCORRECTABLE);
        }
        let name = &launch.function.name;
        if self.has_fault(FaultKind::Launch, device, nth, nth_anywhere) {
            eprintln!("virtual GPU: injected fault: launch of {name} on device {device} fails");
            return Outcome::Failed(Code::LAUNCH_FAILED);
        }
        let seed = mix(self.config.seed ^ mix(nth ^ ((device as u64) << 56)));
        match self.memories[device].launch(launch, seed, &self.config) {
            Ok(counters) => {
                self.report().add_launch(name, &counters);
                Outcome::Done
            }
            Err(finding) => {
                eprintln!("virtual GPU: device {device}: {}", finding.message);
                self.report().add_violation(name, &finding.check, &finding.message);
                Outcome::Failed(finding.code)
            }
        }
    }

    /// Whether a fault is due: counting per device where it names one, else over all.
    pub fn has_fault(
        &self,
        kind: FaultKind,
        device: usize,
        nth_of_device: u64,
        nth_anywhere: u64,
    ) -> bool {
        self.config.faults.iter().any(|fault| {
            fault.kind == kind
                && match fault.device {
                    Some(named) => named == device && fault.nth == nth_of_device,
                    None => fault.nth == nth_anywhere,
                }
        })
    }

    fn run_copy(&self, to: &Place, from: &Place, bytes: u64) -> std::result::Result<(), String> {
        let len = bytes as usize;
        let read;
        let source: &[u8] = match from {
            Place::Staged(staged) => staged,
            // SAFETY: the program promised `bytes` readable bytes until the copy has run.
            Place::Host(host) => unsafe { std::slice::from_raw_parts(host.0.cast(), len) },
            Place::Device { address, device } => {
                if let Place::Device { address: target, device: target_device } = to {
                    let source = &self.memories[*device];
                    return self.memories[*target_device]
                        .copy_from(*target, source, *address, bytes);
                }
                read = self.memories[*device].read(*address, len)?;
                &read
            }
        };
        match to {
            Place::Device { address, device } => self.memories[*device].write(*address, source),
            Place::Host(host) => {
                // SAFETY: the program promised `bytes` writable bytes until the copy has run.
                unsafe { std::ptr::copy(source.as_ptr(), host.0.cast(), len) };
                Ok(())
            }
            Place::Staged(_) => unreachable!("nothing is copied into a staging buffer"),
        }
    }

    fn run_fill(&self, to: u64, device: usize, fill: Fill) -> std::result::Result<(), String> {
        let unit = &fill.value.to_le_bytes()[..fill.unit];
        let row: Vec<u8> = unit.iter().copied().cycle().take(fill.row_bytes as usize).collect();
        (0..fill.rows).try_for_each(|i| self.memories[device].write(to + i * fill.pitch, &row))
    }
}

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// A copy that fails when it runs met memory that was freed after the call.
fn report(what: &str, result: std::result::Result<(), String>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(message) => {
            eprintln!("virtual GPU: {what}: {message}");
            Outcome::Failed(Code::ILLEGAL_ADDRESS)
        }
    }
}
