//! Sums between GPUs over NCCL, which is found at run time by the name of the package's own file.

#![allow(unsafe_code)]

use crate::device::library::Library;
use crate::{DType, KernelError, Tensor};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The library's name where only the runtime is installed; without a version where it was built.
const LIBRARY_NAMES: [&CStr; 2] = [c"libnccl.so.2", c"libnccl.so"];
/// Oldest version, as NCCL writes it: 2.14 has all functions used here in the form used here.
const VERSION_MIN: c_int = 21_400;
const ID_BYTES: usize = 128;
const SUCCESS: c_int = 0;
/// The call goes on in the background.
const IN_PROGRESS: c_int = 7;
const SUM: c_int = 0;

type CommHandle = *mut c_void;

/// What the ranks of one group agree on before they meet; rank 0 makes it and hands it to all.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NcclId(pub [u8; ID_BYTES]);

/// The functions of the library that are called. Source: nccl.h.
struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut NcclId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut CommHandle, c_int, NcclId, c_int) -> c_int,
    comm_get_async_error: unsafe extern "C" fn(CommHandle, *mut c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(CommHandle) -> c_int,
    comm_destroy: unsafe extern "C" fn(CommHandle) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        CommHandle,
        *mut c_void,
    ) -> c_int,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        CommHandle,
        *mut c_void,
    ) -> c_int,
}

impl Functions {
    /// The library, opened once and kept until the process ends.
    ///
    /// Errors: `Device` when it is not installed, too old, or lacks a function.
    fn get() -> Result<&'static Functions, KernelError> {
        static LIBRARY: OnceLock<Result<Functions, KernelError>> = OnceLock::new();
        LIBRARY.get_or_init(Functions::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Functions, KernelError> {
        let library = Library::open("NCCL", &LIBRARY_NAMES).ok_or_else(|| {
            KernelError::Device("no libnccl.so.2 is installed; several GPUs need it".to_string())
        })?;
        // SAFETY: each type is that of the function's declaration in nccl.h.
        let library = unsafe {
            Functions {
                get_version: library.function(c"ncclGetVersion")?,
                get_unique_id: library.function(c"ncclGetUniqueId")?,
                comm_init_rank: library.function(c"ncclCommInitRank")?,
                comm_get_async_error: library.function(c"ncclCommGetAsyncError")?,
                comm_abort: library.function(c"ncclCommAbort")?,
                comm_destroy: library.function(c"ncclCommDestroy")?,
                get_error_string: library.function(c"ncclGetErrorString")?,
                all_reduce: library.function(c"ncclAllReduce")?,
                all_gather: library.function(c"ncclAllGather")?,
            }
        };
        let mut version = 0;
        // SAFETY: writes one integer.
        library.check(unsafe { (library.get_version)(&mut version) })?;
        if version < VERSION_MIN {
            let reason = format!("NCCL {version} is older than {VERSION_MIN}");
            return Err(KernelError::Device(reason));
        }
        Ok(library)
    }

    fn check(&self, code: c_int) -> Result<(), KernelError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: the function gives a constant text, or null, for any number.
        let text = unsafe {
            let text = (self.get_error_string)(code);
            if text.is_null() { c"no reason given" } else { CStr::from_ptr(text) }
        };
        Err(KernelError::Device(format!("NCCL error {code}: {}", text.to_string_lossy())))
    }
}

impl NcclId {
    /// For rank 0. Errors: `Device`.
    pub fn new() -> Result<NcclId, KernelError> {
        let library = Functions::get()?;
        let mut id = NcclId([0; ID_BYTES]);
        // SAFETY: writes the 128 bytes of `id`.
        library.check(unsafe { (library.get_unique_id)(&mut id) })?;
        Ok(id)
    }
}

/// One rank's link to the GPUs of the others.
pub struct Nccl {
    rank: usize,
    world_size: usize,
    shared: Arc<Shared>,
}

/// Ends the waiting of this rank's GPU from another thread, when the group is lost.
#[derive(Clone)]
pub struct NcclAborter(Arc<Shared>);

struct Shared {
    library: &'static Functions,
    comm: CommHandle,
    /// Whoever sets it ends `comm`, once.
    has_ended: AtomicBool,
}

// SAFETY: NCCL allows its handles on any thread; `has_ended` makes sure that a handle is not ended
// twice, and `Nccl` is not used by two threads at once, since its calls take `&mut self`.
unsafe impl Send for Shared {}
// SAFETY: as above; aborting while another thread calls is what ncclCommAbort is made for.
unsafe impl Sync for Shared {}

impl Nccl {
    /// Waits until all ranks of the group have come. The caller has made its device's context
    /// current.
    ///
    /// Errors: `Device`.
    pub fn join(id: &NcclId, rank: usize, world_size: usize) -> Result<Nccl, KernelError> {
        assert!(rank < world_size, "rank {rank} of {world_size}");
        let library = Functions::get()?;
        let mut comm = std::ptr::null_mut();
        let (ranks, own) = (world_size as c_int, rank as c_int);
        // SAFETY: writes one handle; the id is passed by value.
        library.check(unsafe { (library.comm_init_rank)(&mut comm, ranks, *id, own) })?;
        let shared = Arc::new(Shared { library, comm, has_ended: AtomicBool::new(false) });
        Ok(Nccl { rank, world_size, shared })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn world_size(&self) -> usize {
        self.world_size
    }

    pub fn aborter(&self) -> NcclAborter {
        NcclAborter(self.shared.clone())
    }

    /// Queues the sum over ranks of `len` values at `address`, in place, on `stream`.
    ///
    /// Numbers: of two ranks, the rounded sum of both, whatever the batch. With more ranks the
    /// order of additions depends on a value's place in the buffer, so that a row's bits would
    /// depend on its neighbours: gather the parts and add them in rank order instead.
    /// Errors: `DType`; `Device`, also for a failure of an earlier call.
    ///
    /// # Safety
    /// `len` values of `dtype` lie at `address` on this rank's device, and stay until the stream
    /// has passed the call; `stream` is a stream of that device.
    pub unsafe fn all_reduce_sum(
        &mut self,
        address: u64,
        len: usize,
        dtype: DType,
        stream: *mut c_void,
    ) -> Result<(), KernelError> {
        let dtype = number_of(dtype)?;
        self.check()?;
        let Shared { library, comm, .. } = &*self.shared;
        let (from, to) = (address as *const c_void, address as *mut c_void);
        // SAFETY: the caller vouches for memory and stream; in place is allowed when both addresses
        // are the same.
        library.check(unsafe { (library.all_reduce)(from, to, len, dtype, SUM, *comm, stream) })
    }

    /// `all_reduce_sum` of a whole tensor, on the stream of its device.
    pub fn sum_tensor(&mut self, x: &mut Tensor) -> Result<(), KernelError> {
        let (address, len, dtype) = (x.device_ptr(), x.len(), x.dtype());
        let stream = x.device_buffer().device().stream();
        // SAFETY: the tensor has `len` values on the device whose stream this is, and freeing them
        // waits for queued work.
        unsafe { self.all_reduce_sum(address, len, dtype, stream.cast()) }
    }

    /// Queues on `stream`: the `len` values at `part` of every rank, in rank order, to `parts`.
    ///
    /// Errors: as `all_reduce_sum`.
    ///
    /// # Safety
    /// As `all_reduce_sum`, for `len` values at `part` and `world_size` times as many at `parts`.
    pub unsafe fn all_gather(
        &mut self,
        parts: u64,
        part: u64,
        len: usize,
        dtype: DType,
        stream: *mut c_void,
    ) -> Result<(), KernelError> {
        let dtype = number_of(dtype)?;
        self.check()?;
        let Shared { library, comm, .. } = &*self.shared;
        let (from, to) = (part as *const c_void, parts as *mut c_void);
        // SAFETY: as the caller vouches.
        library.check(unsafe { (library.all_gather)(from, to, len, dtype, *comm, stream) })
    }

    /// Errors: `Device` when an earlier call has failed, here or on another rank, or was aborted.
    pub fn check(&self) -> Result<(), KernelError> {
        let Shared { library, comm, has_ended } = &*self.shared;
        if has_ended.load(Ordering::Acquire) {
            return Err(KernelError::Device("the group of GPUs was given up".to_string()));
        }
        let mut state = SUCCESS;
        // SAFETY: writes one integer; the handle has not ended.
        library.check(unsafe { (library.comm_get_async_error)(*comm, &mut state) })?;
        if state == IN_PROGRESS { Ok(()) } else { library.check(state) }
    }
}

impl NcclAborter {
    /// From now on every call of this rank fails, and what its GPU waits for ends.
    pub fn abort(&self) {
        self.0.end(self.0.library.comm_abort);
    }
}

impl Shared {
    fn end(&self, how: unsafe extern "C" fn(CommHandle) -> c_int) {
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            // SAFETY: the handle is ended here and, by the swap, nowhere else.
            let code = unsafe { how(self.comm) };
            // There is nothing left to do when the end fails.
            let _ = self.library.check(code);
        }
    }
}

impl Drop for Nccl {
    /// In order when all has gone well, else without waiting for the others.
    fn drop(&mut self) {
        let end = match self.check() {
            Ok(()) => self.shared.library.comm_destroy,
            Err(_) => self.shared.library.comm_abort,
        };
        self.shared.end(end);
    }
}

/// NCCL's number for a format.
fn number_of(dtype: DType) -> Result<c_int, KernelError> {
    match dtype {
        DType::F16 => Ok(6),
        DType::F32 => Ok(7),
        DType::BF16 => Ok(9),
        _ => {
            let (op, what, got) = ("nccl", "x", dtype.name());
            Err(KernelError::DType { op, what, got, expected: "F32, F16 or BF16" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_the_numbers_of_the_header() {
        assert_eq!(number_of(DType::F32), Ok(7));
        assert!(matches!(number_of(DType::Q4K), Err(KernelError::DType { .. })));
    }

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        match NcclId::new() {
            Ok(id) => assert_ne!(id.0, [0; ID_BYTES]),
            Err(KernelError::Device(reason)) => {
                assert!(reason.contains("libnccl.so.2") || reason.contains("NCCL"), "{reason}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}
