//! Collectives between devices of several processes, through cudarc.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::sys::CUresult::{self, *};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, result as cuda};
use cudarc::nccl::sys::ncclDataType_t::ncclFloat32;
use cudarc::nccl::sys::ncclRedOp_t::ncclSum;
use cudarc::nccl::sys::ncclResult_t::{self, *};
use cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start, sys};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::{code, on_virtual_gpu};

const TWO: (&str, &str) = ("VIRTUAL_GPU_DEVICES", "2");
const FOUR: (&str, &str) = ("VIRTUAL_GPU_DEVICES", "4");
const SOON: (&str, &str) = ("VIRTUAL_GPU_NCCL_TIMEOUT_S", "1");
/// In the second process: the id that the first one made, or `MAKE`.
const ID: &str = "VIRTUAL_GPU_TEST_ID";
/// The second process makes the id and prints it after `PRINTED`.
const MAKE: &str = "make";
const PRINTED: &str = "id ";

/// Runs `body` in this process, which makes the id, and in a second one; it is told which.
fn in_two_processes(test: &str, body: impl Fn(Id, usize)) {
    if let Ok(id) = std::env::var(ID) {
        return body(read_id(&id), 1);
    }
    let id = Id::new().unwrap();
    let mut second = Second::start(test, &write_id(&id));
    body(id, 0);
    assert!(second.0.wait().unwrap().success());
}

/// The second process; it ends with this value.
struct Second(Child);

impl Second {
    fn start(test: &str, id: &str) -> Second {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ID, id);
        Second(command.stdout(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_id(id: &Id) -> String {
    id.internal().iter().map(|byte| format!("{:02x}", *byte as u8)).collect()
}

fn read_id(text: &str) -> Id {
    let byte = |i: usize| u8::from_str_radix(&text[2 * i..][..2], 16).unwrap();
    Id::uninit(std::array::from_fn(|i| byte(i) as _))
}

fn open(ordinal: usize) -> Arc<CudaStream> {
    let context = CudaContext::new(ordinal).unwrap();
    raw!({ context.disable_event_tracking() });
    context.new_stream().unwrap()
}

#[test]
fn ranks_of_two_processes_get_the_bits_of_one() {
    let test = "ranks_of_two_processes_get_the_bits_of_one";
    on_virtual_gpu(test, &[FOUR], || {
        in_two_processes(test, |id, process| {
            // Neighbours are in different processes.
            let ranks = [process, process + 2];
            std::thread::scope(|scope| {
                for rank in ranks {
                    scope.spawn(move || every_exchange(&join(rank, 4, id), rank));
                }
            });
        });
    });
}

fn join(rank: usize, num_ranks: usize, id: Id) -> Comm {
    Comm::from_rank(open(rank), rank, num_ranks, id).unwrap()
}

/// Rank `rank` of four.
fn every_exchange(comm: &Comm, rank: usize) {
    let stream = comm.stream();
    // In f32 the sum depends on the order: 1e8 + 1 is 1e8.
    let inputs = [1e8f32, 1.0, -1e8, 0.5];
    for _ in 0..8 {
        let mut x = stream.clone_htod(&[inputs[rank], rank as f32]).unwrap();
        comm.all_reduce_in_place(&mut x, &ReduceOp::Sum).unwrap();
        let sum = inputs.iter().sum::<f32>();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [sum, 6.0]);
    }
    let own = stream.clone_htod(&[rank as u32, 10 + rank as u32]).unwrap();
    let mut all = stream.alloc_zeros::<u32>(8).unwrap();
    comm.all_gather(&own, &mut all).unwrap();
    assert_eq!(stream.clone_dtoh(&all).unwrap(), [0, 10, 1, 11, 2, 12, 3, 13]);
    let mut part = stream.alloc_zeros::<u32>(2).unwrap();
    comm.reduce_scatter(&all, &mut part, &ReduceOp::Sum).unwrap();
    assert_eq!(stream.clone_dtoh(&part).unwrap(), [4 * rank as u32, 40 + 4 * rank as u32]);
    for root in 0..4 {
        let mut copy = stream.alloc_zeros::<u32>(2).unwrap();
        let source = (rank == root).then_some(&own);
        comm.broadcast(source, &mut copy, root as i32).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), [root as u32, 10 + root as u32]);
        let mut sum = stream.alloc_zeros::<u32>(2).unwrap();
        let target = (rank == root).then_some(&mut sum);
        comm.reduce(&own, target, &ReduceOp::Sum, root as i32).unwrap();
        let expected = if rank == root { [6, 46] } else { [0, 0] };
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), expected);
    }
    // Each passes on to the next, which is in the other process.
    let mut theirs = stream.alloc_zeros::<u32>(2).unwrap();
    group_start().unwrap();
    comm.send(&own, (rank as i32 + 1) % 4).unwrap();
    comm.recv(&mut theirs, (rank as i32 + 3) % 4).unwrap();
    group_end().unwrap();
    let previous = (rank as u32 + 3) % 4;
    assert_eq!(stream.clone_dtoh(&theirs).unwrap(), [previous, 10 + previous]);
    replay(comm, rank);
}

fn replay(comm: &Comm, rank: usize) {
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
}

/// A rank of two without cudarc's wrapper, which cannot ask for asynchronous errors.
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
    fn join(rank: usize, id: Id) -> RawComm {
        let stream = open(rank);
        let (joined, comm) = try_join(rank as i32, 2, id);
        assert_eq!(joined, ncclSuccess);
        let x = raw!({ cuda::malloc_sync(32) }).unwrap();
        RawComm { comm, stream, x }
    }

    fn all_reduce(&self, count: usize) -> ncclResult_t {
        let stream = self.stream.cu_stream().cast();
        raw!({
            let (from, to) = (self.x as *const _, self.x as *mut _);
            sys::ncclAllReduce(from, to, count, ncclFloat32, ncclSum, self.comm, stream)
        })
    }

    fn wait(&self) -> CUresult {
        code(self.stream.synchronize())
    }

    fn async_error(&self) -> ncclResult_t {
        let mut error = ncclSuccess;
        assert_eq!(raw!({ sys::ncclCommGetAsyncError(self.comm, &mut error) }), ncclSuccess);
        error
    }

    /// It waits for ever for the other rank, until it aborts.
    fn hangs_until_it_aborts(&self) {
        assert_eq!(self.all_reduce(4), ncclSuccess);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| self.wait());
            std::thread::sleep(Duration::from_millis(300));
            assert!(!waiting.is_finished());
            assert_eq!(self.async_error(), ncclSuccess);
            assert_eq!(raw!({ sys::ncclCommAbort(self.comm) }), ncclSuccess);
            // The kernel was stopped, the context is sound.
            assert_eq!(waiting.join().unwrap(), CUDA_SUCCESS);
        });
        assert_eq!(self.all_reduce(4), ncclInvalidArgument);
    }
}

/// Of the device that is current.
fn try_join(rank: i32, num_ranks: i32, id: Id) -> (ncclResult_t, sys::ncclComm_t) {
    let id = sys::ncclUniqueId { internal: *id.internal() };
    let mut comm = std::ptr::null_mut();
    (raw!({ sys::ncclCommInitRank(&mut comm, num_ranks, id, rank) }), comm)
}

#[test]
fn processes_that_disagree_all_get_an_error() {
    let test = "processes_that_disagree_all_get_an_error";
    on_virtual_gpu(test, &[TWO], || {
        in_two_processes(test, |id, rank| {
            let comm = RawComm::join(rank, id);
            assert_eq!(comm.all_reduce(4 + rank), ncclSuccess);
            assert_eq!(comm.wait(), CUDA_ERROR_LAUNCH_FAILED);
            assert_eq!(comm.async_error(), ncclInvalidUsage);
            assert_eq!(comm.all_reduce(4), ncclInvalidUsage);
        });
    })
    .said("rank 0 calls AllReduce(Sum) of 4 Float32, rank 1 calls AllReduce(Sum) of 5 Float32");
}

#[test]
fn a_collective_skipped_in_the_first_process_is_noticed_in_the_second() {
    let test = "a_collective_skipped_in_the_first_process_is_noticed_in_the_second";
    notices_who_skips(test, 0);
}

#[test]
fn a_collective_skipped_in_the_second_process_is_noticed_in_the_first() {
    let test = "a_collective_skipped_in_the_second_process_is_noticed_in_the_first";
    notices_who_skips(test, 1);
}

fn notices_who_skips(test: &str, skipping: usize) {
    let fault = format!("skip-collective:{skipping}:2");
    on_virtual_gpu(test, &[TWO, SOON, ("VIRTUAL_GPU_FAULT", &fault)], || {
        in_two_processes(test, |id, rank| {
            let comm = RawComm::join(rank, id);
            assert_eq!(comm.all_reduce(4), ncclSuccess);
            assert_eq!(comm.wait(), CUDA_SUCCESS);
            assert_eq!(comm.all_reduce(4), ncclSuccess);
            if rank == skipping {
                return assert_eq!(comm.wait(), CUDA_SUCCESS);
            }
            assert_eq!(comm.wait(), CUDA_ERROR_LAUNCH_TIMEOUT);
            assert_eq!(comm.async_error(), ncclRemoteError);
            assert_eq!(comm.all_reduce(4), ncclRemoteError);
        });
    })
    .said(&format!("collective 2 (AllReduce(Sum)) waits for ranks [{skipping}]"))
    .said(&format!("rank {skipping} skips collective 2"));
}

#[test]
fn a_rank_whose_partner_is_killed_hangs_until_it_aborts() {
    let test = "a_rank_whose_partner_is_killed_hangs_until_it_aborts";
    on_virtual_gpu(test, &[TWO], || {
        if let Ok(id) = std::env::var(ID) {
            // The second process: rank 1, or rank 0 in whose process the calls meet.
            let (rank, id) = match id == MAKE {
                true => (0, Id::new().unwrap()),
                false => (1, read_id(&id)),
            };
            println!("\n{PRINTED}{}", write_id(&id));
            let comm = RawComm::join(rank, id);
            assert_eq!(comm.all_reduce(4), ncclSuccess);
            assert_eq!(comm.wait(), CUDA_SUCCESS);
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        for rank in [0, 1] {
            let own = Id::new().unwrap();
            let told = if rank == 0 { write_id(&own) } else { MAKE.to_string() };
            let mut second = Second::start(test, &told);
            let mut lines = BufReader::new(second.0.stdout.take().unwrap()).lines();
            let printed = lines.find_map(|l| l.unwrap().strip_prefix(PRINTED).map(read_id));
            let comm = RawComm::join(rank, printed.unwrap());
            assert_eq!(comm.all_reduce(4), ncclSuccess);
            assert_eq!(comm.wait(), CUDA_SUCCESS);
            drop(second);
            comm.hangs_until_it_aborts();
        }
    });
}

#[test]
fn joining_from_another_process_wrongly_is_refused() {
    let test = "joining_from_another_process_wrongly_is_refused";
    on_virtual_gpu(test, &[TWO, SOON], || {
        let _stream = open(0);
        if let Ok(id) = std::env::var(ID) {
            let id = read_id(&id);
            assert_eq!(try_join(0, 2, id).0, ncclInvalidUsage);
            assert_eq!(try_join(1, 3, id).0, ncclInvalidArgument);
            // The device of rank 0.
            assert_eq!(try_join(1, 2, id).0, ncclInvalidUsage);
            // Of a process that has ended.
            let mut gone = *id.internal();
            gone[16] = !gone[16];
            assert_eq!(try_join(1, 2, Id::uninit(gone)).0, ncclSystemError);
            return;
        }
        let id = Id::new().unwrap();
        // Nobody else comes in time.
        assert_eq!(try_join(0, 2, id).0, ncclSystemError);
        let mut second = Second::start(test, &write_id(&id));
        assert!(second.0.wait().unwrap().success());
    })
    .said("ranks [1] did not join in time")
    .said("rank 0 joined twice")
    .said("ranks disagree on the number of ranks")
    .said("two ranks on device 0")
    .said("the process that made the id cannot be reached");
}
