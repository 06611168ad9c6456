//! The C interface.

use crate::abi::{Algorithm, DataType, Result, Status, Suggestion, VERSION, refuse};
use crate::multiply::{ALIGNMENT_BYTES, Call, Choices, Problem, choices_of};
use crate::objects::{self, Layout, Object, Preference, Product};
use std::ffi::{c_int, c_void};
use virtual_gpu::link::{self, LinkError, Ticket};

/// Defines functions of the C interface; the body yields `Result<()>`.
macro_rules! cublaslt_api {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$meta])*
        ///
        /// # Safety
        /// Pointers must be what the cuBLASLt API reference says of this function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Status {
            #[allow(unused_unsafe)]
            // SAFETY: the caller keeps the contract of the cuBLASLt API: pointers are valid or
            // null, and null is refused.
            let body = || -> Result<()> { unsafe { $body } };
            body().err().unwrap_or(Status::SUCCESS)
        }
    )*};
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

cublaslt_api! {
    /// A handle for the device of the calling thread's context.
    fn cublasLtCreate(handle: *mut u64) {
        let device = match link::current_device() {
            Ok(device) => device,
            Err(LinkError::OtherDriver) => {
                return refuse(Status::NOT_INITIALIZED, "libcuda.so.1 is not the Virtual GPU's");
            }
            Err(LinkError::Code(_)) => {
                return refuse(Status::NOT_INITIALIZED, "the calling thread has no CUDA context");
            }
        };
        put(handle, objects::add(Object::Handle { device }))
    }

    /// Products that are enqueued still run.
    fn cublasLtDestroy(handle: u64) {
        objects::device_of(handle)?;
        objects::remove(handle)
    }

    fn cublasLtMatmulDescCreate(out: *mut u64, compute_type: u32, scale_type: u32) {
        put(out, objects::add(Object::Product(Product::new(compute_type, scale_type)?)))
    }

    fn cublasLtMatmulDescSetAttribute(
        product: u64, which: u32, value: *const c_void, bytes: usize,
    ) {
        objects::product(product)?;
        objects::set(product, which, value, bytes)
    }

    fn cublasLtMatmulDescDestroy(product: u64) {
        objects::product(product)?;
        objects::remove(product)
    }

    fn cublasLtMatrixLayoutCreate(
        out: *mut u64, data_type: u32, rows: u64, columns: u64, stride: i64,
    ) {
        let data_type = DataType::from_raw(data_type)?;
        put(out, objects::add(Object::Layout(Layout { data_type, rows, columns, stride })))
    }

    fn cublasLtMatrixLayoutSetAttribute(
        layout: u64, which: u32, value: *const c_void, bytes: usize,
    ) {
        objects::layout(layout)?;
        objects::set(layout, which, value, bytes)
    }

    fn cublasLtMatrixLayoutDestroy(layout: u64) {
        objects::layout(layout)?;
        objects::remove(layout)
    }

    fn cublasLtMatmulPreferenceCreate(out: *mut u64) {
        put(out, objects::add(Object::Preference(Preference::DEFAULT)))
    }

    fn cublasLtMatmulPreferenceSetAttribute(
        preference: u64, which: u32, value: *const c_void, bytes: usize,
    ) {
        objects::preference(preference)?;
        objects::set(preference, which, value, bytes)
    }

    fn cublasLtMatmulPreferenceDestroy(preference: u64) {
        objects::preference(preference)?;
        objects::remove(preference)
    }

    /// The best one comes first: one that is of no use, as its state says; one with splits, if any
    /// way to add them up is allowed; one without.
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: u64,
        product: u64,
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        preference: u64,
        asked: c_int,
        out: *mut Suggestion,
        count: *mut c_int,
    ) {
        objects::device_of(handle)?;
        let suggestions =
            suggest(&problem(product, a, b, c, d)?, &objects::preference(preference)?)?;
        let asked = usize::try_from(asked).unwrap_or(0);
        if out.is_null() || asked == 0 {
            return refuse(Status::INVALID_VALUE, "no algorithms asked for");
        }
        for (i, suggestion) in suggestions.iter().take(asked).enumerate() {
            put(out.add(i), *suggestion)?;
        }
        put(count, suggestions.len().min(asked) as c_int)
    }

    fn cublasLtMatmulAlgoConfigGetAttribute(
        algorithm: *const Algorithm,
        which: u32,
        out: *mut c_void,
        bytes: usize,
        written: *mut usize,
    ) {
        let Choices { id, tile, splits, reduction, stages } = choices_of(get(algorithm)?)?;
        let value = match which {
            0 => id,
            1 => tile,
            2 => splits,
            3 => reduction,
            6 => stages,
            _ => {
                let why = format!("attribute {which} of an algorithm is not built");
                return refuse(Status::NOT_SUPPORTED, &why);
            }
        };
        if bytes != size_of::<u32>() {
            return refuse(Status::INVALID_VALUE, "attributes of algorithms have 4 bytes");
        }
        put(out.cast(), value)?;
        if !written.is_null() {
            put(written, bytes)?;
        }
        Ok(())
    }

    fn cublasLtMatmulAlgoCheck(
        handle: u64,
        product: u64,
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        algorithm: *const Algorithm,
        out: *mut Suggestion,
    ) {
        objects::device_of(handle)?;
        let algorithm = get(algorithm)?;
        problem(product, a, b, c, d)?.check_algorithm(algorithm)?;
        let splits = choices_of(algorithm)?.splits;
        put(out, suggestion(*algorithm, Status::SUCCESS, splits))
    }

    fn cublasLtMatmul(
        handle: u64,
        product: u64,
        alpha: *const f32,
        a: u64,
        a_layout: u64,
        b: u64,
        b_layout: u64,
        beta: *const f32,
        c: u64,
        c_layout: u64,
        d: u64,
        d_layout: u64,
        algorithm: *const Algorithm,
        workspace: u64,
        workspace_bytes: usize,
        stream: u64,
    ) {
        let device = objects::device_of(handle)?;
        let problem = problem(product, a_layout, b_layout, c_layout, d_layout)?;
        if algorithm.is_null() {
            return refuse(Status::NOT_SUPPORTED, "no algorithm was chosen, which is not built");
        }
        problem.check_algorithm(get(algorithm)?)?;
        if choices_of(get(algorithm)?)?.splits > 1 {
            return refuse(Status::NOT_SUPPORTED, "products in splits are not built");
        }
        let workspace_device = link::range_device(workspace, workspace_bytes as u64);
        if workspace_bytes > 0 && workspace_device.ok().flatten() != Some(device) {
            return refuse(Status::INVALID_VALUE, "the workspace is no live memory of the device");
        }
        let (alpha, beta) = (*get(alpha)?, *get(beta)?);
        if c == d && problem.c != problem.d {
            return refuse(Status::INVALID_VALUE, "C lies where D lies, but is described otherwise");
        }
        let call = Call { problem, device, alpha, beta, at: [a, b, c, d] };
        call.check_memory()?;
        let data = Box::into_raw(Box::new(call)).cast();
        match link::enqueue(device, stream, run, data, release) {
            Ok(()) => Ok(()),
            Err(error) => refuse(Status::EXECUTION_FAILED, &format!("{error:?} of the stream")),
        }
    }
}

fn problem(product: u64, a: u64, b: u64, c: u64, d: u64) -> Result<Problem> {
    let [a, b, c, d] =
        [objects::layout(a)?, objects::layout(b)?, objects::layout(c)?, objects::layout(d)?];
    let problem = Problem { product: objects::product(product)?, a, b, c, d };
    problem.sizes()?;
    Ok(problem)
}

fn suggest(problem: &Problem, preference: &Preference) -> Result<Vec<Suggestion>> {
    const SPLITS: u32 = 4;
    const COMPUTE_TYPE_SUMS: u32 = 2;
    if preference.alignments.iter().any(|&bytes| u64::from(bytes) < ALIGNMENT_BYTES) {
        return refuse(
            Status::NOT_SUPPORTED,
            "no algorithm for matrices that are aligned so little",
        );
    }
    // As with the real library, the choices depend on the number of columns that was asked for.
    let tile = if problem.d.columns > 32 { 20 } else { 15 };
    let whole = Choices { id: 66, tile, splits: 1, reduction: 0, stages: 11 };
    let split = Choices { splits: SPLITS, reduction: COMPUTE_TYPE_SUMS, ..whole };
    let unusable = Choices { id: 67, ..whole };
    let split_bytes =
        u64::from(SPLITS) * problem.d.rows * problem.d.columns * DataType::Float32.bytes();
    let may_split = preference.reduction_schemes & COMPUTE_TYPE_SUMS != 0
        && preference.workspace_bytes_max >= split_bytes;
    let mut all = vec![suggestion(problem.algorithm(&unusable)?, Status::NOT_SUPPORTED, 1)];
    if may_split {
        all.push(suggestion(problem.algorithm(&split)?, Status::SUCCESS, SPLITS));
    }
    all.push(suggestion(problem.algorithm(&whole)?, Status::SUCCESS, 1));
    Ok(all)
}

fn suggestion(algorithm: Algorithm, state: Status, splits: u32) -> Suggestion {
    let workspace_bytes = if splits > 1 { 1 << 20 } else { 0 };
    Suggestion { algorithm, workspace_bytes, state, waves: 1.0, reserved: [0; 4] }
}

unsafe extern "C" fn run(data: *mut c_void, _ticket: Ticket) -> u32 {
    // SAFETY: the driver passes what `cublasLtMatmul` gave it, and has not released it yet.
    let call = unsafe { &*data.cast::<Call>() };
    match call.run() {
        Ok(()) => 0,
        Err(LinkError::Code(code)) => code,
        Err(LinkError::OtherDriver) => link::CUDA_ERROR_LAUNCH_FAILED,
    }
}

unsafe extern "C" fn release(data: *mut c_void) {
    // SAFETY: the driver calls this once, with what `cublasLtMatmul` took out of a box.
    drop(unsafe { Box::from_raw(data.cast::<Call>()) });
}

/// # Safety
/// `value` is null or a `T`.
unsafe fn get<'a, T>(value: *const T) -> Result<&'a T> {
    // SAFETY: as the caller promised.
    match unsafe { value.as_ref() } {
        Some(value) => Ok(value),
        None => refuse(Status::INVALID_VALUE, "a null pointer for an argument"),
    }
}

/// # Safety
/// `out` is null or has room for a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return refuse(Status::INVALID_VALUE, "a null pointer for a result");
    }
    // SAFETY: not null, so there is room.
    unsafe { out.write(value) };
    Ok(())
}
