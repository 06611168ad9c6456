//! Threads for work that must not be done where it is asked for, and that can turn out to be much.

use kernels::device::thread::Thread;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Parsers of what a client wrote recurse; untouched stack costs nothing.
const STACK_BYTES: usize = 256 << 20;
/// How often in the time of a job's patience it is looked whether that is used up.
const LOOKS_PER_PATIENCE: u32 = 2;
/// So often it is looked for nothing before whoever looks sleeps until a job begins: between the
/// masks of one answer nobody need be woken.
const IDLE_LOOKS_MAX: u32 = 50;

type Job = Box<dyn FnOnce() + Send>;

/// How the threads stand to all others of this machine. Niceness is as nice(1) has it.
pub struct Manners {
    pub num_threads: usize,
    pub niceness: i32,
    /// A job that has computed so long is late: its thread gives way still more, and another thread
    /// takes its place, so that the next job need not wait.
    pub patience: Duration,
    pub niceness_late: i32,
    /// So many late jobs have their places taken; those beyond keep theirs.
    pub late_max: usize,
}

/// A queue and the threads that work it off, the oldest job first. Whoever adds jobs bounds them.
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    manners: Manners,
    state: Mutex<State>,
    /// There is a job, or no more will come.
    added: Condvar,
    /// A job has begun while nobody watched, or no more will come.
    begun: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    running: HashMap<u64, Running>,
    num_late: usize,
    watch_sleeps: bool,
    /// Counts jobs.
    clock: u64,
    closed: bool,
}

struct Running {
    thread: Thread,
    /// What the thread had computed before.
    begun: Duration,
    gives_way: bool,
    /// Another thread has its place.
    is_replaced: bool,
}

impl Workers {
    /// Errors: the system has no thread.
    pub fn start(name: &str, manners: Manners) -> std::io::Result<Workers> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            manners,
            state: Mutex::default(),
            added: Condvar::new(),
            begun: Condvar::new(),
        });
        let workers = Workers { shared: Arc::clone(&shared) };
        for _ in 0..shared.manners.num_threads.max(1) {
            shared.start_thread()?;
        }
        let watch = std::thread::Builder::new().name(format!("{name}-watch"));
        watch.spawn(move || shared.watch())?;
        Ok(workers)
    }

    pub fn add(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.lock().jobs.push_back(Box::new(job));
        self.shared.added.notify_one();
    }
}

impl Drop for Workers {
    /// The threads end after the jobs that were added.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.added.notify_all();
        self.shared.begun.notify_all();
    }
}

impl Shared {
    fn start_thread(self: &Arc<Self>) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("{}-work", self.name));
        thread.stack_size(STACK_BYTES).spawn(move || shared.work())?;
        Ok(())
    }

    fn work(self: &Arc<Self>) {
        let thread = Thread::current();
        thread.set_niceness(self.manners.niceness);
        while let Some((number, job)) = self.next(thread) {
            // Whoever waits for it sees that no answer comes.
            let _ = catch_unwind(AssertUnwindSafe(job));
            let mut state = self.lock();
            let ran = state.running.remove(&number).expect("it was put there by `next`");
            if ran.is_replaced {
                state.num_late -= 1;
                return;
            }
            drop(state);
            // It may not be allowed to stop giving way, so another one takes its place.
            if ran.gives_way && self.start_thread().is_ok() {
                return;
            }
        }
    }

    /// `None`: no more will come.
    fn next(&self, thread: Thread) -> Option<(u64, Job)> {
        let mut state = self.lock();
        let job = loop {
            if let Some(job) = state.jobs.pop_front() {
                break job;
            }
            if state.closed {
                return None;
            }
            state = self.added.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.clock += 1;
        let number = state.clock;
        let begun = thread.cpu_time().unwrap_or_default();
        let running = Running { thread, begun, gives_way: false, is_replaced: false };
        state.running.insert(number, running);
        if state.watch_sleeps {
            self.begun.notify_one();
        }
        Some((number, job))
    }

    /// Finds jobs that are late.
    fn watch(self: Arc<Self>) {
        let pause = self.manners.patience / LOOKS_PER_PATIENCE;
        let mut idle_looks = 0;
        loop {
            std::thread::sleep(pause);
            let mut state = self.lock();
            if !state.running.is_empty() {
                idle_looks = 0;
                self.look(&mut state);
                continue;
            }
            idle_looks += 1;
            if idle_looks < IDLE_LOOKS_MAX {
                continue;
            }
            state.watch_sleeps = true;
            while state.running.is_empty() {
                if state.closed && state.jobs.is_empty() {
                    return;
                }
                state = self.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.watch_sleeps = false;
            idle_looks = 0;
        }
    }

    fn look(self: &Arc<Self>, state: &mut State) {
        let Manners { patience, niceness_late, late_max, .. } = self.manners;
        for running in state.running.values_mut() {
            let computed = running.thread.cpu_time().unwrap_or_default();
            if running.is_replaced || computed.saturating_sub(running.begun) < patience {
                continue;
            }
            if !running.gives_way {
                running.thread.set_niceness(niceness_late);
                running.gives_way = true;
            }
            // Without a thread for its place it keeps it, and is looked at again.
            if state.num_late < late_max && self.start_thread().is_ok() {
                running.is_replaced = true;
                state.num_late += 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    fn workers(late_max: usize) -> Workers {
        let manners = Manners {
            num_threads: 1,
            niceness: 0,
            patience: Duration::from_millis(2),
            niceness_late: 5,
            late_max,
        };
        Workers::start("test", manners).expect("threads")
    }

    /// A job that computes until it is told to end, and says so.
    fn add_endless(workers: &Workers) -> (Sender<()>, Receiver<()>) {
        let ((end, may_end), (tell, told)) = (channel::<()>(), channel());
        workers.add(move || {
            let mut state = 1u64;
            while may_end.try_recv().is_err() {
                state = std::hint::black_box(state.wrapping_mul(3));
            }
            tell.send(()).expect("the test waits");
        });
        (end, told)
    }

    fn add_quick(workers: &Workers) -> Receiver<()> {
        let (tell, told) = channel();
        workers.add(move || tell.send(()).expect("the test waits"));
        told
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_late_job_gives_its_place_to_the_next_one() {
        let workers = workers(1);
        let (end, ended) = add_endless(&workers);
        // It ends although the only thread has not.
        add_quick(&workers).recv().expect("it is done");
        end.send(()).expect("it is in work");
        ended.recv().expect("it ends");
        // The thread that was late has ended, and again there is one.
        let (end, ended) = add_endless(&workers);
        add_quick(&workers).recv().expect("it is done");
        end.send(()).expect("it is in work");
        ended.recv().expect("it ends");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn late_jobs_beyond_the_limit_keep_their_places() {
        let workers = workers(1);
        let (end_first, first_ended) = add_endless(&workers);
        let (end_second, second_ended) = add_endless(&workers);
        let third = add_quick(&workers);
        while workers.shared.lock().running.values().filter(|job| job.gives_way).count() < 2 {
            std::thread::yield_now();
        }
        assert!(third.try_recv().is_err(), "two threads are late, the limit is one");
        end_second.send(()).expect("it is in work");
        second_ended.recv().expect("it ends");
        third.recv().expect("it is done");
        end_first.send(()).expect("it is in work");
        first_ended.recv().expect("it ends");
    }

    #[test]
    fn a_job_that_panics_costs_no_thread_and_jobs_are_done_after_the_workers_are_gone() {
        let workers = workers(0);
        workers.add(|| panic!("on purpose"));
        let told: Vec<Receiver<()>> = (0..3).map(|_| add_quick(&workers)).collect();
        drop(workers);
        told.iter().for_each(|told| told.recv().expect("it is done"));
    }
}
