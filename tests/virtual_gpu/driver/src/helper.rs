//! One thread that runs host functions of programs that never wait for them, as a device would.

use crate::queue::Ticket;
use crate::state::Driver;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long the program has to wait for its work by itself, which keeps its order a matter of the
/// seed.
const GRACE: Duration = Duration::from_millis(100);

struct Wish {
    due: Instant,
    context: u64,
    ticket: Ticket,
}

/// Sees to it that an operation runs, if nobody waits for it.
pub fn run_soon(driver: &'static Driver, context: u64, ticket: Ticket) {
    static HELPER: OnceLock<Sender<Wish>> = OnceLock::new();
    let helper = HELPER.get_or_init(|| {
        let (sender, wishes) = channel::<Wish>();
        thread::spawn(move || {
            for wish in wishes {
                thread::sleep(wish.due.saturating_duration_since(Instant::now()));
                let state = driver.lock();
                if state.contexts.contains_key(&wish.context) {
                    // The program is told of errors by its own calls.
                    drop(driver.wait_for(wish.context, state, Some(wish.ticket)));
                }
            }
        });
        sender
    });
    let wish = Wish { due: Instant::now() + GRACE, context, ticket };
    helper.send(wish).expect("the helper lives as long as the process");
}
