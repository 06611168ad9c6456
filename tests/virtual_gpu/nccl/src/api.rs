//! The C interface.

use crate::abi::{Code, Result, UniqueId, VERSION, refuse};
use crate::clique::{Call, Kind};
use crate::reduce::{DataType, Operation};
use crate::{driver, group, hub};
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Defines functions of the C interface; the body yields `Result<()>`.
macro_rules! nccl_api {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$meta])*
        ///
        /// # Safety
        /// Pointers must be what the NCCL API reference says of this function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Code {
            #[allow(unused_unsafe)]
            // SAFETY: the caller keeps the contract of the NCCL API: pointers are valid or null,
            // and null is refused.
            let body = || -> Result<()> { unsafe { $body } };
            body().err().unwrap_or(Code::SUCCESS)
        }
    )*};
}

nccl_api! {
    fn ncclGetVersion(version: *mut c_int) {
        put(version, VERSION)
    }

    /// An id for ranks of this process and of others on this machine. The clique meets here.
    fn ncclGetUniqueId(id: *mut UniqueId) {
        put(id, UniqueId { internal: hub::new_id()?.map(|byte| byte as c_char) })
    }

    /// Waits until all ranks have joined, unless inside a group.
    fn ncclCommInitRank(comm: *mut u64, num_ranks: c_int, id: UniqueId, rank: c_int) {
        init_rank(comm, num_ranks, &id, rank)
    }

    /// As `ncclCommInitRank`: always blocking; the configuration has no effect.
    fn ncclCommInitRankConfig(
        comm: *mut u64,
        num_ranks: c_int,
        id: UniqueId,
        rank: c_int,
        _config: *mut c_void,
    ) {
        init_rank(comm, num_ranks, &id, rank)
    }

    /// `devices` null means 0, 1, 2 and so on.
    fn ncclCommInitAll(comms: *mut u64, num_devices: c_int, devices: *const c_int) {
        if comms.is_null() || num_devices < 1 {
            return refuse(Code::INVALID_ARGUMENT, "no communicators asked for");
        }
        let devices: Vec<i32> = match devices.is_null() {
            true => (0..num_devices).collect(),
            false => std::slice::from_raw_parts(devices, num_devices as usize).to_vec(),
        };
        for (index, comm) in group::join_all(&devices)?.into_iter().enumerate() {
            put(comms.add(index), comm)?;
        }
        Ok(())
    }

    /// Nothing to flush: operations that are enqueued still run.
    fn ncclCommFinalize(comm: u64) {
        group::find(comm).map(drop)
    }

    /// Operations that are enqueued still run.
    fn ncclCommDestroy(comm: u64) {
        group::remove(comm).map(drop)
    }

    /// Ends what the rank waits for. The other ranks go on waiting until they abort, too.
    fn ncclCommAbort(comm: u64) {
        let comm = group::remove(comm)?;
        comm.place.abort(comm.rank);
        Ok(())
    }

    fn ncclCommCount(comm: u64, count: *mut c_int) {
        put(count, group::find(comm)?.place.num_ranks() as c_int)
    }

    fn ncclCommUserRank(comm: u64, rank: *mut c_int) {
        put(rank, group::find(comm)?.rank as c_int)
    }

    fn ncclCommCuDevice(comm: u64, device: *mut c_int) {
        put(device, group::find(comm)?.device)
    }

    fn ncclCommGetAsyncError(comm: u64, error: *mut Code) {
        let comm = group::find(comm)?;
        put(error, comm.place.async_error(comm.rank).unwrap_or(Code::SUCCESS))
    }

    fn ncclAllReduce(
        send: u64, recv: u64, count: usize, data_type: u32, operation: u32, comm: u64, stream: u64,
    ) {
        let kind = Kind::AllReduce(Operation::from_raw(operation)?);
        submit(kind, send, recv, count, data_type, comm, stream)
    }

    fn ncclAllGather(
        send: u64, recv: u64, count: usize, data_type: u32, comm: u64, stream: u64,
    ) {
        submit(Kind::AllGather, send, recv, count, data_type, comm, stream)
    }

    fn ncclReduceScatter(
        send: u64, recv: u64, count: usize, data_type: u32, operation: u32, comm: u64, stream: u64,
    ) {
        let kind = Kind::ReduceScatter(Operation::from_raw(operation)?);
        submit(kind, send, recv, count, data_type, comm, stream)
    }

    fn ncclBroadcast(
        send: u64, recv: u64, count: usize, data_type: u32, root: c_int, comm: u64, stream: u64,
    ) {
        let kind = Kind::Broadcast { root: rank_of(root)? };
        submit(kind, send, recv, count, data_type, comm, stream)
    }

    /// In place.
    fn ncclBcast(
        buffer: u64, count: usize, data_type: u32, root: c_int, comm: u64, stream: u64,
    ) {
        let kind = Kind::Broadcast { root: rank_of(root)? };
        submit(kind, buffer, buffer, count, data_type, comm, stream)
    }

    fn ncclReduce(
        send: u64,
        recv: u64,
        count: usize,
        data_type: u32,
        operation: u32,
        root: c_int,
        comm: u64,
        stream: u64,
    ) {
        let operation = Operation::from_raw(operation)?;
        let kind = Kind::Reduce { operation, root: rank_of(root)? };
        submit(kind, send, recv, count, data_type, comm, stream)
    }

    fn ncclSend(
        send: u64, count: usize, data_type: u32, peer: c_int, comm: u64, stream: u64,
    ) {
        let kind = Kind::Send { peer: rank_of(peer)? };
        submit(kind, send, 0, count, data_type, comm, stream)
    }

    fn ncclRecv(
        recv: u64, count: usize, data_type: u32, peer: c_int, comm: u64, stream: u64,
    ) {
        let kind = Kind::Recv { peer: rank_of(peer)? };
        submit(kind, 0, recv, count, data_type, comm, stream)
    }

    fn ncclGroupStart() {
        group::start();
        Ok(())
    }

    fn ncclGroupEnd() {
        group::end()
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    code.text().as_ptr().cast()
}

/// The last error of any communicator of this process. The text lives until the next error.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: u64) -> *const c_char {
    match &*LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(text) => text.as_ptr(),
        None => c"".as_ptr(),
    }
}

static LAST_ERROR: Mutex<Option<CString>> = Mutex::new(None);

pub fn set_last_error(text: &str) {
    let text = CString::new(text).ok();
    *LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// # Safety
/// As `put`.
unsafe fn init_rank(out: *mut u64, num_ranks: c_int, id: &UniqueId, rank: c_int) -> Result<()> {
    if out.is_null() || num_ranks < 1 || !(0..num_ranks).contains(&rank) {
        return refuse(Code::INVALID_ARGUMENT, &format!("rank {rank} of {num_ranks}"));
    }
    let device = driver::current_device()?;
    let key = id.internal.map(|byte| byte as u8);
    let comm = group::join(&key, num_ranks as usize, rank as usize, device)?;
    // SAFETY: as the caller promised.
    unsafe { put(out, comm) }
}

fn rank_of(rank: c_int) -> Result<usize> {
    match usize::try_from(rank) {
        Ok(rank) => Ok(rank),
        Err(_) => refuse(Code::INVALID_ARGUMENT, &format!("rank {rank}")),
    }
}

fn submit(
    kind: Kind,
    send: u64,
    recv: u64,
    count: usize,
    data_type: u32,
    comm: u64,
    stream: u64,
) -> Result<()> {
    let data_type = DataType::from_raw(data_type)?;
    group::submit(comm, stream, Call { kind, count, data_type, send, recv })
}

/// # Safety
/// `out` is null or has room for a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return refuse(Code::INVALID_ARGUMENT, "a null pointer for a result");
    }
    // SAFETY: not null, so there is room.
    unsafe { out.write(value) };
    Ok(())
}
