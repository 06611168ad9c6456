//! Runs a model step by step on a paged cache, as a rank would, without engine or server.

use kernels::comm::Communicator;
use kernels::comm::solo::Solo;
use kernels::{Backend, DType, Tensor};
use models::batch::{StepShape, StepUpload};
use models::weights::shard::num_kv_heads;
use models::{Checkpoint, ForwardBatch, ForwardContext, KvCache, Model, ShardSpec, load_model};

const BLOCK_SIZE: usize = 16;

/// A loaded model and the tokens of some sequences in its cache.
pub struct Session {
    model: Box<dyn Model>,
    ctx: ForwardContext,
    /// On a GPU.
    upload: Option<StepUpload>,
    block_tables: Vec<Vec<u32>>,
    num_computed: Vec<usize>,
}

/// How keys and values are kept by default: the reference has F32, a CPU F16, a GPU its activation
/// format.
pub fn kv_dtype(backend: &Backend) -> DType {
    match backend {
        Backend::Reference => DType::F32,
        Backend::Cpu(_) => DType::F16,
        Backend::Cuda(device) => device.activation_dtype(),
    }
}

impl Session {
    /// Room for `num_seqs` sequences of `len_max` tokens.
    pub fn new(
        backend: &Backend,
        checkpoint: &Checkpoint,
        num_seqs: usize,
        len_max: usize,
    ) -> Session {
        Self::new_sharded(backend, checkpoint, num_seqs, len_max, Box::new(Solo))
    }

    /// With keys and values in another format than by default.
    pub fn with_kv_dtype(
        backend: &Backend,
        checkpoint: &Checkpoint,
        num_seqs: usize,
        len_max: usize,
        kv_dtype: DType,
    ) -> Session {
        Self::start(backend, checkpoint, num_seqs, len_max, Box::new(Solo), kv_dtype)
    }

    /// One rank of a group.
    pub fn new_sharded(
        backend: &Backend,
        checkpoint: &Checkpoint,
        num_seqs: usize,
        len_max: usize,
        communicator: Box<dyn Communicator>,
    ) -> Session {
        Self::start(backend, checkpoint, num_seqs, len_max, communicator, kv_dtype(backend))
    }

    fn start(
        backend: &Backend,
        checkpoint: &Checkpoint,
        num_seqs: usize,
        len_max: usize,
        communicator: Box<dyn Communicator>,
        kv_dtype: DType,
    ) -> Session {
        let spec = ShardSpec { rank: communicator.rank(), world_size: communicator.world_size() };
        let model = load_model(backend, checkpoint, spec, len_max).unwrap();
        let num_kv_heads = num_kv_heads(model.config(), spec).unwrap();
        let blocks_each = len_max.div_ceil(BLOCK_SIZE);
        let num_blocks = num_seqs * blocks_each;
        let config = model.config();
        let kv_cache =
            KvCache::new(backend, config, num_kv_heads, num_blocks, BLOCK_SIZE, kv_dtype).unwrap();
        let num_tokens = num_seqs * len_max;
        let largest = StepShape {
            num_tokens,
            num_seqs,
            num_rows: num_tokens,
            context_len_max: len_max,
            query_len_max: len_max,
        };
        let upload = match backend {
            Backend::Cuda(device) => Some(StepUpload::new(device, largest, blocks_each).unwrap()),
            Backend::Reference | Backend::Cpu(_) => None,
        };
        // Blocks of the sequences lie between one another, and backwards, as they may in service.
        let table = |s: usize| {
            (0..blocks_each).map(|b| (num_blocks - 1 - (b * num_seqs + s)) as u32).collect()
        };
        Session {
            model,
            ctx: ForwardContext { backend: backend.clone(), communicator, kv_cache },
            upload,
            block_tables: (0..num_seqs).map(table).collect(),
            num_computed: vec![0; num_seqs],
        }
    }

    /// Forgets all tokens of a sequence.
    pub fn reset(&mut self, seq: usize) {
        self.num_computed[seq] = 0;
    }

    /// Computes `tokens` as the next ones of each `(seq, tokens)` in one step. Returns the logits
    /// after each sequence's last token.
    pub fn step(&mut self, chunks: &[(usize, &[u32])]) -> Vec<Vec<f32>> {
        let ends = chunks.iter().scan(0, |end, (_, tokens)| {
            *end += tokens.len();
            Some(*end as u32 - 1)
        });
        let rows: Vec<u32> = ends.collect();
        self.run(chunks, &rows)
    }

    /// As `step` for one sequence, with the logits after every token.
    pub fn step_all_rows(&mut self, seq: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        self.run(&[(seq, tokens)], &rows)
    }

    fn run(&mut self, chunks: &[(usize, &[u32])], rows: &[u32]) -> Vec<Vec<f32>> {
        let mut batch = ForwardBatch::default();
        for &(seq, tokens) in chunks {
            let start = self.num_computed[seq];
            let blocks = (start + tokens.len()).div_ceil(BLOCK_SIZE);
            let table = &self.block_tables[seq][..blocks];
            batch.push_sequence(tokens.iter().copied(), start, table, BLOCK_SIZE);
            self.num_computed[seq] += tokens.len();
        }
        batch.logit_rows.extend_from_slice(rows);
        if let Some(upload) = &mut self.upload {
            let shape = StepShape::of(&batch);
            upload.upload(&mut batch, shape).unwrap();
        }
        let (config, backend) = (self.model.config(), self.ctx.backend.clone());
        let zeros = |rows, len| Tensor::zeros_on(&backend, DType::F32, &[rows, len]).unwrap();
        let mut hidden = zeros(batch.num_tokens(), config.hidden_size);
        let mut logits = zeros(rows.len(), config.vocab_size);
        self.model.forward(&mut self.ctx, &batch, &mut hidden).unwrap();
        self.model.logits(&mut self.ctx, &hidden, &batch.logit_rows, &mut logits).unwrap();
        let all = logits.to_f32().unwrap();
        all.chunks_exact(logits.row_len()).map(<[f32]>::to_vec).collect()
    }
}

/// The lowest id of the largest logit.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best });
    best.0 as u32
}

pub fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // A NaN must not pass as a small difference.
    let difference =
        |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    a.iter().zip(b).map(difference).fold(0.0, f32::max)
}

/// Natural logarithm of the probability that `logits` give to `token`.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}
