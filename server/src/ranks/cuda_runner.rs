//! Plan -> device arrays -> forward pass, logits and sampling on a GPU -> `StepOutput`.
//!
//! Nothing waits on the host between a plan and its tokens: one copy brings the step's arrays, then
//! everything is queued on the device's stream, the tokens of the step before included, which never
//! leave the device. Decode steps are recorded once for each size of `GRAPH_SIZES` and replayed.

use super::cuda_pooling::{CudaPooling, PooledStep};
use super::cuda_sampler::{CudaSampler, Moved, SampledRows};
use super::group::{CudaGraphs, RankConfig};
use super::rows::{RowRef, rows_of};
use super::step_runner::{StepError, StepRunner, kv_cache};
use super::wire::Start;
use crate::engine::pooling::POOLED_TOKENS_MAX;
use crate::engine::{ChunkInput, PLANS_UNDER_WAY_MAX, Plan, SequenceId, StepOutput};
use kernels::comm::{Communicator, part_len_max};
use kernels::device::cuda::{CudaDevice, Event, Graph};
use kernels::{DType, Indices, KernelError, Tensor};
use models::batch::{StepShape, StepUpload};
use models::{ForwardBatch, ForwardContext, LoadError, Model, Purpose};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Rows whose logits are in memory at a time, as on the CPU.
const LOGIT_ROWS_MAX: usize = 64;
/// Numbers of sequences that decode steps are padded to: every small one, then ever wider, so that
/// padding adds at most an eighth.
const GRAPH_SIZES: [usize; 36] = [
    1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160,
    192, 224, 256, 320, 384, 448, 512, 1024, 2048, 3072, 4096,
];
/// A token that is not fed from the step before.
const NOT_FED: u32 = u32::MAX;

pub(super) struct CudaRunner {
    device: CudaDevice,
    model: Box<dyn Model>,
    ctx: ForwardContext,
    batch: ForwardBatch,
    upload: StepUpload,
    sampler: CudaSampler,
    pooling: CudaPooling,
    /// [max_num_batched_tokens, hidden_size]
    hidden: Tensor,
    /// [LOGIT_ROWS_MAX or fewer, vocab_size]
    logits: Tensor,
    limits: Limits,
    config: RankConfig,
    graphs: BTreeMap<StepShape, Graph>,
    /// By sequence: its row among the tokens that the last step sampled.
    last_rows: HashMap<SequenceId, u32>,
    under_way: VecDeque<UnderWay>,
    events: [Event; PLANS_UNDER_WAY_MAX],
    num_launched: usize,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    num_seqs: usize,
    num_tokens: usize,
    logit_rows: usize,
    context_len: usize,
    block_size: usize,
    graphs: CudaGraphs,
}

/// A step that was queued and not collected.
struct UnderWay {
    step: SampledRows,
    pooled: PooledStep,
    event: usize,
}

impl StepRunner for CudaRunner {
    fn free_bytes(&self) -> Result<Option<u64>, KernelError> {
        Ok(Some(self.device.memory()?.0 as u64))
    }

    /// Also records all decode steps.
    fn start(&mut self, start: &Start) -> Result<(), LoadError> {
        let num_blocks = start.room.num_blocks;
        self.ctx.kv_cache =
            kv_cache(&self.config, &*self.model, &*self.ctx.communicator, num_blocks)?;
        self.limits.context_len = start.room.max_model_len;
        self.sampler.limit(start.sampleable_vocab.min(self.model.config().vocab_size));
        Ok(self.record_all()?)
    }

    fn launch(&mut self, plan: &Plan) -> Result<(), StepError> {
        assert!(self.under_way.len() < PLANS_UNDER_WAY_MAX, "too many plans are under way");
        let feed = self.fill_batch(plan);
        // Histories that lack their last token get it on the device.
        let steps: Vec<_> =
            plan.chunks.iter().map(|c| c.sample.as_ref().map(Cow::Borrowed)).collect();
        let rows = rows_of(plan, &steps);
        let pooled = self.pooling.begin(plan);
        self.batch.logit_rows.extend_from_slice(&row_numbers(&rows));
        // They have no logits: the sampler takes them for padding.
        let pooled_rows: Vec<u32> = pooled.row_numbers().collect();
        self.batch.logit_rows.extend_from_slice(&pooled_rows);
        let shape = self.shape_of(plan);
        self.upload.upload(&mut self.batch, shape)?;
        let (step, moved) = self.sampler.upload(plan, &rows, &feed, shape)?;
        if moved == Moved::Yes {
            // Recordings hold the addresses of before.
            self.graphs.clear();
        }
        self.remember(plan, &rows);
        self.run(shape)?;
        let event = self.num_launched % self.events.len();
        self.sampler.download(&step)?;
        self.pooling.download()?;
        self.events[event].record()?;
        self.num_launched += 1;
        self.under_way.push_back(UnderWay { step, pooled, event });
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, StepError> {
        let Some(first) = self.under_way.front() else { return Ok(true) };
        Ok(self.events[first.event].is_done()?)
    }

    fn collect(&mut self) -> Result<StepOutput, StepError> {
        let first = self.under_way.pop_front().expect("a plan is under way");
        self.events[first.event].wait()?;
        let mut output = self.sampler.read(&first.step)?;
        self.pooling.read(&first.pooled, &mut output.chunks)?;
        Ok(output)
    }
}

impl CudaRunner {
    /// Makes all buffers but the KV cache, and loads all kernels: what takes memory of the device.
    ///
    /// Errors: `Kernel` when there is no memory; `Unsupported` when the heads cannot be shared out
    /// among the ranks.
    pub fn new(
        config: &RankConfig,
        device: &CudaDevice,
        mut model: Box<dyn Model>,
        mut communicator: Box<dyn Communicator>,
    ) -> Result<CudaRunner, LoadError> {
        let network = model.config().clone();
        let (block_size, world_size) = (config.block_size, communicator.world_size());
        let limits = Limits {
            num_seqs: config.max_num_seqs,
            num_tokens: config.max_num_batched_tokens,
            logit_rows: config.max_num_batched_tokens.clamp(1, LOGIT_ROWS_MAX),
            context_len: config.max_model_len,
            block_size,
            graphs: config.cuda_graphs,
        };
        // Decode steps are padded.
        let rows_max = padded(limits.num_seqs).max(limits.num_tokens);
        model.reserve(rows_max, limits.logit_rows)?;
        let own_logits = limits.logit_rows * part_len_max(network.vocab_size, world_size);
        communicator.reserve(own_logits.max(rows_max * network.hidden_size))?;
        let backend = config.backend.clone();
        let zeros = |rows, len| Tensor::zeros_on(&backend, DType::F32, &[rows, len]);
        let kv_cache = kv_cache(config, &*model, &*communicator, 0)?;
        // A row that is scored for several tokens is there several times.
        let rows_total = rows_max + limits.num_seqs * (POOLED_TOKENS_MAX - 1);
        let largest = StepShape {
            num_tokens: rows_max,
            num_seqs: padded(limits.num_seqs),
            num_rows: rows_total,
            context_len_max: limits.context_len,
            query_len_max: limits.num_tokens,
        };
        let blocks_max = limits.context_len.div_ceil(block_size);
        // Loads every kernel and makes every buffer that a step needs: neither can be done while
        // recording.
        kernels::ops::prepare_all(device)?;
        Ok(CudaRunner {
            upload: StepUpload::new(device, largest, blocks_max)?,
            pooling: CudaPooling::new(&backend, device, limits.num_seqs, network.hidden_size)?,
            sampler: CudaSampler::new(device, rows_total, limits.logit_rows, network.vocab_size)?,
            hidden: zeros(rows_max, network.hidden_size)?,
            logits: zeros(limits.logit_rows, network.vocab_size)?,
            ctx: ForwardContext { backend: backend.clone(), communicator, kv_cache },
            batch: ForwardBatch::default(),
            graphs: BTreeMap::new(),
            last_rows: HashMap::new(),
            under_way: VecDeque::new(),
            events: [Event::new(device)?, Event::new(device)?],
            num_launched: 0,
            device: device.clone(),
            model,
            limits,
            config: config.clone(),
        })
    }

    /// The batch with 0 for tokens that are not known here, and for each token the row of the last
    /// step that sampled it.
    fn fill_batch(&mut self, plan: &Plan) -> Vec<u32> {
        let (seqs, seqs_max) = (plan.chunks.len(), self.limits.num_seqs);
        assert!(seqs <= seqs_max, "the plan has {seqs} chunks, the limit is {seqs_max}");
        let (tokens, tokens_max) = (plan.num_tokens(), self.limits.num_tokens);
        assert!(tokens <= tokens_max, "the plan has {tokens} tokens, the limit is {tokens_max}");
        self.batch.clear();
        let mut feed = Vec::with_capacity(tokens);
        for chunk in &plan.chunks {
            let blocks: Vec<u32> = chunk.block_table.iter().map(|block| block.0).collect();
            let (start, block_size) = (chunk.start, self.limits.block_size);
            match &chunk.input {
                ChunkInput::Known(token_ids) => {
                    assert!(!token_ids.is_empty(), "a chunk has at least one token");
                    let ids = token_ids.iter().map(|token| token.0);
                    self.batch.push_sequence(ids, start, &blocks, block_size);
                    feed.resize(feed.len() + token_ids.len(), NOT_FED);
                }
                ChunkInput::FromLastStep => {
                    let row = self.last_rows.get(&chunk.sequence).copied();
                    feed.push(row.expect("the last step sampled a token for this sequence"));
                    self.batch.push_sequence([0], start, &blocks, block_size);
                }
            }
        }
        feed
    }

    fn remember(&mut self, plan: &Plan, rows: &[RowRef]) {
        self.last_rows.clear();
        for (place, row) in rows.iter().enumerate().filter(|(_, row)| row.samples()) {
            self.last_rows.insert(plan.chunks[row.chunk].sequence, place as u32);
        }
    }

    /// A step in which every sequence decodes one token has the shape of a recording; any other one
    /// has its own.
    fn shape_of(&self, plan: &Plan) -> StepShape {
        let decodes = |chunk: &crate::engine::Chunk| {
            chunk.num_tokens() == 1 && chunk.sample.is_some() && chunk.prompt_logprobs.is_none()
        };
        match self.limits.graphs == CudaGraphs::On && plan.chunks.iter().all(decodes) {
            true => self.decode_shape(padded(plan.chunks.len())),
            false => StepShape::of(&self.batch),
        }
    }

    fn decode_shape(&self, num_seqs: usize) -> StepShape {
        StepShape {
            num_tokens: num_seqs,
            num_seqs,
            num_rows: num_seqs,
            context_len_max: self.limits.context_len,
            query_len_max: 1,
        }
    }

    /// Records a decode step for every padded number of sequences up to the limit.
    fn record_all(&mut self) -> Result<(), KernelError> {
        // A model for embeddings decodes nothing.
        let decodes = self.model.config().purpose == Purpose::Generation;
        if self.limits.graphs == CudaGraphs::Off || !decodes {
            return Ok(());
        }
        let sizes = GRAPH_SIZES.iter().copied();
        let largest = padded(self.limits.num_seqs);
        for num_seqs in sizes.take_while(|&size| size <= largest) {
            let shape = self.decode_shape(num_seqs);
            self.batch.clear();
            (0..num_seqs).for_each(|_| self.batch.push_sequence([0], 0, &[0], 1));
            let rows: Vec<u32> = (0..num_seqs as u32).collect();
            self.batch.logit_rows.extend_from_slice(&rows);
            self.upload.upload(&mut self.batch, shape)?;
            self.device.synchronize()?;
            self.record(shape)?;
        }
        Ok(())
    }

    /// Queues the step: by its recording if it has the shape of one.
    fn run(&mut self, shape: StepShape) -> Result<(), KernelError> {
        // What is pooled is in no recording, even where the shapes are equal: a sequence that fills
        // the context and of which one token is left.
        let is_recorded = self.limits.graphs == CudaGraphs::On
            && self.pooling.num_rows() == 0
            && shape == self.decode_shape(shape.num_seqs);
        if !is_recorded {
            return self.queue(shape);
        }
        if !self.graphs.contains_key(&shape) {
            self.record(shape)?;
        }
        self.graphs[&shape].launch()
    }

    /// Records the step at hand, whose arrays were copied.
    fn record(&mut self, shape: StepShape) -> Result<(), KernelError> {
        let device = self.device.clone();
        let graph = Graph::record(&device, || self.queue(shape))?;
        self.graphs.insert(shape, graph);
        Ok(())
    }

    /// Queues the forward pass, logits and sampling of the batch that was copied.
    fn queue(&mut self, shape: StepShape) -> Result<(), KernelError> {
        let token_ids = self.batch.token_ids.device_ptr();
        self.sampler.feed(token_ids, shape)?;
        self.hidden.set_rows(shape.num_tokens);
        self.model.forward(&mut self.ctx, &self.batch, &mut self.hidden)?;
        let all_rows = self.batch.logit_rows.to_vec();
        let first_row = self.batch.logit_rows.device_ptr();
        let num_logit_rows = shape.num_rows - self.pooling.num_rows();
        for start in (0..num_logit_rows).step_by(self.limits.logit_rows) {
            let count = (num_logit_rows - start).min(self.limits.logit_rows);
            let end = (start + count).min(all_rows.len());
            let mut rows = Indices::from(&all_rows[start.min(end)..end]);
            rows.set_device(first_row + (start * size_of::<u32>()) as u64);
            self.logits.set_rows(count);
            self.model.logits(&mut self.ctx, &self.hidden, &rows, &mut self.logits)?;
            self.sampler.sample(&self.logits, start, token_ids)?;
        }
        let mut rows = Indices::from(&all_rows[num_logit_rows.min(all_rows.len())..]);
        rows.set_device(first_row + (num_logit_rows * size_of::<u32>()) as u64);
        self.pooling.queue(&*self.model, &mut self.ctx, &self.hidden, &rows)
    }
}

fn row_numbers(rows: &[RowRef]) -> Vec<u32> {
    rows.iter().map(|row| row.row).collect()
}

/// The size that a decode step of `num_seqs` is padded to.
fn padded(num_seqs: usize) -> usize {
    let found = GRAPH_SIZES.iter().find(|&&size| size >= num_seqs);
    *found.expect("the number of sequences is limited to the largest size")
}
