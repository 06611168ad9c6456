//! Threads for work that must not be done where it is asked for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Parsers of what a client wrote recurse; untouched stack costs nothing.
const STACK_BYTES: usize = 256 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// A queue and the threads that work it off, the oldest job first. Whoever adds jobs bounds them.
pub struct Workers {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Workers {
    /// `niceness`: of the threads towards all others, as nice(1) has it.
    ///
    /// Errors: the system has no thread.
    pub fn start(name: &str, num_threads: usize, niceness: i32) -> std::io::Result<Workers> {
        let workers = Workers { queue: Arc::default() };
        for index in 0..num_threads.max(1) {
            let queue = Arc::clone(&workers.queue);
            std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    kernels::device::thread_pool::set_niceness(niceness);
                    while let Some(job) = queue.pop() {
                        // Whoever waits for it sees that no answer comes.
                        let _ = catch_unwind(AssertUnwindSafe(job));
                    }
                })?;
        }
        Ok(workers)
    }

    pub fn add(&self, job: impl FnOnce() + Send + 'static) {
        self.queue.lock().jobs.push_back(Box::new(job));
        self.queue.wake.notify_one();
    }
}

impl Drop for Workers {
    /// The threads end after the jobs that were added.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.wake.notify_all();
    }
}

impl Queue {
    fn pop(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
