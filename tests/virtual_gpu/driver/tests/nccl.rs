//! Collectives between devices, through cudarc.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::sys::CUresult::*;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, result as cuda};
use cudarc::nccl::sys::ncclDataType_t::*;
use cudarc::nccl::sys::ncclRedOp_t::ncclSum;
use cudarc::nccl::sys::ncclResult_t::{self, *};
use cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start, sys};
use half::{bf16, f16};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{code, on_virtual_gpu};

const TWO: (&str, &str) = ("VIRTUAL_GPU_DEVICES", "2");
const FOUR: (&str, &str) = ("VIRTUAL_GPU_DEVICES", "4");
const SOON: (&str, &str) = ("VIRTUAL_GPU_NCCL_TIMEOUT_S", "1");

fn open(ordinal: usize) -> Arc<CudaStream> {
    let context = CudaContext::new(ordinal).unwrap();
    raw!({ context.disable_event_tracking() });
    context.new_stream().unwrap()
}

/// Runs `body` on one thread per rank, and gives what they return by rank.
fn ranks<T: Send>(num_ranks: usize, body: impl Fn(Comm, usize) -> T + Sync) -> Vec<T> {
    let id = Id::new().unwrap();
    std::thread::scope(|scope| {
        let join = |rank: usize| {
            let body = &body;
            scope.spawn(move || {
                let comm = Comm::from_rank(open(rank), rank, num_ranks, id).unwrap();
                body(comm, rank)
            })
        };
        let threads: Vec<_> = (0..num_ranks).map(join).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn four_ranks_sum_in_rank_order() {
    on_virtual_gpu("four_ranks_sum_in_rank_order", &[FOUR], || {
        // In f32 the sum depends on the order: 1e8 + 1 is 1e8.
        let inputs = [1e8f32, 1.0, -1e8, 0.5];
        for _ in 0..8 {
            let sums = ranks(4, |comm, rank| {
                let stream = comm.stream();
                let mut x = stream.clone_htod(&[inputs[rank], rank as f32]).unwrap();
                comm.all_reduce_in_place(&mut x, &ReduceOp::Sum).unwrap();
                stream.clone_dtoh(&x).unwrap()
            });
            assert_eq!(sums, vec![vec![((1e8f32 + 1.0) - 1e8) + 0.5, 6.0]; 4]);
        }
    });
}

#[test]
fn every_type_and_reduction() {
    on_virtual_gpu("every_type_and_reduction", &[TWO], || {
        macro_rules! check {
            ($($type:ty, $a:expr, $b:expr, $operation:ident, $expected:expr;)*) => {$({
                let results = ranks(2, |comm, rank| {
                    let stream = comm.stream();
                    let input: [$type; 1] = [if rank == 0 { $a } else { $b }];
                    let input = stream.clone_htod(&input).unwrap();
                    let mut output = stream.alloc_zeros::<$type>(1).unwrap();
                    comm.all_reduce(&input, &mut output, &ReduceOp::$operation).unwrap();
                    stream.clone_dtoh(&output).unwrap()[0]
                });
                let what = concat!(stringify!($type), " ", stringify!($operation));
                assert_eq!(results, [$expected; 2], "{what}");
            })*};
        }
        let (half, brain) = (f16::from_f32, bf16::from_f32);
        check! {
            f32, 1.5, 2.0, Sum, 3.5;
            f32, 1.5, 2.0, Prod, 3.0;
            f32, 1.5, -2.0, Max, 1.5;
            f32, 1.5, -2.0, Min, -2.0;
            f32, 1.0, 2.0, Avg, 1.5;
            f64, 0.1, 0.2, Sum, 0.1 + 0.2;
            f16, half(2048.0), half(1.0), Sum, half(2048.0);
            f16, half(3.0), half(0.5), Prod, half(1.5);
            bf16, brain(256.0), brain(2.0), Sum, brain(258.0);
            bf16, brain(256.0), brain(1.0), Sum, brain(256.0);
            i32, -5, 3, Sum, -2;
            i32, -5, 3, Max, 3;
            u32, 5, 3, Min, 3;
            u8, 200, 100, Sum, 44;
            i8, -100, 3, Min, -100;
            i64, 1 << 40, 3, Prod, 3 << 40;
            u64, 1 << 63, 1, Sum, (1 << 63) + 1;
        }
        // Elements are not mixed up.
        let results = ranks(2, |comm, rank| {
            let stream = comm.stream();
            let values: Vec<f32> = (0..1000).map(|i| (i * (rank + 1)) as f32).collect();
            let mut x = stream.clone_htod(&values).unwrap();
            comm.all_reduce_in_place(&mut x, &ReduceOp::Sum).unwrap();
            stream.clone_dtoh(&x).unwrap()
        });
        let expected: Vec<f32> = (0..1000).map(|i| (3 * i) as f32).collect();
        assert_eq!(results, [expected.clone(), expected]);
    });
}

#[test]
fn gather_scatter_broadcast_and_reduce() {
    on_virtual_gpu("gather_scatter_broadcast_and_reduce", &[FOUR], || {
        ranks(4, |comm, rank| {
            let stream = comm.stream();
            let own = stream.clone_htod(&[rank as u32, 10 + rank as u32]).unwrap();
            let mut all = stream.alloc_zeros::<u32>(8).unwrap();
            comm.all_gather(&own, &mut all).unwrap();
            assert_eq!(stream.clone_dtoh(&all).unwrap(), [0, 10, 1, 11, 2, 12, 3, 13]);
            let mut part = stream.alloc_zeros::<u32>(2).unwrap();
            comm.reduce_scatter(&all, &mut part, &ReduceOp::Sum).unwrap();
            assert_eq!(stream.clone_dtoh(&part).unwrap(), [4 * rank as u32, 40 + 4 * rank as u32]);
            let mut copy = stream.alloc_zeros::<u32>(2).unwrap();
            let source = (rank == 2).then_some(&own);
            comm.broadcast(source, &mut copy, 2).unwrap();
            assert_eq!(stream.clone_dtoh(&copy).unwrap(), [2, 12]);
            let mut sum = stream.alloc_zeros::<u32>(2).unwrap();
            let target = (rank == 1).then_some(&mut sum);
            comm.reduce(&own, target, &ReduceOp::Sum, 1).unwrap();
            let expected = if rank == 1 { [6, 46] } else { [0, 0] };
            assert_eq!(stream.clone_dtoh(&sum).unwrap(), expected);
        });
    });
}

#[test]
fn a_group_lets_sends_and_receives_cross() {
    on_virtual_gpu("a_group_lets_sends_and_receives_cross", &[TWO], || {
        ranks(2, |comm, rank| {
            let stream = comm.stream();
            let own = stream.clone_htod(&[7 + rank as i32]).unwrap();
            let mut theirs = stream.alloc_zeros::<i32>(1).unwrap();
            let peer = 1 - rank as i32;
            group_start().unwrap();
            comm.send(&own, peer).unwrap();
            comm.recv(&mut theirs, peer).unwrap();
            group_end().unwrap();
            assert_eq!(stream.clone_dtoh(&theirs).unwrap(), [7 + peer]);
            // Without a group, in an order that fits.
            if rank == 0 {
                comm.send(&own, peer).unwrap();
            } else {
                comm.recv(&mut theirs, peer).unwrap();
            }
            stream.synchronize().unwrap();
        });
    });
}

#[test]
fn one_thread_can_drive_all_ranks() {
    on_virtual_gpu("one_thread_can_drive_all_ranks", &[FOUR], || {
        // On default streams, which are one handle for four devices.
        let streams: Vec<_> =
            (0..4).map(|i| CudaContext::new(i).unwrap().default_stream()).collect();
        let comms = Comm::from_devices(streams.clone()).unwrap();
        let upload = |(rank, stream): (usize, &Arc<CudaStream>)| {
            stream.clone_htod(&[rank as f32, 1.0]).unwrap()
        };
        let mut values: Vec<CudaSlice<f32>> = streams.iter().enumerate().map(upload).collect();
        group_start().unwrap();
        for (comm, value) in comms.iter().zip(&mut values) {
            comm.all_reduce_in_place(value, &ReduceOp::Sum).unwrap();
        }
        group_end().unwrap();
        for (stream, value) in streams.iter().zip(&values) {
            assert_eq!(stream.clone_dtoh(value).unwrap(), [6.0, 4.0]);
        }
    });
}

#[test]
fn a_collective_in_a_graph_runs_at_each_replay() {
    on_virtual_gpu("a_collective_in_a_graph_runs_at_each_replay", &[FOUR], || {
        ranks(4, |comm, rank| {
            let stream = comm.stream();
            let mut input = stream.alloc_zeros::<f32>(3).unwrap();
            let mut output = stream.alloc_zeros::<f32>(3).unwrap();
            stream.synchronize().unwrap();
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
            comm.all_reduce(&input, &mut output, &ReduceOp::Sum).unwrap();
            comm.all_reduce_in_place(&mut output, &ReduceOp::Max).unwrap();
            let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
            for round in 1..=3 {
                let value = (round * (rank + 1)) as f32;
                stream.memcpy_htod(&[value; 3], &mut input).unwrap();
                graph.launch().unwrap();
                assert_eq!(stream.clone_dtoh(&output).unwrap(), [10.0 * round as f32; 3]);
            }
        });
    });
}

#[test]
fn ranks_that_disagree_all_get_an_error() {
    on_virtual_gpu("ranks_that_disagree_all_get_an_error", &[TWO], || {
        let results = ranks(2, |comm, rank| {
            let stream = comm.stream();
            let mut x = stream.alloc_zeros::<f32>(4 + rank).unwrap();
            comm.all_reduce_in_place(&mut x, &ReduceOp::Sum).unwrap();
            let waited = code(stream.synchronize());
            let later = comm.all_reduce_in_place(&mut x, &ReduceOp::Sum);
            (waited, later.err().unwrap().0)
        });
        assert_eq!(results, [(CUDA_ERROR_LAUNCH_FAILED, ncclInvalidUsage); 2]);
    })
    .said("rank 0 calls AllReduce(Sum) of 4 Float32, rank 1 calls AllReduce(Sum) of 5 Float32");
}

/// A communicator without cudarc's wrapper, which cannot ask for asynchronous errors.
struct RawComm {
    comm: sys::ncclComm_t,
    stream: Arc<CudaStream>,
    x: u64,
}

// SAFETY: handles may be used on any thread.
unsafe impl Send for RawComm {}
// SAFETY: as above.
unsafe impl Sync for RawComm {}

impl RawComm {
    fn all(num_ranks: usize) -> Vec<RawComm> {
        let streams: Vec<_> = (0..num_ranks).map(open).collect();
        let mut comms = vec![std::ptr::null_mut(); num_ranks];
        let count = num_ranks as i32;
        let made = raw!({ sys::ncclCommInitAll(comms.as_mut_ptr(), count, std::ptr::null()) });
        assert_eq!(made, ncclSuccess);
        let open = |(comm, stream): (sys::ncclComm_t, Arc<CudaStream>)| {
            stream.context().bind_to_thread().unwrap();
            let x = raw!({ cuda::malloc_sync(16) }).unwrap();
            RawComm { comm, stream, x }
        };
        comms.into_iter().zip(streams).map(open).collect()
    }

    fn all_reduce_at(&self, address: u64, count: usize) -> ncclResult_t {
        let stream = self.stream.cu_stream().cast();
        raw!({
            let (from, to) = (address as *const _, address as *mut _);
            sys::ncclAllReduce(from, to, count, ncclFloat32, ncclSum, self.comm, stream)
        })
    }

    fn async_error(&self) -> ncclResult_t {
        let mut error = ncclSuccess;
        assert_eq!(raw!({ sys::ncclCommGetAsyncError(self.comm, &mut error) }), ncclSuccess);
        error
    }
}

#[test]
fn a_rank_that_skips_a_collective_is_noticed_by_the_watchdog() {
    let fault = ("VIRTUAL_GPU_FAULT", "skip-collective:1:2");
    on_virtual_gpu(
        "a_rank_that_skips_a_collective_is_noticed_by_the_watchdog",
        &[TWO, SOON, fault],
        || {
            let comms = RawComm::all(2);
            let wait = |comm: &RawComm| {
                assert_eq!(comm.all_reduce_at(comm.x, 4), ncclSuccess);
                code(comm.stream.synchronize())
            };
            let round = || -> Vec<_> {
                std::thread::scope(|scope| {
                    let threads: Vec<_> = comms.iter().map(|c| scope.spawn(|| wait(c))).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
                })
            };
            assert_eq!(round(), [CUDA_SUCCESS, CUDA_SUCCESS]);
            let since = Instant::now();
            assert_eq!(round(), [CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_SUCCESS]);
            assert!(since.elapsed() >= Duration::from_secs(1));
            assert_eq!(comms[0].async_error(), ncclRemoteError);
            assert_eq!(comms[0].all_reduce_at(comms[0].x, 4), ncclRemoteError);
        },
    )
    .said("collective 2 (AllReduce(Sum)) waits for ranks [1]")
    .said("rank 1 skips collective 2");
}

#[test]
fn without_a_watchdog_a_lone_rank_hangs_until_it_aborts() {
    on_virtual_gpu("without_a_watchdog_a_lone_rank_hangs_until_it_aborts", &[TWO], || {
        let comms = RawComm::all(2);
        let lone = &comms[0];
        assert_eq!(lone.all_reduce_at(lone.x, 4), ncclSuccess);
        let event = lone.stream.record_event(None).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| code(lone.stream.synchronize()));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!waiting.is_finished());
            assert!(!event.is_complete());
            assert_eq!(lone.async_error(), ncclSuccess);
            assert_eq!(raw!({ sys::ncclCommAbort(lone.comm) }), ncclSuccess);
            // The kernel was stopped, the context is sound.
            assert_eq!(waiting.join().unwrap(), CUDA_SUCCESS);
        });
        assert_eq!(lone.all_reduce_at(lone.x, 4), ncclInvalidArgument);
    });
}

#[test]
fn a_rank_whose_device_is_lost_leaves_the_others_waiting() {
    let fault = ("VIRTUAL_GPU_FAULT", "lost:1@1");
    on_virtual_gpu(
        "a_rank_whose_device_is_lost_leaves_the_others_waiting",
        &[TWO, SOON, fault],
        || {
            let results = ranks(2, |comm, rank| {
                let gpu = support::Gpu::open_device(rank);
                let stream = comm.stream();
                let mut x = stream.alloc_zeros::<f32>(4).unwrap();
                stream.synchronize().unwrap();
                let word = gpu.upload(&[0]);
                gpu.add_on(stream.cu_stream(), word, 1, 1).unwrap();
                comm.all_reduce_in_place(&mut x, &ReduceOp::Sum).unwrap();
                let waited = code(stream.synchronize());
                std::mem::forget((gpu, x));
                waited
            });
            assert_eq!(results, [CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_ECC_UNCORRECTABLE]);
        },
    );
}

#[test]
fn buffers_must_be_live_memory_of_the_ranks_device() {
    on_virtual_gpu("buffers_must_be_live_memory_of_the_ranks_device", &[TWO], || {
        let comms = RawComm::all(2);
        assert_eq!(comms[0].all_reduce_at(comms[0].x, 5), ncclInvalidArgument);
        assert_eq!(comms[0].all_reduce_at(comms[1].x, 4), ncclInvalidArgument);
        assert_eq!(comms[0].all_reduce_at(0x1000, 4), ncclInvalidArgument);
        comms[0].stream.context().bind_to_thread().unwrap();
        raw!({ cuda::free_sync(comms[0].x) }).unwrap();
        assert_eq!(comms[0].all_reduce_at(comms[0].x, 4), ncclInvalidArgument);
    })
    .said("is not live memory of device 0");
}

#[test]
fn communicators_know_their_place() {
    on_virtual_gpu("communicators_know_their_place", &[TWO], || {
        let comms = RawComm::all(2);
        let (mut count, mut rank, mut device, mut version) = (0, 0, 0, 0);
        raw!({
            sys::ncclCommCount(comms[1].comm, &mut count);
            sys::ncclCommUserRank(comms[1].comm, &mut rank);
            sys::ncclCommCuDevice(comms[1].comm, &mut device);
            sys::ncclGetVersion(&mut version);
            assert_eq!((count, rank, device, version), (2, 1, 1, 22707));
            let text = std::ffi::CStr::from_ptr(sys::ncclGetErrorString(ncclInvalidUsage));
            assert_eq!(text, c"invalid usage");
            assert_eq!(sys::ncclCommDestroy(comms[1].comm), ncclSuccess);
            assert_eq!(sys::ncclCommCount(comms[1].comm, &mut count), ncclInvalidArgument);
            let last = std::ffi::CStr::from_ptr(sys::ncclGetLastError(comms[0].comm));
            assert_eq!(last, c"no such communicator");
        });
    });
}

#[test]
fn joining_wrongly_is_refused() {
    on_virtual_gpu("joining_wrongly_is_refused", &[TWO, SOON], || {
        let _stream = open(0);
        let id = Id::new().unwrap();
        let join = |num_ranks, rank, id: Id| {
            let id = sys::ncclUniqueId { internal: *id.internal() };
            let mut comm = std::ptr::null_mut();
            raw!({ sys::ncclCommInitRank(&mut comm, num_ranks, id, rank) })
        };
        assert_eq!(join(2, 2, id), ncclInvalidArgument);
        assert_eq!(join(2, 0, Id::uninit([1; 128])), ncclInvalidArgument);
        // Nobody else comes.
        assert_eq!(join(2, 0, id), ncclSystemError);
        assert_eq!(join(2, 0, id), ncclInvalidUsage);
        // Another rank on the same device.
        assert_eq!(join(2, 1, id), ncclInvalidUsage);
    })
    .said("ranks [1] did not join in time");
}
