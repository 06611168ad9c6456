//! How much memory goes where, worked out before anything large is allocated; on a GPU once more
//! when all but the KV cache is there. Pure arithmetic.

use crate::ranks::Room;
use crate::units::format_bytes;
use kernels::DType;
use models::ModelConfig;

/// Most of the free memory that the KV cache takes when the operator names no size: one part of so
/// many.
pub const CACHE_SHARE: u64 = 4;
/// What it takes then if one full context is smaller. All of it is touched at start, a second per
/// GiB on a slow machine.
pub const CACHE_BYTES_DEFAULT: u64 = 1 << 30;
/// Most that it takes then.
pub const CACHE_BYTES_DEFAULT_MAX: u64 = 4 << 30;
/// Block and slot numbers must fit 31 bits.
const SLOTS_MAX: u64 = i32::MAX as u64;

/// What is asked for and what there is.
#[derive(Debug, Clone)]
pub struct MemoryRequest {
    /// Bytes that the weights of all ranks here take once loaded.
    pub weight_bytes: u64,
    pub ranks: RankShare,
    /// Bytes free now, if known; on a GPU the part of them that may be used.
    pub available_bytes: Option<u64>,
    pub cache_share: CacheShare,
    pub kv_cache_bytes: Option<u64>,
    pub kv_dtype: DType,
    pub block_size: usize,
    pub max_model_len: Option<usize>,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
}

/// How many ranks there are, and what one holds.
#[derive(Debug, Clone, Copy)]
pub struct RankShare {
    pub world_size: usize,
    /// On this machine, whose memory is shared out.
    pub here: usize,
    pub kv_heads_each: usize,
}

/// How much of what weights and buffers leave free the KV cache takes when the operator names no
/// size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheShare {
    /// One part of `CACHE_SHARE`, within the bounds for a shared machine.
    Part,
    /// All of it: a GPU does nothing else.
    All,
}

/// Bytes are those of all ranks on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    pub num_blocks: usize,
    pub max_model_len: usize,
    pub kv_cache_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// Set when the context was cut to what the cache holds: the model's own length.
    pub capped_from: Option<usize>,
    block_size: usize,
    /// As the operator named them.
    asked_len: Option<usize>,
    asked_cache_bytes: Option<u64>,
}

/// A GPU's free memory before and after everything but the KV cache was loaded.
#[derive(Debug, Clone, Copy)]
pub struct GpuMemory {
    pub free_before: u64,
    pub free_after: u64,
    /// Part of the memory free before that may be taken in all.
    pub fraction: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error(
        "the model is too large for this machine: weights {} + KV cache {} + buffers {} = {}, \
         but {} are free",
        format_bytes(*weights), format_bytes(*kv_cache), format_bytes(*buffers),
        format_bytes(weights.saturating_add(*kv_cache).saturating_add(*buffers)),
        format_bytes(*available)
    )]
    TooLarge { weights: u64, kv_cache: u64, buffers: u64, available: u64 },
    #[error(
        "--max-model-len: {asked} is above the {model_max} positions this model was made for; \
         allowed: 1..={model_max}"
    )]
    LongerThanModel { asked: usize, model_max: usize },
    #[error(
        "--max-model-len: {asked} tokens x {} = {} of KV cache, but it has {}, which hold \
         {fitting} tokens",
        format_bytes(*per_token), format_bytes(per_token.saturating_mul(*asked as u64)),
        format_bytes(*kv_cache)
    )]
    LongerThanCache { asked: usize, per_token: u64, kv_cache: u64, fitting: usize },
    #[error(
        "--kv-cache-memory: {} do not hold one block of {block_size} tokens x {}",
        format_bytes(*kv_cache), format_bytes(*per_token)
    )]
    NoBlock { kv_cache: u64, block_size: usize, per_token: u64 },
    #[error(
        "the KV cache has no room on this GPU: of {} that were free {} may be taken \
         (--kv-memory-fraction), {} were taken while the model was loaded, which leaves {}, but {} \
         are needed",
        format_bytes(*free), format_bytes(*allowed), format_bytes(*taken),
        format_bytes(allowed.saturating_sub(*taken)), format_bytes(*needed)
    )]
    NoRoomLeft { free: u64, allowed: u64, taken: u64, needed: u64 },
    #[error("the sizes in the model's configuration are too large to count")]
    Overflow,
}

/// Shares the memory out.
///
/// Errors: what cannot fit, with the arithmetic.
pub fn plan(model: &ModelConfig, request: &MemoryRequest) -> Result<MemoryPlan, MemoryError> {
    let model_max = model.max_position_embeddings;
    if let Some(asked) = request.max_model_len.filter(|asked| *asked > model_max) {
        return Err(MemoryError::LongerThanModel { asked, model_max });
    }
    let per_token = kv_bytes_per_token(model, request).ok_or(MemoryError::Overflow)?;
    let buffers = buffer_bytes(model, request).ok_or(MemoryError::Overflow)?;
    let weights = request.weight_bytes;
    let fixed = weights.checked_add(buffers).ok_or(MemoryError::Overflow)?;
    let budget = request.kv_cache_bytes.unwrap_or_else(|| {
        let left = request.available_bytes.map_or(u64::MAX, |free| free.saturating_sub(fixed));
        let context = per_token.saturating_mul(model_max as u64);
        match request.cache_share {
            CacheShare::All => left,
            CacheShare::Part => (left / CACHE_SHARE)
                .min(context.clamp(CACHE_BYTES_DEFAULT, CACHE_BYTES_DEFAULT_MAX)),
        }
    });
    let block_size = request.block_size;
    let per_block = per_token.checked_mul(block_size as u64).ok_or(MemoryError::Overflow)?;
    let num_blocks = (budget / per_block).min(SLOTS_MAX / block_size as u64);
    let kv_cache = num_blocks * per_block;
    let too_large = request.available_bytes.filter(|free| fixed.saturating_add(kv_cache) > *free);
    if let Some(available) = too_large {
        return Err(MemoryError::TooLarge { weights, kv_cache, buffers, available });
    }
    if num_blocks == 0 {
        return Err(MemoryError::NoBlock { kv_cache: budget, block_size, per_token });
    }
    let fitting = usize::try_from(num_blocks).map_err(|_| MemoryError::Overflow)? * block_size;
    if let Some(asked) = request.max_model_len.filter(|asked| *asked > fitting) {
        return Err(MemoryError::LongerThanCache { asked, per_token, kv_cache, fitting });
    }
    Ok(MemoryPlan {
        num_blocks: fitting / block_size,
        max_model_len: request.max_model_len.unwrap_or(model_max.min(fitting)),
        kv_cache_bytes: kv_cache,
        kv_bytes_per_token: per_token,
        capped_from: (request.max_model_len.is_none() && fitting < model_max).then_some(model_max),
        block_size,
        asked_len: request.max_model_len,
        asked_cache_bytes: request.kv_cache_bytes,
    })
}

/// What may be taken of so many free bytes.
pub fn part_of(free: u64, fraction: f64) -> u64 {
    (free as f64 * fraction) as u64
}

impl MemoryPlan {
    /// Blocks of the KV cache that one rank's GPU has room for beside what it holds now: as many as
    /// the operator asked for, else all. They may be more than were planned, since buffers are
    /// planned from above.
    ///
    /// Errors: `NoRoomLeft`.
    pub fn blocks_on(&self, gpu: GpuMemory) -> Result<usize, MemoryError> {
        let GpuMemory { free_before: free, free_after, fraction } = gpu;
        let (allowed, taken) = (part_of(free, fraction), free.saturating_sub(free_after));
        let left = allowed.saturating_sub(taken);
        let block_bytes = self.kv_bytes_per_token * self.block_size as u64;
        let wanted = self.asked_cache_bytes.unwrap_or(left) / block_bytes;
        let num_blocks = wanted.min(SLOTS_MAX / self.block_size as u64).max(1);
        let needed = num_blocks * block_bytes;
        if needed > left {
            return Err(MemoryError::NoRoomLeft { free, allowed, taken, needed });
        }
        usize::try_from(num_blocks).map_err(|_| MemoryError::Overflow)
    }

    /// The same plan within what all ranks have planned.
    ///
    /// Errors: as `with_blocks`.
    pub fn within(self, room: Room) -> Result<MemoryPlan, MemoryError> {
        let max_model_len = self.max_model_len.min(room.max_model_len);
        MemoryPlan { max_model_len, ..self }.with_blocks(room.num_blocks)
    }

    /// The same plan with so many blocks. Sequences get no longer than was planned.
    ///
    /// Errors: `LongerThanCache`.
    pub fn with_blocks(&self, num_blocks: usize) -> Result<MemoryPlan, MemoryError> {
        let fitting = num_blocks.checked_mul(self.block_size).ok_or(MemoryError::Overflow)?;
        let per_token = self.kv_bytes_per_token;
        let kv_cache = per_token.saturating_mul(fitting as u64);
        if let Some(asked) = self.asked_len.filter(|asked| *asked > fitting) {
            return Err(MemoryError::LongerThanCache { asked, per_token, kv_cache, fitting });
        }
        let max_model_len = self.max_model_len.min(fitting);
        let was_whole = self.asked_len.is_none() && max_model_len < self.max_model_len;
        Ok(MemoryPlan {
            num_blocks,
            max_model_len,
            kv_cache_bytes: kv_cache,
            capped_from: self.capped_from.or(was_whole.then_some(self.max_model_len)),
            ..self.clone()
        })
    }
}

/// Keys and values of one token over all layers and all ranks here.
fn kv_bytes_per_token(model: &ModelConfig, request: &MemoryRequest) -> Option<u64> {
    let RankShare { here, kv_heads_each, .. } = request.ranks;
    [model.num_layers, kv_heads_each, here, model.head_dim, request.kv_dtype.block_bytes()]
        .iter()
        .try_fold(2u64, |product, factor| product.checked_mul(*factor as u64))
}

/// Activations of one step and the logits of its sequences on all ranks here, in f32: an estimate
/// from above.
fn buffer_bytes(model: &ModelConfig, request: &MemoryRequest) -> Option<u64> {
    let RankShare { world_size, here, kv_heads_each } = request.ranks;
    let mul = |a: usize, b: usize| (a as u64).checked_mul(b as u64);
    let num_heads = model.num_heads.div_ceil(world_size);
    let attention = num_heads.checked_add(kv_heads_each.checked_mul(2)?)?;
    let per_token = mul(model.hidden_size, 4)?
        .checked_add(mul(model.intermediate_size.div_ceil(world_size), 3)?)?
        .checked_add(mul(attention, model.head_dim)?.checked_mul(2)?)?;
    let activations = per_token.checked_mul(request.max_num_batched_tokens as u64)?;
    // All logits, and where they are gathered, room for as many and a rank's own part.
    let copies = if world_size > 1 { 3 } else { 1 };
    let logits = mul(model.vocab_size, request.max_num_seqs)?.checked_mul(copies)?;
    activations.checked_add(logits)?.checked_mul(4)?.checked_mul(here as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::KvCache;
    use models::config::{Architecture, Purpose, RopeConfig};

    fn model() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Qwen2,
            hidden_size: 896,
            intermediate_size: 4864,
            num_layers: 24,
            num_heads: 14,
            num_kv_heads: 2,
            head_dim: 64,
            vocab_size: 151_936,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 32_768,
            rope: RopeConfig { theta: 1e6, rotary_dim: 64, yarn: None },
            qkv_bias: true,
            o_bias: false,
            tie_word_embeddings: true,
            purpose: Purpose::Generation,
            eos_token_ids: vec![],
        }
    }

    fn request() -> MemoryRequest {
        MemoryRequest {
            weight_bytes: 500 << 20,
            ranks: RankShare { world_size: 1, here: 1, kv_heads_each: 2 },
            available_bytes: Some(8 << 30),
            cache_share: CacheShare::Part,
            kv_cache_bytes: None,
            kv_dtype: DType::F16,
            block_size: 16,
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 256,
        }
    }

    #[test]
    fn a_token_takes_what_the_cache_allocates_for_it() {
        let per_block = KvCache::bytes_per_block(&model(), 2, 16, DType::F16) as u64;
        assert_eq!(kv_bytes_per_token(&model(), &request()), Some(per_block / 16));
    }

    #[test]
    fn all_ranks_of_this_machine_are_counted() {
        let with = |world_size, here, kv_heads_each| {
            let ranks = RankShare { world_size, here, kv_heads_each };
            let request = MemoryRequest { ranks, ..request() };
            kv_bytes_per_token(&model(), &request).unwrap()
        };
        assert_eq!(with(1, 1, 2), 12_288);
        // Keys and values are shared out.
        assert_eq!(with(2, 2, 1), 12_288);
        // Four ranks hold the two kv heads in pairs.
        assert_eq!(with(4, 4, 1), 2 * 12_288);
        assert_eq!(with(4, 2, 1), 12_288);
        let plan_of = |here| {
            let ranks = RankShare { world_size: 2, here, kv_heads_each: 1 };
            let kv_cache_bytes = Some(12_288 * 1600);
            plan(&model(), &MemoryRequest { ranks, kv_cache_bytes, ..request() }).expect("fits")
        };
        assert_eq!((plan_of(2).num_blocks, plan_of(1).num_blocks), (100, 200));
        let four = RankShare { world_size: 4, here: 4, kv_heads_each: 1 };
        let one = buffer_bytes(&model(), &request()).unwrap();
        let all = buffer_bytes(&model(), &MemoryRequest { ranks: four, ..request() }).unwrap();
        // The logits are there three times on each of them, activations are shared out.
        assert!(all > one && all < 3 * 4 * one);
    }

    #[test]
    fn by_default_the_cache_holds_a_context_within_a_quarter_of_the_rest() {
        let size = |model: &ModelConfig, available: u64| {
            let request = MemoryRequest { available_bytes: Some(available), ..request() };
            plan(model, &request).expect("fits").kv_cache_bytes
        };
        let near = |bytes: u64, expected: u64| expected - bytes < 1 << 20;
        assert!(near(size(&model(), 64 << 30), CACHE_BYTES_DEFAULT), "a small model");
        let deep = ModelConfig { num_layers: 24 * 6, ..model() };
        assert!(near(size(&deep, 64 << 30), 6 * 12_288 * 32_768), "one full context");
        let long = ModelConfig { max_position_embeddings: 1 << 20, ..model() };
        assert!(near(size(&long, 64 << 30), CACHE_BYTES_DEFAULT_MAX), "a very long context");
        assert!(size(&model(), 2 << 30) < 400 << 20, "a quarter of the rest");
        let whole = plan(&model(), &request()).expect("fits");
        assert_eq!((whole.max_model_len, whole.capped_from), (32_768, None));
    }

    #[test]
    fn a_small_cache_cuts_the_context_unless_the_operator_named_it() {
        let small = MemoryRequest { kv_cache_bytes: Some(12_288 * 1600), ..request() };
        let cut = plan(&model(), &small).expect("fits");
        assert_eq!((cut.max_model_len, cut.capped_from), (1600, Some(32_768)));
        let named = MemoryRequest { max_model_len: Some(1601), ..small.clone() };
        let error = plan(&model(), &named).expect_err("too long").to_string();
        assert!(error.contains("1601 tokens x 12 KiB") && error.contains("1600 tokens"), "{error}");
        let named = MemoryRequest { max_model_len: Some(1600), ..small };
        assert_eq!(plan(&model(), &named).expect("fits").max_model_len, 1600);
    }

    #[test]
    fn on_a_gpu_the_cache_takes_all_that_is_left() {
        let gpu = MemoryRequest { cache_share: CacheShare::All, ..request() };
        let whole = plan(&model(), &gpu).expect("fits");
        let left = (8u64 << 30) - (500 << 20) - buffer_bytes(&model(), &gpu).expect("small");
        assert!(left - whole.kv_cache_bytes < 1 << 20, "{} of {left}", whole.kv_cache_bytes);
    }

    #[test]
    fn on_a_gpu_the_cache_takes_what_is_really_left() {
        let on_gpu = MemoryRequest { cache_share: CacheShare::All, ..request() };
        let planned = plan(&model(), &on_gpu).expect("fits");
        let gpu = GpuMemory { free_before: 10 << 30, free_after: 8 << 30, fraction: 0.9 };
        let block_bytes = 16 * 12_288;
        // Of 10 GiB 9 may be taken, of which 2 are.
        let blocks = planned.blocks_on(gpu).expect("there is room");
        assert_eq!(blocks as u64, (7 << 30) / block_bytes);
        let tighter = planned.blocks_on(GpuMemory { free_after: 7 << 30, ..gpu });
        assert_eq!(tighter.expect("there is room") as u64, (6 << 30) / block_bytes);
        let asked = MemoryRequest { kv_cache_bytes: Some(100 * block_bytes), ..on_gpu.clone() };
        let asked = plan(&model(), &asked).expect("fits");
        assert_eq!(asked.blocks_on(gpu), Ok(100));
        // One byte less than they take.
        let left = (1 << 30) + 100 * block_bytes - 1;
        let error = asked.blocks_on(GpuMemory { free_after: left, ..gpu }).expect_err("too tight");
        let error = error.to_string();
        let sum = "9.0 GiB were taken while the model was loaded, which leaves 18.7 MiB";
        for part in ["10 GiB that were free 9 GiB may", sum, "18.8 MiB are needed"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let full = planned.blocks_on(GpuMemory { free_after: 1 << 30, ..gpu });
        let error = full.expect_err("nothing is left").to_string();
        assert!(error.contains("leaves 0 bytes, but 192 KiB are needed"), "{error}");
    }

    #[test]
    fn other_blocks_than_planned_change_the_context_only_downwards() {
        let planned = plan(&model(), &request()).expect("fits");
        assert_eq!((planned.max_model_len, planned.capped_from), (32_768, None));
        let more = planned.with_blocks(2 * planned.num_blocks).expect("fits");
        assert_eq!((more.max_model_len, more.capped_from), (32_768, None));
        assert_eq!(more.kv_cache_bytes, 2 * planned.kv_cache_bytes);
        let less = planned.with_blocks(100).expect("fits");
        assert_eq!((less.max_model_len, less.capped_from), (1600, Some(32_768)));
        let still_less = less.with_blocks(50).expect("fits");
        assert_eq!((still_less.max_model_len, still_less.capped_from), (800, Some(32_768)));
        let asked = MemoryRequest { max_model_len: Some(1600), ..request() };
        let asked = plan(&model(), &asked).expect("fits");
        assert_eq!(asked.with_blocks(100).expect("fits").max_model_len, 1600);
        let error = asked.with_blocks(99).expect_err("too few").to_string();
        assert!(error.contains("which hold 1584 tokens"), "{error}");
    }

    #[test]
    fn what_cannot_fit_is_refused_with_its_sum() {
        let tight = MemoryRequest {
            available_bytes: Some(1 << 30),
            kv_cache_bytes: Some(1 << 30),
            ..request()
        };
        let error = plan(&model(), &tight).expect_err("too large").to_string();
        for part in ["weights 500 MiB", "KV cache 1023.9 MiB", "buffers", "but 1 GiB are free"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let none = MemoryRequest { available_bytes: Some(0), ..request() };
        assert!(matches!(plan(&model(), &none), Err(MemoryError::TooLarge { .. })));
        let tiny = MemoryRequest { kv_cache_bytes: Some(1), ..request() };
        assert!(matches!(plan(&model(), &tiny), Err(MemoryError::NoBlock { .. })));
        let long = MemoryRequest { max_model_len: Some(40_000), ..request() };
        assert!(matches!(plan(&model(), &long), Err(MemoryError::LongerThanModel { .. })));
        let mad = ModelConfig { num_layers: usize::MAX, ..model() };
        assert_eq!(plan(&mad, &request()), Err(MemoryError::Overflow));
    }
}
