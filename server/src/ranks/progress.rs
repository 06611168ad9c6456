//! How a group sees that its ranks are alive: each counts what it does.

use kernels::comm::Communicator;
use kernels::{Backend, KernelError, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Ranks that do nothing for so long while a plan is under way hang. They count every task of the
/// thread pool, milliseconds of work, so a long step on a slow machine is no matter. With the time
/// that clients get for their answers the process has ended after ten seconds.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(5);
/// How often a group looks at its counters.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What all ranks of a group count.
#[derive(Clone, Default)]
pub(super) struct Progress {
    counters: Vec<Arc<AtomicU64>>,
}

impl Progress {
    pub fn add(&mut self, counter: Arc<AtomicU64>) {
        self.counters.push(counter);
    }

    /// Also what the device of `backend` does.
    pub fn add_backend(&mut self, backend: &Backend) {
        if let Backend::Cpu(device) = backend {
            self.add(device.pool.progress().clone());
        }
    }

    /// Changes as long as any rank does something.
    pub fn total(&self) -> u64 {
        let counts = self.counters.iter().map(|counter| counter.load(Ordering::Relaxed));
        counts.fold(0, u64::wrapping_add)
    }
}

/// Looks at a count from time to time.
pub(super) struct Watch {
    last: u64,
    since: Instant,
}

impl Watch {
    pub fn new(count: u64, now: Instant) -> Watch {
        Watch { last: count, since: now }
    }

    /// How long the count has stood still.
    pub fn still(&mut self, count: u64, now: Instant) -> Duration {
        if count != self.last {
            *self = Watch::new(count, now);
        }
        now.duration_since(self.since)
    }
}

/// A communicator that counts its exchanges: two a layer, on every backend.
pub(super) struct Counted {
    pub inner: Box<dyn Communicator>,
    pub count: Arc<AtomicU64>,
}

impl Communicator for Counted {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn reserve(&mut self, num_values: usize) -> Result<(), KernelError> {
        self.inner.reserve(num_values)
    }

    fn all_reduce_sum(&mut self, x: &mut Tensor) -> Result<(), KernelError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let result = self.inner.all_reduce_sum(x);
        self.count.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn all_gather_columns(&mut self, out: &mut Tensor, part: &Tensor) -> Result<(), KernelError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let result = self.inner.all_gather_columns(out, part);
        self.count.fetch_add(1, Ordering::Relaxed);
        result
    }
}
