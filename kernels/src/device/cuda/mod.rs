//! One CUDA device: its context, one stream, the kernels loaded on it, and launches.
//!
//! The driver is found at run time; without one `device_count` is 0 and nothing else is called.
//! All work of a rank is queued on one stream, in order. No events are tracked behind our back.

#![allow(unsafe_code)]

pub mod buffer;
pub mod cublaslt;
pub mod graph;
pub mod images;
pub mod spec;

pub use buffer::{DeviceBuffer, PinnedBuffer};
pub use graph::{Event, Graph};
pub use spec::{Arg, Geometry, KernelSpec, Param};

use crate::{DType, KernelError};
use cublaslt::{Algorithms, Handle};
use cudarc::driver::result::DriverError;
use cudarc::driver::{result, sys};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared memory that a block may have without being asked for.
const SHARED_BYTES_DEFAULT: u32 = 48 << 10;
/// Scratch memory of a device: partial results of attention over a million keys or more.
const SCRATCH_BYTES: usize = 64 << 20;
/// Parameters of one kernel.
const PARAMS_MAX: usize = 32;

/// A device. Cloning shares it.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
    activation: DType,
}

struct Inner {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    name: String,
    kernels: Mutex<Kernels>,
    /// Address of the scratch memory, 0 before its first use.
    scratch: Mutex<u64>,
    choices: Mutex<Choices>,
    /// Of cuBLASLt, from its first use on.
    cublaslt: Mutex<Option<Handle>>,
}

/// Which of several kernels that compute the same bits is launched; filled by what was found out
/// about this device, see `qualify`.
#[derive(Default)]
struct Choices {
    /// Kernels that must not be launched.
    switched_off: BTreeSet<&'static str>,
    /// Kernel that would be launched -> the faster one on this device.
    preferred: BTreeMap<&'static str, &'static KernelSpec>,
    /// Activation format and shape of weights that cuBLASLt multiplies with.
    products: BTreeMap<(DType, [usize; 2]), Algorithms>,
}

#[derive(Default)]
struct Kernels {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that the driver was told of.
    shared_bytes: u32,
}

// SAFETY: handles of the driver, which may be used from any thread that binds the context (`bind`);
// the map is behind a lock.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Devices that the driver shows; 0 without a driver.
pub fn device_count() -> usize {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } || result::init().is_err() {
        return 0;
    }
    result::device::get_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

impl CudaDevice {
    /// Device `ordinal`, with BF16 activations.
    ///
    /// Errors: `Device` when there is no driver, no such device, or it refuses.
    pub fn open(ordinal: usize) -> Result<CudaDevice, KernelError> {
        let count = device_count();
        if ordinal >= count {
            let reason = format!("no CUDA device {ordinal}: the driver shows {count}");
            return Err(KernelError::Device(reason));
        }
        let device = result::device::get(ordinal as i32)?;
        let name = result::device::get_name(device)?;
        // SAFETY: the device exists; released in `drop` of `Inner`.
        let context = unsafe { result::primary_ctx::retain(device) }?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        let inner = Inner {
            ordinal,
            device,
            context,
            stream,
            name,
            kernels: Mutex::default(),
            scratch: Mutex::default(),
            choices: Mutex::default(),
            cublaslt: Mutex::default(),
        };
        Ok(CudaDevice { inner: Arc::new(inner), activation: DType::BF16 })
    }

    /// The same device for a model whose activations are `dtype`: F16 or BF16.
    pub fn with_activation(&self, dtype: DType) -> CudaDevice {
        assert!(matches!(dtype, DType::F16 | DType::BF16), "activations are F16 or BF16");
        CudaDevice { inner: self.inner.clone(), activation: dtype }
    }

    /// The number format of what GEMMs and attention read: F16 or BF16.
    pub fn activation_dtype(&self) -> DType {
        self.activation
    }

    pub fn ordinal(&self) -> usize {
        self.inner.ordinal
    }

    /// As the driver names it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Major and minor number, such as (9, 0).
    pub fn compute_capability(&self) -> Result<(i32, i32), KernelError> {
        use sys::CUdevice_attribute_enum as A;
        let get = |a| self.attribute(a);
        Ok((
            get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    pub fn num_multiprocessors(&self) -> Result<usize, KernelError> {
        let count =
            self.attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(usize::try_from(count).unwrap_or(1).max(1))
    }

    /// Shared memory of a multiprocessor, which its resident blocks divide among them.
    pub fn shared_bytes_per_multiprocessor(&self) -> Result<usize, KernelError> {
        use sys::CUdevice_attribute_enum as A;
        let bytes = self.attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Address and length of memory for what one op keeps from one of its kernels to the next: all
    /// ops share it, since they run one after the other. The address never changes. Allocated at
    /// the first call, which must not be inside a recording.
    ///
    /// Errors: `OutOfMemory`.
    pub fn scratch(&self) -> Result<(u64, usize), KernelError> {
        let mut address = self.inner.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if *address == 0 {
            self.bind()?;
            // SAFETY: the context is bound; freed once, in `drop` of `Inner`.
            let allocated = unsafe { result::malloc_sync(SCRATCH_BYTES) };
            let (what, bytes) = ("scratch memory", SCRATCH_BYTES);
            *address = allocated.map_err(|_| KernelError::OutOfMemory { what, bytes })?;
        }
        Ok((*address, SCRATCH_BYTES))
    }

    fn attribute(&self, which: sys::CUdevice_attribute_enum) -> Result<i32, KernelError> {
        // SAFETY: the device exists.
        Ok(unsafe { result::device::get_attribute(self.inner.device, which) }?)
    }

    /// The CUDA version that the driver offers, such as 13000 for 13.0.
    pub fn driver_version(&self) -> Result<i32, KernelError> {
        let mut version = 0;
        // SAFETY: the pointer is valid for the call.
        check(unsafe { sys::cuDriverGetVersion(&mut version) }.result())?;
        Ok(version)
    }

    /// Takes an alternative to `kernel` from now on, where its op has one.
    pub fn switch_off(&self, kernel: &'static KernelSpec) {
        self.choices().switched_off.insert(kernel.name);
    }

    pub fn is_switched_off(&self, kernel: &KernelSpec) -> bool {
        self.choices().switched_off.contains(kernel.name)
    }

    /// Launches `kernel` from now on where `usual` would be, if it does the same.
    pub fn prefer(&self, usual: &'static KernelSpec, kernel: &'static KernelSpec) {
        self.choices().preferred.insert(usual.name, kernel);
    }

    /// What to launch where `usual` would be: itself, unless told otherwise.
    pub fn preferred(&self, usual: &'static KernelSpec) -> &'static KernelSpec {
        self.choices().preferred.get(usual.name).copied().unwrap_or(usual)
    }

    /// From now on plain weights [out_features, in_features] without a bias are loaded for
    /// cuBLASLt, or for our own kernels again.
    pub fn choose_product(&self, shape: [usize; 2], choice: Option<Algorithms>) {
        let key = (self.activation, shape);
        match choice {
            Some(algorithms) => self.choices().products.insert(key, algorithms),
            None => self.choices().products.remove(&key),
        };
    }

    /// What `choose_product` was last told of this shape and the device's activation format.
    pub fn chosen_product(&self, shape: [usize; 2]) -> Option<Algorithms> {
        self.choices().products.get(&(self.activation, shape)).copied()
    }

    /// cuBLASLt's handle on this device, made at the first call, which must not be inside a
    /// recording.
    fn cublaslt(&self) -> Result<Handle, KernelError> {
        let mut handle = self.inner.cublaslt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = *handle {
            return Ok(handle);
        }
        self.bind()?;
        let made = Handle::new()?;
        *handle = Some(made);
        Ok(made)
    }

    fn choices(&self) -> MutexGuard<'_, Choices> {
        self.inner.choices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free and total memory, in bytes.
    pub fn memory(&self) -> Result<(usize, usize), KernelError> {
        self.bind()?;
        Ok(result::mem_get_info()?)
    }

    /// Waits for all work queued so far.
    pub fn synchronize(&self) -> Result<(), KernelError> {
        self.bind()?;
        // SAFETY: the stream lives as long as the device.
        check(unsafe { result::stream::synchronize(self.inner.stream) })
    }

    /// The driver's handle of the stream, for libraries that queue work on it.
    pub fn stream(&self) -> sys::CUstream {
        self.inner.stream
    }

    /// Makes the device current on this thread.
    pub fn bind(&self) -> Result<(), KernelError> {
        // SAFETY: the context is retained for as long as `Inner` lives.
        check(unsafe { result::ctx::set_current(self.inner.context) })
    }

    /// Queues a kernel. Its module is loaded at the first launch.
    ///
    /// Panics when `args` are not those of the kernel's table. Errors: `Device`.
    pub fn launch(
        &self,
        kernel: &'static KernelSpec,
        geometry: Geometry,
        args: &[Arg],
    ) -> Result<(), KernelError> {
        let fits = args.iter().map(|a| a.param()).eq(kernel.params.iter().copied());
        assert!(fits, "{} takes {:?}, not {args:?}", kernel.name, kernel.params);
        assert!(args.len() <= PARAMS_MAX, "{} has too many parameters", kernel.name);
        self.bind()?;
        let function = self.function(kernel, geometry.shared_bytes)?;
        let mut bits = [0u64; PARAMS_MAX];
        let mut params = [std::ptr::null_mut::<c_void>(); PARAMS_MAX];
        for ((bits, param), arg) in bits.iter_mut().zip(&mut params).zip(args) {
            *bits = arg.bits();
            // Little endian: the low bytes come first.
            *param = std::ptr::from_mut(bits).cast();
        }
        let [x, y, z] = geometry.grid;
        let (block, shared) = (geometry.block_threads, geometry.shared_bytes);
        // SAFETY: the function belongs to a module that stays loaded; the driver copies as many
        // bytes of each parameter as the kernel declares, which are those of its table (a test
        // compares them) and at most the 8 that each points to. That the addresses are valid for
        // what the kernel does with them is the contract of the op that made them.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (block, 1, 1),
                shared,
                self.inner.stream,
                &mut params[..args.len()],
            )
        };
        launched.map_err(|e| KernelError::Device(format!("launching {}: {e:?}", kernel.name)))
    }

    /// Loads a kernel before it is needed, as inside a recording modules cannot be loaded.
    pub fn prepare(
        &self,
        kernel: &'static KernelSpec,
        shared_bytes: u32,
    ) -> Result<(), KernelError> {
        self.bind()?;
        self.function(kernel, shared_bytes).map(|_| ())
    }

    fn function(
        &self,
        kernel: &'static KernelSpec,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction, KernelError> {
        let mut kernels = self.inner.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kernels.functions.get(kernel.name).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let module = kernels.module(kernel.module)?;
                let name = CString::new(kernel.name).expect("a C name");
                // SAFETY: the module stays loaded as long as the device.
                let handle = unsafe { result::module::get_function(module, name) };
                let missing = |e| KernelError::Device(format!("kernel {}: {e:?}", kernel.name));
                let handle = handle.map_err(missing)?;
                Function { handle, shared_bytes: SHARED_BYTES_DEFAULT }
            }
        };
        if shared_bytes > function.shared_bytes {
            use sys::CUfunction_attribute_enum as A;
            let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is valid.
            check(unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    attribute,
                    shared_bytes as i32,
                )
            })?;
            function.shared_bytes = shared_bytes;
        }
        kernels.functions.insert(kernel.name, function);
        Ok(function.handle)
    }
}

impl Kernels {
    fn module(&mut self, name: &'static str) -> Result<sys::CUmodule, KernelError> {
        if let Some(module) = self.modules.get(name) {
            return Ok(*module);
        }
        let image = images::image(name)?;
        // SAFETY: a complete fatbin, made by the build script; the driver copies it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|e| KernelError::Device(format!("loading the kernels of {name}: {e:?}")))?;
        self.modules.insert(name, module);
        Ok(module)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the context is still retained; nothing uses the stream or modules any more, since
        // every buffer, graph and event holds the device.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            let handle = self.cublaslt.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Some(handle) = handle.take() {
                handle.destroy();
            }
            let kernels = self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner);
            for module in kernels.modules.values() {
                let _ = result::module::unload(*module);
            }
            let _ = result::stream::destroy(self.stream);
            let scratch = *self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
            if scratch != 0 {
                let _ = result::free_sync(scratch);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaDevice({}, {:?})", self.inner.ordinal, self.activation)
    }
}

impl From<DriverError> for KernelError {
    fn from(error: DriverError) -> KernelError {
        KernelError::Device(format!("CUDA: {error:?}"))
    }
}

fn check(result: Result<(), DriverError>) -> Result<(), KernelError> {
    result.map_err(KernelError::from)
}
