//! Token ids -> hidden states, and hidden states -> logits. Each rank has a run of the vocabulary.

use super::norm::RmsNorm;
use super::scratch::Scratch;
use crate::config::Purpose;
use crate::weights::loader::Loader;
use crate::weights::shard::VOCAB;
use crate::{ForwardContext, LoadError};
use kernels::comm::Communicator;
use kernels::ops::{Table, Weight, embedding, gather_rows, linear};
use kernels::{Backend, Indices, KernelError, Tensor};

pub const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// This rank's rows of the embedding table.
pub struct Embedding {
    table: Table,
}

impl Embedding {
    pub fn load(loader: &mut Loader) -> Result<Embedding, LoadError> {
        let shape = [loader.config.vocab_size, loader.config.hidden_size];
        Ok(Embedding { table: loader.vocab_table(EMBEDDING, shape)? })
    }

    /// A token's row comes from the rank that has it, zeros from all others: their sum is exact.
    pub fn forward(
        &self,
        backend: &Backend,
        communicator: &mut dyn Communicator,
        hidden: &mut Tensor,
        token_ids: &Indices,
    ) -> Result<(), KernelError> {
        embedding(backend, hidden, &self.table, token_ids)?;
        communicator.all_reduce_sum(hidden)
    }
}

/// The final norm, and this rank's rows of the output head. A model for embeddings has none.
pub struct Head {
    pub norm: RmsNorm,
    weight: Option<Weight>,
}

impl Head {
    /// A tied head is a second form of the embedding's bytes.
    pub fn load(loader: &mut Loader) -> Result<Head, LoadError> {
        let shape = [loader.config.vocab_size, loader.config.hidden_size];
        let name = if loader.config.tie_word_embeddings { EMBEDDING } else { HEAD };
        let norm = RmsNorm::load(loader, "model.norm", shape[1])?;
        let weight = match loader.config.purpose {
            Purpose::Generation => Some(loader.weight_without_bias(name, shape, VOCAB)?),
            Purpose::Embedding => None,
        };
        Ok(Head { norm, weight })
    }

    /// Every rank computes the logits of its part of the vocabulary, and all get all of them. Which
    /// rank computes a logit does not change its bits.
    pub fn forward(
        &self,
        ctx: &mut ForwardContext,
        logits: &mut Tensor,
        hidden: &Tensor,
        rows: &Indices,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let weight = self.weight.as_ref().expect("a model for embeddings is asked for none");
        let ForwardContext { backend, communicator, .. } = ctx;
        let s = scratch.fit_rows(logits.rows())?;
        gather_rows(backend, &mut s.rows, hidden, rows)?;
        self.norm.add_forward(backend, &mut s.rows, None, &mut s.rows_normed)?;
        if communicator.world_size() == 1 {
            return linear(backend, logits, &s.rows_normed, weight, None);
        }
        linear(backend, &mut s.own_logits, &s.rows_normed, weight, None)?;
        communicator.all_gather_columns(logits, &s.own_logits)
    }
}
