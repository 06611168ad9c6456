//! Token ids -> hidden states, and hidden states -> logits.

use super::norm::RmsNorm;
use super::scratch::Scratch;
use crate::weights::loader::Loader;
use crate::weights::shard::Split;
use crate::{LoadError, ModelConfig};
use kernels::ops::{Table, Weight, gather_rows, linear};
use kernels::{Backend, Indices, KernelError, Tensor};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The embedding table, whole on every rank: it is read where it lies and costs no memory.
pub fn load_embedding(loader: &mut Loader) -> Result<Table, LoadError> {
    loader.table(EMBEDDING, [loader.config.vocab_size, loader.config.hidden_size])
}

/// The tensor that the output head is made from.
pub fn head_name(config: &ModelConfig) -> &'static str {
    if config.tie_word_embeddings { EMBEDDING } else { HEAD }
}

/// The final norm and the output head, whole on every rank: each computes all logits itself, so
/// that they need not be gathered.
pub struct Head {
    norm: RmsNorm,
    weight: Weight,
}

impl Head {
    /// A tied head is a second form of the embedding's bytes.
    pub fn load(loader: &mut Loader) -> Result<Head, LoadError> {
        let shape = [loader.config.vocab_size, loader.config.hidden_size];
        Ok(Head {
            norm: RmsNorm::load(loader, "model.norm", shape[1])?,
            weight: loader.weight(head_name(loader.config), shape, Split::Whole)?,
        })
    }

    pub fn forward(
        &self,
        backend: &Backend,
        logits: &mut Tensor,
        hidden: &Tensor,
        rows: &Indices,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let s = scratch.fit_rows(logits.rows())?;
        gather_rows(backend, &mut s.rows, hidden, rows)?;
        self.norm.add_forward(backend, &mut s.rows, None, &mut s.rows_normed)?;
        linear(backend, logits, &s.rows_normed, &self.weight, None)
    }
}
