//! Pooled hidden states on a GPU: normed there, copied back without waiting.

use super::pooling::{PooledRow, num_pooled_scores, pooled_rows, split_pooled_scores};
use crate::engine::{ChunkOutput, PLANS_UNDER_WAY_MAX, Plan, Pooled};
use kernels::device::cuda::{CudaDevice, PinnedBuffer};
use kernels::ops::{dequantize, gather_rows};
use kernels::{Backend, DType, Indices, KernelError, Tensor};
use models::{ForwardContext, Model};

pub(super) struct CudaPooling {
    /// [num_seqs, hidden_size]: before the final norm in F32, after it in the activation format.
    rows: Tensor,
    normed: Tensor,
    /// Used in turns, as steps may overlap.
    turns: [PinnedBuffer; PLANS_UNDER_WAY_MAX],
    turn: usize,
    /// Of the step at hand.
    num_rows: usize,
}

/// What a step pools, to be read when it is done.
pub(super) struct PooledStep {
    turn: usize,
    rows: Vec<PooledRow>,
    num_scores: Vec<usize>,
}

impl CudaPooling {
    /// For steps of up to `num_seqs` sequences. Errors: `OutOfMemory`.
    pub fn new(
        backend: &Backend,
        device: &CudaDevice,
        num_seqs: usize,
        hidden_size: usize,
    ) -> Result<CudaPooling, KernelError> {
        let shape = [num_seqs, hidden_size];
        let normed = Tensor::zeros_on(backend, backend.activation_dtype(), &shape)?;
        let bytes = normed.device_buffer().len();
        let turns = [PinnedBuffer::new(device, bytes)?, PinnedBuffer::new(device, bytes)?];
        let rows = Tensor::zeros_on(backend, DType::F32, &shape)?;
        Ok(CudaPooling { rows, normed, turns, turn: 0, num_rows: 0 })
    }

    /// Takes note of what the plan pools; the rows are to be uploaded behind those of the logits.
    pub fn begin(&mut self, plan: &Plan) -> PooledStep {
        self.turn = (self.turn + 1) % self.turns.len();
        let rows = pooled_rows(plan);
        self.num_rows = rows.len();
        PooledStep { turn: self.turn, rows, num_scores: num_pooled_scores(plan) }
    }

    /// Rows of the step at hand.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Queues the norm of `rows`, of which there may be none.
    pub fn queue(
        &mut self,
        model: &dyn Model,
        ctx: &mut ForwardContext,
        hidden: &Tensor,
        rows: &Indices,
    ) -> Result<(), KernelError> {
        if self.num_rows == 0 {
            return Ok(());
        }
        self.rows.set_rows(self.num_rows);
        self.normed.set_rows(self.num_rows);
        gather_rows(&ctx.backend, &mut self.rows, hidden, rows)?;
        model.final_norm(ctx, &mut self.rows, &mut self.normed)
    }

    /// Queues the copy of the results to the host.
    pub fn download(&mut self) -> Result<(), KernelError> {
        let row_bytes = self.normed.dtype().row_bytes(self.normed.row_len());
        let bytes = self.num_rows * row_bytes.expect("made in `new`");
        match bytes {
            0 => Ok(()),
            _ => self.turns[self.turn].download(self.normed.device_buffer(), 0, bytes),
        }
    }

    /// Adds what the step pooled, once it is done.
    pub fn read(&self, step: &PooledStep, chunks: &mut [ChunkOutput]) -> Result<(), KernelError> {
        split_pooled_scores(&step.num_scores, chunks);
        let (dtype, row_len) = (self.normed.dtype(), self.normed.row_len());
        let row_bytes = dtype.row_bytes(row_len).expect("made in `new`");
        let rows = self.turns[step.turn].bytes().chunks_exact(row_bytes);
        for (pooled, bytes) in step.rows.iter().zip(rows) {
            let mut values = vec![0.0; row_len];
            dequantize(dtype, bytes, &mut values)?;
            chunks[pooled.chunk].pooled = Some(Pooled::Hidden(values));
        }
        Ok(())
    }
}

impl PooledStep {
    /// In the batch.
    pub fn row_numbers(&self) -> impl Iterator<Item = u32> {
        self.rows.iter().map(|pooled| pooled.row)
    }
}
