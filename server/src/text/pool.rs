//! Threads that render and encode, so that the async threads never do.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::error::{TextError, TextStartError};

/// Inputs up to this size are short: one thread takes nothing else, so that long ones cannot hold
/// up everybody.
const SHORT_INPUT_BYTES_MAX: usize = 64 * 1024;
/// Rendering and dropping deeply nested messages recurses.
const STACK_BYTES: usize = 8 * 1024 * 1024;

/// A bounded queue and the threads that work it off.
pub struct Pool {
    queue: Arc<Queue>,
    limits: PoolLimits,
}

#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    pub waiting_jobs_max: usize,
    pub waiting_bytes_max: usize,
}

impl Pool {
    /// Starts at least two threads: the first takes short inputs only.
    pub fn start(num_threads: usize, limits: PoolLimits) -> Result<Self, TextStartError> {
        let pool = Self { queue: Arc::default(), limits };
        for index in 0..num_threads.max(2) {
            let queue = pool.queue.clone();
            let takes = if index == 0 { Takes::ShortOnly } else { Takes::Any };
            std::thread::Builder::new()
                .name(format!("tokenizer-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    while let Some(job) = queue.pop(takes) {
                        (job.run)();
                    }
                })
                .map_err(|source| TextStartError::Thread { source })?;
        }
        Ok(pool)
    }

    /// Runs `work` on one of the threads; a caller that goes away before it began cancels it.
    ///
    /// Errors: `Busy` at once if the queue is full; `Crashed` if `work` panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        input_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TextError> {
        let (sender, receiver) = oneshot::channel();
        let run = Box::new(move || {
            if !sender.is_closed() {
                let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
            }
        });
        self.queue.push(input_bytes, run, self.limits)?;
        match receiver.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(TextError::Crashed { reason: panic_message(&*panic) }),
            Err(_) => Err(TextError::Stopped),
        }
    }
}

impl Drop for Pool {
    /// The threads end after the job they are at.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.wake.notify_all();
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    short: VecDeque<Job>,
    long: VecDeque<Job>,
    waiting_bytes: usize,
    closed: bool,
}

struct Job {
    arrived: Instant,
    input_bytes: usize,
    run: Box<dyn FnOnce() + Send>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    ShortOnly,
    Any,
}

impl Queue {
    fn push(
        &self,
        input_bytes: usize,
        run: Box<dyn FnOnce() + Send>,
        limits: PoolLimits,
    ) -> Result<(), TextError> {
        let mut state = self.lock();
        let jobs = state.short.len() + state.long.len();
        let bytes = state.waiting_bytes;
        // A text longer than the byte limit still gets its turn when nothing else waits.
        let full = bytes + input_bytes > limits.waiting_bytes_max && jobs > 0;
        if jobs >= limits.waiting_jobs_max || full {
            let (jobs_max, bytes_max) = (limits.waiting_jobs_max, limits.waiting_bytes_max);
            return Err(TextError::Busy { jobs, jobs_max, bytes, bytes_max });
        }
        state.waiting_bytes += input_bytes;
        let job = Job { arrived: Instant::now(), input_bytes, run };
        if input_bytes <= SHORT_INPUT_BYTES_MAX {
            state.short.push_back(job);
        } else {
            state.long.push_back(job);
        }
        // All are woken: the one that notify_one picks may not take this job's size.
        self.wake.notify_all();
        Ok(())
    }

    /// The oldest job that the caller takes; waits for one. `None` when the pool is gone.
    fn pop(&self, takes: Takes) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let job = match takes {
                Takes::ShortOnly => state.short.pop_front(),
                Takes::Any => state.pop_oldest(),
            };
            if let Some(job) = job {
                state.waiting_bytes -= job.input_bytes;
                return Some(job);
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn pop_oldest(&mut self) -> Option<Job> {
        match (self.short.front(), self.long.front()) {
            (Some(short), Some(long)) if long.arrived < short.arrived => self.long.pop_front(),
            (Some(_), _) => self.short.pop_front(),
            (None, _) => self.long.pop_front(),
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::testing::block_on;
    use super::*;

    fn pool(waiting_jobs_max: usize) -> Pool {
        let limits = PoolLimits { waiting_jobs_max, waiting_bytes_max: 1 << 20 };
        Pool::start(2, limits).unwrap()
    }

    /// A job that runs until the sender is dropped, and news that it has begun.
    fn blocker() -> (mpsc::Sender<()>, mpsc::Receiver<()>, impl FnOnce() + Send + 'static) {
        let (release, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let work = move || {
            let _ = begun.send(());
            let _ = wait.recv();
        };
        (release, has_begun, work)
    }

    #[test]
    fn a_long_input_does_not_hold_up_short_ones() {
        let pool = pool(10);
        let (release, has_begun, work) = blocker();
        let (release_2, _, work_2) = blocker();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let long = pool.run(SHORT_INPUT_BYTES_MAX + 1, work);
            let long_2 = pool.run(SHORT_INPUT_BYTES_MAX + 1, work_2);
            let short = async {
                has_begun.recv().unwrap();
                assert_eq!(pool.run(10, || 7).await, Ok(7));
                drop((release, release_2));
            };
            let (long, long_2, ()) = tokio::join!(long, long_2, short);
            assert_eq!((long, long_2), (Ok(()), Ok(())));
        });
    }

    #[test]
    fn a_full_queue_refuses_at_once() {
        let pool = pool(1);
        let (release, has_begun, work) = blocker();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let long = SHORT_INPUT_BYTES_MAX + 1;
            let running = pool.run(long, work);
            let others = async {
                has_begun.recv().unwrap();
                let waiting = pool.run(long, || 1);
                let refused = async {
                    let error = pool.run(long, || 2).await.unwrap_err();
                    assert!(matches!(error, TextError::Busy { jobs: 1, jobs_max: 1, .. }));
                    drop(release);
                };
                tokio::join!(waiting, refused).0
            };
            assert_eq!(tokio::join!(running, others), (Ok(()), Ok(1)));
        });
    }

    #[test]
    fn bytes_are_limited_but_one_big_text_gets_its_turn() {
        let queue = Queue::default();
        let limits = PoolLimits { waiting_jobs_max: 9, waiting_bytes_max: 100 };
        assert_eq!(queue.push(1000, Box::new(|| ()), limits), Ok(()));
        assert!(matches!(queue.push(1, Box::new(|| ()), limits), Err(TextError::Busy { .. })));
        assert_eq!(queue.pop(Takes::Any).unwrap().input_bytes, 1000);
        assert_eq!(queue.push(60, Box::new(|| ()), limits), Ok(()));
        assert_eq!(queue.push(40, Box::new(|| ()), limits), Ok(()));
        let busy = TextError::Busy { jobs: 2, jobs_max: 9, bytes: 100, bytes_max: 100 };
        assert_eq!(queue.push(1, Box::new(|| ()), limits), Err(busy));
    }

    #[test]
    fn a_panic_is_that_job_s_error_and_the_threads_go_on() {
        let pool = pool(10);
        for _ in 0..4 {
            let crashed = block_on(pool.run(1, || panic!("no such word")));
            let reason = "no such word".to_owned();
            assert_eq!(crashed, Err::<(), _>(TextError::Crashed { reason }));
        }
        assert_eq!(block_on(pool.run(1, || 3)), Ok(3));
    }

    #[test]
    fn a_job_nobody_waits_for_is_not_run() {
        let pool = pool(10);
        let (release, has_begun, work) = blocker();
        let (ran, has_run) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let long = SHORT_INPUT_BYTES_MAX + 1;
            let running = pool.run(long, work);
            let others = async {
                has_begun.recv().unwrap();
                {
                    let mut gone = Box::pin(pool.run(long, move || ran.send(())));
                    let polled = std::future::poll_fn(|context| {
                        std::task::Poll::Ready(gone.as_mut().poll(context).is_pending())
                    });
                    assert!(polled.await, "it waits for its turn");
                }
                drop(release);
            };
            assert_eq!(tokio::join!(running, others).0, Ok(()));
        });
        assert_eq!(block_on(pool.run(SHORT_INPUT_BYTES_MAX + 1, || 1)), Ok(1));
        assert!(has_run.recv().is_err(), "its sender is dropped unused");
    }
}
