//! Communicators of this process, and calls that are collected between group start and end.

use crate::abi::{Code, Result, UniqueId, refuse};
use crate::clique::{Call, Clique, Kind};
use crate::driver::{self, PENDING, Ticket};
use crate::watchdog;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// One rank's end of a clique.
pub struct Comm {
    pub clique: Arc<Clique>,
    pub rank: usize,
    pub device: i32,
    num_collectives: AtomicU64,
}

#[derive(Default)]
struct Table {
    comms: BTreeMap<u64, Arc<Comm>>,
    /// Cliques that not all ranks have joined.
    forming: BTreeMap<[u8; 128], Arc<Clique>>,
    last_handle: u64,
}

#[derive(Default)]
struct Group {
    depth: u32,
    calls: Vec<(Arc<Comm>, u64, Call)>,
    joining: Vec<Arc<Clique>>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { comms: BTreeMap::new(), forming: BTreeMap::new(), last_handle: 0 });
static JOINED: Condvar = Condvar::new();

/// No canonical address: a program that dereferences a handle crashes at once.
const HANDLES: u64 = 0x4E43_0000_0000_0000;
const SILENT_WAIT_MAX: Duration = Duration::from_secs(10);

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
    clique.lock().devices = devices.iter().copied().map(Some).collect();
    let ranks = devices.iter().enumerate();
    Ok(ranks.map(|(rank, device)| table().add(clique.clone(), rank, *device)).collect())
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
pub fn join(id: &UniqueId, num_ranks: usize, rank: usize, device: i32) -> Result<u64> {
    // SAFETY: both are 128 bytes without meaning.
    let key: [u8; 128] = unsafe { std::mem::transmute(id.internal) };
    crate::api::check_id(&key)?;
    let mut table = table();
    let forming = table.forming.entry(key).or_insert_with(|| Arc::new(Clique::new(num_ranks)));
    let clique = forming.clone();
    if clique.num_ranks != num_ranks {
        return refuse(Code::INVALID_ARGUMENT, "ranks disagree on the number of ranks");
    }
    {
        let mut meetings = clique.lock();
        if meetings.devices[rank].is_some() {
            return refuse(Code::INVALID_USAGE, &format!("rank {rank} joined twice"));
        }
        if meetings.devices.contains(&Some(device)) {
            return refuse(Code::INVALID_USAGE, &format!("two ranks on device {device}"));
        }
        meetings.devices[rank] = Some(device);
        if meetings.devices.iter().all(Option::is_some) {
            table.forming.remove(&key);
        }
    }
    let handle = table.add(clique.clone(), rank, device);
    drop(table);
    JOINED.notify_all();
    let is_in_group = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.joining.push(clique.clone());
        }
        group.depth > 0
    });
    if !is_in_group {
        wait_for_all(&clique)?;
    }
    Ok(handle)
}

impl Table {
    fn add(&mut self, clique: Arc<Clique>, rank: usize, device: i32) -> u64 {
        self.last_handle += 16;
        let handle = HANDLES + self.last_handle;
        let comm = Comm { clique, rank, device, num_collectives: AtomicU64::new(0) };
        self.comms.insert(handle, Arc::new(comm));
        handle
    }
}

/// Errors: `SYSTEM_ERROR` after `VIRTUAL_GPU_NCCL_TIMEOUT_S`; without it, waits for ever as the
/// real library does.
fn wait_for_all(clique: &Clique) -> Result<()> {
    let since = Instant::now();
    let mut is_reported = false;
    let mut guard = table();
    loop {
        let missing: Vec<usize> = {
            let meetings = clique.lock();
            (0..clique.num_ranks).filter(|rank| meetings.devices[*rank].is_none()).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        if watchdog::timeout().is_some_and(|timeout| since.elapsed() > timeout) {
            return refuse(Code::SYSTEM_ERROR, &format!("ranks {missing:?} did not join in time"));
        }
        if since.elapsed() > SILENT_WAIT_MAX && !is_reported {
            is_reported = true;
            eprintln!("virtual GPU: NCCL: still waiting for ranks {missing:?} to join");
        }
        guard = match JOINED.wait_timeout(guard, Duration::from_millis(50)) {
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
    for clique in &group.joining {
        wait_for_all(clique)?;
    }
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
    if let Some(error) = comm.clique.lock().async_errors[comm.rank] {
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
    let num_ranks = comm.clique.num_ranks;
    let bytes = (call.count * call.data_type.bytes()) as u64;
    let all_bytes = bytes * num_ranks as u64;
    let (send_bytes, recv_bytes, other) = match call.kind {
        Kind::AllReduce(_) => (bytes, bytes, 0),
        Kind::AllGather => (bytes, all_bytes, 0),
        Kind::ReduceScatter(_) => (all_bytes, bytes, 0),
        Kind::Broadcast { root } if root == comm.rank => (bytes, bytes, root),
        Kind::Broadcast { root } => (0, bytes, root),
        Kind::Reduce { root, .. } if root == comm.rank => (bytes, bytes, root),
        Kind::Reduce { root, .. } => (bytes, 0, root),
        Kind::Send { peer } => (bytes, 0, peer),
        Kind::Recv { peer } => (0, bytes, peer),
    };
    if other >= num_ranks {
        return refuse(Code::INVALID_ARGUMENT, &format!("rank {other} of {num_ranks}"));
    }
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
    clique: Arc<Clique>,
    rank: usize,
    calls: Vec<Call>,
}

fn enqueue(comm: Arc<Comm>, stream: u64, calls: Vec<Call>) -> Result<()> {
    watchdog::watch(&comm.clique);
    let bundle = Bundle { clique: comm.clique.clone(), rank: comm.rank, calls };
    let data = Box::into_raw(Box::new(bundle));
    // SAFETY: both take what came out of the box, `release` it back.
    unsafe { driver::enqueue(comm.device, stream, arrive, data.cast(), release) }
}

unsafe extern "C" fn arrive(data: *mut c_void, ticket: Ticket) -> u32 {
    // SAFETY: the driver passes what `enqueue` gave it, and has not released it yet.
    let bundle = unsafe { &*data.cast::<Bundle>() };
    bundle.clique.arrive(bundle.rank, &bundle.calls, ticket);
    PENDING
}

unsafe extern "C" fn release(data: *mut c_void) {
    // SAFETY: the driver calls this once, with what `enqueue` took out of a box.
    drop(unsafe { Box::from_raw(data.cast::<Bundle>()) });
}
