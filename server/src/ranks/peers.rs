//! Who in the other processes of a group is alive: signs several times a second, in both
//! directions between rank 0 and every other rank.

use super::progress::{LOOK_INTERVAL, Progress, STALL_TIME_MAX};
use super::wire::{Offer, Sign, decode, encode};
use crate::engine::RunnerError;
use kernels::comm::messages::{Channel, Messages};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A process that is silent for so long has died or stands still.
pub const SILENCE_MAX: Duration = STALL_TIME_MAX;
/// The same once this process was told to end. mpirun does so when a process has died, and kills
/// all others soon after: clients must be answered before.
const HURRIED_SILENCE_MAX: Duration = Duration::from_secs(1);

/// What one process knows of those that it exchanges signs with: rank 0 of all others, they of
/// rank 0. A thread of its own keeps it up to date until it is closed.
pub(super) struct Peers {
    messages: Arc<dyn Messages>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    peers: Vec<Peer>,
    /// Of this process, told to the others.
    own: Progress,
    /// Not sent yet.
    outbox: Vec<Sign>,
    silence_max: Duration,
    lost: Option<RunnerError>,
    on_loss: Option<Box<dyn FnOnce(RunnerError) + Send>>,
    is_open: bool,
    /// Whether the thread has sent its last sign.
    has_ended: bool,
}

struct Peer {
    rank: usize,
    last_sign: Instant,
    progress: Arc<AtomicU64>,
    offer: Option<Offer>,
    /// What it has room for, once it has loaded.
    num_blocks: Option<usize>,
    is_ready: bool,
}

impl Peers {
    /// Starts to exchange signs with `ranks`.
    pub fn watch(
        messages: Arc<dyn Messages>,
        ranks: impl IntoIterator<Item = usize>,
    ) -> std::io::Result<Arc<Peers>> {
        let last_sign = Instant::now();
        let peer = |rank| Peer {
            rank,
            last_sign,
            progress: Arc::default(),
            offer: None,
            num_blocks: None,
            is_ready: false,
        };
        let state = State {
            peers: ranks.into_iter().map(peer).collect(),
            own: Progress::default(),
            outbox: Vec::new(),
            silence_max: SILENCE_MAX,
            lost: None,
            on_loss: None,
            is_open: true,
            has_ended: false,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let peers = Arc::new(Peers { messages, state, changed });
        let watched = peers.clone();
        std::thread::Builder::new().name("peers".into()).spawn(move || {
            watched.run();
            watched.lock().has_ended = true;
            watched.changed.notify_all();
        })?;
        Ok(peers)
    }

    pub fn say(&self, sign: Sign) {
        self.lock().outbox.push(sign);
        self.changed.notify_all();
    }

    /// What this process counts, from now on.
    pub fn tell(&self, progress: Progress) {
        self.lock().own = progress;
    }

    /// Counts of the others, as they told them.
    pub fn progress(&self) -> Vec<Arc<AtomicU64>> {
        self.lock().peers.iter().map(|peer| peer.progress.clone()).collect()
    }

    pub fn lost(&self) -> Option<RunnerError> {
        self.lock().lost.clone()
    }

    /// From now on a short silence is a loss.
    pub fn hurry(&self) {
        self.lock().silence_max = HURRIED_SILENCE_MAX;
        self.changed.notify_all();
    }

    /// Calls `act` when the first peer is lost, at once if one is already.
    pub fn on_loss(&self, act: impl FnOnce(RunnerError) + Send + 'static) {
        let mut state = self.lock();
        match state.lost.clone() {
            Some(error) => act(error),
            None => state.on_loss = Some(Box::new(act)),
        }
    }

    /// Waits until all have told what they bring, in the order of their ranks.
    pub fn offers(&self) -> Result<Vec<Offer>, RunnerError> {
        self.wait_for(|peers| peers.iter().map(|peer| peer.offer.clone()).collect())
    }

    /// Waits until all have loaded the model. Gives the blocks that each has room for.
    pub fn loaded(&self) -> Result<Vec<usize>, RunnerError> {
        self.wait_for(|peers| peers.iter().map(|peer| peer.num_blocks).collect())
    }

    /// Waits until plans may come to all.
    pub fn ready(&self) -> Result<(), RunnerError> {
        self.wait_for(|peers| peers.iter().all(|peer| peer.is_ready).then_some(()))
    }

    /// What another thread of this process sends, unless a peer is lost first; `None` when the
    /// thread ends without a word.
    pub fn receive<T>(&self, from: &Receiver<T>) -> Result<Option<T>, RunnerError> {
        loop {
            match from.recv_timeout(LOOK_INTERVAL) {
                Ok(value) => return Ok(Some(value)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.lost().map_or(Ok(()), Err)?,
            }
        }
    }

    /// Ends the exchange, and returns when no more signs are sent: from now on nobody is lost.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_open = false;
        self.changed.notify_all();
        drop(self.changed.wait_timeout_while(state, SILENCE_MAX, |state| !state.has_ended));
    }

    fn wait_for<T>(&self, get: impl Fn(&[Peer]) -> Option<T>) -> Result<T, RunnerError> {
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.lost {
                return Err(error.clone());
            }
            if let Some(value) = get(&state.peers) {
                return Ok(value);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self) {
        loop {
            self.send_signs();
            while let Some((rank, bytes)) = self.messages.try_receive(Channel::Life) {
                self.take_in(rank, decode(&bytes));
            }
            self.look_for_silence(Instant::now());
            let state = self.lock();
            if !state.is_open || state.lost.is_some() && state.outbox.is_empty() {
                return;
            }
            let quiet = |state: &mut State| state.is_open && state.outbox.is_empty();
            drop(self.changed.wait_timeout_while(state, LOOK_INTERVAL, quiet));
        }
    }

    fn send_signs(&self) {
        let (ranks, signs) = {
            let mut state = self.lock();
            let mut signs = std::mem::take(&mut state.outbox);
            signs.push(Sign::Alive { progress: state.own.total() });
            (state.peers.iter().map(|peer| peer.rank).collect::<Vec<_>>(), signs)
        };
        for bytes in signs.iter().map(encode) {
            for &rank in &ranks {
                self.messages.send(rank, Channel::Life, &bytes);
            }
        }
    }

    fn take_in(&self, rank: usize, sign: Result<Sign, String>) {
        let mut state = self.lock();
        let Some(peer) = state.peers.iter_mut().find(|peer| peer.rank == rank) else { return };
        peer.last_sign = Instant::now();
        match sign {
            Ok(Sign::Alive { progress }) => peer.progress.store(progress, Ordering::Relaxed),
            Ok(Sign::Offer(offer)) => peer.offer = Some(offer),
            Ok(Sign::Loaded { num_blocks }) => peer.num_blocks = Some(num_blocks),
            Ok(Sign::Ready) => peer.is_ready = true,
            Ok(Sign::Failed { reason }) | Err(reason) => {
                self.lose(&mut state, RunnerError::RankFailed { rank, reason });
            }
        }
        self.changed.notify_all();
    }

    fn look_for_silence(&self, now: Instant) {
        let mut state = self.lock();
        let silence_max = state.silence_max;
        let is_silent = |peer: &&Peer| now.duration_since(peer.last_sign) > silence_max;
        if let Some(rank) = state.peers.iter().find(is_silent).map(|peer| peer.rank) {
            let reason = format!("its process has been silent for {} s", silence_max.as_secs());
            self.lose(&mut state, RunnerError::RankFailed { rank, reason });
        }
    }

    fn lose(&self, state: &mut State, error: RunnerError) {
        if state.lost.is_some() || !state.is_open {
            return;
        }
        tracing::error!(%error, "a process of the group is lost");
        state.lost = Some(error.clone());
        // The others need not wait for the silence of this process to end.
        state.outbox.push(Sign::Failed { reason: error.to_string() });
        if let Some(act) = state.on_loss.take() {
            act(error);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
