//! Plan -> `ForwardBatch` -> hidden states -> logits -> sampler -> `StepOutput`, on buffers made
//! once.

use super::group::RankConfig;
use super::pooling::{num_pooled_scores, pooled_rows, split_pooled_scores};
use super::rows::{RowRef, rows_of};
use super::sampler::{RowOutput, RowTask, Sampler};
use super::step_runner::{StepError, StepRunner, kv_cache};
use super::wire::Start;
use crate::engine::{ChunkOutput, LastStep, Plan, Pooled, StepOutput};
use kernels::comm::Communicator;
use kernels::ops::gather_rows;
use kernels::{DType, KernelError, Tensor};
use models::{ForwardBatch, ForwardContext, LoadError, Model};
use std::collections::VecDeque;

/// Rows whose logits are in memory at a time: with a vocabulary of 152,000 a group takes 39 MB,
/// whatever the plan asks for.
const LOGIT_ROWS_MAX: usize = 64;

pub(super) struct ModelRunner {
    model: Box<dyn Model>,
    ctx: ForwardContext,
    sampler: Sampler,
    batch: ForwardBatch,
    block_table: Vec<u32>,
    last_step: LastStep,
    config: RankConfig,
    /// [max_num_batched_tokens, hidden_size]
    hidden: Tensor,
    /// [LOGIT_ROWS_MAX or fewer, vocab_size]
    logits: Tensor,
    /// [LOGIT_ROWS_MAX or fewer, hidden_size]: what is pooled, before and after the final norm.
    pooled: Tensor,
    normed: Tensor,
    logit_rows_max: usize,
    /// Computed and not collected.
    outputs: VecDeque<StepOutput>,
}

impl StepRunner for ModelRunner {
    fn free_bytes(&self) -> Result<Option<u64>, KernelError> {
        Ok(None)
    }

    fn start(&mut self, start: &Start) -> Result<(), LoadError> {
        let num_blocks = start.room.num_blocks;
        self.ctx.kv_cache =
            kv_cache(&self.config, &*self.model, &*self.ctx.communicator, num_blocks)?;
        let vocab = start.sampleable_vocab.min(self.model.config().vocab_size);
        self.sampler = Sampler::new(&self.config.backend, vocab);
        Ok(())
    }

    fn launch(&mut self, plan: &Plan) -> Result<(), StepError> {
        let output = self.run(plan)?;
        self.outputs.push_back(output);
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, StepError> {
        Ok(true)
    }

    fn use_spare_time(&mut self) -> bool {
        self.ctx.kv_cache.touch_next()
    }

    fn collect(&mut self) -> Result<StepOutput, StepError> {
        Ok(self.outputs.pop_front().expect("a plan is under way"))
    }
}

impl ModelRunner {
    /// All but the KV cache.
    ///
    /// Errors: `Kernel` when there is no memory; `Unsupported` when the heads cannot be shared out
    /// among the ranks.
    pub fn new(
        config: &RankConfig,
        mut model: Box<dyn Model>,
        communicator: Box<dyn Communicator>,
    ) -> Result<ModelRunner, LoadError> {
        let logit_rows_max = config.max_num_batched_tokens.clamp(1, LOGIT_ROWS_MAX);
        model.reserve(config.max_num_batched_tokens, logit_rows_max)?;
        let kv_cache = kv_cache(config, &*model, &*communicator, 0)?;
        let network = model.config();
        let hidden_shape = [config.max_num_batched_tokens, network.hidden_size];
        Ok(ModelRunner {
            sampler: Sampler::new(&config.backend, network.vocab_size),
            batch: ForwardBatch::default(),
            block_table: Vec::new(),
            last_step: LastStep::default(),
            hidden: Tensor::zeros(DType::F32, &hidden_shape)?,
            logits: Tensor::zeros(DType::F32, &[logit_rows_max, network.vocab_size])?,
            pooled: Tensor::zeros(DType::F32, &[logit_rows_max, network.hidden_size])?,
            normed: Tensor::zeros(DType::F32, &[logit_rows_max, network.hidden_size])?,
            logit_rows_max,
            outputs: VecDeque::new(),
            ctx: ForwardContext { backend: config.backend.clone(), communicator, kv_cache },
            config: config.clone(),
            model,
        })
    }

    /// Computes one plan. Panics on a plan beyond the configured limits, and on one that wants a
    /// token of the step before which that step did not sample.
    fn run(&mut self, plan: &Plan) -> Result<StepOutput, StepError> {
        let mut output = StepOutput { chunks: vec![ChunkOutput::default(); plan.chunks.len()] };
        if !plan.chunks.is_empty() {
            self.compute(plan, &mut output.chunks)?;
        }
        self.last_step.remember(plan, &output);
        Ok(output)
    }

    fn compute(&mut self, plan: &Plan, chunks: &mut [ChunkOutput]) -> Result<(), StepError> {
        self.fill_batch(plan);
        self.hidden.set_rows(self.batch.num_tokens());
        self.model.forward(&mut self.ctx, &self.batch, &mut self.hidden)?;
        let steps: Vec<_> = plan.chunks.iter().map(|c| self.last_step.sample_step(c)).collect();
        let rows = rows_of(plan, &steps);
        for group in rows.chunks(self.logit_rows_max) {
            self.run_rows(plan, group, chunks)?;
        }
        split_pooled_scores(&num_pooled_scores(plan), chunks);
        self.pool(plan, chunks)
    }

    fn pool(&mut self, plan: &Plan, chunks: &mut [ChunkOutput]) -> Result<(), StepError> {
        for group in pooled_rows(plan).chunks(self.logit_rows_max) {
            let rows: Vec<u32> = group.iter().map(|pooled| pooled.row).collect();
            self.pooled.set_rows(group.len());
            self.normed.set_rows(group.len());
            gather_rows(&self.config.backend, &mut self.pooled, &self.hidden, &rows.into())?;
            self.model.final_norm(&mut self.ctx, &mut self.pooled, &mut self.normed)?;
            for (place, pooled) in group.iter().enumerate() {
                let values = self.normed.f32_row(place).to_vec();
                chunks[pooled.chunk].pooled = Some(Pooled::Hidden(values));
            }
        }
        Ok(())
    }

    fn fill_batch(&mut self, plan: &Plan) {
        let (seqs, seqs_max) = (plan.chunks.len(), self.config.max_num_seqs);
        assert!(seqs <= seqs_max, "the plan has {seqs} chunks, the limit is {seqs_max}");
        let (tokens, tokens_max) = (plan.num_tokens(), self.config.max_num_batched_tokens);
        assert!(tokens <= tokens_max, "the plan has {tokens} tokens, the limit is {tokens_max}");
        self.batch.clear();
        for chunk in &plan.chunks {
            assert!(chunk.num_tokens() > 0, "a chunk has at least one token");
            self.block_table.clear();
            self.block_table.extend(chunk.block_table.iter().map(|block| block.0));
            let token_ids = self.last_step.token_ids(chunk).iter().map(|token| token.0);
            let block_size = self.ctx.kv_cache.block_size;
            self.batch.push_sequence(token_ids, chunk.start, &self.block_table, block_size);
        }
    }

    fn run_rows(
        &mut self,
        plan: &Plan,
        group: &[RowRef],
        chunks: &mut [ChunkOutput],
    ) -> Result<(), StepError> {
        let rows: Vec<u32> = group.iter().map(|r| r.row).collect();
        let rows = rows.into();
        self.logits.set_rows(group.len());
        self.model.logits(&mut self.ctx, &self.hidden, &rows, &mut self.logits)?;
        // Only rank 0's answer is used, but every rank samples: the same logits give the same
        // tokens, and the next plan may leave them to it.
        let tasks: Vec<RowTask> = group.iter().map(|r| r.task).collect();
        let results = self.sampler.run(&mut self.logits, &tasks);
        for (row, result) in group.iter().zip(results) {
            let sequence = plan.chunks[row.chunk].sequence.0;
            let chunk = &mut chunks[row.chunk];
            match result.map_err(|source| StepError::Sample { sequence, source })? {
                RowOutput::Sampled(token) => chunk.sampled = Some(token),
                RowOutput::Scored(logprobs) => chunk.prompt_logprobs.push(logprobs),
            }
        }
        Ok(())
    }
}
