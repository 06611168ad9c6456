//! Ranks that belong together, and how their calls meet.

use crate::abi::Code;
use crate::driver::{self, CUDA_ERROR_LAUNCH_FAILED, Ticket};
use crate::reduce::{DataType, Operation, reduce};
use crate::watchdog::Watched;
use crate::wire::{Frame, FromHub};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What one rank asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    pub kind: Kind,
    pub count: usize,
    pub data_type: DataType,
    pub send: u64,
    pub recv: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    AllReduce(Operation),
    AllGather,
    ReduceScatter(Operation),
    Broadcast { root: usize },
    Reduce { operation: Operation, root: usize },
    Send { peer: usize },
    Recv { peer: usize },
}

impl Call {
    /// Bytes that `rank` of so many sends.
    pub fn send_bytes(&self, rank: usize, num_ranks: usize) -> usize {
        match self.kind {
            Kind::ReduceScatter(_) => self.bytes() * num_ranks,
            Kind::Broadcast { root } if root != rank => 0,
            Kind::Recv { .. } => 0,
            _ => self.bytes(),
        }
    }

    /// Bytes that it receives.
    pub fn recv_bytes(&self, rank: usize, num_ranks: usize) -> usize {
        match self.kind {
            Kind::AllGather => self.bytes() * num_ranks,
            Kind::Reduce { root, .. } if root != rank => 0,
            Kind::Send { .. } => 0,
            _ => self.bytes(),
        }
    }

    fn bytes(&self) -> usize {
        self.count * self.data_type.bytes()
    }
}

pub struct Clique {
    pub num_ranks: usize,
    meeting: Mutex<Meetings>,
}

/// A rank that has joined.
pub struct Member {
    pub device: i32,
    /// To its process, if that is another one.
    pub link: Option<Sender<Frame>>,
}

#[derive(Default)]
pub struct Meetings {
    /// By rank.
    pub members: Vec<Option<Member>>,
    /// Collectives that each rank has run.
    num_run: Vec<u64>,
    /// The n-th collective: who has come so far.
    collectives: BTreeMap<u64, Meeting>,
    /// (from, to): sends and receives that have found no partner.
    sends: BTreeMap<(usize, usize), VecDeque<Waiting>>,
    recvs: BTreeMap<(usize, usize), VecDeque<Waiting>>,
    pub async_errors: Vec<Option<Code>>,
    is_aborted: Vec<bool>,
}

struct Meeting {
    since: Instant,
    waiting: Vec<Option<Waiting>>,
}

/// What lies in a buffer, or the CUDA error of reading it.
pub type Values = std::result::Result<Vec<u8>, u32>;

/// A call that waits for those of other ranks.
struct Waiting {
    call: Call,
    rank: usize,
    device: i32,
    /// What a rank of another process sends.
    sent: Option<Values>,
    since: Instant,
    run: Arc<Run>,
    /// Its place among the calls of its operation.
    nth: usize,
}

impl Waiting {
    /// What it sends. Errors: the CUDA code of a buffer that was freed meanwhile.
    fn read(&self, num_ranks: usize) -> Values {
        match &self.sent {
            Some(sent) => sent.clone(),
            None => {
                let bytes = self.call.send_bytes(self.rank, num_ranks);
                driver::read(self.device, self.call.send, bytes)
            }
        }
    }

    /// Errors: as `read`.
    fn write(&self, bytes: &[u8]) -> std::result::Result<(), u32> {
        if self.sent.is_none() {
            return driver::write(self.device, self.call.recv, bytes);
        }
        self.run.lock().received[self.nth] = bytes.to_vec();
        Ok(())
    }
}

/// One operation of a rank, of one call or of a group of calls.
struct Run {
    /// In the driver of the rank's process.
    ticket: Ticket,
    link: Option<Sender<Frame>>,
    state: Mutex<RunState>,
}

struct RunState {
    /// Calls that have not ended.
    num_open: usize,
    /// The first error.
    error: u32,
    /// What the calls of a rank in another process receive.
    received: Vec<Vec<u8>>,
}

impl Run {
    fn new(ticket: Ticket, link: Option<Sender<Frame>>, num_calls: usize) -> Run {
        let state =
            RunState { num_open: num_calls, error: 0, received: vec![Vec::new(); num_calls] };
        Run { ticket, link, state: Mutex::new(state) }
    }

    /// Ends one of its calls; the last one ends the operation.
    fn end_call(&self, error: u32) {
        let mut state = self.lock();
        state.num_open -= 1;
        if state.error == 0 {
            state.error = error;
        }
        if state.num_open > 0 {
            return;
        }
        let (ticket, error) = (self.ticket, state.error);
        let Some(link) = &self.link else { return driver::complete(ticket, error) };
        let received = state.received.iter().map(Vec::len).collect();
        let ended = FromHub::Ended { ticket, error, received };
        // A process that is gone needs no answer.
        let _ = link.send(Frame::new(&ended, state.received.concat()));
    }

    fn lock(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clique {
    pub fn new(num_ranks: usize) -> Clique {
        let meetings = Meetings {
            members: (0..num_ranks).map(|_| None).collect(),
            num_run: vec![0; num_ranks],
            async_errors: vec![None; num_ranks],
            is_aborted: vec![false; num_ranks],
            ..Meetings::default()
        };
        Clique { num_ranks, meeting: Mutex::new(meetings) }
    }

    pub fn lock(&self) -> MutexGuard<'_, Meetings> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operation of a rank of this process has come to its turn: its calls meet those of the
    /// others.
    pub fn arrive(&self, rank: usize, calls: &[Call], ticket: Ticket) {
        self.meet(rank, calls.iter().map(|call| (*call, None)).collect(), ticket);
    }

    /// The same for a rank of another process, with what each call sends.
    pub fn arrive_from(&self, rank: usize, calls: Vec<(Call, Values)>, ticket: Ticket) {
        let calls = calls.into_iter().map(|(call, sent)| (call, Some(sent)));
        self.meet(rank, calls.collect(), ticket);
    }

    fn meet(&self, rank: usize, calls: Vec<(Call, Option<Values>)>, ticket: Ticket) {
        let mut meetings = self.lock();
        let member = meetings.members[rank].as_ref().expect("a rank that calls has joined");
        let device = member.device;
        let run = Arc::new(Run::new(ticket, member.link.clone(), calls.len()));
        for (nth, (call, sent)) in calls.into_iter().enumerate() {
            // Kernels of an aborted communicator end at once.
            if meetings.is_aborted[rank] {
                run.end_call(0);
                continue;
            }
            let (since, run) = (Instant::now(), run.clone());
            let waiting = Waiting { call, rank, device, sent, since, run, nth };
            match call.kind {
                Kind::Send { peer } => meetings.send(rank, peer, waiting),
                Kind::Recv { peer } => meetings.recv(rank, peer, waiting),
                _ => meetings.collective(self.num_ranks, waiting),
            }
        }
    }

    /// Ends what a rank waits for, without an error: its kernels stop.
    pub fn abort(&self, rank: usize) {
        let mut meetings = self.lock();
        meetings.is_aborted[rank] = true;
        for waiting in meetings.take_waiting(|waiting| waiting.rank == rank) {
            waiting.run.end_call(0);
        }
    }
}

impl Watched for Clique {
    fn fail_older_than(&self, deadline: Instant, error: u32) {
        let mut meetings = self.lock();
        let stale: Vec<String> = meetings
            .collectives
            .iter()
            .filter(|(_, meeting)| meeting.since < deadline)
            .map(|(nth, meeting)| meeting.describe(*nth))
            .collect();
        let waiting = meetings.take_waiting(|waiting| waiting.since < deadline);
        if waiting.is_empty() {
            return;
        }
        meetings.fail_all(Code::REMOTE_ERROR);
        let told = if stale.is_empty() {
            waiting.iter().map(|w| format!("rank {} waits: {:?}", w.rank, w.call.kind)).collect()
        } else {
            stale
        };
        for what in told {
            eprintln!("virtual GPU: NCCL: timeout: {what}");
        }
        for waiting in waiting {
            waiting.run.end_call(error);
        }
    }
}

impl Meeting {
    fn describe(&self, nth: u64) -> String {
        let name = self.waiting.iter().flatten().map(|w| format!("{:?}", w.call.kind)).next();
        let missing: Vec<usize> =
            (0..self.waiting.len()).filter(|rank| self.waiting[*rank].is_none()).collect();
        format!("collective {} ({}) waits for ranks {missing:?}", nth + 1, name.unwrap_or_default())
    }
}

impl Meetings {
    /// Tells the ranks of other processes.
    pub fn tell(&self, message: &FromHub) {
        for link in self.members.iter().flatten().filter_map(|member| member.link.as_ref()) {
            // A process that is gone needs no news.
            let _ = link.send(Frame::new(message, Vec::new()));
        }
    }

    /// From now on every call of every rank is refused.
    fn fail_all(&mut self, code: Code) {
        self.async_errors.fill(Some(code));
        self.tell(&FromHub::Failed { code });
    }

    fn collective(&mut self, num_ranks: usize, waiting: Waiting) {
        let rank = waiting.rank;
        let nth = self.num_run[rank];
        self.num_run[rank] += 1;
        let meeting = self.collectives.entry(nth).or_insert_with(|| Meeting {
            since: Instant::now(),
            waiting: (0..num_ranks).map(|_| None).collect(),
        });
        meeting.waiting[rank] = Some(waiting);
        if meeting.waiting.iter().any(Option::is_none) {
            return;
        }
        let meeting = self.collectives.remove(&nth).expect("just found");
        let waiting: Vec<Waiting> = meeting.waiting.into_iter().flatten().collect();
        let calls: Vec<Call> = waiting.iter().map(|waiting| waiting.call).collect();
        let error = match mismatch(&calls) {
            Some(why) => self.disagree(&format!("collective {}: {why}", nth + 1)),
            None => compute(&waiting).err().unwrap_or(0),
        };
        for waiting in waiting {
            waiting.run.end_call(error);
        }
    }

    /// Both sides get an error.
    fn disagree(&mut self, why: &str) -> u32 {
        eprintln!("virtual GPU: NCCL: {why}");
        self.fail_all(Code::INVALID_USAGE);
        CUDA_ERROR_LAUNCH_FAILED
    }

    fn send(&mut self, rank: usize, peer: usize, waiting: Waiting) {
        match self.recvs.get_mut(&(rank, peer)).and_then(VecDeque::pop_front) {
            Some(recv) => self.pass(waiting, recv),
            None => self.sends.entry((rank, peer)).or_default().push_back(waiting),
        }
    }

    fn recv(&mut self, rank: usize, peer: usize, waiting: Waiting) {
        match self.sends.get_mut(&(peer, rank)).and_then(VecDeque::pop_front) {
            Some(send) => self.pass(send, waiting),
            None => self.recvs.entry((peer, rank)).or_default().push_back(waiting),
        }
    }

    fn pass(&mut self, send: Waiting, recv: Waiting) {
        let (from, to) = (send.call, recv.call);
        let error = if (from.count, from.data_type) != (to.count, to.data_type) {
            self.disagree(&format!(
                "rank {} sends {} {:?}, rank {} receives {} {:?}",
                send.rank, from.count, from.data_type, recv.rank, to.count, to.data_type
            ))
        } else {
            send.read(self.members.len()).and_then(|bytes| recv.write(&bytes)).err().unwrap_or(0)
        };
        send.run.end_call(error);
        recv.run.end_call(error);
    }

    fn take_waiting(&mut self, is_wanted: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let mut taken = Vec::new();
        for meeting in self.collectives.values_mut() {
            for place in &mut meeting.waiting {
                taken.extend(place.take_if(|waiting| is_wanted(waiting)));
            }
        }
        for queue in self.sends.values_mut().chain(self.recvs.values_mut()) {
            for waiting in std::mem::take(queue) {
                if is_wanted(&waiting) {
                    taken.push(waiting);
                } else {
                    queue.push_back(waiting);
                }
            }
        }
        taken
    }
}

/// Computes a collective for all ranks.
///
/// Errors: the CUDA code of a buffer that was freed meanwhile.
fn compute(ranks: &[Waiting]) -> std::result::Result<(), u32> {
    let Call { kind, data_type, .. } = ranks[0].call;
    let all = || -> std::result::Result<Vec<Vec<u8>>, u32> {
        ranks.iter().map(|rank| rank.read(ranks.len())).collect()
    };
    let to_all = |result: &[u8]| ranks.iter().try_for_each(|rank| rank.write(result));
    match kind {
        Kind::AllReduce(operation) => to_all(&reduce(data_type, operation, &all()?)),
        Kind::Reduce { operation, root } => {
            ranks[root].write(&reduce(data_type, operation, &all()?))
        }
        Kind::AllGather => to_all(&all()?.concat()),
        Kind::ReduceScatter(operation) => {
            let result = reduce(data_type, operation, &all()?);
            let parts = result.chunks_exact(ranks[0].call.bytes());
            ranks.iter().zip(parts).try_for_each(|(rank, part)| rank.write(part))
        }
        Kind::Broadcast { root } => to_all(&ranks[root].read(ranks.len())?),
        Kind::Send { .. } | Kind::Recv { .. } => unreachable!("passed between two ranks"),
    }
}

/// How the calls of a collective differ, if they do.
fn mismatch(calls: &[Call]) -> Option<String> {
    let first = calls[0];
    let (rank, other) = calls.iter().enumerate().find(|(_, call)| {
        (call.kind, call.count, call.data_type) != (first.kind, first.count, first.data_type)
    })?;
    Some(format!(
        "rank 0 calls {:?} of {} {:?}, rank {rank} calls {:?} of {} {:?}",
        first.kind, first.count, first.data_type, other.kind, other.count, other.data_type
    ))
}
