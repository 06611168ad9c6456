//! Modules, kernels, limits, and errors that stick.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::sys::CUfunction_attribute_enum::*;
use cudarc::driver::sys::CUresult::{self, *};
use cudarc::driver::{CudaContext, result, sys};
use std::ffi::CString;
use support::{Gpu, Param, code, load, on_virtual_gpu, pinned};

#[test]
fn a_kernel_of_a_fat_binary_runs_in_blocks() {
    on_virtual_gpu("a_kernel_of_a_fat_binary_runs_in_blocks", &[], || {
        let gpu = Gpu::open();
        let values: Vec<u32> = (0..1000).map(|i| (i as f32).to_bits()).collect();
        let (input, output) = (gpu.upload(&values), gpu.upload(&[0; 1000]));
        let params = [&Param::U64(output), &Param::U64(input), &Param::F32(0.5), &Param::U32(1000)];
        gpu.launch("scale", [4, 1, 1], [256, 1, 1], &params).unwrap();
        let expected: Vec<u32> = (0..1000).map(|i| (i as f32 * 0.5).to_bits()).collect();
        assert_eq!(gpu.download(output, 1000), expected);
    });
}

#[test]
fn parameters_of_every_size_arrive() {
    on_virtual_gpu("parameters_of_every_size_arrive", &[], || {
        let gpu = Gpu::open();
        let out = gpu.upload(&[0; 8]);
        let (a, b, c, d) = (0xA1u8, 0xB1B2u16, 0xC1C2_C3C4u32, 0xD1D2_D3D4_D5D6_D7D8u64);
        let params =
            [&Param::U64(out), &Param::U8(a), &Param::U16(b), &Param::U32(c), &Param::U64(d)];
        gpu.launch("parameters", [1; 3], [1; 3], &params).unwrap();
        let expected = [0xA1, 0, 0xB1B2, 0, c, 0, d as u32, (d >> 32) as u32];
        assert_eq!(gpu.download(out, 8), expected);
        // The same packed: each parameter at a multiple of its size.
        raw!({ result::memset_d8_async(out, 0, 32, gpu.raw()) }).unwrap();
        let mut packed = [0u8; 32];
        packed[..8].copy_from_slice(&out.to_le_bytes());
        packed[8] = a;
        packed[10..12].copy_from_slice(&b.to_le_bytes());
        packed[12..16].copy_from_slice(&c.to_le_bytes());
        packed[16..24].copy_from_slice(&d.to_le_bytes());
        let launch = |bytes: usize| {
            raw!({
                let mut bytes = bytes;
                let mut extra = [
                    std::ptr::dangling_mut(),
                    packed.as_ptr().cast_mut().cast(),
                    2usize as *mut _,
                    (&raw mut bytes).cast(),
                    std::ptr::null_mut(),
                ];
                sys::cuLaunchKernel(
                    gpu.function("parameters"),
                    1,
                    1,
                    1,
                    1,
                    1,
                    1,
                    0,
                    gpu.raw(),
                    std::ptr::null_mut(),
                    extra.as_mut_ptr(),
                )
            })
        };
        assert_eq!(launch(24), CUDA_SUCCESS);
        assert_eq!(gpu.download(out, 8), expected);
        assert_eq!(launch(20), CUDA_ERROR_INVALID_VALUE);
    })
    .said("takes 24 bytes of parameters, 20 were passed");
}

#[test]
fn parameters_are_copied_at_the_call() {
    on_virtual_gpu("parameters_are_copied_at_the_call", &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        let mut amount = Param::U32(3);
        gpu.launch("add", [1; 3], [1; 3], &[&Param::U64(x), &amount, &Param::U32(1)]).unwrap();
        amount = Param::U32(4);
        assert_eq!(gpu.download(x, 1), [3]);
        std::hint::black_box(&amount);
    });
}

#[test]
fn every_form_of_module_image_is_told_apart() {
    on_virtual_gpu("every_form_of_module_image_is_told_apart", &[], || {
        let gpu = Gpu::open();
        load(include_bytes!("data/probe_lz4.fatbin")).unwrap();
        let none = CUDA_ERROR_NO_BINARY_FOR_GPU;
        assert_eq!(code(load(include_bytes!("data/probe_zstd.fatbin"))), none);
        assert_eq!(code(load(include_bytes!("data/probe_cubin_only.fatbin"))), none);
        assert_eq!(code(load(b"\x7fELF\x02\x01\x01")), none);
        // PTX for a newer device than this one.
        let newer = [include_bytes!("data/probe_sm90.ptx"), &b"\0"[..]].concat();
        assert_eq!(code(load(&newer)), none);
        assert_eq!(code(load(b"what is this?\0")), CUDA_ERROR_INVALID_IMAGE);
        let future = b".version 9.9\n.target sm_80\n.address_size 64\n\0";
        assert_eq!(code(load(future)), CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        let header = &b".version 9.0\n.target sm_80\n.address_size 64\n"[..];
        let wrong = [header, b".visible .entry f() { frobnicate; }\n\0"].concat();
        assert_eq!(code(load(&wrong)), CUDA_ERROR_INVALID_PTX);
        let mut damaged = include_bytes!("data/probe.fatbin").to_vec();
        damaged[16 + 8..16 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(code(load(&damaged)), CUDA_ERROR_INVALID_IMAGE);
        let missing = raw!({
            result::module::get_function(gpu.module, CString::new("no_such_kernel").unwrap())
        });
        assert_eq!(code(missing), CUDA_ERROR_NOT_FOUND);
    })
    .said("compressed with zstd");
}

#[test]
fn newer_devices_take_newer_ptx() {
    let variables = [("VIRTUAL_GPU_COMPUTE_CAPABILITY", "9.0")];
    on_virtual_gpu("newer_devices_take_newer_ptx", &variables, || {
        let gpu = Gpu::open();
        let newer = [include_bytes!("data/probe_sm90.ptx"), &b"\0"[..]].concat();
        let gpu = Gpu { module: load(&newer).unwrap(), ..gpu };
        let x = gpu.upload(&[1]);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        assert_eq!(gpu.download(x, 1), [2]);
    });
}

#[test]
fn variables_of_a_module_have_addresses() {
    on_virtual_gpu("variables_of_a_module_have_addresses", &[], || {
        let gpu = Gpu::open();
        let name = CString::new("module_variable").unwrap();
        let (mut address, mut bytes) = (0, 0);
        let got = raw!({
            sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, gpu.module, name.as_ptr())
        });
        assert_eq!((got, bytes), (CUDA_SUCCESS, 16));
        assert_eq!(gpu.download(address, 4), [1, 2, 3, 4]);
        raw!({ result::memcpy_htod_async(address + 8, &[30u32], gpu.raw()) }).unwrap();
        let out = gpu.upload(&[0; 4]);
        gpu.launch("read_variable", [1; 3], [4, 1, 1], &[&Param::U64(out)]).unwrap();
        assert_eq!(gpu.download(out, 4), [1, 2, 30, 4]);
    });
}

fn attribute(gpu: &Gpu, name: &str, attribute: sys::CUfunction_attribute) -> i32 {
    raw!({ result::function::get_function_attribute(gpu.function(name), attribute) }).unwrap()
}

#[test]
fn functions_tell_their_limits() {
    on_virtual_gpu("functions_tell_their_limits", &[], || {
        let gpu = Gpu::open();
        let threads = CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        assert_eq!(attribute(&gpu, "scale", threads), 256);
        assert_eq!(attribute(&gpu, "read_at", threads), 1024);
        // As cuobjdump says of the cubin in the image.
        assert_eq!(attribute(&gpu, "racing_sum", CU_FUNC_ATTRIBUTE_NUM_REGS), 22);
        assert_eq!(attribute(&gpu, "add", CU_FUNC_ATTRIBUTE_NUM_REGS), 8);
        let (mut offset, mut bytes) = (0, 0);
        let scale = gpu.function("scale");
        raw!({
            let third = sys::cuFuncGetParamInfo(scale, 2, &mut offset, &mut bytes);
            assert_eq!((third, offset, bytes), (CUDA_SUCCESS, 16, 4));
            let fifth = sys::cuFuncGetParamInfo(scale, 4, &mut offset, &mut bytes);
            assert_eq!(fifth, CUDA_ERROR_INVALID_VALUE);
            let mut blocks = 0;
            let occupancy =
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, scale, 256, 0);
            assert_eq!((occupancy, blocks), (CUDA_SUCCESS, 8));
            let shared = 100 << 10;
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, scale, 256, shared);
            assert_eq!(blocks, 1);
        });
    });
}

fn shared_sum(gpu: &Gpu, shared_bytes: u32) -> CUresult {
    let (out, input) = (gpu.upload(&[0]), gpu.upload(&[2; 64]));
    let params = [&Param::U64(out), &Param::U64(input)];
    let launched =
        gpu.launch_on(gpu.raw(), "shared_sum", [1; 3], [64, 1, 1], shared_bytes, &params);
    if launched.is_ok() {
        assert_eq!(gpu.download(out, 1), [128]);
    }
    code(launched)
}

fn allow_shared(gpu: &Gpu, bytes: i32) -> CUresult {
    let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let function = gpu.function("shared_sum");
    code(raw!({ result::function::set_function_attribute(function, attribute, bytes) }))
}

#[test]
fn shared_memory_above_48_kib_must_be_asked_for() {
    on_virtual_gpu("shared_memory_above_48_kib_must_be_asked_for", &[], || {
        let gpu = Gpu::open();
        assert_eq!(shared_sum(&gpu, 48 << 10), CUDA_SUCCESS);
        assert_eq!(shared_sum(&gpu, (48 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(allow_shared(&gpu, 64 << 10), CUDA_SUCCESS);
        assert_eq!(shared_sum(&gpu, 64 << 10), CUDA_SUCCESS);
        assert_eq!(shared_sum(&gpu, (64 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    })
    .said("49152 are allowed (cuFuncSetAttribute)");
}

#[test]
fn shared_memory_that_can_be_asked_for_depends_on_the_architecture() {
    let name = "shared_memory_that_can_be_asked_for_depends_on_the_architecture";
    for (capability, kib) in
        [("8.0", 163), ("8.6", 99), ("8.9", 99), ("9.0", 227), ("10.0", 227), ("12.0", 99)]
    {
        on_virtual_gpu(name, &[("VIRTUAL_GPU_COMPUTE_CAPABILITY", capability)], || {
            let gpu = Gpu::open();
            // Inside, the loop is at its first case whatever the device is.
            let optin =
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
            let limit = gpu.context.attribute(optin).unwrap();
            eprintln!("limit {limit}");
            assert_eq!(allow_shared(&gpu, limit), CUDA_SUCCESS);
            assert_eq!(allow_shared(&gpu, limit + 1), CUDA_ERROR_INVALID_VALUE);
        })
        .said(&format!("limit {}", kib << 10));
    }
}

#[test]
fn grids_and_blocks_have_limits() {
    on_virtual_gpu("grids_and_blocks_have_limits", &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        let try_add = |grid: [u32; 3], block: [u32; 3]| {
            let params = [&Param::U64(x), &Param::U32(1), &Param::U32(0)];
            code(gpu.launch("add", grid, block, &params))
        };
        assert_eq!(try_add([1, 1, 1], [1024, 1, 1]), CUDA_SUCCESS);
        for (grid, block) in [
            ([0, 1, 1], [1, 1, 1]),
            ([1, 65536, 1], [1, 1, 1]),
            ([1, 1, 65536], [1, 1, 1]),
            ([1, 1, 1], [0, 1, 1]),
            ([1, 1, 1], [1025, 1, 1]),
            ([1, 1, 1], [32, 33, 1]),
            ([1, 1, 1], [1, 1, 65]),
        ] {
            assert_eq!(try_add(grid, block), CUDA_ERROR_INVALID_VALUE, "{grid:?} {block:?}");
        }
        // Within the device's limits, but beyond its own bounds.
        let params = [&Param::U64(x), &Param::U64(x), &Param::F32(0.0), &Param::U32(0)];
        let beyond = gpu.launch("scale", [1; 3], [257, 1, 1], &params);
        assert_eq!(code(beyond), CUDA_ERROR_INVALID_VALUE);
        // A refused launch does not stick.
        gpu.stream.synchronize().unwrap();
    })
    .said("exceeds its launch bounds of 256 threads");
}

/// The error sticks: every later call of the context returns it, until the context is reset.
fn assert_sticks(gpu: &Gpu, expected: CUresult) {
    let mut value = [0u32];
    assert_eq!(code(gpu.stream.synchronize()), expected);
    assert_eq!(code(gpu.context.synchronize()), expected);
    assert_eq!(code(gpu.context.mem_get_info()), expected);
    raw!({
        assert_eq!(code(result::malloc_sync(16)), expected);
        assert_eq!(code(result::memcpy_dtoh_async(&mut value, 0, gpu.raw())), expected);
        assert_eq!(sys::cuEventQuery(std::ptr::null_mut()), expected);
    });
    let filled = raw!({ result::memset_d8_async(0, 0, 1, gpu.raw()) });
    assert_eq!(code(filled), expected);
}

fn launch_read_at(gpu: &Gpu, address: u64) -> CUresult {
    let out = gpu.upload(&[0]);
    let params = [&Param::U64(out), &Param::U64(address)];
    // The launch itself is accepted: the error is asynchronous.
    gpu.launch("read_at", [1; 3], [1; 3], &params).unwrap();
    code(gpu.stream.synchronize())
}

#[test]
fn an_access_out_of_bounds_sticks_until_reset() {
    on_virtual_gpu("an_access_out_of_bounds_sticks_until_reset", &[], || {
        let gpu = Gpu::open();
        let four = gpu.upload(&[1, 2, 3, 4]);
        let waiting = gpu.upload(&[0]);
        assert_eq!(launch_read_at(&gpu, four + 12), CUDA_SUCCESS);
        assert_eq!(launch_read_at(&gpu, four + 16), CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_sticks(&gpu, CUDA_ERROR_ILLEGAL_ADDRESS);
        let _ = waiting;
        raw!({ assert_eq!(sys::cuDevicePrimaryCtxReset_v2(0), CUDA_SUCCESS) });
        std::mem::forget(gpu);
        let gpu = Gpu::open();
        assert_eq!(gpu.download(gpu.upload(&[5]), 1), [5]);
    })
    .said("virtual GPU: device 0: Memcheck: kernel read_at");
}

#[test]
fn a_misaligned_access_sticks() {
    on_virtual_gpu("a_misaligned_access_sticks", &[], || {
        let gpu = Gpu::open();
        let address = gpu.upload(&[1, 2]);
        assert_eq!(launch_read_at(&gpu, address + 2), CUDA_ERROR_MISALIGNED_ADDRESS);
        assert_sticks(&gpu, CUDA_ERROR_MISALIGNED_ADDRESS);
    })
    .said("Alignment: kernel read_at");
}

#[test]
fn a_use_after_free_is_found() {
    on_virtual_gpu("a_use_after_free_is_found", &[], || {
        let gpu = Gpu::open();
        let address = gpu.upload(&[1]);
        raw!({ result::free_sync(address) }).unwrap();
        assert_eq!(launch_read_at(&gpu, address), CUDA_ERROR_ILLEGAL_ADDRESS);
    })
    .said("freed");
}

#[test]
fn a_use_after_free_in_stream_order_is_found() {
    on_virtual_gpu("a_use_after_free_in_stream_order_is_found", &[], || {
        let gpu = Gpu::open();
        let out = gpu.upload(&[0]);
        let address = gpu.upload(&[1]);
        raw!({ result::free_async(address, gpu.raw()) }).unwrap();
        let params = [&Param::U64(out), &Param::U64(address)];
        gpu.launch("read_at", [1; 3], [1; 3], &params).unwrap();
        assert_eq!(code(gpu.stream.synchronize()), CUDA_ERROR_ILLEGAL_ADDRESS);
    })
    .said("freed");
}

#[test]
fn a_read_of_memory_that_nobody_wrote_is_found() {
    on_virtual_gpu("a_read_of_memory_that_nobody_wrote_is_found", &[], || {
        let gpu = Gpu::open();
        let address = raw!({ result::malloc_sync(16) }).unwrap();
        assert_eq!(launch_read_at(&gpu, address), CUDA_ERROR_LAUNCH_FAILED);
    })
    .said("Initcheck: kernel read_at");
}

#[test]
fn fresh_memory_is_poisoned() {
    let variables = [("VIRTUAL_GPU_CHECKS", "off")];
    on_virtual_gpu("fresh_memory_is_poisoned", &variables, || {
        let gpu = Gpu::open();
        let address = raw!({ result::malloc_sync(16) }).unwrap();
        // With the checks off the read is not found, but what it reads is no zero.
        assert_eq!(launch_read_at(&gpu, address), CUDA_SUCCESS);
        assert_eq!(gpu.download(address, 1), [u32::MAX]);
    });
}

#[test]
fn a_missing_barrier_is_found() {
    let sum = |gpu: &Gpu, name: &str| {
        let (out, input) = (gpu.upload(&[0]), gpu.upload(&[2; 64]));
        let params = [&Param::U64(out), &Param::U64(input)];
        gpu.launch_on(gpu.raw(), name, [1; 3], [64, 1, 1], 256, &params).unwrap();
        code(gpu.stream.synchronize())
    };
    on_virtual_gpu("a_missing_barrier_is_found", &[], || {
        let gpu = Gpu::open();
        assert_eq!(sum(&gpu, "shared_sum"), CUDA_SUCCESS);
        assert_eq!(sum(&gpu, "racing_sum"), CUDA_ERROR_LAUNCH_FAILED);
    })
    .said("Racecheck: kernel racing_sum");
}

#[test]
fn memory_of_another_device_is_out_of_reach() {
    let variables = [("VIRTUAL_GPU_DEVICES", "2")];
    on_virtual_gpu("memory_of_another_device_is_out_of_reach", &variables, || {
        let other = Gpu::open_device(1);
        let address = other.upload(&[1]);
        let gpu = Gpu::open_device(0);
        assert_eq!(launch_read_at(&gpu, address), CUDA_ERROR_ILLEGAL_ADDRESS);
        // The other device has no part in it.
        assert_eq!(other.download(address, 1), [1]);
    })
    .said("not an address of device 0");
}

#[test]
fn host_memory_is_out_of_reach() {
    on_virtual_gpu("host_memory_is_out_of_reach", &[], || {
        let gpu = Gpu::open();
        let host = pinned(1).as_ptr() as u64;
        assert_eq!(launch_read_at(&gpu, host), CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn the_nth_launch_fails_when_told_to() {
    let variables = [("VIRTUAL_GPU_FAULT", "launch:2")];
    on_virtual_gpu("the_nth_launch_fails_when_told_to", &variables, || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        assert_eq!(gpu.download(x, 1), [1]);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        assert_eq!(code(gpu.stream.synchronize()), CUDA_ERROR_LAUNCH_FAILED);
        assert_sticks(&gpu, CUDA_ERROR_LAUNCH_FAILED);
    })
    .said("injected fault: launch of add on device 0 fails");
}

#[test]
fn a_fault_can_be_for_one_device() {
    let variables = [("VIRTUAL_GPU_FAULT", "launch:1@1"), ("VIRTUAL_GPU_DEVICES", "2")];
    on_virtual_gpu("a_fault_can_be_for_one_device", &variables, || {
        let expected = [CUDA_SUCCESS, CUDA_ERROR_LAUNCH_FAILED];
        for (ordinal, expected) in expected.into_iter().enumerate() {
            let gpu = Gpu::open_device(ordinal);
            let x = gpu.upload(&[0]);
            gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
            assert_eq!(code(gpu.stream.synchronize()), expected);
        }
    });
}

#[test]
fn a_lost_device_stays_lost_after_a_reset() {
    let variables = [("VIRTUAL_GPU_FAULT", "lost:1@0"), ("VIRTUAL_GPU_DEVICES", "2")];
    on_virtual_gpu("a_lost_device_stays_lost_after_a_reset", &variables, || {
        let other = Gpu::open_device(1);
        let gpu = Gpu::open_device(0);
        let x = gpu.upload(&[0]);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        assert_eq!(code(gpu.stream.synchronize()), CUDA_ERROR_ECC_UNCORRECTABLE);
        assert_sticks(&gpu, CUDA_ERROR_ECC_UNCORRECTABLE);
        let reset = raw!({ sys::cuDevicePrimaryCtxReset_v2(0) });
        assert_eq!(reset, CUDA_ERROR_ECC_UNCORRECTABLE);
        assert_eq!(code(CudaContext::new(0)), CUDA_ERROR_ECC_UNCORRECTABLE);
        let x = other.upload(&[1]);
        other.add_on(other.raw(), x, 1, 1).unwrap();
        assert_eq!(other.download(x, 1), [2]);
    })
    .said("injected fault: device 0 is lost");
}

#[test]
fn the_report_sums_counters_per_kernel_and_keeps_violations() {
    let path = std::env::temp_dir().join(format!("virtual-gpu-counters-{}", std::process::id()));
    let variables = [("VIRTUAL_GPU_REPORT", path.to_str().unwrap())];
    on_virtual_gpu("the_report_sums_counters_per_kernel_and_keeps_violations", &variables, || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0; 32]);
        for _ in 0..3 {
            gpu.add_on(gpu.raw(), x, 1, 32).unwrap();
        }
        gpu.stream.synchronize().unwrap();
        assert_eq!(launch_read_at(&gpu, x + 1), CUDA_ERROR_MISALIGNED_ADDRESS);
    });
    if support::is_outside() {
        let report = std::fs::read_to_string(&path).unwrap();
        let add = report.split_once("\"add\": {").expect("a kernel named add").1;
        for counter in
            ["\"launches\": 3", "\"global_bytes_read\": 384", "\"global_bytes_written\": 384"]
        {
            assert!(add.contains(counter), "{counter} of {report}");
        }
        assert!(report.contains("\"kernel\": \"read_at\", \"check\": \"Alignment\""), "{report}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_launch_through_the_extended_call_refuses_clusters() {
    on_virtual_gpu("a_launch_through_the_extended_call_refuses_clusters", &[], || {
        let gpu = Gpu::open();
        let (mut x, mut amount, mut n) = (gpu.upload(&[0]), 6u32, 1u32);
        let mut params = [(&raw mut x).cast(), (&raw mut amount).cast(), (&raw mut n).cast()];
        let mut attribute: sys::CUlaunchAttribute = raw!({ std::mem::zeroed() });
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.clusterDim.x = 2;
        attribute.value.clusterDim.y = 1;
        attribute.value.clusterDim.z = 1;
        let mut config: sys::CUlaunchConfig = raw!({ std::mem::zeroed() });
        (config.gridDimX, config.gridDimY, config.gridDimZ) = (1, 1, 1);
        (config.blockDimX, config.blockDimY, config.blockDimZ) = (1, 1, 1);
        config.hStream = gpu.raw();
        config.attrs = &mut attribute;
        let mut launch = |num_attributes: u32| {
            raw!({
                config.numAttrs = num_attributes;
                let no_extra = std::ptr::null_mut();
                sys::cuLaunchKernelEx(&config, gpu.function("add"), params.as_mut_ptr(), no_extra)
            })
        };
        assert_eq!(launch(0), CUDA_SUCCESS);
        assert_eq!(launch(1), CUDA_ERROR_NOT_SUPPORTED);
        assert_eq!(gpu.download(x, 1), [6]);
    });
}
