//! Products by NVIDIA's cuBLASLt where that is installed; it is found at run time, like NCCL.
//!
//! cuBLASLt picks an algorithm by the shape of a product, so that a row's bits would depend on how
//! many rows come with it. Here each weight shape has one algorithm, asked for once for a fixed
//! number of rows and then kept for every number: without splits along k, and without a workspace,
//! which also leaves nothing to allocate in a step. Whether that keeps rows apart on a given GPU is
//! tried before it is trusted, see `qualify::products`.
//!
//! Row-major W [n, k] is a column-major matrix [k, n], so out = x W^T is asked for as
//! out^T [n, m] = op(W) [n, k] x^T [k, m], all column-major, with the first operand transposed.
//!
//! Source: NVIDIA, "cuBLAS", chapter "Using the cuBLASLt API" (docs.nvidia.com/cuda/cublas), and
//! cublasLt.h of CUDA 13.0. It was never run against the library itself.

#![allow(unsafe_code)]

mod library;

pub use library::{Algorithm, version};

use super::CudaDevice;
use crate::{DType, KernelError};
use library::{
    Destroy, Functions, RawDescriptor, RawHandle, SUCCESS, SetAttribute, Suggestion, check,
};
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Rows of x and of out begin at multiples of so many bytes, and W does.
pub const ALIGNMENT_BYTES: usize = 16;
/// Rows of x for which an algorithm is asked for: a large decode step.
const ROWS_ASKED_FOR: usize = 64;
/// Numbers of rows for which an algorithm must be possible.
const ROWS_CHECKED: [usize; 4] = [1, ROWS_ASKED_FOR, 512, 4096];
/// Suggestions of the library that are looked at.
const SUGGESTIONS: usize = 16;

// The numbers of the enumerations in cublasLt.h, cublas_api.h and library_types.h.
const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const OP_T: i32 = 1;
const DESC_TRANSA: c_int = 3;
const LAYOUT_COLS: c_int = 3;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
const PREF_MIN_ALIGNMENTS_BYTES: [c_int; 4] = [5, 6, 7, 8];
const CONFIG_SPLITK_NUM: c_int = 2;
const CONFIG_REDUCTION_SCHEME: c_int = 3;

const NO_SUGGESTION: Suggestion = Suggestion {
    algorithm: Algorithm([0; 8]),
    workspace_bytes: 0,
    state: -1,
    waves: 0.0,
    reserved: [0; 4],
};

/// The library's state on one device. Its owner ends it.
#[derive(Clone, Copy)]
pub(super) struct Handle(RawHandle);

impl Handle {
    /// The caller has made the device current. Errors: `Device`.
    pub(super) fn new() -> Result<Handle, KernelError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check("cublasLtCreate", unsafe { (Functions::get()?.create)(&mut handle) })?;
        Ok(Handle(handle))
    }

    /// # Safety
    /// The handle is not used any more, and the device it was made on is current.
    pub(super) unsafe fn destroy(self) {
        if let Ok(functions) = Functions::get() {
            // SAFETY: as the caller vouches.
            let _ = unsafe { (functions.destroy)(self.0) };
        }
    }
}

/// A weight's shape and the formats around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub out_features: usize,
    pub in_features: usize,
    /// Of x and W: F16 or BF16.
    pub activation: DType,
    /// Of the result: as `activation`, or F32.
    pub out: DType,
}

impl Shape {
    /// Whether rows of W, x and out begin where the algorithms asked for want them.
    pub fn is_aligned(&self) -> bool {
        [self.out_features, self.in_features].iter().all(|n| n % (ALIGNMENT_BYTES / 2) == 0)
    }
}

/// The algorithms of one weight: its results are wanted in either format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithms {
    pub to_activation: Algorithm,
    pub to_f32: Algorithm,
}

/// Products with weights of one shape, by one algorithm for any number of rows.
pub struct Product {
    functions: &'static Functions,
    device: CudaDevice,
    handle: RawHandle,
    shape: Shape,
    algorithm: Algorithm,
    operands: Mutex<Operands>,
}

/// What the library is told of a product.
struct Operands {
    functions: &'static Functions,
    product: Descriptor,
    w: Descriptor,
    /// Of the number of rows that was set last.
    x: Descriptor,
    out: Descriptor,
}

struct Descriptor {
    raw: RawDescriptor,
    destroy: Destroy,
}

// SAFETY: handles and descriptors are plain memory of the library, which may be used on any thread;
// descriptors change behind a lock only.
unsafe impl Send for Product {}
// SAFETY: as above; the library allows products on one handle from several threads.
unsafe impl Sync for Product {}

impl Product {
    /// With the first algorithm that the library suggests and that keeps to the rules above.
    ///
    /// Errors: `Device`, also when there is none.
    pub fn find(device: &CudaDevice, shape: Shape) -> Result<Product, KernelError> {
        let operands = Operands::new(shape)?;
        let algorithm = operands.suggested(device.cublaslt()?.0)?;
        Self::with(device, shape, operands, algorithm)
    }

    /// With an algorithm of an earlier `find` for this shape, in this version of the library.
    ///
    /// Errors: `Device`, also when it is no algorithm for this shape.
    pub fn of(
        device: &CudaDevice,
        shape: Shape,
        algorithm: Algorithm,
    ) -> Result<Product, KernelError> {
        Self::with(device, shape, Operands::new(shape)?, algorithm)
    }

    fn with(
        device: &CudaDevice,
        shape: Shape,
        operands: Operands,
        algorithm: Algorithm,
    ) -> Result<Product, KernelError> {
        let handle = device.cublaslt()?.0;
        for num_rows in ROWS_CHECKED {
            operands.set_rows(num_rows)?;
            operands.check_algorithm(handle, &algorithm)?;
        }
        let (device, operands) = (device.clone(), Mutex::new(operands));
        Ok(Product { functions: Functions::get()?, device, handle, shape, algorithm, operands })
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Queues out = x W^T for `num_rows` rows on the device's stream. Allocates nothing.
    ///
    /// Panics when an address is not aligned. Errors: `Device`.
    ///
    /// # Safety
    /// At the addresses lie `num_rows` rows of out and of x, and W, in row-major order, in the
    /// formats of the shape, on the device, until the stream has passed the call.
    pub unsafe fn launch(
        &self,
        out: u64,
        x: u64,
        w: u64,
        num_rows: usize,
    ) -> Result<(), KernelError> {
        let is_aligned = |address: &u64| address.is_multiple_of(ALIGNMENT_BYTES as u64);
        assert!([out, x, w].iter().all(is_aligned), "{:?}: {out:#x}, {x:#x}, {w:#x}", self.shape);
        self.device.bind()?;
        let operands = self.operands.lock().unwrap_or_else(PoisonError::into_inner);
        operands.set_rows(num_rows)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let (one, zero) = (std::ptr::from_ref(&one).cast(), std::ptr::from_ref(&zero).cast());
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the descriptors are those of these matrices (`Operands::new`, `set_rows`), whose
        // memory the caller vouches for; factors are read on the host before the call returns, as
        // is the rule unless another pointer mode is set; the summand is `out` itself, which is
        // not read where its factor is 0. The algorithm needs no workspace (`check_algorithm`).
        let code = unsafe {
            (self.functions.multiply)(
                self.handle,
                operands.product.raw,
                one,
                pointer(w),
                operands.w.raw,
                pointer(x),
                operands.x.raw,
                zero,
                pointer(out),
                operands.out.raw,
                pointer(out),
                operands.out.raw,
                &self.algorithm,
                std::ptr::null_mut(),
                0,
                self.device.stream().cast(),
            )
        };
        check("cublasLtMatmul", code)
    }
}

impl std::fmt::Debug for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Product({:?})", self.shape)
    }
}

impl Operands {
    fn new(shape: Shape) -> Result<Operands, KernelError> {
        assert!(shape.is_aligned(), "{shape:?}: the caller has asked");
        let functions = Functions::get()?;
        let create = |raw: &mut RawDescriptor| {
            // SAFETY: writes one descriptor.
            unsafe { (functions.desc_create)(raw, COMPUTE_32F, R_32F) }
        };
        let product = Descriptor::new("cublasLtMatmulDescCreate", functions.desc_destroy, create)?;
        product.set(functions.desc_set, DESC_TRANSA, &OP_T)?;
        let layout = |dtype: DType, rows: usize, columns: usize| {
            let (rows, columns, ld) = (rows as u64, columns as u64, rows as i64);
            let create = |raw: &mut RawDescriptor| {
                // SAFETY: writes one descriptor.
                unsafe { (functions.layout_create)(raw, number_of(dtype), rows, columns, ld) }
            };
            Descriptor::new("cublasLtMatrixLayoutCreate", functions.layout_destroy, create)
        };
        let Shape { out_features: n, in_features: k, activation, out } = shape;
        Ok(Operands {
            functions,
            product,
            w: layout(activation, k, n)?,
            x: layout(activation, k, ROWS_ASKED_FOR)?,
            out: layout(out, n, ROWS_ASKED_FOR)?,
        })
    }

    fn set_rows(&self, num_rows: usize) -> Result<(), KernelError> {
        let num_rows = num_rows as u64;
        self.x.set(self.functions.layout_set, LAYOUT_COLS, &num_rows)?;
        self.out.set(self.functions.layout_set, LAYOUT_COLS, &num_rows)
    }

    /// The first suggestion for `ROWS_ASKED_FOR` rows that takes no workspace and has no splits.
    fn suggested(&self, handle: RawHandle) -> Result<Algorithm, KernelError> {
        let functions = self.functions;
        let create = |raw: &mut RawDescriptor| {
            // SAFETY: writes one descriptor.
            unsafe { (functions.preference_create)(raw) }
        };
        let (call, destroy) = ("cublasLtMatmulPreferenceCreate", functions.preference_destroy);
        let preference = Descriptor::new(call, destroy, create)?;
        let set = functions.preference_set;
        preference.set(set, PREF_MAX_WORKSPACE_BYTES, &0u64)?;
        // No bit: sums over splits are added up in no way at all.
        preference.set(set, PREF_REDUCTION_SCHEME_MASK, &0u32)?;
        for which in PREF_MIN_ALIGNMENTS_BYTES {
            preference.set(set, which, &(ALIGNMENT_BYTES as u32))?;
        }
        self.set_rows(ROWS_ASKED_FOR)?;
        let mut suggestions = [NO_SUGGESTION; SUGGESTIONS];
        let mut count: c_int = 0;
        // SAFETY: writes so many suggestions at most, and their number.
        let code = unsafe {
            (functions.suggest)(
                handle,
                self.product.raw,
                self.w.raw,
                self.x.raw,
                self.out.raw,
                self.out.raw,
                preference.raw,
                SUGGESTIONS as c_int,
                suggestions.as_mut_ptr(),
                &mut count,
            )
        };
        check("cublasLtMatmulAlgoGetHeuristic", code)?;
        let count = usize::try_from(count).unwrap_or(0).min(SUGGESTIONS);
        let keeps_rules = |s: &&Suggestion| {
            s.state == SUCCESS && s.workspace_bytes == 0 && self.is_whole(&s.algorithm)
        };
        suggestions[..count].iter().find(keeps_rules).map(|s| s.algorithm).ok_or_else(|| {
            let reason = "cuBLASLt suggests no algorithm without workspace and splits";
            KernelError::Device(reason.to_string())
        })
    }

    /// Whether each sum over k is made in one piece.
    fn is_whole(&self, algorithm: &Algorithm) -> bool {
        let get = |which: c_int| {
            let (mut value, mut written) = (0u32, 0usize);
            let out = std::ptr::from_mut(&mut value).cast();
            // SAFETY: both attributes are 32-bit numbers; the size is given.
            let code = unsafe {
                (self.functions.config_get)(algorithm, which, out, size_of::<u32>(), &mut written)
            };
            (code == SUCCESS).then_some(value)
        };
        get(CONFIG_SPLITK_NUM).is_some_and(|n| n <= 1) && get(CONFIG_REDUCTION_SCHEME) == Some(0)
    }

    /// Errors: `Device` when the algorithm cannot multiply these operands, or not without a
    /// workspace.
    fn check_algorithm(&self, handle: RawHandle, algorithm: &Algorithm) -> Result<(), KernelError> {
        let mut answer = NO_SUGGESTION;
        // SAFETY: reads the algorithm and writes one answer.
        let code = unsafe {
            (self.functions.check_algorithm)(
                handle,
                self.product.raw,
                self.w.raw,
                self.x.raw,
                self.out.raw,
                self.out.raw,
                algorithm,
                &mut answer,
            )
        };
        check("cublasLtMatmulAlgoCheck", code)?;
        if answer.workspace_bytes != 0 || !self.is_whole(algorithm) {
            let reason = "cuBLASLt's algorithm needs a workspace or splits sums";
            return Err(KernelError::Device(reason.to_string()));
        }
        Ok(())
    }
}

impl Descriptor {
    fn new(
        call: &str,
        destroy: Destroy,
        create: impl FnOnce(&mut RawDescriptor) -> c_int,
    ) -> Result<Descriptor, KernelError> {
        let mut raw = std::ptr::null_mut();
        check(call, create(&mut raw))?;
        Ok(Descriptor { raw, destroy })
    }

    fn set<T>(&self, set: SetAttribute, which: c_int, value: &T) -> Result<(), KernelError> {
        let pointer = std::ptr::from_ref(value).cast();
        // SAFETY: reads so many bytes of the value.
        let code = unsafe { set(self.raw, which, pointer, size_of::<T>()) };
        check("setting an attribute", code)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here alone.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// The library's number for a format.
fn number_of(dtype: DType) -> c_int {
    match dtype {
        DType::F32 => R_32F,
        DType::F16 => R_16F,
        DType::BF16 => R_16BF,
        _ => panic!("{dtype} is no format of tensors"),
    }
}
