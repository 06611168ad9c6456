//! What is ordered with what, and who runs it.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::sys::CUresult::*;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::{Gpu, code, on_virtual_gpu, pinned};

fn fill(address: u64, value: u32, stream: sys::CUstream) {
    assert_eq!(raw!({ sys::cuMemsetD32Async(address, value, 1, stream) }), CUDA_SUCCESS);
}

fn new_stream(flags: sys::CUstream_flags) -> sys::CUstream {
    let mut stream = std::ptr::null_mut();
    assert_eq!(raw!({ sys::cuStreamCreate(&mut stream, flags as u32) }), CUDA_SUCCESS);
    stream
}

/// Which of two fills on two streams is the last one, for each of 16 tries.
fn last_of_two_streams(gpu: &Gpu) -> Vec<u32> {
    let other = gpu.context.new_stream().unwrap();
    let tries = (0..16).map(|_| {
        let device = gpu.upload(&[0]);
        fill(device, 1, gpu.raw());
        fill(device, 2, other.cu_stream());
        gpu.context.synchronize().unwrap();
        gpu.download(device, 1)[0]
    });
    tries.collect()
}

#[test]
fn streams_without_an_event_between_them_run_in_either_order() {
    on_virtual_gpu("streams_without_an_event_between_them_run_in_either_order", &[], || {
        let last = last_of_two_streams(&Gpu::open());
        assert!(last.contains(&1) && last.contains(&2), "{last:?}");
    });
}

#[test]
fn a_seed_fixes_the_order_and_another_changes_it() {
    // Each seed is run twice; the orders are compared by what the processes print.
    let name = "a_seed_fixes_the_order_and_another_changes_it";
    let order_of = |seed: &str| {
        let mut order = String::new();
        let outcome = on_virtual_gpu(name, &[("VIRTUAL_GPU_SEED", seed)], || {
            order = format!("{:?}", last_of_two_streams(&Gpu::open()));
            eprintln!("order {order}");
        });
        outcome.line("order ").unwrap_or(order)
    };
    let (first, again, other) = (order_of("1"), order_of("1"), order_of("2"));
    if support::is_outside() {
        assert_eq!(first, again);
        assert_ne!(first, other);
    }
}

#[test]
fn an_event_orders_two_streams() {
    on_virtual_gpu("an_event_orders_two_streams", &[], || {
        let gpu = Gpu::open();
        let other = gpu.context.new_stream().unwrap();
        for _ in 0..16 {
            let device = gpu.upload(&[0]);
            fill(device, 1, gpu.raw());
            let event = gpu.stream.record_event(None).unwrap();
            other.wait(&event).unwrap();
            fill(device, 2, other.cu_stream());
            gpu.context.synchronize().unwrap();
            assert_eq!(gpu.download(device, 1), [2]);
        }
    });
}

#[test]
fn a_wait_is_for_the_record_before_it_and_not_for_a_later_one() {
    on_virtual_gpu("a_wait_is_for_the_record_before_it_and_not_for_a_later_one", &[], || {
        let gpu = Gpu::open();
        let other = gpu.context.new_stream().unwrap();
        let device = gpu.upload(&[0]);
        let event = gpu.stream.record_event(None).unwrap();
        other.wait(&event).unwrap();
        // Recording anew must not make the wait depend on what comes now.
        let mut saw_other_first = false;
        for _ in 0..32 {
            fill(device, 1, gpu.raw());
            event.record(&gpu.stream).unwrap();
            fill(device, 2, other.cu_stream());
            gpu.context.synchronize().unwrap();
            saw_other_first |= gpu.download(device, 1) == [1];
        }
        assert!(saw_other_first);
    });
}

#[test]
fn the_legacy_stream_is_ordered_with_blocking_streams_only() {
    on_virtual_gpu("the_legacy_stream_is_ordered_with_blocking_streams_only", &[], || {
        let gpu = Gpu::open();
        let blocking = new_stream(sys::CUstream_flags::CU_STREAM_DEFAULT);
        let free = new_stream(sys::CUstream_flags::CU_STREAM_NON_BLOCKING);
        let legacy = std::ptr::null_mut();
        let mut orders = Vec::new();
        for _ in 0..32 {
            let device = gpu.upload(&[0]);
            fill(device, 1, blocking);
            fill(device, 2, legacy);
            fill(device, 3, blocking);
            gpu.context.synchronize().unwrap();
            assert_eq!(gpu.download(device, 1), [3]);
            fill(device, 1, free);
            fill(device, 2, legacy);
            gpu.context.synchronize().unwrap();
            orders.push(gpu.download(device, 1)[0]);
        }
        assert!(orders.contains(&1) && orders.contains(&2), "{orders:?}");
    });
}

#[test]
fn waiting_for_one_stream_runs_that_stream() {
    on_virtual_gpu("waiting_for_one_stream_runs_that_stream", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        let target = pinned(1);
        fill(device, 8, gpu.raw());
        raw!({ result::memcpy_dtoh_async(target, device, gpu.raw()) }).unwrap();
        let event = gpu.stream.record_event(None).unwrap();
        fill(device, 9, gpu.raw());
        event.synchronize().unwrap();
        assert_eq!(target, [8]);
    });
}

#[test]
fn a_program_that_only_asks_gets_on() {
    on_virtual_gpu("a_program_that_only_asks_gets_on", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        for value in 0..8 {
            fill(device, value, gpu.raw());
        }
        let event = gpu.stream.record_event(None).unwrap();
        assert!(!event.is_complete());
        let questions = (1..100).find(|_| event.is_complete());
        assert!(questions.is_some_and(|questions| questions > 1), "{questions:?}");
        fill(device, 1, gpu.raw());
        assert_eq!(raw!({ sys::cuStreamQuery(gpu.raw()) }), CUDA_SUCCESS);
        // An event that was never recorded has happened.
        assert_eq!(raw!({ sys::cuEventQuery(gpu.new_event()) }), CUDA_SUCCESS);
    });
}

#[test]
fn elapsed_time_needs_two_events_with_clocks_that_have_happened() {
    on_virtual_gpu("elapsed_time_needs_two_events_with_clocks_that_have_happened", &[], || {
        let gpu = Gpu::open();
        let (start, end) = (gpu.new_event(), gpu.new_event());
        let mut ms = -1.0;
        raw!({
            assert_eq!(sys::cuEventElapsedTime_v2(&mut ms, start, end), CUDA_ERROR_INVALID_HANDLE);
            result::event::record(start, gpu.raw()).unwrap();
            fill(gpu.upload(&[0]), 1, gpu.raw());
            result::event::record(end, gpu.raw()).unwrap();
            assert_eq!(sys::cuEventElapsedTime_v2(&mut ms, start, end), CUDA_ERROR_NOT_READY);
            result::event::synchronize(end).unwrap();
            assert_eq!(sys::cuEventElapsedTime_v2(&mut ms, start, end), CUDA_SUCCESS);
            assert!(ms >= 0.0);
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let without_clock = result::event::create(flags).unwrap();
            result::event::record(without_clock, gpu.raw()).unwrap();
            gpu.stream.synchronize().unwrap();
            let elapsed = sys::cuEventElapsedTime_v2(&mut ms, start, without_clock);
            assert_eq!(elapsed, CUDA_ERROR_INVALID_HANDLE);
        });
    });
}

static CALLED: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn host_function(data: *mut c_void) {
    CALLED.store(data as u32, Ordering::Release);
}

unsafe extern "C" fn host_function_that_calls_the_driver(_data: *mut c_void) {
    let mut count = 0;
    let code = raw!({ sys::cuDeviceGetCount(&mut count) });
    CALLED.store(code as u32, Ordering::Release);
}

#[test]
fn a_host_function_runs_in_order_and_also_if_nobody_waits() {
    on_virtual_gpu("a_host_function_runs_in_order_and_also_if_nobody_waits", &[], || {
        let gpu = Gpu::open();
        let launch = |data: usize| {
            let data = data as *mut c_void;
            let code = raw!({ sys::cuLaunchHostFunc(gpu.raw(), Some(host_function), data) });
            assert_eq!(code, CUDA_SUCCESS);
        };
        launch(7);
        assert_eq!(CALLED.load(Ordering::Acquire), 0);
        gpu.stream.synchronize().unwrap();
        assert_eq!(CALLED.load(Ordering::Acquire), 7);
        launch(8);
        let since = Instant::now();
        while CALLED.load(Ordering::Acquire) != 8 && since.elapsed() < Duration::from_secs(20) {
            support::a_moment();
        }
        assert_eq!(CALLED.load(Ordering::Acquire), 8);
    });
}

#[test]
fn a_host_function_may_not_call_the_driver() {
    on_virtual_gpu("a_host_function_may_not_call_the_driver", &[], || {
        let gpu = Gpu::open();
        let function = Some(host_function_that_calls_the_driver as _);
        let code = raw!({ sys::cuLaunchHostFunc(gpu.raw(), function, std::ptr::null_mut()) });
        assert_eq!(code, CUDA_SUCCESS);
        gpu.stream.synchronize().unwrap();
        assert_eq!(CALLED.load(Ordering::Acquire), CUDA_ERROR_NOT_PERMITTED as u32);
    })
    .said("host functions must not call the driver");
}

#[test]
fn work_of_a_destroyed_stream_still_runs() {
    on_virtual_gpu("work_of_a_destroyed_stream_still_runs", &[], || {
        let gpu = Gpu::open();
        let device = gpu.upload(&[0]);
        let stream = new_stream(sys::CUstream_flags::CU_STREAM_NON_BLOCKING);
        fill(device, 4, stream);
        raw!({
            result::stream::destroy(stream).unwrap();
            assert_eq!(code(result::stream::synchronize(stream)), CUDA_ERROR_INVALID_HANDLE);
        });
        gpu.context.synchronize().unwrap();
        assert_eq!(gpu.download(device, 1), [4]);
    });
}

#[test]
fn each_thread_has_a_default_stream_of_its_own() {
    on_virtual_gpu("each_thread_has_a_default_stream_of_its_own", &[], || {
        let gpu = Gpu::open();
        let id_here = || {
            gpu.context.bind_to_thread().unwrap();
            let mut id = 0;
            let stream = gpu.context.per_thread_stream();
            assert_eq!(raw!({ sys::cuStreamGetId(stream.cu_stream(), &mut id) }), CUDA_SUCCESS);
            id
        };
        let there = std::thread::scope(|scope| scope.spawn(id_here).join().unwrap());
        assert_ne!(id_here(), there);
        assert_eq!(id_here(), id_here());
    });
}

#[test]
fn calls_without_a_context_or_before_init_are_refused() {
    on_virtual_gpu("calls_without_a_context_or_before_init_are_refused", &[], || {
        let mut count = 0;
        raw!({
            assert_eq!(sys::cuDeviceGetCount(&mut count), CUDA_ERROR_NOT_INITIALIZED);
            result::init().unwrap();
            assert_eq!(sys::cuDeviceGetCount(&mut count), CUDA_SUCCESS);
            assert_eq!(code(result::malloc_sync(16)), CUDA_ERROR_INVALID_CONTEXT);
        });
    });
}
