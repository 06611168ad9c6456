//! `ForwardBatch`: one step's work as flat arrays.

use kernels::device::cuda::{CudaDevice, DeviceBuffer, PinnedBuffer};
use kernels::ops::{AttentionBatch, DeviceAttention};
use kernels::{Indices, KernelError};

/// Slot of a padding token: its key and value are not written.
pub const NO_SLOT: u32 = u32::MAX;

/// Tokens of several sequences, one after the other; `AttentionBatch` says how the starts are to be
/// read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForwardBatch {
    /// [num_tokens]
    pub token_ids: Indices,
    /// [num_tokens]: place of each token in its sequence, from 0.
    pub positions: Indices,
    /// [num_tokens]: where each token's key and value go: block id * block_size + place in block.
    pub slots: Indices,
    /// [num_rows]: the tokens whose logits are asked for; filled by whoever computes them.
    pub logit_rows: Indices,
    /// [num_seqs + 1]
    pub query_start: Vec<u32>,
    /// [num_seqs]
    pub context_len: Vec<u32>,
    pub block_tables: Vec<u32>,
    /// [num_seqs + 1]
    pub block_table_start: Vec<u32>,
    device: Option<DeviceAttention>,
}

impl ForwardBatch {
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Rows that are computed: the tokens, and on a GPU the padding of a recorded step.
    pub fn num_rows(&self) -> usize {
        self.device.map_or(self.num_tokens(), |device| device.num_tokens as usize)
    }

    pub fn num_seqs(&self) -> usize {
        self.context_len.len()
    }

    /// Empties all arrays and keeps their memory, ready for `push_sequence`.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.logit_rows.clear();
        self.context_len.clear();
        self.block_tables.clear();
        for start in [&mut self.query_start, &mut self.block_table_start] {
            start.clear();
            start.push(0);
        }
        self.device = None;
    }

    /// Adds one sequence's chunk: `token_ids` at positions start, start + 1, ..., whose blocks are
    /// `block_table`.
    pub fn push_sequence(
        &mut self,
        token_ids: impl IntoIterator<Item = u32>,
        start: usize,
        block_table: &[u32],
        block_size: usize,
    ) {
        if self.query_start.is_empty() {
            self.clear();
        }
        for (position, token_id) in (start..).zip(token_ids) {
            let block = block_table[position / block_size] as usize;
            self.token_ids.push(token_id);
            self.positions.push(position as u32);
            self.slots.push((block * block_size + position % block_size) as u32);
        }
        let end = self.token_ids.len() as u32;
        let num_new = end - self.query_start.last().expect("cleared above");
        self.query_start.push(end);
        self.context_len.push(start as u32 + num_new);
        self.block_tables.extend_from_slice(block_table);
        self.block_table_start.push(self.block_tables.len() as u32);
    }

    pub fn attention(&self) -> AttentionBatch<'_> {
        AttentionBatch {
            query_start: &self.query_start,
            context_len: &self.context_len,
            block_tables: &self.block_tables,
            block_table_start: &self.block_table_start,
            device: self.device,
        }
    }
}

/// What a step's arrays are padded to, so that one recording serves many steps. No padding: the
/// batch's own sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepShape {
    pub num_tokens: usize,
    pub num_seqs: usize,
    pub num_rows: usize,
    /// At least the longest context in the step.
    pub context_len_max: usize,
    /// At least the longest chunk in the step.
    pub query_len_max: usize,
}

impl StepShape {
    /// The smallest shape that holds `batch`.
    pub fn of(batch: &ForwardBatch) -> StepShape {
        let lens = batch.query_start.windows(2).map(|w| (w[1] - w[0]) as usize);
        StepShape {
            num_tokens: batch.num_tokens(),
            num_seqs: batch.num_seqs(),
            num_rows: batch.logit_rows.len(),
            context_len_max: batch.context_len.iter().max().map_or(0, |&len| len as usize),
            query_len_max: lens.max().unwrap_or(0),
        }
    }
}

/// The arrays of a step on a GPU, at fixed addresses for each `StepShape`: one region, filled by
/// one copy. Two host buffers take turns, so that a step can be written while the one before it is
/// still under way.
pub struct StepUpload {
    region: DeviceBuffer,
    pinned: [PinnedBuffer; 2],
    turn: usize,
    block_table_stride: usize,
    words: Vec<u32>,
}

impl StepUpload {
    /// Room for steps up to `largest`, of sequences of up to `blocks_max` blocks.
    ///
    /// Errors: `OutOfMemory`.
    pub fn new(
        device: &CudaDevice,
        largest: StepShape,
        blocks_max: usize,
    ) -> Result<StepUpload, KernelError> {
        let block_table_stride = blocks_max.next_multiple_of(4);
        let StepShape { num_tokens, num_seqs, num_rows, .. } = largest;
        // Each of the eight arrays may be rounded up.
        let words = 4 * num_tokens + num_rows + 2 * num_seqs + num_seqs * block_table_stride;
        let bytes = (words + 8 * ARRAY_WORDS) * size_of::<u32>();
        Ok(StepUpload {
            region: DeviceBuffer::zeroed(device, bytes)?,
            pinned: [PinnedBuffer::new(device, bytes)?, PinnedBuffer::new(device, bytes)?],
            turn: 0,
            block_table_stride,
            words: Vec::new(),
        })
    }

    /// Queues the copy of `batch`, padded to `shape`, and notes the addresses in it. At most two
    /// steps may be under way.
    ///
    /// Padding tokens have id 0, position 0 and no slot; padding sequences have no context and no
    /// rows; padding logit rows are row 0.
    pub fn upload(
        &mut self,
        batch: &mut ForwardBatch,
        shape: StepShape,
    ) -> Result<(), KernelError> {
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        let base = self.region.ptr();
        let mut place = |values: &[u32], len: usize, padding: u32| {
            assert!(values.len() <= len, "{} values in an array of {len}", values.len());
            let at = words.len();
            words.extend_from_slice(values);
            words.resize(at + len, padding);
            words.resize(words.len().next_multiple_of(ARRAY_WORDS), 0);
            base + (at * size_of::<u32>()) as u64
        };
        let StepShape { num_tokens, num_seqs, num_rows, .. } = shape;
        let addresses = [
            place(&batch.token_ids, num_tokens, 0),
            place(&batch.positions, num_tokens, 0),
            place(&batch.slots, num_tokens, NO_SLOT),
            place(&batch.logit_rows, num_rows, 0),
        ];
        let row_seq = place(&row_sequences(&batch.query_start), num_tokens, num_seqs as u32 - 1);
        let query_start = place(&batch.query_start, num_seqs + 1, batch.num_tokens() as u32);
        let context_len = place(&batch.context_len, num_seqs, 0);
        let stride = self.block_table_stride;
        let tables = padded_tables(batch, stride);
        let block_tables = place(&tables, num_seqs * stride, 0);
        let [token_ids, positions, slots, logit_rows] = addresses;
        batch.token_ids.set_device(token_ids);
        batch.positions.set_device(positions);
        batch.slots.set_device(slots);
        batch.logit_rows.set_device(logit_rows);
        batch.device = Some(DeviceAttention {
            query_start,
            context_len,
            block_tables,
            block_table_stride: stride as u32,
            row_seq,
            num_seqs: num_seqs as u32,
            num_tokens: num_tokens as u32,
            context_len_max: shape.context_len_max as u32,
            query_len_max: shape.query_len_max as u32,
        });
        let copied = self.copy(&words);
        self.words = words;
        copied
    }

    fn copy(&mut self, words: &[u32]) -> Result<(), KernelError> {
        let bytes = size_of_val(words);
        let pinned = &mut self.pinned[self.turn];
        self.turn = 1 - self.turn;
        let to = pinned.bytes_mut()[..bytes].chunks_exact_mut(size_of::<u32>());
        to.zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        pinned.upload(&self.region, 0, bytes)
    }
}

/// Arrays begin on a border of 16 bytes.
const ARRAY_WORDS: usize = 4;

/// The sequence of each row.
fn row_sequences(query_start: &[u32]) -> Vec<u32> {
    let rows = query_start.windows(2).enumerate();
    rows.flat_map(|(s, w)| std::iter::repeat_n(s as u32, (w[1] - w[0]) as usize)).collect()
}

/// Block tables as rows of `stride` ids.
fn padded_tables(batch: &ForwardBatch, stride: usize) -> Vec<u32> {
    let mut tables = vec![0; batch.num_seqs() * stride];
    let starts = batch.block_table_start.windows(2);
    for (row, w) in tables.chunks_exact_mut(stride.max(1)).zip(starts) {
        let blocks = &batch.block_tables[w[0] as usize..w[1] as usize];
        assert!(blocks.len() <= stride, "{} blocks in a table of {stride}", blocks.len());
        row[..blocks.len()].copy_from_slice(blocks);
    }
    tables
}
