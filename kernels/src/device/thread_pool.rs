//! The worker threads of one CPU device: parallel loops with a cheap start and end, threads parked
//! when idle.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Threads one pool may have.
pub const THREADS_MAX: usize = 256;
/// How often an idle worker looks for work before it parks: half a millisecond on Zen 4, longer
/// than the pause between two ops and mostly that between two steps, shorter than that between
/// requests.
const SPINS_MAX: u32 = 20_000;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of the open job; 0 when none is open. Numbers are never used twice.
    open: AtomicU64,
    /// Workers that are inside the open job, or about to find out that it closed.
    active: AtomicUsize,
    next_task: AtomicUsize,
    num_tasks: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    parked: AtomicUsize,
    progress: Arc<AtomicU64>,
}

// SAFETY: `job` is written only by the thread that holds `ThreadPool::turn`, while `open` is 0 and
// `active` is 0, and read only by threads that saw a non-zero `open` after raising `active`; see
// `run`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A fixed set of threads. The thread that calls `run` works too, so a pool of one thread has no
/// workers.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<u64>,
}

impl ThreadPool {
    /// `num_threads` includes the caller of `run`. `pin_to`: cores for the workers, `pin_to[i]` for
    /// worker i (thread 0 is the caller, which pins itself with `pin_current_thread`).
    pub fn new(num_threads: usize, pin_to: Option<&[usize]>) -> Self {
        assert!((1..=THREADS_MAX).contains(&num_threads), "threads outside 1..={THREADS_MAX}");
        let shared = Arc::new(Shared {
            open: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            num_tasks: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            progress: Arc::default(),
        });
        let workers = (1..num_threads)
            .map(|i| {
                let shared = shared.clone();
                let core = pin_to.and_then(|cores| cores.get(i).copied());
                let work = move || {
                    if let Some(core) = core {
                        pin_current_thread(core);
                    }
                    worker_loop(&shared);
                };
                let thread = std::thread::Builder::new().name(format!("cpu-{i}"));
                thread.spawn(work).expect("cannot start a thread")
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(0) }
    }

    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Grows with every task begun: whoever watches the device sees from it that it is alive.
    pub fn progress(&self) -> &Arc<AtomicU64> {
        &self.shared.progress
    }

    /// Calls `task(i)` once for each i in 0..num_tasks, on all threads, and returns when all are
    /// done. Which thread runs a task is not fixed, so a task's result must not depend on it.
    /// Panics if a task panicked.
    pub fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if num_tasks <= 1 || self.workers.is_empty() {
            for i in 0..num_tasks {
                self.shared.progress.fetch_add(1, Relaxed);
                task(i);
            }
            return;
        }
        let mut turn = self.turn.lock().expect("a task panicked before");
        *turn += 1;
        let shared = &*self.shared;
        // SAFETY: the lifetime is erased only until `open` is 0 and `active` is 0 again, before
        // this function returns; no worker reads `job` after that (see `worker_loop`). No worker
        // reads it now: `open` is 0.
        unsafe {
            *shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(task));
        }
        shared.next_task.store(0, SeqCst);
        shared.num_tasks.store(num_tasks, SeqCst);
        shared.open.store(*turn, SeqCst);
        if shared.parked.load(SeqCst) > 0 {
            self.workers.iter().for_each(|w| w.thread().unpark());
        }
        claim_tasks(shared, task);
        shared.open.store(0, SeqCst);
        // A worker raises `active` before it looks at `open`. If it saw this job, then we see it
        // here.
        let mut spins = 0u32;
        while shared.active.load(SeqCst) > 0 {
            spins += 1;
            if spins.is_multiple_of(1024) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        let panicked = shared.panicked.swap(false, SeqCst);
        drop(turn);
        assert!(!panicked, "a parallel task panicked");
    }

    /// Splits 0..len into ranges of about equal size, at least `min_len` long (but for the last),
    /// and runs `task` on each. The cuts depend on `len`, `min_len` and the number of threads, so
    /// results must not depend on the cuts.
    pub fn run_ranges(&self, len: usize, min_len: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        // Four ranges a thread even out cores of unequal speed at little cost.
        let range_len = len.div_ceil(self.num_threads() * 4).max(min_len).max(1);
        self.run(len.div_ceil(range_len), &|i| {
            task(i * range_len..((i + 1) * range_len).min(len));
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

/// Binds the calling thread to one core; does nothing where the system does not allow it.
pub fn pin_current_thread(core: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: `set` is a plain bit set that lives across the call; CPU_SET bounds are checked
    // before use.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if core < libc::CPU_SETSIZE as usize {
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

fn worker_loop(shared: &Shared) {
    let mut last_seen = 0;
    while let Some(number) = wait_for_job(shared, last_seen) {
        last_seen = number;
        shared.active.fetch_add(1, SeqCst);
        if shared.open.load(SeqCst) == number {
            // SAFETY: `active` was raised before `open` was read as this job, so `run` has not
            // passed its wait for
            // `active` and `job` still points to a live closure.
            if let Some(job) = unsafe { *shared.job.get() } {
                // SAFETY: as above.
                claim_tasks(shared, unsafe { &*job });
            }
        }
        shared.active.fetch_sub(1, SeqCst);
    }
}

fn wait_for_job(shared: &Shared, last_seen: u64) -> Option<u64> {
    let mut spins = 0;
    loop {
        let number = shared.open.load(SeqCst);
        if shared.stop.load(SeqCst) {
            return None;
        }
        if number != 0 && number != last_seen {
            return Some(number);
        }
        spins += 1;
        if spins < SPINS_MAX {
            std::hint::spin_loop();
            continue;
        }
        shared.parked.fetch_add(1, SeqCst);
        // Look once more: `run` may have opened a job before it could see us parked.
        let number = shared.open.load(SeqCst);
        if (number == 0 || number == last_seen) && !shared.stop.load(SeqCst) {
            std::thread::park();
        }
        shared.parked.fetch_sub(1, SeqCst);
        spins = 0;
    }
}

fn claim_tasks(shared: &Shared, task: &(dyn Fn(usize) + Sync)) {
    let num_tasks = shared.num_tasks.load(SeqCst);
    loop {
        let i = shared.next_task.fetch_add(1, SeqCst);
        if i >= num_tasks {
            return;
        }
        shared.progress.fetch_add(1, Relaxed);
        if catch_unwind(AssertUnwindSafe(|| task(i))).is_err() {
            shared.panicked.store(true, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_in_many_short_jobs() {
        let pool = ThreadPool::new(4, None);
        for num_tasks in (0..2000).map(|i| i % 37) {
            let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(num_tasks, &|i| {
                counts[i].fetch_add(1, SeqCst);
            });
            assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
        }
    }

    #[test]
    fn ranges_cover_everything_once_also_after_workers_parked() {
        let pool = ThreadPool::new(3, None);
        for len in [0, 1, 5, 1000] {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            pool.run_ranges(len, 3, &|r| {
                sum.fetch_add(r.sum::<usize>(), SeqCst);
            });
            assert_eq!(sum.load(SeqCst), (0..len).sum());
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller() {
        let pool = ThreadPool::new(2, None);
        let result =
            catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert!(i != 5, "task five"))));
        assert!(result.is_err());
    }
}
