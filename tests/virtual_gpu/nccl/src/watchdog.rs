//! Ends collectives that wait too long, if the environment says what is too long.

use crate::clique::Clique;
use crate::driver::CUDA_ERROR_LAUNCH_TIMEOUT;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// `VIRTUAL_GPU_NCCL_TIMEOUT_S`; none means that a collective waits for ever, as with the real
/// library.
pub fn timeout() -> Option<Duration> {
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

/// Keeps an eye on a clique from now on.
pub fn watch(clique: &Arc<Clique>) {
    static WATCHED: Mutex<Vec<Weak<Clique>>> = Mutex::new(Vec::new());
    static THREAD: OnceLock<()> = OnceLock::new();
    let Some(timeout) = timeout() else { return };
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_known = watched.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(clique)));
    if !is_known {
        watched.push(Arc::downgrade(clique));
    }
    drop(watched);
    THREAD.get_or_init(|| {
        thread::spawn(move || {
            loop {
                thread::sleep(LOOK_EVERY);
                let Some(deadline) = Instant::now().checked_sub(timeout) else { continue };
                let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
                watched.retain(|clique| clique.strong_count() > 0);
                for clique in watched.iter().filter_map(Weak::upgrade) {
                    for what in clique.fail_older_than(deadline, CUDA_ERROR_LAUNCH_TIMEOUT) {
                        eprintln!("virtual GPU: NCCL: timeout: {what}");
                    }
                }
            }
        });
    });
}
