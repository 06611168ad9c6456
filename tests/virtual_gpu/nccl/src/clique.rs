//! Ranks that belong together, and how their calls meet.

use crate::abi::Code;
use crate::driver::{self, CUDA_ERROR_LAUNCH_FAILED, Ticket};
use crate::reduce::{DataType, Operation, reduce};
use std::collections::{BTreeMap, VecDeque};
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

pub struct Clique {
    pub num_ranks: usize,
    meeting: Mutex<Meetings>,
}

#[derive(Default)]
pub struct Meetings {
    /// Device of each rank that has joined.
    pub devices: Vec<Option<i32>>,
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

struct Waiting {
    call: Call,
    rank: usize,
    since: Instant,
    run: Arc<Run>,
}

/// One operation in the driver, of one call or of a group of calls.
struct Run {
    ticket: Ticket,
    /// Calls that have not ended, and the first error.
    open: Mutex<(usize, u32)>,
}

impl Run {
    /// Ends one of its calls; the last one ends the operation.
    fn end_call(&self, error: u32) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 -= 1;
        if open.1 == 0 {
            open.1 = error;
        }
        if open.0 == 0 {
            driver::complete(self.ticket, open.1);
        }
    }
}

impl Clique {
    pub fn new(num_ranks: usize) -> Clique {
        let meetings = Meetings {
            devices: vec![None; num_ranks],
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

    /// A rank's operation has come to its turn: its calls meet those of the others.
    pub fn arrive(&self, rank: usize, calls: &[Call], ticket: Ticket) {
        let run = Arc::new(Run { ticket, open: Mutex::new((calls.len(), 0)) });
        let mut meetings = self.lock();
        for call in calls {
            // Kernels of an aborted communicator end at once.
            if meetings.is_aborted[rank] {
                run.end_call(0);
                continue;
            }
            let waiting = Waiting { call: *call, rank, since: Instant::now(), run: run.clone() };
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

    /// Fails all that has waited since before `deadline`, and first says what it waited for.
    pub fn fail_older_than(&self, deadline: Instant, error: u32) {
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
        meetings.async_errors.fill(Some(Code::REMOTE_ERROR));
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
    fn device(&self, rank: usize) -> i32 {
        self.devices[rank].expect("a rank that calls has joined")
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
            None => self.compute(&calls).err().unwrap_or(0),
        };
        for waiting in waiting {
            waiting.run.end_call(error);
        }
    }

    /// Both sides get an error.
    fn disagree(&mut self, why: &str) -> u32 {
        eprintln!("virtual GPU: NCCL: {why}");
        self.async_errors.fill(Some(Code::INVALID_USAGE));
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
            let bytes = from.count * from.data_type.bytes();
            let read = driver::read(self.device(send.rank), from.send, bytes);
            let written =
                read.and_then(|bytes| driver::write(self.device(recv.rank), to.recv, &bytes));
            written.err().unwrap_or(0)
        };
        send.run.end_call(error);
        recv.run.end_call(error);
    }

    /// Errors: the CUDA code of a buffer that was freed meanwhile.
    fn compute(&self, calls: &[Call]) -> std::result::Result<(), u32> {
        let Call { kind, count, data_type, .. } = calls[0];
        let bytes = count * data_type.bytes();
        let num_ranks = calls.len();
        let send =
            |rank: usize, bytes: usize| driver::read(self.device(rank), calls[rank].send, bytes);
        let all = |bytes: usize| -> std::result::Result<Vec<Vec<u8>>, u32> {
            (0..num_ranks).map(|rank| send(rank, bytes)).collect()
        };
        let to_all = |result: &[u8]| {
            (0..num_ranks)
                .try_for_each(|rank| driver::write(self.device(rank), calls[rank].recv, result))
        };
        match kind {
            Kind::AllReduce(operation) => {
                let inputs = all(bytes)?;
                to_all(&reduce(data_type, operation, &inputs))
            }
            Kind::Reduce { operation, root } => {
                let inputs = all(bytes)?;
                let result = reduce(data_type, operation, &inputs);
                driver::write(self.device(root), calls[root].recv, &result)
            }
            Kind::AllGather => {
                let inputs = all(bytes)?;
                to_all(&inputs.concat())
            }
            Kind::ReduceScatter(operation) => {
                let inputs = all(bytes * num_ranks)?;
                let result = reduce(data_type, operation, &inputs);
                (0..num_ranks).try_for_each(|rank| {
                    let part = &result[rank * bytes..][..bytes];
                    driver::write(self.device(rank), calls[rank].recv, part)
                })
            }
            Kind::Broadcast { root } => to_all(&send(root, bytes)?),
            Kind::Send { .. } | Kind::Recv { .. } => unreachable!("passed between two ranks"),
        }
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
