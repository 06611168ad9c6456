//! Qwen2 and Qwen2.5, dense: pre-norm decoder with biases on q, k and v, grouped-query attention
//! and a gated MLP.

use crate::layers::attention::Projections;
use crate::layers::embedding::{Embedding, Head};
use crate::layers::mlp::Mlp;
use crate::layers::norm::RmsNorm;
use crate::layers::rope::rope_table;
use crate::layers::scratch::Scratch;
use crate::weights::loader::Loader;
use crate::{ForwardBatch, ForwardContext, LoadError, Model, ModelConfig};
use kernels::ops::qkv_rope_write::{Heads, Positions};
use kernels::ops::{RopeTable, add_assign, attention, qkv_rope_write, silu_mul};
use kernels::{Indices, KernelError, Tensor};
use std::cell::RefCell;

pub struct Qwen2 {
    config: ModelConfig,
    embed_tokens: Embedding,
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
        let s = scratch.fit(batch.num_rows())?;
        let head_dim = self.config.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (positions, slots, table) = (&batch.positions, &batch.slots, &self.rope);
        let places = Positions { positions, slots, table };
        let heads = Heads { head_dim, norm: None };

        self.embed_tokens.forward(backend, &mut **communicator, hidden, &batch.token_ids)?;
        // What a half layer adds to the hidden state is added by the norm that follows it.
        for (i, (layer, kv)) in self.layers.iter().zip(&mut kv_cache.layers).enumerate() {
            let mapped = (i > 0).then_some(&s.mapped);
            layer.input_norm.add_forward(backend, hidden, mapped, &mut s.normed)?;
            layer.attention.qkv(backend, &mut s.q, &mut s.k, &mut s.v, &s.normed)?;
            let caches = [&mut kv.k, &mut kv.v];
            qkv_rope_write(backend, &mut s.q, &mut s.k, &s.v, caches, &places, &heads)?;
            attention(backend, &mut s.mixed, &s.q, &kv.k, &kv.v, &batch.attention(), scale)?;
            layer.attention.o.forward(backend, &mut s.attended, &s.mixed)?;
            communicator.all_reduce_sum(&mut s.attended)?;

            let attended = Some(&s.attended);
            layer.post_attention_norm.add_forward(backend, hidden, attended, &mut s.normed)?;
            layer.mlp.gate_up(backend, &mut s.gate, &mut s.up, &s.normed)?;
            silu_mul(backend, &mut s.gated, &s.gate, &s.up)?;
            layer.mlp.down.forward(backend, &mut s.mapped, &s.gated)?;
            communicator.all_reduce_sum(&mut s.mapped)?;
        }
        add_assign(backend, hidden, &s.mapped)
    }

    fn final_norm(
        &self,
        ctx: &mut ForwardContext,
        rows: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<(), KernelError> {
        self.head.norm.add_forward(&ctx.backend, rows, None, out)
    }

    fn logits(
        &self,
        ctx: &mut ForwardContext,
        hidden: &Tensor,
        rows: &Indices,
        logits: &mut Tensor,
    ) -> Result<(), KernelError> {
        self.head.forward(ctx, logits, hidden, rows, &mut self.scratch.borrow_mut())
    }
}

impl Qwen2 {
    /// Takes this rank's part of every weight. Positions up to `max_model_len` can be served.
    pub fn load(loader: &mut Loader, max_model_len: usize) -> Result<Qwen2, LoadError> {
        let config = loader.config;
        let layers = (0..config.num_layers).map(|i| Layer::load(loader, i));
        Ok(Qwen2 {
            layers: layers.collect::<Result<_, _>>()?,
            embed_tokens: Embedding::load(loader)?,
            rope: rope_table(loader.backend, &config.rope, max_model_len)?,
            head: Head::load(loader)?,
            scratch: RefCell::new(Scratch::new(loader)?),
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
