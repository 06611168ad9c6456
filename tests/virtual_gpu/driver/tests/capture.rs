//! Stream capture and graphs.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::sys::CUresult::{self, *};
use cudarc::driver::sys::CUstreamCaptureMode::*;
use cudarc::driver::{result, sys};
use support::{Gpu, Param, code, on_virtual_gpu, pinned};

const GLOBAL: sys::CUstreamCaptureMode = CU_STREAM_CAPTURE_MODE_GLOBAL;
const RELAXED: sys::CUstreamCaptureMode = CU_STREAM_CAPTURE_MODE_RELAXED;

fn begin(gpu: &Gpu, mode: sys::CUstreamCaptureMode) {
    gpu.stream.begin_capture(mode).unwrap();
}

fn end(gpu: &Gpu) -> Result<sys::CUgraph, cudarc::driver::DriverError> {
    raw!({ result::stream::end_capture(gpu.raw()) })
}

fn instantiate(graph: sys::CUgraph) -> sys::CUgraphExec {
    raw!({ result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }).unwrap()
}

fn replay(gpu: &Gpu, exec: sys::CUgraphExec) {
    raw!({ result::graph::launch(exec, gpu.raw()) }).unwrap();
}

#[test]
fn a_graph_replays_with_changed_input() {
    on_virtual_gpu("a_graph_replays_with_changed_input", &[], || {
        let gpu = Gpu::open();
        let input = gpu.upload(&[0; 4]);
        let output = gpu.upload(&[0; 4]);
        begin(&gpu, GLOBAL);
        let params = [&Param::U64(output), &Param::U64(input), &Param::F32(2.0), &Param::U32(4)];
        gpu.launch("scale", [1; 3], [32, 1, 1], &params).unwrap();
        gpu.launch("scale", [1; 3], [32, 1, 1], &[params[1], params[0], params[2], params[3]])
            .unwrap();
        let exec = instantiate(end(&gpu).unwrap());
        // Nothing has run yet.
        assert_eq!(gpu.download(output, 4), [0; 4]);
        for value in [1.0f32, -3.5, 100.0] {
            let bits = [value.to_bits(); 4];
            raw!({ result::memcpy_htod_async(input, &bits, gpu.raw()) }).unwrap();
            replay(&gpu, exec);
            assert_eq!(gpu.download(output, 4), [(2.0 * value).to_bits(); 4]);
            assert_eq!(gpu.download(input, 4), [(4.0 * value).to_bits(); 4]);
        }
    });
}

#[test]
fn cudarc_captures_and_replays_a_graph() {
    on_virtual_gpu("cudarc_captures_and_replays_a_graph", &[], || {
        let gpu = Gpu::open();
        let mut data = gpu.stream.clone_htod(&[5u32; 3]).unwrap();
        begin(&gpu, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        assert_eq!(
            gpu.stream.capture_status().unwrap(),
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
        );
        gpu.stream.memset_zeros(&mut data).unwrap();
        let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&data).unwrap(), [5; 3]);
        graph.upload().unwrap();
        graph.launch().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&data).unwrap(), [0; 3]);
    });
}

#[test]
fn parameters_are_copied_at_capture_and_pointers_read_at_replay() {
    on_virtual_gpu("parameters_are_copied_at_capture_and_pointers_read_at_replay", &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0; 2]);
        let source = pinned(2);
        let mut amount = Param::U32(10);
        begin(&gpu, GLOBAL);
        raw!({ result::memcpy_htod_async(x, source, gpu.raw()) }).unwrap();
        let params = [&Param::U64(x), &amount, &Param::U32(2)];
        gpu.launch("add", [1; 3], [2, 1, 1], &params).unwrap();
        let exec = instantiate(end(&gpu).unwrap());
        amount = Param::U32(99);
        source.copy_from_slice(&[1, 2]);
        replay(&gpu, exec);
        assert_eq!(gpu.download(x, 2), [11, 12]);
        source.copy_from_slice(&[3, 4]);
        replay(&gpu, exec);
        assert_eq!(gpu.download(x, 2), [13, 14]);
        std::hint::black_box(&amount);
    });
}

#[test]
fn launches_of_one_graph_run_one_after_the_other_and_in_order_with_the_stream() {
    let name = "launches_of_one_graph_run_one_after_the_other_and_in_order_with_the_stream";
    on_virtual_gpu(name, &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        begin(&gpu, GLOBAL);
        for amount in [1, 2] {
            gpu.add_on(gpu.raw(), x, amount, 1).unwrap();
        }
        let exec = instantiate(end(&gpu).unwrap());
        for _ in 0..3 {
            replay(&gpu, exec);
        }
        raw!({ result::memset_d8_async(x, 0, 4, gpu.raw()) }).unwrap();
        replay(&gpu, exec);
        gpu.add_on(gpu.raw(), x, 100, 1).unwrap();
        assert_eq!(gpu.download(x, 1), [103]);
    });
}

#[test]
fn a_fork_that_is_joined_becomes_branches_of_the_graph() {
    on_virtual_gpu("a_fork_that_is_joined_becomes_branches_of_the_graph", &[], || {
        let gpu = Gpu::open();
        let side = gpu.context.new_stream().unwrap();
        let (x, y) = (gpu.upload(&[0]), gpu.upload(&[0]));
        let (fork, join) = (gpu.new_event(), gpu.new_event());
        begin(&gpu, GLOBAL);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        raw!({
            result::event::record(fork, gpu.raw()).unwrap();
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(side.cu_stream(), fork, flags).unwrap();
            gpu.add_on(side.cu_stream(), y, 5, 1).unwrap();
            result::event::record(join, side.cu_stream()).unwrap();
            gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
            result::stream::wait_event(gpu.raw(), join, flags).unwrap();
            result::memcpy_dtod_async(x, y, 4, gpu.raw()).unwrap();
        });
        let graph = end(&gpu).unwrap();
        let mut num_nodes = 0;
        let got = raw!({ sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut num_nodes) });
        assert_eq!((got, num_nodes), (CUDA_SUCCESS, 4));
        let exec = instantiate(graph);
        for round in 1..=8 {
            replay(&gpu, exec);
            assert_eq!(gpu.download(x, 1), [5 * round]);
        }
    });
}

#[test]
fn a_fork_that_is_not_joined_fails_the_capture() {
    on_virtual_gpu("a_fork_that_is_not_joined_fails_the_capture", &[], || {
        let gpu = Gpu::open();
        let side = gpu.context.new_stream().unwrap();
        let x = gpu.upload(&[0]);
        let fork = gpu.new_event();
        begin(&gpu, GLOBAL);
        raw!({
            result::event::record(fork, gpu.raw()).unwrap();
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(side.cu_stream(), fork, flags).unwrap();
        });
        gpu.add_on(side.cu_stream(), x, 5, 1).unwrap();
        let ended_on_the_fork = raw!({ result::stream::end_capture(side.cu_stream()) });
        assert_eq!(code(ended_on_the_fork), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        assert_eq!(code(end(&gpu)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(&gpu, GLOBAL);
        raw!({
            result::event::record(fork, gpu.raw()).unwrap();
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(side.cu_stream(), fork, flags).unwrap();
        });
        gpu.add_on(side.cu_stream(), x, 5, 1).unwrap();
        assert_eq!(code(end(&gpu)), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        // Both streams are free again.
        gpu.add_on(side.cu_stream(), x, 3, 1).unwrap();
        side.synchronize().unwrap();
        assert_eq!(gpu.download(x, 1), [3]);
    });
}

/// Makes a call during a capture: it must return `expected`, and the capture must be lost.
#[track_caller]
fn breaks_capture(gpu: &Gpu, expected: CUresult, call: impl FnOnce() -> CUresult) {
    let x = gpu.upload(&[0]);
    begin(gpu, GLOBAL);
    gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
    assert_eq!(call(), expected);
    let later = gpu.add_on(gpu.raw(), x, 1, 1);
    assert_eq!(code(later), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(code(end(gpu)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // The stream works again, and nothing of the capture ran.
    assert_eq!(gpu.download(x, 1), [0]);
}

#[test]
fn waiting_and_asking_during_a_capture_are_refused() {
    on_virtual_gpu("waiting_and_asking_during_a_capture_are_refused", &[], || {
        let gpu = Gpu::open();
        let other = gpu.context.new_stream().unwrap();
        let event = gpu.new_event();
        let unsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        raw!({
            breaks_capture(&gpu, unsupported, || sys::cuStreamSynchronize(gpu.raw()));
            breaks_capture(&gpu, unsupported, || sys::cuStreamQuery(gpu.raw()));
            breaks_capture(&gpu, unsupported, || sys::cuStreamSynchronize(other.cu_stream()));
            breaks_capture(&gpu, unsupported, || sys::cuCtxSynchronize());
            breaks_capture(&gpu, unsupported, || sys::cuEventQuery(event));
            breaks_capture(&gpu, unsupported, || sys::cuEventSynchronize(event));
            breaks_capture(&gpu, CUDA_ERROR_CAPTURED_EVENT, || {
                result::event::record(event, gpu.raw()).unwrap();
                sys::cuEventQuery(event)
            });
        });
    })
    .said("cuStreamSynchronize refused: the stream is capturing");
}

#[test]
fn allocating_and_loading_during_a_capture_are_refused() {
    on_virtual_gpu("allocating_and_loading_during_a_capture_are_refused", &[], || {
        let gpu = Gpu::open();
        let unsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        let device = gpu.upload(&[0]);
        let host = pinned(1).as_mut_ptr();
        raw!({
            breaks_capture(&gpu, unsupported, || code(result::malloc_sync(16)));
            breaks_capture(&gpu, unsupported, || code(result::free_sync(device)));
            breaks_capture(&gpu, unsupported, || code(result::malloc_host(16, 0)));
            breaks_capture(&gpu, unsupported, || code(result::free_host(host.cast())));
            breaks_capture(&gpu, CUDA_ERROR_NOT_SUPPORTED, || {
                code(result::malloc_async(gpu.raw(), 16))
            });
            breaks_capture(&gpu, unsupported, || {
                code(support::load(include_bytes!("data/probe.fatbin")))
            });
        });
    })
    .said("cuMemAlloc refused: not permitted while a stream is capturing");
}

#[test]
fn the_legacy_stream_cannot_capture_nor_be_used_beside_a_blocking_capture() {
    let name = "the_legacy_stream_cannot_capture_nor_be_used_beside_a_blocking_capture";
    on_virtual_gpu(name, &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        let legacy = gpu.context.default_stream();
        let refused = legacy.begin_capture(RELAXED);
        assert_eq!(code(refused), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        // Beside a capture of a non-blocking stream, the legacy stream may work.
        begin(&gpu, RELAXED);
        gpu.add_on(legacy.cu_stream(), x, 1, 1).unwrap();
        end(&gpu).unwrap();
        raw!({
            let mut blocking = std::ptr::null_mut();
            assert_eq!(sys::cuStreamCreate(&mut blocking, 0), CUDA_SUCCESS);
            for mode in [GLOBAL, RELAXED] {
                result::stream::begin_capture(blocking, mode).unwrap();
                let used = gpu.add_on(legacy.cu_stream(), x, 1, 1);
                assert_eq!(code(used), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
                let ended = result::stream::end_capture(blocking);
                assert_eq!(code(ended), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
                result::stream::begin_capture(blocking, mode).unwrap();
                let copied = result::memcpy_htod_sync(x, &[1u32]);
                assert_eq!(code(copied), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
                let ended = result::stream::end_capture(blocking);
                assert_eq!(code(ended), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
            }
        })
    });
}

#[test]
fn a_capture_cannot_wait_for_an_event_of_outside() {
    on_virtual_gpu("a_capture_cannot_wait_for_an_event_of_outside", &[], || {
        let gpu = Gpu::open();
        let other = gpu.context.new_stream().unwrap();
        let outside = other.record_event(None).unwrap();
        breaks_capture(&gpu, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, || {
            code(gpu.stream.wait(&outside))
        });
    })
    .said("recorded outside");
}

#[test]
fn cudarcs_event_tracking_breaks_captures_as_it_does_on_hardware() {
    on_virtual_gpu("cudarcs_event_tracking_breaks_captures_as_it_does_on_hardware", &[], || {
        let gpu = Gpu::open();
        raw!({ gpu.context.enable_event_tracking() });
        let other = gpu.context.new_stream().unwrap();
        // Written on another stream: the write is tracked by an event of outside.
        let mut tracked = other.clone_htod(&[1u32, 2]).unwrap();
        begin(&gpu, GLOBAL);
        let _ = gpu.stream.memset_zeros(&mut tracked);
        assert_eq!(code(end(&gpu)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    })
    .said("recorded outside");
}

#[test]
fn two_captures_cannot_be_joined() {
    on_virtual_gpu("two_captures_cannot_be_joined", &[], || {
        let gpu = Gpu::open();
        let other = gpu.context.new_stream().unwrap();
        let event = gpu.new_event();
        begin(&gpu, GLOBAL);
        other.begin_capture(GLOBAL).unwrap();
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        raw!({
            result::event::record(event, gpu.raw()).unwrap();
            let merged = result::stream::wait_event(other.cu_stream(), event, flags);
            assert_eq!(code(merged), CUDA_ERROR_STREAM_CAPTURE_MERGE);
            let ended = result::stream::end_capture(other.cu_stream());
            assert_eq!(code(ended), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        });
        assert_eq!(code(end(&gpu)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    });
}

#[test]
fn the_mode_says_which_threads_a_capture_hinders() {
    on_virtual_gpu("the_mode_says_which_threads_a_capture_hinders", &[], || {
        let gpu = Gpu::open();
        let allocate_elsewhere = || {
            std::thread::scope(|scope| {
                let allocate = || {
                    gpu.context.bind_to_thread().unwrap();
                    code(raw!({ result::malloc_sync(16) }))
                };
                scope.spawn(allocate).join().unwrap()
            })
        };
        breaks_capture(&gpu, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, allocate_elsewhere);
        begin(&gpu, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        assert_eq!(allocate_elsewhere(), CUDA_SUCCESS);
        end(&gpu).unwrap();
        begin(&gpu, RELAXED);
        raw!({ result::malloc_sync(16) }).unwrap();
        end(&gpu).unwrap();
        // A thread may free itself of the global captures of others.
        begin(&gpu, GLOBAL);
        let relaxed = std::thread::scope(|scope| {
            let allocate = || {
                gpu.context.bind_to_thread().unwrap();
                let mut mode = RELAXED;
                raw!({
                    let swapped = sys::cuThreadExchangeStreamCaptureMode(&mut mode);
                    assert_eq!((swapped, mode), (CUDA_SUCCESS, GLOBAL));
                    code(result::malloc_sync(16))
                })
            };
            scope.spawn(allocate).join().unwrap()
        });
        assert_eq!(relaxed, CUDA_SUCCESS);
        end(&gpu).unwrap();
    });
}

#[test]
fn a_capture_ends_on_its_thread_and_only_once() {
    on_virtual_gpu("a_capture_ends_on_its_thread_and_only_once", &[], || {
        let gpu = Gpu::open();
        assert_eq!(code(end(&gpu)), CUDA_ERROR_ILLEGAL_STATE);
        begin(&gpu, GLOBAL);
        assert_eq!(code(gpu.stream.begin_capture(GLOBAL)), CUDA_ERROR_ILLEGAL_STATE);
        let end_elsewhere = || {
            gpu.context.bind_to_thread().unwrap();
            code(end(&gpu))
        };
        let ended = std::thread::scope(|scope| scope.spawn(end_elsewhere).join().unwrap());
        assert_eq!(ended, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        end(&gpu).unwrap();
    });
}

#[test]
fn an_instantiated_graph_takes_other_parameters_but_no_other_shape() {
    let name = "an_instantiated_graph_takes_other_parameters_but_no_other_shape";
    on_virtual_gpu(name, &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        let capture = |amounts: &[u32]| {
            begin(&gpu, GLOBAL);
            for amount in amounts {
                gpu.add_on(gpu.raw(), x, *amount, 1).unwrap();
            }
            end(&gpu).unwrap()
        };
        let exec = instantiate(capture(&[1]));
        replay(&gpu, exec);
        let mut info: sys::CUgraphExecUpdateResultInfo = raw!({ std::mem::zeroed() });
        let updated = raw!({ sys::cuGraphExecUpdate_v2(exec, capture(&[10]), &mut info) });
        assert_eq!(updated, CUDA_SUCCESS);
        replay(&gpu, exec);
        assert_eq!(gpu.download(x, 1), [11]);
        let refused = raw!({ sys::cuGraphExecUpdate_v2(exec, capture(&[1, 1]), &mut info) });
        assert_eq!(refused, CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        // And it is as before.
        replay(&gpu, exec);
        assert_eq!(gpu.download(x, 1), [21]);
        let bad_flags = sys::CUgraphInstantiate_flags(4);
        let device_launch = raw!({ result::graph::instantiate(capture(&[1]), bad_flags) });
        assert_eq!(code(device_launch), CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn a_kernel_node_takes_other_parameters() {
    on_virtual_gpu("a_kernel_node_takes_other_parameters", &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        begin(&gpu, GLOBAL);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        let graph = end(&gpu).unwrap();
        let exec = instantiate(graph);
        let (mut node, mut num_nodes) = (std::ptr::null_mut(), 1);
        let (mut address, mut amount, mut n) = (x, 40u32, 1u32);
        raw!({
            assert_eq!(sys::cuGraphGetNodes(graph, &mut node, &mut num_nodes), CUDA_SUCCESS);
            let mut kernel_params =
                [(&raw mut address).cast(), (&raw mut amount).cast(), (&raw mut n).cast()];
            let mut params: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
            params.func = gpu.function("add");
            (params.gridDimX, params.gridDimY, params.gridDimZ) = (1, 1, 1);
            (params.blockDimX, params.blockDimY, params.blockDimZ) = (1, 1, 1);
            params.kernelParams = kernel_params.as_mut_ptr();
            let set = sys::cuGraphExecKernelNodeSetParams_v2(exec, node, &params);
            assert_eq!(set, CUDA_SUCCESS);
        });
        replay(&gpu, exec);
        assert_eq!(gpu.download(x, 1), [40]);
    });
}

#[test]
fn a_graph_launched_in_a_capture_becomes_part_of_it() {
    on_virtual_gpu("a_graph_launched_in_a_capture_becomes_part_of_it", &[], || {
        let gpu = Gpu::open();
        let x = gpu.upload(&[0]);
        begin(&gpu, GLOBAL);
        gpu.add_on(gpu.raw(), x, 1, 1).unwrap();
        let inner = instantiate(end(&gpu).unwrap());
        begin(&gpu, GLOBAL);
        raw!({ result::memset_d8_async(x, 0, 4, gpu.raw()) }).unwrap();
        replay(&gpu, inner);
        replay(&gpu, inner);
        let outer = instantiate(end(&gpu).unwrap());
        for _ in 0..2 {
            replay(&gpu, outer);
            assert_eq!(gpu.download(x, 1), [2]);
        }
    });
}
