//! The library as a program sees it.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CString;
use support::on_virtual_gpu;

#[test]
fn codes_have_the_names_of_the_header() {
    on_virtual_gpu("codes_have_the_names_of_the_header", &[], || {
        use CUresult::*;
        for code in [
            CUDA_SUCCESS,
            CUDA_ERROR_OUT_OF_MEMORY,
            CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUDA_ERROR_ECC_UNCORRECTABLE,
            CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
            CUDA_ERROR_ILLEGAL_STATE,
            CUDA_ERROR_ILLEGAL_ADDRESS,
            CUDA_ERROR_MISALIGNED_ADDRESS,
            CUDA_ERROR_LAUNCH_FAILED,
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
            CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
            CUDA_ERROR_UNKNOWN,
        ] {
            let error = DriverError(code);
            let name = error.error_name().unwrap();
            assert_eq!(name.to_str().unwrap(), format!("{code:?}"));
            error.error_string().unwrap();
        }
        let mut name = std::ptr::null();
        let no_code: u32 = 12345;
        // SAFETY: an enum of cudarc is a number to the library; this one is only passed on.
        let got = unsafe {
            let get: unsafe extern "C" fn(u32, *mut *const i8) -> u32 =
                std::mem::transmute(symbol("cuGetErrorName"));
            get(no_code, &mut name)
        };
        assert_eq!(got, CUDA_ERROR_INVALID_VALUE as u32);
    });
}

fn symbol(name: &str) -> *mut std::ffi::c_void {
    let name = CString::new(name).unwrap();
    let (mut function, mut status) = (std::ptr::null_mut(), raw!({ std::mem::zeroed() }));
    raw!({ sys::cuGetProcAddress_v2(name.as_ptr(), &mut function, 13000, 0, &mut status) });
    function
}

#[test]
fn functions_are_found_by_name_in_their_newest_version() {
    on_virtual_gpu("functions_are_found_by_name_in_their_newest_version", &[], || {
        for name in ["cuInit", "cuMemAlloc", "cuLaunchKernel", "cuGraphLaunch", "cuCtxCreate"] {
            assert!(!symbol(name).is_null(), "{name}");
        }
        assert_eq!(symbol("cuMemAlloc"), symbol("cuMemAlloc_v2"));
        assert!(symbol("cuNoSuchFunction").is_null());
        let mut version = 0;
        raw!({ sys::cuDriverGetVersion(&mut version) });
        assert_eq!(version, 13000);
    });
}

#[test]
fn contexts_can_be_made_pushed_and_destroyed() {
    on_virtual_gpu("contexts_can_be_made_pushed_and_destroyed", &[], || {
        result::init().unwrap();
        let mut context = std::ptr::null_mut();
        raw!({
            use CUresult::*;
            let created = sys::cuCtxCreate_v4(&mut context, std::ptr::null_mut(), 0, 0);
            assert_eq!(created, CUDA_SUCCESS);
            assert_eq!(result::ctx::get_current().unwrap(), Some(context));
            let device = result::malloc_sync(64).unwrap();
            assert_eq!(sys::cuCtxDestroy_v2(context), CUDA_SUCCESS);
            assert_eq!(result::ctx::get_current().unwrap(), None);
            assert_eq!(sys::cuCtxPushCurrent_v2(context), CUDA_ERROR_INVALID_CONTEXT);
            // The memory went with it.
            let again = cudarc::driver::CudaContext::new(0).unwrap();
            let (free, total) = again.mem_get_info().unwrap();
            assert_eq!(free, total);
            assert_eq!(sys::cuMemFree_v2(device), CUDA_ERROR_INVALID_VALUE);
        });
    });
}

#[test]
fn pools_tell_and_keep_their_attributes() {
    on_virtual_gpu("pools_tell_and_keep_their_attributes", &[], || {
        let context = cudarc::driver::CudaContext::new(0).unwrap();
        assert!(context.has_async_alloc());
        let mut pool = std::ptr::null_mut();
        let mut threshold = u64::MAX;
        let mut got = 0u64;
        raw!({
            use CUresult::*;
            use sys::CUmemPool_attribute::*;
            assert_eq!(sys::cuDeviceGetDefaultMemPool(&mut pool, 0), CUDA_SUCCESS);
            let attribute = CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            let set = sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast());
            assert_eq!(set, CUDA_SUCCESS);
            sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut got).cast());
            assert_eq!(got, u64::MAX);
            let stream = context.default_stream();
            let _memory = stream.alloc_zeros::<u8>(100).unwrap();
            let used = CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
            sys::cuMemPoolGetAttribute(pool, used, (&raw mut got).cast());
            assert_eq!(got, 100);
        });
    });
}

#[test]
fn a_trace_shows_each_call_with_its_result() {
    on_virtual_gpu(
        "a_trace_shows_each_call_with_its_result",
        &[("VIRTUAL_GPU_TRACE", "1")],
        || {
            let _ = cudarc::driver::CudaContext::new(0).unwrap();
        },
    )
    .said("cuDevicePrimaryCtxRetain -> 0");
}
