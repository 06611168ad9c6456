//! Ends collectives that wait too long, if the environment says what is too long.

use crate::abi::{Code, Result, refuse};
use crate::driver::CUDA_ERROR_LAUNCH_TIMEOUT;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(20);
const SILENT_WAIT_MAX: Duration = Duration::from_secs(10);

/// What has operations that may wait too long.
pub trait Watched: Send + Sync {
    /// Fails all that has waited since before `deadline`, and first says what it waited for.
    fn fail_older_than(&self, deadline: Instant, error: u32);
}

/// How long a rank waits for the others to join.
pub struct Patience {
    since: Instant,
    is_reported: bool,
}

impl Patience {
    pub fn new() -> Patience {
        Patience { since: Instant::now(), is_reported: false }
    }

    /// Reports a long wait once. Errors: `SYSTEM_ERROR` when the environment says it is too long.
    pub fn check(&mut self, missing: &str) -> Result<()> {
        if timeout().is_some_and(|timeout| self.since.elapsed() > timeout) {
            return refuse(Code::SYSTEM_ERROR, &format!("{missing} did not join in time"));
        }
        if self.since.elapsed() > SILENT_WAIT_MAX && !self.is_reported {
            self.is_reported = true;
            eprintln!("virtual GPU: NCCL: still waiting for {missing} to join");
        }
        Ok(())
    }
}

/// `VIRTUAL_GPU_NCCL_TIMEOUT_S`; none means that a collective waits for ever, as with the real
/// library.
fn timeout() -> Option<Duration> {
    static TIMEOUT: OnceLock<Option<Duration>> = OnceLock::new();
    *TIMEOUT.get_or_init(|| {
        let text = std::env::var("VIRTUAL_GPU_NCCL_TIMEOUT_S").ok()?;
        let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        if seconds.is_none() {
            eprintln!("virtual GPU: VIRTUAL_GPU_NCCL_TIMEOUT_S is `{text}`; it may be a number");
        }
        seconds
    })
}

/// Keeps an eye on it from now on.
pub fn watch(new: Arc<dyn Watched>) {
    static WATCHED: Mutex<Vec<Weak<dyn Watched>>> = Mutex::new(Vec::new());
    static THREAD: OnceLock<()> = OnceLock::new();
    let Some(timeout) = timeout() else { return };
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = |known: &Weak<dyn Watched>| !std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(&new));
    if watched.iter().all(is_new) {
        watched.push(Arc::downgrade(&new));
    }
    drop(watched);
    THREAD.get_or_init(|| {
        thread::spawn(move || {
            loop {
                thread::sleep(LOOK_EVERY);
                let Some(deadline) = Instant::now().checked_sub(timeout) else { continue };
                let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
                watched.retain(|known| known.strong_count() > 0);
                for known in watched.iter().filter_map(Weak::upgrade) {
                    known.fail_older_than(deadline, CUDA_ERROR_LAUNCH_TIMEOUT);
                }
            }
        });
    });
}
