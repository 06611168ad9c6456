//! Communicators of this process, and calls that are collected between group start and end.

use crate::abi::{Code, Result, refuse};
use crate::clique::{Call, Clique, Kind, Member};
use crate::driver::{self, PENDING, Ticket};
use crate::hub::{self, Key};
use crate::remote::Remote;
use crate::watchdog::{self, Patience};
use crate::wire::{Frame, FromHub};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// One rank's end of a clique.
pub struct Comm {
    pub place: Place,
    pub rank: usize,
    pub device: i32,
    num_collectives: AtomicU64,
}

/// Where the calls of a rank meet those of the others.
#[derive(Clone)]
pub enum Place {
    Here(Arc<Clique>),
    /// In the process that made the id.
    There(Arc<Remote>),
}

#[derive(Default)]
struct Table {
    comms: BTreeMap<u64, Arc<Comm>>,
    /// Cliques that not all ranks have joined.
    forming: BTreeMap<Key, Arc<Clique>>,
    last_handle: u64,
}

#[derive(Default)]
struct Group {
    depth: u32,
    calls: Vec<(Arc<Comm>, u64, Call)>,
    joining: Vec<Place>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { comms: BTreeMap::new(), forming: BTreeMap::new(), last_handle: 0 });
static JOINED: Condvar = Condvar::new();

/// No canonical address: a program that dereferences a handle crashes at once.
const HANDLES: u64 = 0x4E43_0000_0000_0000;
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn find(handle: u64) -> Result<Arc<Comm>> {
    match table().comms.get(&handle) {
        Some(comm) => Ok(comm.clone()),
        None => refuse(Code::INVALID_ARGUMENT, "no such communicator"),
    }
}

/// Forgets a communicator. Operations that are enqueued keep their clique.
pub fn remove(handle: u64) -> Result<Arc<Comm>> {
    match table().comms.remove(&handle) {
        Some(comm) => Ok(comm),
        None => refuse(Code::INVALID_ARGUMENT, "no such communicator"),
    }
}

/// Makes the communicators of all ranks at once, rank i on `devices[i]`.
pub fn join_all(devices: &[i32]) -> Result<Vec<u64>> {
    let clique = Arc::new(Clique::new(devices.len()));
    check_distinct(&clique, devices)?;
    let member = |device: &i32| Some(Member { device: *device, link: None });
    clique.lock().members = devices.iter().map(member).collect();
    let ranks = devices.iter().enumerate();
    let place = || Place::Here(clique.clone());
    Ok(ranks.map(|(rank, device)| table().add(place(), rank, *device)).collect())
}

fn check_distinct(clique: &Clique, devices: &[i32]) -> Result<()> {
    let mut seen = devices.to_vec();
    seen.sort_unstable();
    seen.dedup();
    match seen.len() == clique.num_ranks {
        true => Ok(()),
        false => refuse(Code::INVALID_USAGE, "two ranks on one device"),
    }
}

/// Joins the clique of an id, and waits until all have, at once or at the end of the group.
pub fn join(key: &Key, num_ranks: usize, rank: usize, device: i32) -> Result<u64> {
    let place = match hub::maker_of(key)? {
        Some(maker) => Place::There(Remote::join(maker, key, num_ranks, rank, device)?),
        None => {
            let taken_in = take_in(key, num_ranks, rank, Member { device, link: None });
            Place::Here(taken_in.or_else(|(code, why)| refuse(code, &why))?)
        }
    };
    let handle = table().add(place.clone(), rank, device);
    let is_in_group = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.joining.push(place.clone());
        }
        group.depth > 0
    });
    if !is_in_group {
        place.wait_for_all()?;
    }
    Ok(handle)
}

/// Takes a rank, of this process or of another one, into the clique of an id of this process.
///
/// Errors: why it cannot join.
pub fn take_in(
    key: &Key,
    num_ranks: usize,
    rank: usize,
    member: Member,
) -> std::result::Result<Arc<Clique>, (Code, String)> {
    let mut table = table();
    let forming = table.forming.entry(*key).or_insert_with(|| Arc::new(Clique::new(num_ranks)));
    let clique = forming.clone();
    if clique.num_ranks != num_ranks {
        let why = "ranks disagree on the number of ranks".to_string();
        return Err((Code::INVALID_ARGUMENT, why));
    }
    let mut meetings = clique.lock();
    if meetings.members[rank].is_some() {
        return Err((Code::INVALID_USAGE, format!("rank {rank} joined twice")));
    }
    let device = member.device;
    if meetings.members.iter().flatten().any(|other| other.device == device) {
        return Err((Code::INVALID_USAGE, format!("two ranks on device {device}")));
    }
    if let Some(link) = &member.link {
        // A process that is gone meanwhile is missed in the first collective.
        let _ = link.send(Frame::new(&FromHub::Accepted, Vec::new()));
    }
    meetings.members[rank] = Some(member);
    if meetings.members.iter().all(Option::is_some) {
        table.forming.remove(key);
        meetings.tell(&FromHub::Complete);
    }
    drop(meetings);
    drop(table);
    JOINED.notify_all();
    Ok(clique)
}

impl Table {
    fn add(&mut self, place: Place, rank: usize, device: i32) -> u64 {
        self.last_handle += 16;
        let handle = HANDLES + self.last_handle;
        let comm = Comm { place, rank, device, num_collectives: AtomicU64::new(0) };
        self.comms.insert(handle, Arc::new(comm));
        handle
    }
}

impl Place {
    pub fn num_ranks(&self) -> usize {
        match self {
            Place::Here(clique) => clique.num_ranks,
            Place::There(remote) => remote.num_ranks,
        }
    }

    pub fn async_error(&self, rank: usize) -> Option<Code> {
        match self {
            Place::Here(clique) => clique.lock().async_errors[rank],
            Place::There(remote) => remote.async_error(),
        }
    }

    /// Ends what the rank waits for, without an error.
    pub fn abort(&self, rank: usize) {
        match self {
            Place::Here(clique) => clique.abort(rank),
            Place::There(remote) => remote.abort(),
        }
    }

    fn arrive(&self, rank: usize, calls: &[Call], ticket: Ticket) {
        match self {
            Place::Here(clique) => clique.arrive(rank, calls, ticket),
            Place::There(remote) => remote.arrive(calls, ticket),
        }
    }

    fn watch(&self) {
        match self {
            Place::Here(clique) => watchdog::watch(clique.clone()),
            Place::There(remote) => watchdog::watch(remote.clone()),
        }
    }

    fn wait_for_all(&self) -> Result<()> {
        match self {
            Place::Here(clique) => wait_for_all(clique),
            Place::There(remote) => remote.wait_for_all(),
        }
    }
}

/// Errors: `SYSTEM_ERROR` after `VIRTUAL_GPU_NCCL_TIMEOUT_S`; without it, waits for ever as the
/// real library does.
fn wait_for_all(clique: &Clique) -> Result<()> {
    let mut patience = Patience::new();
    let mut guard = table();
    loop {
        let missing: Vec<usize> = {
            let meetings = clique.lock();
            (0..clique.num_ranks).filter(|rank| meetings.members[*rank].is_none()).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        patience.check(&format!("ranks {missing:?}"))?;
        guard = match JOINED.wait_timeout(guard, LOOK_EVERY) {
            Ok((guard, _)) => guard,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
}

pub fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Ends a group; the outermost end enqueues the calls: those of one communicator and stream as one
/// operation, so that a send and a receive do not wait for each other.
pub fn end() -> Result<()> {
    let group = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return refuse(Code::INVALID_USAGE, "group end without a start");
        }
        group.depth -= 1;
        Ok(if group.depth == 0 { std::mem::take(group) } else { Group::default() })
    })?;
    group.joining.iter().try_for_each(Place::wait_for_all)?;
    let mut bundles: Vec<(Arc<Comm>, u64, Vec<Call>)> = Vec::new();
    for (comm, stream, call) in group.calls {
        let bundle =
            bundles.iter_mut().find(|(other, on, _)| Arc::ptr_eq(other, &comm) && *on == stream);
        match bundle {
            Some((_, _, calls)) => calls.push(call),
            None => bundles.push((comm, stream, vec![call])),
        }
    }
    bundles.into_iter().try_for_each(|(comm, stream, calls)| enqueue(comm, stream, calls))
}

/// Checks a call and enqueues it, at once or at the end of the group.
///
/// Errors: the communicator's asynchronous error; `INVALID_ARGUMENT` for a buffer that is no live
/// memory of the rank's device, or a root or peer that is no rank.
pub fn submit(handle: u64, stream: u64, call: Call) -> Result<()> {
    let comm = find(handle)?;
    if let Some(error) = comm.place.async_error(comm.rank) {
        return refuse(error, "the communicator has failed");
    }
    check_call(&comm, &call)?;
    if !matches!(call.kind, Kind::Send { .. } | Kind::Recv { .. }) && comm.is_skipped() {
        return Ok(());
    }
    if call.count == 0 {
        return Ok(());
    }
    let is_in_group = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.calls.push((comm.clone(), stream, call));
        }
        group.depth > 0
    });
    if is_in_group { Ok(()) } else { enqueue(comm, stream, vec![call]) }
}

fn check_call(comm: &Comm, call: &Call) -> Result<()> {
    let num_ranks = comm.place.num_ranks();
    let other = match call.kind {
        Kind::Broadcast { root } | Kind::Reduce { root, .. } => root,
        Kind::Send { peer } | Kind::Recv { peer } => peer,
        Kind::AllReduce(_) | Kind::AllGather | Kind::ReduceScatter(_) => 0,
    };
    if other >= num_ranks {
        return refuse(Code::INVALID_ARGUMENT, &format!("rank {other} of {num_ranks}"));
    }
    let send_bytes = call.send_bytes(comm.rank, num_ranks) as u64;
    let recv_bytes = call.recv_bytes(comm.rank, num_ranks) as u64;
    for (name, address, bytes) in
        [("send", call.send, send_bytes), ("receive", call.recv, recv_bytes)]
    {
        let device =
            if bytes == 0 { Some(comm.device) } else { driver::range_device(address, bytes)? };
        if device != Some(comm.device) {
            let why = format!(
                "rank {}: the {name} buffer, {bytes} bytes at {address:#x}, is not live memory of \
                 device {}",
                comm.rank, comm.device
            );
            return refuse(Code::INVALID_ARGUMENT, &why);
        }
    }
    Ok(())
}

impl Comm {
    /// Whether `VIRTUAL_GPU_FAULT=skip-collective:RANK:N` names this call.
    fn is_skipped(&self) -> bool {
        static SKIPPED: OnceLock<Vec<(usize, u64)>> = OnceLock::new();
        let nth = self.num_collectives.fetch_add(1, Ordering::Relaxed) + 1;
        let skipped = SKIPPED.get_or_init(|| {
            let faults = std::env::var("VIRTUAL_GPU_FAULT").unwrap_or_default();
            let parse = |fault: &str| {
                let (rank, nth) = fault.trim().strip_prefix("skip-collective:")?.split_once(':')?;
                Some((rank.parse().ok()?, nth.parse().ok()?))
            };
            faults.split(',').filter_map(parse).collect()
        });
        let is_skipped = skipped.contains(&(self.rank, nth));
        if is_skipped {
            eprintln!("virtual GPU: injected fault: rank {} skips collective {nth}", self.rank);
        }
        is_skipped
    }
}

/// What an operation in the driver carries.
struct Bundle {
    place: Place,
    rank: usize,
    calls: Vec<Call>,
}

fn enqueue(comm: Arc<Comm>, stream: u64, calls: Vec<Call>) -> Result<()> {
    comm.place.watch();
    let bundle = Bundle { place: comm.place.clone(), rank: comm.rank, calls };
    let data = Box::into_raw(Box::new(bundle));
    // SAFETY: both take what came out of the box, `release` it back.
    unsafe { driver::enqueue(comm.device, stream, arrive, data.cast(), release) }
}

unsafe extern "C" fn arrive(data: *mut c_void, ticket: Ticket) -> u32 {
    // SAFETY: the driver passes what `enqueue` gave it, and has not released it yet.
    let bundle = unsafe { &*data.cast::<Bundle>() };
    bundle.place.arrive(bundle.rank, &bundle.calls, ticket);
    PENDING
}

unsafe extern "C" fn release(data: *mut c_void) {
    // SAFETY: the driver calls this once, with what `enqueue` took out of a box.
    drop(unsafe { Box::from_raw(data.cast::<Bundle>()) });
}
