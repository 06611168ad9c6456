//! One thread of this process, seen from another one: what it has computed, and how far it gives
//! way.
#![allow(unsafe_code)]

use std::time::Duration;

/// Names a thread. Where the system cannot look at one from outside, it seems never to compute,
/// and does not give way.
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    #[cfg(target_os = "linux")]
    id: libc::pid_t,
}

impl Thread {
    /// The calling thread.
    pub fn current() -> Thread {
        Thread {
            #[cfg(target_os = "linux")]
            // SAFETY: it takes nothing and cannot fail.
            id: unsafe { libc::gettid() },
        }
    }

    /// The time that it has computed; `None`: it has ended, or the system does not say.
    pub fn cpu_time(&self) -> Option<Duration> {
        #[cfg(target_os = "linux")]
        {
            // A thread's own clock, as the kernel numbers them (posix-timers_types.h:
            // CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED).
            let clock = ((!self.id) << 3) | 4 | 2;
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: `time` is there to be written; a clock that does not exist is an error.
            let result = unsafe { libc::clock_gettime(clock, &mut time) };
            (result == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Lets it give way to others, as nice(1) has it; does nothing where the system does not allow
    /// it.
    pub fn set_niceness(&self, niceness: i32) {
        #[cfg(target_os = "linux")]
        // SAFETY: only numbers are passed; on Linux they name a single thread.
        unsafe {
            libc::setpriority(libc::PRIO_PROCESS, self.id as libc::id_t, niceness);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = niceness;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_is_seen_to_compute_and_to_end() {
        let (tell, told) = channel();
        let (go_on, may_go_on) = channel::<()>();
        let other = std::thread::spawn(move || {
            tell.send(Thread::current()).expect("the test waits");
            let mut state = 1u64;
            while may_go_on.try_recv().is_err() {
                state = std::hint::black_box(state.wrapping_mul(3));
            }
        });
        let thread = told.recv().expect("it has begun");
        let begin = thread.cpu_time().expect("it is there");
        // Only that it comes is asserted, not how fast.
        while thread.cpu_time().expect("it is there") <= begin {
            std::thread::yield_now();
        }
        go_on.send(()).expect("it computes");
        other.join().expect("no panic");
        // Its place in the kernel may be cleared a little later than `join` returns.
        while thread.cpu_time().is_some() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn only_the_thread_that_is_named_gives_way() {
        // SAFETY: only numbers are passed.
        let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = niceness();
        let other = std::thread::spawn(move || {
            Thread::current().set_niceness(17);
            niceness()
        });
        assert_eq!(other.join().expect("no panic"), 17);
        assert_eq!(niceness(), before);
    }
}
