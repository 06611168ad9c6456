//! Memory of a device, and host memory that a device can reach.

use super::{CudaDevice, check};
use crate::KernelError;
use cudarc::driver::{result, sys};
use std::ptr::NonNull;

/// Memory on a device, given back when dropped. Its address never changes.
pub struct DeviceBuffer {
    device: CudaDevice,
    ptr: u64,
    len: usize,
}

impl DeviceBuffer {
    /// Fresh memory, zeroed. Errors: `OutOfMemory`.
    pub fn zeroed(device: &CudaDevice, len: usize) -> Result<DeviceBuffer, KernelError> {
        let buffer = Self::uninit(device, len)?;
        device.bind()?;
        if len > 0 {
            // SAFETY: the range was allocated above; the stream belongs to the same device.
            check(unsafe { result::memset_d8_async(buffer.ptr, 0, len, device.stream()) })?;
        }
        Ok(buffer)
    }

    /// Fresh memory that kernels must write before they read it.
    pub fn uninit(device: &CudaDevice, len: usize) -> Result<DeviceBuffer, KernelError> {
        device.bind()?;
        if len == 0 {
            return Ok(DeviceBuffer { device: device.clone(), ptr: 0, len });
        }
        // SAFETY: the context is bound; the result is freed once, in `drop`.
        let ptr = match unsafe { result::malloc_sync(len) } {
            Ok(ptr) => ptr,
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(KernelError::OutOfMemory { what: "device memory", bytes: len });
            }
            Err(e) => return Err(e.into()),
        };
        Ok(DeviceBuffer { device: device.clone(), ptr, len })
    }

    /// A copy of `bytes`, complete when this returns.
    pub fn from_bytes(device: &CudaDevice, bytes: &[u8]) -> Result<DeviceBuffer, KernelError> {
        let buffer = Self::uninit(device, bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Copies `bytes` to `offset`, after all work queued so far; complete when this returns.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), KernelError> {
        let end = offset.checked_add(bytes.len()).expect("lengths fit");
        assert!(end <= self.len, "{end} is beyond the buffer's {} bytes", self.len);
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // On the device's own stream: the driver's blocking copy may return before the bytes have
        // arrived, and our stream does not wait for the one that it is queued on.
        // SAFETY: the range lies inside the allocation, by the assert; `bytes` is borrowed until
        // the copy is done, by the wait below.
        check(unsafe {
            result::memcpy_htod_async(self.ptr + offset as u64, bytes, self.device.stream())
        })?;
        self.device.synchronize()
    }

    /// The bytes from `offset` on, after all work queued so far.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), KernelError> {
        let end = offset.checked_add(out.len()).expect("lengths fit");
        assert!(end <= self.len, "{end} is beyond the buffer's {} bytes", self.len);
        if out.is_empty() {
            return Ok(());
        }
        self.device.synchronize()?;
        // SAFETY: as in `write`.
        check(unsafe { result::memcpy_dtoh_sync(out, self.ptr + offset as u64) })
    }

    /// Queues a copy of the whole of `from`, of the same length and device, into this buffer.
    pub fn copy_from(&self, from: &DeviceBuffer) -> Result<(), KernelError> {
        assert_eq!(self.len, from.len, "the buffers are of one length");
        self.copy_part(0, from, self.len)
    }

    /// Queues a copy of the first `len` bytes of `from`, on the same device, to `offset`.
    pub fn copy_part(
        &self,
        offset: usize,
        from: &DeviceBuffer,
        len: usize,
    ) -> Result<(), KernelError> {
        let fits = len <= from.len && self.len.checked_sub(offset).is_some_and(|room| len <= room);
        assert!(fits, "{len} bytes from {} to {offset} of {}", from.len, self.len);
        assert_eq!(self.device.ordinal(), from.device.ordinal(), "both lie on one device");
        if len == 0 {
            return Ok(());
        }
        self.device.bind()?;
        let (to, stream) = (self.ptr + offset as u64, self.device.stream());
        // SAFETY: both ranges lie inside their allocations, by the assert, which outlive the copy:
        // freeing one waits for it.
        check(unsafe { result::memcpy_dtod_async(to, from.ptr, len, stream) })
    }

    /// Device address; 0 for an empty buffer.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn device(&self) -> &CudaDevice {
        &self.device
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // A lost device takes its memory with it, so errors are of no use here.
        if self.len > 0 && self.device.bind().is_ok() {
            // SAFETY: allocated in `uninit` and freed here alone; the driver waits for work that
            // still uses it.
            let _ = unsafe { result::free_sync(self.ptr) };
        }
    }
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceBuffer({} bytes)", self.len)
    }
}

/// Host memory that copies read and write without a detour, and therefore later than the call.
pub struct PinnedBuffer {
    device: CudaDevice,
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain owned memory; asynchronous copies are ordered by the caller through events.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    /// Zeroed. Errors: `OutOfMemory`.
    pub fn new(device: &CudaDevice, len: usize) -> Result<PinnedBuffer, KernelError> {
        device.bind()?;
        let no_memory = || KernelError::OutOfMemory { what: "pinned memory", bytes: len };
        // SAFETY: the context is bound; freed once, in `drop`.
        let raw = unsafe { result::malloc_host(len.max(1), 0) }.map_err(|_| no_memory())?;
        let ptr = NonNull::new(raw.cast::<u8>()).ok_or_else(no_memory)?;
        // SAFETY: the driver gave `len` bytes.
        unsafe { ptr.as_ptr().write_bytes(0, len) };
        Ok(PinnedBuffer { device: device.clone(), ptr, len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes. The caller has waited for copies into this buffer.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes, initialised in `new`, owned by self.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// As `bytes`. The caller has waited for copies out of this buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Queues a copy of the first `len` bytes to `to` at `offset`. The buffer must not be written
    /// before an event recorded after this has passed.
    pub fn upload(&self, to: &DeviceBuffer, offset: usize, len: usize) -> Result<(), KernelError> {
        assert!(len <= self.len && offset + len <= to.len(), "the copy lies inside both buffers");
        self.device.bind()?;
        let stream = self.device.stream();
        let bytes = &self.bytes()[..len];
        // SAFETY: both ranges lie inside their buffers, by the assert; the caller keeps this buffer
        // unchanged until the copy is done.
        check(unsafe { result::memcpy_htod_async(to.ptr() + offset as u64, bytes, stream) })
    }

    /// Queues a copy of `len` bytes at `offset` of `from` into this buffer. It must not be read
    /// before an event recorded after this has passed.
    pub fn download(
        &mut self,
        from: &DeviceBuffer,
        offset: usize,
        len: usize,
    ) -> Result<(), KernelError> {
        assert!(len <= self.len && offset + len <= from.len(), "the copy lies inside both buffers");
        self.device.bind()?;
        let stream = self.device.stream();
        let from = from.ptr() + offset as u64;
        // SAFETY: as in `upload`.
        check(unsafe { result::memcpy_dtoh_async(&mut self.bytes_mut()[..len], from, stream) })
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // Copies may still be under way.
            let _ = self.device.synchronize();
            // SAFETY: allocated in `new`, freed here alone.
            let _ = unsafe { result::free_host(self.ptr.as_ptr().cast()) };
        }
    }
}
