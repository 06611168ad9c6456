//! A rank whose clique meets in another process.

use crate::abi::{Code, Result, refuse};
use crate::clique::Call;
use crate::driver::{self, Ticket};
use crate::hub::{Key, Maker};
use crate::watchdog::{self, Watched};
use crate::wire::{self, Frame, FromHub, Sent, ToHub};
use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The process in which the clique meets notices what waits too long, and says what it waits for;
/// this one does so later, in case the other is lost.
const WATCHDOG_DELAY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub struct Remote {
    pub num_ranks: usize,
    pub rank: usize,
    shared: Arc<Shared>,
}

/// With the thread that listens to the other process.
struct Shared {
    device: i32,
    state: Mutex<State>,
    changed: Condvar,
}

/// No function of the driver is called while it is locked: the driver drops operations, and with
/// them the last owner of a rank, while it is locked itself.
struct State {
    /// `None` once the connection is to end.
    to_hub: Option<Sender<Frame>>,
    is_complete: bool,
    async_error: Option<Code>,
    is_aborted: bool,
    /// Nobody owns the rank any more.
    is_left: bool,
    pending: BTreeMap<Ticket, Pending>,
    /// Operations that are no longer pending, and whose results are being written.
    num_ending: usize,
}

/// An operation that waits for the other ranks.
struct Pending {
    calls: Vec<Call>,
    since: Instant,
}

impl Remote {
    /// Joins; does not wait until all have.
    ///
    /// Errors: those of the other process; `SYSTEM_ERROR` when it is gone.
    pub fn join(
        maker: Maker,
        key: &Key,
        num_ranks: usize,
        rank: usize,
        device: i32,
    ) -> Result<Arc<Remote>> {
        let join = Frame::new(&ToHub::Join { num_ranks, rank, device }, key.to_vec());
        let ask = || -> io::Result<_> {
            let mut socket = maker.connect()?;
            join.write(&mut socket)?;
            let answer = wire::read(&mut socket)?;
            Ok((socket.try_clone()?, socket, answer))
        };
        let (socket, from_hub) = match ask() {
            Ok((socket, from_hub, (FromHub::Accepted, _))) => (socket, from_hub),
            Ok((_, _, (FromHub::Refused { code }, why))) => {
                return refuse(code, &String::from_utf8_lossy(&why));
            }
            Ok((_, _, (other, _))) => {
                return refuse(Code::SYSTEM_ERROR, &format!("joining was answered by {other:?}"));
            }
            Err(error) => {
                let why = format!("the process that made the id cannot be reached: {error}");
                return refuse(Code::SYSTEM_ERROR, &why);
            }
        };
        let state = State {
            to_hub: Some(wire::sender(socket)),
            is_complete: false,
            async_error: None,
            is_aborted: false,
            is_left: false,
            pending: BTreeMap::new(),
            num_ending: 0,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { device, state, changed });
        let listening = shared.clone();
        thread::spawn(move || listening.listen(from_hub));
        Ok(Arc::new(Remote { num_ranks, rank, shared }))
    }

    /// Errors: `SYSTEM_ERROR` when it takes too long.
    pub fn wait_for_all(&self) -> Result<()> {
        let mut patience = watchdog::Patience::new();
        let mut state = self.shared.lock();
        while !state.is_complete {
            patience.check("the other ranks")?;
            state = match self.shared.changed.wait_timeout(state, LOOK_EVERY) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        Ok(())
    }

    /// The rank's operation has come to its turn: its calls go to where they meet the others'.
    pub fn arrive(&self, calls: &[Call], ticket: Ticket) {
        let mut data = Vec::new();
        let mut read = |call: &Call| -> Sent {
            let bytes = call.send_bytes(self.rank, self.num_ranks);
            let values = match bytes {
                0 => Vec::new(),
                _ => driver::read(self.shared.device, call.send, bytes)?,
            };
            data.extend_from_slice(&values);
            Ok(bytes)
        };
        let sent = calls.iter().map(|call| (*call, read(call))).collect();
        let frame = Frame::new(&ToHub::Arrive { ticket, calls: sent }, data);
        let mut state = self.shared.lock();
        if state.is_aborted {
            drop(state);
            // Kernels of an aborted communicator end at once.
            return driver::complete(ticket, 0);
        }
        let pending = Pending { calls: calls.to_vec(), since: Instant::now() };
        state.pending.insert(ticket, pending);
        state.send(frame);
    }

    /// Ends what the rank waits for, whatever becomes of the other process.
    pub fn abort(&self) {
        let mut state = self.shared.lock();
        state.is_aborted = true;
        state.send(Frame::new(&ToHub::Abort, Vec::new()));
        let pending = std::mem::take(&mut state.pending);
        // Results that came before are in place when this returns.
        while state.num_ending > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        pending.into_keys().for_each(|ticket| driver::complete(ticket, 0));
    }

    pub fn async_error(&self) -> Option<Code> {
        self.shared.lock().async_error
    }
}

impl Watched for Remote {
    fn fail_older_than(&self, deadline: Instant, error: u32) {
        let Some(deadline) = deadline.checked_sub(WATCHDOG_DELAY) else { return };
        let mut state = self.shared.lock();
        let (stale, pending): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut state.pending).into_iter().partition(|(_, p)| p.since < deadline);
        state.pending = pending;
        if !stale.is_empty() {
            state.async_error = Some(Code::REMOTE_ERROR);
        }
        drop(state);
        for (ticket, pending) in stale {
            let kinds: Vec<_> = pending.calls.iter().map(|call| call.kind).collect();
            eprintln!("virtual GPU: NCCL: timeout: rank {} waits: {kinds:?}", self.rank);
            driver::complete(ticket, error);
        }
    }
}

impl Drop for Remote {
    /// Operations that are enqueued still run; the last one ends the connection.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_left = true;
        state.close_if_done();
    }
}

impl Shared {
    /// Until the connection ends. If that is because the other process is lost, the rank goes on
    /// waiting, as with the real library between GPUs of one machine.
    fn listen(&self, socket: UnixStream) {
        let mut messages = BufReader::new(socket);
        while let Ok((message, data)) = wire::read(&mut messages) {
            match message {
                FromHub::Complete => self.lock().is_complete = true,
                FromHub::Failed { code } => self.lock().async_error = Some(code),
                FromHub::Ended { ticket, error, received } => {
                    self.end(ticket, error, &received, &data);
                }
                FromHub::Accepted | FromHub::Refused { .. } => {}
            }
            self.changed.notify_all();
        }
    }

    fn end(&self, ticket: Ticket, mut error: u32, received: &[usize], data: &[u8]) {
        let pending = {
            let mut state = self.lock();
            // It was aborted, or took too long.
            let Some(pending) = state.pending.remove(&ticket) else { return };
            state.num_ending += 1;
            pending
        };
        let mut rest = data;
        for (call, len) in pending.calls.iter().zip(received) {
            let (bytes, after) = rest.split_at(*len);
            rest = after;
            if error == 0 && !bytes.is_empty() {
                error = driver::write(self.device, call.recv, bytes).err().unwrap_or(0);
            }
        }
        driver::complete(ticket, error);
        let mut state = self.lock();
        state.num_ending -= 1;
        state.close_if_done();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&self, frame: Frame) {
        if let Some(to_hub) = &self.to_hub {
            // When the other process is gone, the rank waits for it all the same.
            let _ = to_hub.send(frame);
        }
    }

    fn close_if_done(&mut self) {
        if self.is_left && self.pending.is_empty() && self.num_ending == 0 {
            self.to_hub = None;
        }
    }
}
