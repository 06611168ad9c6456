use super::{RESULT_WORDS, VOCAB_MAX};
use crate::device::cuda::{Arg, CudaDevice, DeviceBuffer, Geometry, KernelSpec, Param};
use crate::{KernelError, Tensor};

/// Values that one block scans.
const SLICE: usize = 4096;
const CHUNKS_PER_SLICE: usize = 32;
const SCAN_THREADS: u32 = 256;
const CHOOSE_THREADS: u32 = 1024;
const FEED_THREADS: usize = 256;

const P: Param = Param::Ptr;

pub const KERNELS: &[KernelSpec] = &[
    KernelSpec {
        module: "sampling",
        name: "sample_scan",
        params: &[P, P, P, P, P, P, P, Param::U32, Param::U32],
    },
    KernelSpec {
        module: "sampling",
        name: "sample_choose",
        params: &[P, P, P, P, P, P, P, P, P, Param::U32, Param::U32],
    },
    KernelSpec { module: "sampling", name: "feed_tokens", params: &[P, P, P, Param::U32] },
];

/// Memory that sampling needs for a while: as many rows as logits are in memory at a time.
#[derive(Debug)]
pub struct SampleScratch {
    vocab: usize,
    rows_max: usize,
    /// [rows_max, vocab rounded up to slices]: logits as the request changed them.
    edited: DeviceBuffer,
    chunk_max: DeviceBuffer,
    slice_sums: DeviceBuffer,
}

/// Where the rows of one launch lie on the device, each array from its first row on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleArrays {
    /// u32 [num_rows]: the chosen tokens (a scored row has its target).
    pub sampled: u64,
    /// u32 [num_rows, RESULT_WORDS]
    pub results: u64,
    /// u32 [num_rows, ROW_WORDS], from a border of 8 bytes
    pub rows: u64,
    /// The lists of the whole step.
    pub lists: u64,
    /// What `SampleTask::pending` refers to.
    pub token_ids: u64,
}

impl SampleScratch {
    /// For logits of which the first `vocab` count: ids from there on are never sampled and have no
    /// probability.
    ///
    /// Errors: `OutOfMemory`; `Shape` when the vocabulary is larger than `VOCAB_MAX`.
    pub fn new(
        device: &CudaDevice,
        rows_max: usize,
        vocab: usize,
    ) -> Result<SampleScratch, KernelError> {
        if vocab == 0 || vocab > VOCAB_MAX {
            let (op, what, expected) = ("sample", "vocabulary", format!("1 to {VOCAB_MAX} tokens"));
            return Err(KernelError::Shape { op, what, got: vec![vocab], expected });
        }
        let num_slices = rows_max * vocab.div_ceil(SLICE);
        // Of the edited and of the raw values.
        let of_both = 2 * num_slices;
        Ok(SampleScratch {
            vocab,
            rows_max,
            edited: DeviceBuffer::uninit(device, num_slices * SLICE * size_of::<f32>())?,
            chunk_max: DeviceBuffer::uninit(device, of_both * CHUNKS_PER_SLICE * size_of::<f32>())?,
            slice_sums: DeviceBuffer::uninit(device, of_both * size_of::<u64>())?,
        })
    }

    /// From now on only the first `vocab` of the logits count, at least 1 and at most as many as
    /// before.
    pub fn limit(&mut self, vocab: usize) {
        assert!((1..=self.vocab).contains(&vocab), "{vocab} of {} tokens", self.vocab);
        self.vocab = vocab;
    }
}

/// Carries out the tasks of rows 0..logits.rows().
///
/// Shapes: `logits` [num_rows, at least vocab] F32; it stays as it is. Rows of padding leave their
/// outputs as they were.
/// Errors: `Shape` for more rows than the scratch has room for, `Device`.
pub fn sample(
    device: &CudaDevice,
    scratch: &SampleScratch,
    logits: &Tensor,
    arrays: &SampleArrays,
) -> Result<(), KernelError> {
    let (num_rows, row_len) = (logits.rows(), logits.row_len());
    if num_rows > scratch.rows_max || row_len < scratch.vocab {
        let expected = format!("up to {} rows of at least {}", scratch.rows_max, scratch.vocab);
        let got = logits.shape().to_vec();
        return Err(KernelError::Shape { op: "sample", what: "logits", got, expected });
    }
    if num_rows == 0 {
        return Ok(());
    }
    let scratch_args = [&scratch.edited, &scratch.chunk_max, &scratch.slice_sums];
    let scratch_args = scratch_args.map(|buffer| Arg::Ptr(buffer.ptr()));
    let inputs = [logits.device_ptr(), arrays.rows, arrays.lists, arrays.token_ids].map(Arg::Ptr);
    let numbers = [scratch.vocab, row_len].map(|n| Arg::U32(n as u32));
    let num_slices = scratch.vocab.div_ceil(SLICE) as u32;
    let scan = Geometry {
        grid: [num_slices, num_rows as u32, 1],
        block_threads: SCAN_THREADS,
        shared_bytes: 0,
    };
    let args = [&scratch_args[..], &inputs, &numbers].concat();
    device.launch(&KERNELS[0], scan, &args)?;
    let choose =
        Geometry { grid: [num_rows as u32, 1, 1], block_threads: CHOOSE_THREADS, shared_bytes: 0 };
    let outputs = [arrays.sampled, arrays.results].map(Arg::Ptr);
    let args = [&outputs[..], &args].concat();
    device.launch(&KERNELS[1], choose, &args)
}

/// token_ids[i] = sampled[from[i]], where from[i] is not u32::MAX; all three are device addresses
/// of u32 arrays.
pub fn feed_tokens(
    device: &CudaDevice,
    token_ids: u64,
    sampled: u64,
    from: u64,
    num_tokens: usize,
) -> Result<(), KernelError> {
    if num_tokens == 0 {
        return Ok(());
    }
    let grid = [num_tokens.div_ceil(FEED_THREADS) as u32, 1, 1];
    let geometry = Geometry { grid, block_threads: FEED_THREADS as u32, shared_bytes: 0 };
    let pointers = [token_ids, sampled, from].map(Arg::Ptr);
    let args = [&pointers[..], &[Arg::U32(num_tokens as u32)]].concat();
    device.launch(&KERNELS[2], geometry, &args)
}

impl SampleArrays {
    /// The same arrays from row `first` on.
    pub fn from_row(&self, first: usize) -> SampleArrays {
        let word = size_of::<u32>() as u64;
        let first = first as u64;
        SampleArrays {
            sampled: self.sampled + first * word,
            results: self.results + first * RESULT_WORDS as u64 * word,
            rows: self.rows + first * super::ROW_WORDS as u64 * word,
            ..*self
        }
    }
}
