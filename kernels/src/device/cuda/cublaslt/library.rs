//! The functions of cuBLASLt that are called.
//!
//! Source: cublasLt.h of CUDA 13.0.

#![allow(unsafe_code)]

use crate::KernelError;
use crate::device::library::Library;
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// The files of the releases whose interface is the one written below.
const LIBRARY_NAMES: [&CStr; 2] = [c"libcublasLt.so.13", c"libcublasLt.so.12"];
pub const SUCCESS: c_int = 0;

pub type RawHandle = *mut c_void;
pub type RawDescriptor = *mut c_void;

/// One way to multiply, with every choice made, as the library writes it. It may be kept and used
/// again with the same version of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Algorithm(pub [u64; 8]);

impl Algorithm {
    /// As 128 hexadecimal digits, to be kept.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|word| format!("{word:016x}")).collect()
    }

    /// What `to_hex` has written. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Algorithm> {
        let mut words = [0; 8];
        if text.len() != 16 * words.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (word, digits) in words.iter_mut().zip(text.as_bytes().chunks_exact(16)) {
            *word = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Algorithm(words))
    }
}

/// What the library answers when it is asked for an algorithm.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Suggestion {
    pub algorithm: Algorithm,
    pub workspace_bytes: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

pub type Destroy = unsafe extern "C" fn(RawDescriptor) -> c_int;
pub type SetAttribute = unsafe extern "C" fn(RawDescriptor, c_int, *const c_void, usize) -> c_int;

/// The functions of the library that are called. Source: cublasLt.h.
pub struct Functions {
    pub get_version: unsafe extern "C" fn() -> usize,
    pub create: unsafe extern "C" fn(*mut RawHandle) -> c_int,
    pub destroy: unsafe extern "C" fn(RawHandle) -> c_int,
    pub desc_create: unsafe extern "C" fn(*mut RawDescriptor, c_int, c_int) -> c_int,
    pub desc_set: SetAttribute,
    pub desc_destroy: Destroy,
    pub layout_create: unsafe extern "C" fn(*mut RawDescriptor, c_int, u64, u64, i64) -> c_int,
    pub layout_set: SetAttribute,
    pub layout_destroy: Destroy,
    pub preference_create: unsafe extern "C" fn(*mut RawDescriptor) -> c_int,
    pub preference_set: SetAttribute,
    pub preference_destroy: Destroy,
    pub suggest: unsafe extern "C" fn(
        RawHandle,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        c_int,
        *mut Suggestion,
        *mut c_int,
    ) -> c_int,
    pub config_get:
        unsafe extern "C" fn(*const Algorithm, c_int, *mut c_void, usize, *mut usize) -> c_int,
    pub check_algorithm: unsafe extern "C" fn(
        RawHandle,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        RawDescriptor,
        *const Algorithm,
        *mut Suggestion,
    ) -> c_int,
    pub multiply: unsafe extern "C" fn(
        RawHandle,
        RawDescriptor,
        *const c_void,
        *const c_void,
        RawDescriptor,
        *const c_void,
        RawDescriptor,
        *const c_void,
        *const c_void,
        RawDescriptor,
        *mut c_void,
        RawDescriptor,
        *const Algorithm,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> c_int,
}

impl Functions {
    /// The library, opened once and kept until the process ends.
    ///
    /// Errors: `Device` when it is not installed or lacks a function.
    pub fn get() -> Result<&'static Functions, KernelError> {
        static LIBRARY: OnceLock<Result<Functions, KernelError>> = OnceLock::new();
        LIBRARY.get_or_init(Functions::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Functions, KernelError> {
        let library = Library::open("cuBLASLt", &LIBRARY_NAMES).ok_or_else(|| {
            KernelError::Device("no libcublasLt.so.13 or .12 is installed".to_string())
        })?;
        // SAFETY: each type is that of the function's declaration in cublasLt.h; enumerations are
        // ints there, and every kind of descriptor is a pointer.
        unsafe {
            Ok(Functions {
                get_version: library.function(c"cublasLtGetVersion")?,
                create: library.function(c"cublasLtCreate")?,
                destroy: library.function(c"cublasLtDestroy")?,
                desc_create: library.function(c"cublasLtMatmulDescCreate")?,
                desc_set: library.function(c"cublasLtMatmulDescSetAttribute")?,
                desc_destroy: library.function(c"cublasLtMatmulDescDestroy")?,
                layout_create: library.function(c"cublasLtMatrixLayoutCreate")?,
                layout_set: library.function(c"cublasLtMatrixLayoutSetAttribute")?,
                layout_destroy: library.function(c"cublasLtMatrixLayoutDestroy")?,
                preference_create: library.function(c"cublasLtMatmulPreferenceCreate")?,
                preference_set: library.function(c"cublasLtMatmulPreferenceSetAttribute")?,
                preference_destroy: library.function(c"cublasLtMatmulPreferenceDestroy")?,
                suggest: library.function(c"cublasLtMatmulAlgoGetHeuristic")?,
                config_get: library.function(c"cublasLtMatmulAlgoConfigGetAttribute")?,
                check_algorithm: library.function(c"cublasLtMatmulAlgoCheck")?,
                multiply: library.function(c"cublasLtMatmul")?,
            })
        }
    }
}

/// The version of the library that was found, as it writes it: 130002 for 13.0.2. `None` when there
/// is none that can be used.
pub fn version() -> Option<usize> {
    let functions = Functions::get().ok()?;
    // SAFETY: takes nothing.
    Some(unsafe { (functions.get_version)() })
}

/// Errors: `Device`, with the name of a code other than success.
pub fn check(call: &str, code: c_int) -> Result<(), KernelError> {
    let name = match code {
        SUCCESS => return Ok(()),
        1 => "not initialized",
        3 => "allocation failed",
        7 => "invalid value",
        8 => "architecture mismatch",
        11 => "mapping error",
        13 => "execution failed",
        14 => "internal error",
        15 => "not supported",
        16 => "license error",
        _ => "unknown",
    };
    Err(KernelError::Device(format!("cuBLASLt: {call}: status {code}, {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        match Functions::get() {
            Ok(_) => assert!(version().is_some_and(|version| version >= 120_000)),
            Err(error) => {
                assert!(error.to_string().contains("libcublasLt.so.13"), "{error}");
                assert_eq!(version(), None);
            }
        }
    }

    #[test]
    fn every_code_but_success_is_an_error_with_a_name() {
        assert!(check("a call", 0).is_ok());
        let text = check("a call", 15).expect_err("not success").to_string();
        assert!(text.contains("a call") && text.contains("not supported"), "{text}");
    }
}
