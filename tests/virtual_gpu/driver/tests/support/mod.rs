//! Runs a test's body in a process of its own, with the Virtual GPU in its library path.
//!
//! The driver is one per process and reads its environment once, so each test gets a process: the
//! test binary starts itself, asking for that one test.

#![allow(unsafe_code, dead_code)]

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Calls of the raw interface.
macro_rules! raw {
    ($body:block) => {
        // SAFETY: the tests pass what the functions take. What is wrong on purpose must be refused
        // by the Virtual GPU before it is followed; that is what is tested.
        unsafe { $body }
    };
}

const INSIDE: &str = "VIRTUAL_GPU_TEST_INSIDE";

/// What a test's process said on stderr, for the test to look at; empty inside that process.
pub struct Outcome(String);

impl Outcome {
    /// The driver said so. (True inside: there the body has just run.)
    #[track_caller]
    pub fn said(&self, text: &str) -> &Outcome {
        let is_inside = std::env::var_os(INSIDE).is_some();
        assert!(is_inside || self.0.contains(text), "not said: {text}\nsaid was:\n{}", self.0);
        self
    }

    /// The rest of the first line that begins so.
    pub fn line(&self, begin: &str) -> Option<String> {
        self.0.lines().find_map(|line| line.strip_prefix(begin)).map(str::to_owned)
    }
}

/// Runs `body` in a process of its own with these variables set. `test` is the test's own name.
#[track_caller]
pub fn on_virtual_gpu(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Outcome {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return Outcome(String::new());
    }
    let output = run_inside(test, variables);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let ran = stdout.contains("1 passed");
    assert!(output.status.success() && ran, "{}\n{stdout}\n{stderr}", output.status);
    Outcome(stderr)
}

/// As `on_virtual_gpu`, for a body that a signal must end.
#[track_caller]
pub fn dies_on_virtual_gpu(test: &str, signal: i32, body: impl FnOnce()) {
    use std::os::unix::process::ExitStatusExt;
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let output = run_inside(test, &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(signal), "{}\n{stderr}", output.status);
}

/// Whether this is the process that starts the others.
pub fn is_outside() -> bool {
    std::env::var_os(INSIDE).is_none()
}

fn run_inside(test: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", lib_dir())
        .envs(variables.iter().copied());
    command.output().expect("start the test binary")
}

/// A folder with the libraries under the names that programs ask for. cudarc asks for `libnccl.so`,
/// which no distribution has; it is added here and only here.
fn lib_dir() -> &'static Path {
    static LIB_DIR: OnceLock<PathBuf> = OnceLock::new();
    LIB_DIR.get_or_init(|| {
        let binary = std::env::current_exe().expect("the test binary");
        let built = binary.parent().expect("a folder");
        let dir = built.join(format!("virtual-gpu-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("make the folder");
        for (from, to) in [
            ("libvirtual_cuda.so", "libcuda.so.1"),
            ("libvirtual_cuda.so", "libcuda.so"),
            ("libvirtual_nccl.so", "libnccl.so.2"),
            ("libvirtual_nccl.so", "libnccl.so"),
            ("libvirtual_cublaslt.so", "libcublasLt.so.13"),
        ] {
            let _ = std::fs::remove_file(dir.join(to));
            std::os::unix::fs::symlink(built.join(from), dir.join(to)).expect("link a library");
        }
        dir
    })
}

/// Sleeps for a moment in which a wrongly eager driver would have done its work.
pub fn a_moment() {
    std::thread::sleep(Duration::from_millis(20));
}

/// A device through cudarc, one stream of its own, and the kernels of `data/probe.cu`.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub module: sys::CUmodule,
}

// SAFETY: handles may be used on any thread that has the context.
unsafe impl Sync for Gpu {}
// SAFETY: as above.
unsafe impl Send for Gpu {}

impl Gpu {
    pub fn open() -> Gpu {
        Gpu::open_device(0)
    }

    pub fn open_device(ordinal: usize) -> Gpu {
        let context = CudaContext::new(ordinal).unwrap();
        // SAFETY: the tests order their streams themselves; that is what they test.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let module = load(include_bytes!("../data/probe.fatbin")).unwrap();
        Gpu { context, stream, module }
    }

    pub fn raw(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    pub fn function(&self, name: &str) -> sys::CUfunction {
        let name = CString::new(name).unwrap();
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.module, name) }.unwrap()
    }

    /// Launches on the own stream.
    pub fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: &[&Param],
    ) -> Launched {
        self.launch_on(self.raw(), name, grid, block, 0, params)
    }

    pub fn launch_on(
        &self,
        stream: sys::CUstream,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        params: &[&Param],
    ) -> Launched {
        let mut pointers: Vec<*mut c_void> = params.iter().map(|param| param.pointer()).collect();
        let (grid, block) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
        self.context.bind_to_thread()?;
        // SAFETY: the tests pass what the kernel takes.
        unsafe {
            result::launch_kernel(
                self.function(name),
                grid,
                block,
                shared_bytes,
                stream,
                &mut pointers,
            )
        }
    }

    /// x[i] += amount on a stream, for `n` elements.
    pub fn add_on(&self, stream: sys::CUstream, x: u64, amount: u32, n: u32) -> Launched {
        let params = [&Param::U64(x), &Param::U32(amount), &Param::U32(n)];
        self.launch_on(stream, "add", [1; 3], [n, 1, 1], 0, &params)
    }

    /// Device memory that holds `values`.
    pub fn upload(&self, values: &[u32]) -> u64 {
        self.context.bind_to_thread().unwrap();
        // SAFETY: the memory has room for the values; the copy is waited for.
        unsafe {
            let address = result::malloc_sync(size_of_val(values)).unwrap();
            result::memcpy_htod_async(address, values, self.raw()).unwrap();
            self.stream.synchronize().unwrap();
            address
        }
    }

    /// Waits for the own stream, then reads.
    pub fn download(&self, address: u64, n: usize) -> Vec<u32> {
        self.stream.synchronize().unwrap();
        let mut values = vec![0u32; n];
        // SAFETY: the test says how much memory there is; the copy is waited for.
        unsafe { result::memcpy_dtoh_async(&mut values, address, self.raw()) }.unwrap();
        self.stream.synchronize().unwrap();
        values
    }

    pub fn new_event(&self) -> sys::CUevent {
        self.context.bind_to_thread().unwrap();
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap()
    }
}

pub type Launched = Result<(), DriverError>;

/// A kernel parameter.
pub enum Param {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Param {
    fn pointer(&self) -> *mut c_void {
        match self {
            Param::U8(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Param::U16(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Param::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Param::U64(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Param::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

pub fn load(image: &[u8]) -> Result<sys::CUmodule, DriverError> {
    // SAFETY: the images are complete.
    unsafe { result::module::load_data(image.as_ptr().cast()) }
}

/// The code that a call returned.
pub fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    result.err().map_or(sys::CUresult::CUDA_SUCCESS, |error| error.0)
}

/// Pinned host memory of `n` elements.
pub fn pinned(n: usize) -> &'static mut [u32] {
    // SAFETY: the memory is fresh, has room, and is filled before it becomes a slice.
    unsafe {
        let address = result::malloc_host(4 * n, 0).unwrap().cast::<u32>();
        std::ptr::write_bytes(address, 0, n);
        std::slice::from_raw_parts_mut(address, n)
    }
}
