//! Devices, memory and copies.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::sys::CUresult::*;
use cudarc::driver::{CudaContext, result, sys};
use support::{Gpu, code, dies_on_virtual_gpu, on_virtual_gpu, pinned};

#[test]
fn a_device_names_itself_and_keeps_what_is_copied_to_it() {
    on_virtual_gpu("a_device_names_itself_and_keeps_what_is_copied_to_it", &[], || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.name().unwrap(), "Virtual GPU (no hardware)");
        assert_eq!(context.compute_capability().unwrap(), (8, 0));
        let stream = context.default_stream();
        let device = stream.clone_htod(&[1.5f32, -2.0, 3.25]).unwrap();
        assert_eq!(stream.clone_dtoh(&device).unwrap(), [1.5, -2.0, 3.25]);
    });
}

#[test]
fn the_environment_says_how_many_devices_there_are_and_what_they_are() {
    let variables = [
        ("VIRTUAL_GPU_DEVICES", "3"),
        ("VIRTUAL_GPU_MEMORY", "64M"),
        ("VIRTUAL_GPU_COMPUTE_CAPABILITY", "9.0"),
    ];
    on_virtual_gpu(
        "the_environment_says_how_many_devices_there_are_and_what_they_are",
        &variables,
        || {
            assert_eq!(CudaContext::device_count().unwrap(), 3);
            let context = CudaContext::new(2).unwrap();
            assert_eq!(context.compute_capability().unwrap(), (9, 0));
            assert_eq!(context.total_mem().unwrap(), 64 << 20);
            let optin =
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
            assert_eq!(context.attribute(optin).unwrap(), 227 << 10);
            assert_eq!(code(CudaContext::new(3)), CUDA_ERROR_INVALID_DEVICE);
        },
    );
}

#[test]
fn no_devices_is_an_error_of_init() {
    on_virtual_gpu("no_devices_is_an_error_of_init", &[("VIRTUAL_GPU_DEVICES", "0")], || {
        assert_eq!(code(CudaContext::new(0)), CUDA_ERROR_NO_DEVICE);
    });
}

#[test]
fn a_wrong_variable_is_named() {
    on_virtual_gpu("a_wrong_variable_is_named", &[("VIRTUAL_GPU_FAULT", "aloc:3")], || {
        assert_eq!(code(CudaContext::new(0)), CUDA_ERROR_UNKNOWN);
    })
    .said("VIRTUAL_GPU_FAULT holds `aloc:3`");
}

#[test]
fn memory_is_counted_and_ends() {
    on_virtual_gpu("memory_is_counted_and_ends", &[("VIRTUAL_GPU_MEMORY", "1M")], || {
        let gpu = Gpu::open();
        let (free, total) = gpu.context.mem_get_info().unwrap();
        assert_eq!((free, total), (1 << 20, 1 << 20));
        let half = raw!({ result::malloc_sync(1 << 19) }).unwrap();
        assert_eq!(gpu.context.mem_get_info().unwrap().0, 1 << 19);
        let too_much = raw!({ result::malloc_sync((1 << 19) + 1) });
        assert_eq!(code(too_much), CUDA_ERROR_OUT_OF_MEMORY);
        raw!({ result::free_sync(half) }).unwrap();
        assert_eq!(gpu.context.mem_get_info().unwrap().0, 1 << 20);
        // The error was none of the context's: it still works.
        assert_eq!(gpu.download(gpu.upload(&[7]), 1), [7]);
    });
}

#[test]
fn memory_freed_in_stream_order_can_be_had_again() {
    on_virtual_gpu(
        "memory_freed_in_stream_order_can_be_had_again",
        &[("VIRTUAL_GPU_MEMORY", "1M")],
        || {
            let gpu = Gpu::open();
            for _ in 0..4 {
                raw!({
                    let most = result::malloc_async(gpu.raw(), 3 << 18).unwrap();
                    result::free_async(most, gpu.raw()).unwrap();
                    assert_eq!(code(result::free_async(most, gpu.raw())), CUDA_ERROR_INVALID_VALUE);
                });
            }
        },
    )
    .said("cuMemFreeAsync refused");
}

#[test]
fn the_nth_allocation_fails_when_told_to() {
    on_virtual_gpu(
        "the_nth_allocation_fails_when_told_to",
        &[("VIRTUAL_GPU_FAULT", "alloc:2")],
        || {
            let _gpu = Gpu::open();
            raw!({
                result::malloc_sync(16).unwrap();
                assert_eq!(code(result::malloc_sync(16)), CUDA_ERROR_OUT_OF_MEMORY);
                result::malloc_sync(16).unwrap();
            });
        },
    )
    .said("injected fault: allocation");
}

#[test]
fn freeing_what_is_no_allocation_is_refused() {
    on_virtual_gpu("freeing_what_is_no_allocation_is_refused", &[], || {
        let gpu = Gpu::open();
        let address = gpu.upload(&[1, 2, 3, 4]);
        raw!({
            assert_eq!(code(result::free_sync(address + 4)), CUDA_ERROR_INVALID_VALUE);
            assert_eq!(code(result::free_sync(0x1234)), CUDA_ERROR_INVALID_VALUE);
            result::free_sync(address).unwrap();
            assert_eq!(code(result::free_sync(address)), CUDA_ERROR_INVALID_VALUE);
        });
    })
    .said("is not the start of a live allocation");
}

#[test]
fn copies_and_fills_past_the_end_of_an_allocation_are_refused() {
    on_virtual_gpu("copies_and_fills_past_the_end_of_an_allocation_are_refused", &[], || {
        let gpu = Gpu::open();
        let address = gpu.upload(&[1, 2, 3, 4]);
        let mut values = [0u32; 5];
        raw!({
            let read = result::memcpy_dtoh_async(&mut values, address, gpu.raw());
            assert_eq!(code(read), CUDA_ERROR_INVALID_VALUE);
            let write = result::memcpy_htod_async(address + 4, &values[..4], gpu.raw());
            assert_eq!(code(write), CUDA_ERROR_INVALID_VALUE);
            let fill = result::memset_d8_async(address, 0, 17, gpu.raw());
            assert_eq!(code(fill), CUDA_ERROR_INVALID_VALUE);
        });
    })
    .said("20 bytes at");
}

#[test]
fn a_pinned_source_is_read_when_the_copy_runs() {
    on_virtual_gpu("a_pinned_source_is_read_when_the_copy_runs", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        let source = pinned(1);
        source[0] = 1;
        raw!({ result::memcpy_htod_async(device, source, gpu.raw()) }).unwrap();
        // Too early: the copy has not run.
        source[0] = 2;
        assert_eq!(gpu.download(device, 1), [2]);
    });
}

#[test]
fn a_registered_source_is_read_when_the_copy_runs() {
    on_virtual_gpu("a_registered_source_is_read_when_the_copy_runs", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        let mut source = vec![1u32];
        let address = source.as_mut_ptr().cast();
        raw!({
            assert_eq!(sys::cuMemHostRegister_v2(address, 4, 0), CUDA_SUCCESS);
            let again = sys::cuMemHostRegister_v2(address, 4, 0);
            assert_eq!(again, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
            result::memcpy_htod_async(device, &source, gpu.raw()).unwrap();
        });
        source[0] = 2;
        assert_eq!(gpu.download(device, 1), [2]);
        raw!({
            assert_eq!(sys::cuMemHostUnregister(address), CUDA_SUCCESS);
            let again = sys::cuMemHostUnregister(address);
            assert_eq!(again, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        });
    });
}

#[test]
fn a_pageable_source_is_staged_at_the_call() {
    on_virtual_gpu("a_pageable_source_is_staged_at_the_call", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        let mut source = [1u32];
        raw!({ result::memcpy_htod_async(device, &source, gpu.raw()) }).unwrap();
        source[0] = 2;
        assert_eq!(gpu.download(device, 1), [1]);
        assert_eq!(source, [2]);
    });
}

#[test]
fn a_pinned_target_holds_poison_until_the_stream_is_waited_for() {
    on_virtual_gpu("a_pinned_target_holds_poison_until_the_stream_is_waited_for", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[5, 6]);
        let target = pinned(2);
        raw!({ result::memcpy_dtoh_async(target, device, gpu.raw()) }).unwrap();
        support::a_moment();
        assert_eq!(target, [0xEEEE_EEEE; 2]);
        gpu.stream.synchronize().unwrap();
        assert_eq!(target, [5, 6]);
    });
}

#[test]
fn pinned_memory_is_waited_for_before_it_is_freed() {
    on_virtual_gpu("pinned_memory_is_waited_for_before_it_is_freed", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        let source = pinned(1);
        source[0] = 9;
        raw!({
            result::memcpy_htod_async(device, source, gpu.raw()).unwrap();
            result::free_host(source.as_mut_ptr().cast()).unwrap();
            let again = result::free_host(source.as_mut_ptr().cast());
            assert_eq!(code(again), CUDA_ERROR_INVALID_VALUE);
        });
        assert_eq!(gpu.download(device, 1), [9]);
    });
}

#[test]
fn fills_of_each_width_and_of_rows() {
    on_virtual_gpu("fills_of_each_width_and_of_rows", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0; 6]);
        raw!({
            assert_eq!(sys::cuMemsetD32Async(device, 0x0102_0304, 2, gpu.raw()), CUDA_SUCCESS);
            assert_eq!(sys::cuMemsetD16Async(device + 8, 0x0506, 2, gpu.raw()), CUDA_SUCCESS);
            assert_eq!(sys::cuMemsetD8Async(device + 12, 7, 4, gpu.raw()), CUDA_SUCCESS);
            // The first byte of each of the last two words.
            assert_eq!(sys::cuMemsetD2D8Async(device + 16, 4, 9, 1, 2, gpu.raw()), CUDA_SUCCESS);
            let odd = sys::cuMemsetD32Async(device + 2, 0, 1, gpu.raw());
            assert_eq!(odd, CUDA_ERROR_INVALID_VALUE);
        });
        let expected = [0x0102_0304, 0x0102_0304, 0x0506_0506, 0x0707_0707, 9, 9];
        assert_eq!(gpu.download(device, 6), expected);
    });
}

#[test]
fn copies_between_devices_work_without_peer_access() {
    let variables = [("VIRTUAL_GPU_DEVICES", "2")];
    on_virtual_gpu("copies_between_devices_work_without_peer_access", &variables, || {
        let first = Gpu::open_device(0);
        let from = first.upload(&[11, 12]);
        let second = Gpu::open_device(1);
        let to = second.upload(&[0, 0]);
        raw!({
            let (to_context, from_context) = (second.context.cu_ctx(), first.context.cu_ctx());
            result::memcpy_peer_async(to_context, to, from_context, from, 8, second.raw()).unwrap();
            assert_eq!(second.download(to, 2), [11, 12]);
            // Contexts the wrong way round.
            let swapped =
                result::memcpy_peer_async(from_context, to, to_context, from, 8, second.raw());
            assert_eq!(code(swapped), CUDA_ERROR_INVALID_VALUE);
            let mut can = 1;
            assert_eq!(sys::cuDeviceCanAccessPeer(&mut can, 0, 1), CUDA_SUCCESS);
            assert_eq!(can, 0);
            let enabled = sys::cuCtxEnablePeerAccess(first.context.cu_ctx(), 0);
            assert_eq!(enabled, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
        });
        // Each device has addresses of its own.
        assert_ne!(to >> 40, from >> 40);
    });
}

#[test]
fn a_host_read_of_a_device_address_crashes() {
    dies_on_virtual_gpu("a_host_read_of_a_device_address_crashes", 11, || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[1]);
        // SAFETY: none: this must end the process.
        let value = unsafe { std::ptr::read_volatile(device as *const u32) };
        println!("read {value}");
    });
}

#[test]
fn the_report_tells_of_leaks() {
    let path = std::env::temp_dir().join(format!("virtual-gpu-report-{}", std::process::id()));
    let variables = [("VIRTUAL_GPU_REPORT", path.to_str().unwrap())];
    on_virtual_gpu("the_report_tells_of_leaks", &variables, || {
        let gpu = Gpu::open();
        gpu.upload(&[1, 2, 3]);
        // The context is never released, as in a program that just ends.
        std::mem::forget(gpu);
    });
    if let Ok(report) = std::fs::read_to_string(&path) {
        assert!(report.contains("\"live_allocations\": 1, \"live_bytes\": 12"), "{report}");
        std::fs::remove_file(path).unwrap();
    } else {
        // Inside, the report is written after the test has ended.
        assert!(std::env::var_os("VIRTUAL_GPU_REPORT").is_some());
    }
}
