//! Buffers between the ops of a step.

use crate::weights::loader::Loader;
use crate::weights::shard::{VOCAB, feature_range};
use kernels::{Backend, DType, KernelError, Tensor};

/// All intermediate results of one rank, [num_tokens, _] each. What projections and attention read
/// has the backend's activation format, what is added to the hidden state F32. They are allocated
/// for the largest step so far and keep their addresses until a larger one comes.
pub struct Scratch {
    backend: Backend,
    row_lens: RowLens,
    num_tokens_max: usize,
    num_rows_max: usize,
    /// Input of a projection: hidden_size wide, as `attended` and `mapped`.
    pub normed: Tensor,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    /// Mixed values, heads * head_dim wide.
    pub mixed: Tensor,
    /// What attention adds to the hidden state.
    pub attended: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
    pub gated: Tensor,
    /// What the MLP adds to the hidden state.
    pub mapped: Tensor,
    /// The rows that need logits: [num_rows, hidden_size].
    pub rows: Tensor,
    pub rows_normed: Tensor,
    /// [num_rows, this rank's part of the vocabulary]: only where several ranks share it out.
    pub own_logits: Tensor,
}

#[derive(Clone, Copy)]
struct RowLens {
    hidden: usize,
    q: usize,
    kv: usize,
    inner: usize,
    own_vocab: usize,
}

impl Scratch {
    /// Errors: `OutOfMemory`.
    pub fn new(loader: &Loader) -> Result<Scratch, KernelError> {
        let (config, sizes) = (loader.config, loader.sizes);
        let own_vocab = match loader.spec.world_size {
            1 => 0,
            _ => feature_range(VOCAB, config.vocab_size, loader.spec).len(),
        };
        let row_lens = RowLens {
            hidden: config.hidden_size,
            q: sizes.num_heads * config.head_dim,
            kv: sizes.num_kv_heads * config.head_dim,
            inner: sizes.intermediate_size,
            own_vocab,
        };
        Self::with_room(loader.backend, row_lens, 1, 1)
    }

    /// Makes room for steps of `num_tokens` with logits for `num_rows` of them. Errors:
    /// `OutOfMemory`, and nothing has changed.
    pub fn reserve(&mut self, num_tokens: usize, num_rows: usize) -> Result<(), KernelError> {
        if num_tokens > self.num_tokens_max || num_rows > self.num_rows_max {
            let num_tokens = num_tokens.max(self.num_tokens_max);
            let num_rows = num_rows.max(self.num_rows_max);
            *self = Self::with_room(&self.backend, self.row_lens, num_tokens, num_rows)?;
        }
        Ok(())
    }

    /// Sets the buffers of the layers to `num_tokens` rows; allocates only beyond the reserve.
    pub fn fit(&mut self, num_tokens: usize) -> Result<&mut Scratch, KernelError> {
        self.reserve(num_tokens, self.num_rows_max)?;
        for tensor in [&mut self.normed, &mut self.q, &mut self.k, &mut self.v] {
            tensor.set_rows(num_tokens);
        }
        for tensor in [&mut self.mixed, &mut self.attended, &mut self.mapped] {
            tensor.set_rows(num_tokens);
        }
        for tensor in [&mut self.gate, &mut self.up, &mut self.gated] {
            tensor.set_rows(num_tokens);
        }
        Ok(self)
    }

    /// As `fit`, for the buffers of the head.
    pub fn fit_rows(&mut self, num_rows: usize) -> Result<&mut Scratch, KernelError> {
        self.reserve(self.num_tokens_max, num_rows)?;
        self.rows.set_rows(num_rows);
        self.rows_normed.set_rows(num_rows);
        self.own_logits.set_rows(num_rows);
        Ok(self)
    }

    fn with_room(
        backend: &Backend,
        row_lens: RowLens,
        num_tokens: usize,
        num_rows: usize,
    ) -> Result<Scratch, KernelError> {
        let activation = backend.activation_dtype();
        let zeros = |dtype, rows: usize, len| Tensor::zeros_on(backend, dtype, &[rows, len]);
        let tensor = |len| zeros(activation, num_tokens, len);
        Ok(Scratch {
            backend: backend.clone(),
            row_lens,
            num_tokens_max: num_tokens,
            num_rows_max: num_rows,
            normed: tensor(row_lens.hidden)?,
            q: tensor(row_lens.q)?,
            k: tensor(row_lens.kv)?,
            v: tensor(row_lens.kv)?,
            mixed: tensor(row_lens.q)?,
            attended: zeros(DType::F32, num_tokens, row_lens.hidden)?,
            gate: tensor(row_lens.inner)?,
            up: tensor(row_lens.inner)?,
            gated: tensor(row_lens.inner)?,
            mapped: zeros(DType::F32, num_tokens, row_lens.hidden)?,
            rows: zeros(DType::F32, num_rows, row_lens.hidden)?,
            rows_normed: zeros(activation, num_rows, row_lens.hidden)?,
            own_logits: zeros(DType::F32, num_rows, row_lens.own_vocab)?,
        })
    }
}
