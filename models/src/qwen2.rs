//! Qwen2 and Qwen2.5, dense: pre-norm decoder with biases on q, k and v, grouped-query attention
//! and a gated MLP.

use crate::layers::attention::Projections;
use crate::layers::embedding::{Head, load_embedding};
use crate::layers::mlp::Mlp;
use crate::layers::norm::RmsNorm;
use crate::layers::rope::rope_table;
use crate::layers::scratch::Scratch;
use crate::weights::loader::Loader;
use crate::{ForwardBatch, ForwardContext, LoadError, Model, ModelConfig};
use kernels::ops::{RopeTable, Table, add_assign, attention, embedding, kv_write, rope, silu_mul};
use kernels::{KernelError, Tensor};
use std::cell::RefCell;

pub struct Qwen2 {
    config: ModelConfig,
    embed_tokens: Table,
    rope: RopeTable,
    layers: Vec<Layer>,
    head: Head,
    scratch: RefCell<Scratch>,
}

struct Layer {
    input_norm: RmsNorm,
    attention: Projections,
    post_attention_norm: RmsNorm,
    mlp: Mlp,
}

impl Model for Qwen2 {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn reserve(&mut self, num_tokens: usize, num_rows: usize) -> Result<(), KernelError> {
        self.scratch.get_mut().reserve(num_tokens, num_rows)
    }

    fn forward(
        &self,
        ctx: &mut ForwardContext,
        batch: &ForwardBatch,
        hidden: &mut Tensor,
    ) -> Result<(), KernelError> {
        let ForwardContext { backend, communicator, kv_cache } = ctx;
        assert_eq!(kv_cache.layers.len(), self.layers.len(), "a cache for another model");
        let mut scratch = self.scratch.borrow_mut();
        let s = scratch.fit(batch.num_tokens())?;
        let head_dim = self.config.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();

        embedding(backend, hidden, &self.embed_tokens, &batch.token_ids)?;
        for (layer, kv) in self.layers.iter().zip(&mut kv_cache.layers) {
            layer.input_norm.forward(backend, &mut s.normed, hidden)?;
            layer.attention.qkv(backend, &mut s.q, &mut s.k, &mut s.v, &s.normed)?;
            rope(backend, &mut s.q, &batch.positions, &self.rope, head_dim)?;
            rope(backend, &mut s.k, &batch.positions, &self.rope, head_dim)?;
            kv_write(backend, &mut kv.k, &s.k, &batch.slots)?;
            kv_write(backend, &mut kv.v, &s.v, &batch.slots)?;
            attention(backend, &mut s.mixed, &s.q, &kv.k, &kv.v, &batch.attention(), scale)?;
            layer.attention.o.forward(backend, &mut s.projected, &s.mixed)?;
            communicator.all_reduce_sum(&mut s.projected)?;
            add_assign(backend, hidden, &s.projected)?;

            layer.post_attention_norm.forward(backend, &mut s.normed, hidden)?;
            layer.mlp.gate_up(backend, &mut s.gate, &mut s.up, &s.normed)?;
            silu_mul(backend, &mut s.gated, &s.gate, &s.up)?;
            layer.mlp.down.forward(backend, &mut s.projected, &s.gated)?;
            communicator.all_reduce_sum(&mut s.projected)?;
            add_assign(backend, hidden, &s.projected)?;
        }
        Ok(())
    }

    fn logits(
        &self,
        ctx: &mut ForwardContext,
        hidden: &Tensor,
        rows: &[u32],
        logits: &mut Tensor,
    ) -> Result<(), KernelError> {
        self.head.forward(&ctx.backend, logits, hidden, rows, &mut self.scratch.borrow_mut())
    }
}

impl Qwen2 {
    /// Takes this rank's part of every weight. Positions up to `max_model_len` can be served.
    pub fn load(loader: &mut Loader, max_model_len: usize) -> Result<Qwen2, LoadError> {
        let config = loader.config;
        let layers = (0..config.num_layers).map(|i| Layer::load(loader, i));
        Ok(Qwen2 {
            layers: layers.collect::<Result<_, _>>()?,
            embed_tokens: load_embedding(loader)?,
            rope: rope_table(&config.rope, max_model_len)?,
            head: Head::load(loader)?,
            scratch: RefCell::new(Scratch::new(config, loader.sizes)?),
            config: config.clone(),
        })
    }
}

impl Layer {
    fn load(loader: &mut Loader, layer: usize) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let hidden_size = loader.config.hidden_size;
        Ok(Layer {
            input_norm: RmsNorm::load(loader, &name("input_layernorm"), hidden_size)?,
            attention: Projections::load(loader, &name("self_attn"))?,
            post_attention_norm: RmsNorm::load(
                loader,
                &name("post_attention_layernorm"),
                hidden_size,
            )?,
            mlp: Mlp::load(loader, &name("mlp"))?,
        })
    }
}
