//! A server whose device is only described (`--timing`): everything but the model.

use super::load::{Loaded, Opened, engine_config, served_model, start_text};
use super::memory::{self, CacheShare, MemoryPlan, MemoryRequest};
use super::task::Settled;
use crate::commands::StartupError;
use crate::config::ServeConfig;
use crate::engine;
use crate::http::Serving;
use crate::ranks::{GpuTimes, TimingRunner};
use crate::text::{SpecialTokens, TextStage};
use models::TokenId;
use tokio::sync::oneshot;

/// As `load::load`, without weights and without memory for keys and values.
pub fn load(config: &ServeConfig, times: &GpuTimes) -> Result<Loaded, StartupError> {
    let model = Opened::find(config, None)?;
    if model.task != Settled::Generate {
        return Err(StartupError::TimingPools { model: model.name });
    }
    let text = start_text(config, &model.checkpoint)?;
    let memory = plan(&model, config)?;
    let served = served_model(config, &model, &memory, &text)?;
    let runner = TimingRunner::new(times.clone(), plain_tokens(&text));
    let double_cost_context = model.checkpoint.config.double_cost_context();
    let engine_config = engine_config(config, &memory, double_cost_context);
    let (engine, engine_thread) = engine::start(engine_config, runner);
    let (names, path) = (served.names.clone(), model.path);
    let device =
        format!("NONE: no model is computed, answers are noise; timed as {}", times.name());
    tracing::warn!(timing = times.name(), "no model is computed: all answers are noise");
    let serving = Serving { text, engine, model: served };
    // Nobody ever says that a rank is lost.
    let (_, lost) = oneshot::channel();
    Ok(Loaded { serving, engine_thread, names, path, device, memory, lost, watch: None })
}

/// Blocks for keys and values that nobody stores, so that there may be any number of them.
fn plan(model: &Opened, config: &ServeConfig) -> Result<MemoryPlan, StartupError> {
    let request = MemoryRequest {
        weight_bytes: 0,
        ranks: model.ranks,
        available_bytes: None,
        cache_share: CacheShare::Part,
        kv_cache_bytes: config.cache.memory_bytes,
        kv_dtype: model.kv_dtype,
        block_size: config.cache.block_size,
        max_model_len: config.limits.max_model_len,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
    };
    Ok(memory::plan(&model.checkpoint.config, &request)?)
}

/// Tokens that are whole characters: text can be made of them in any order.
fn plain_tokens(text: &TextStage) -> Vec<TokenId> {
    let is_plain = |token: &TokenId| {
        let mut decoder = text.decoder(SpecialTokens::Skip);
        let whole = decoder.push(*token);
        whole.is_some_and(|whole| !whole.contains(char::REPLACEMENT_CHARACTER))
            && decoder.finish().is_none()
    };
    let tokens: Vec<TokenId> =
        (0..text.vocab_size() as u32).map(TokenId).filter(is_plain).collect();
    // A tokenizer without any text still has tokens.
    if tokens.is_empty() { vec![TokenId(0)] } else { tokens }
}
