//! From MODEL to a running engine: find, open, plan memory, load weights, start the threads.

use super::device::{self, Devices, RankDevice, uses_cuda};
use super::memory::{self, CacheShare, MemoryPlan, MemoryRequest, RankShare};
use super::processes::Others;
use crate::commands::StartupError;
use crate::config::{
    DeviceChoice, KvCacheDtype, OverlapChoice, PrefixCachingChoice, SchedulingPolicy, ServeConfig,
};
use crate::engine::{
    self, EngineConfig, EngineThread, Overlap, PolicyKind, PrefixCaching, RunnerError,
};
use crate::http::{ServedModel, Serving};
use crate::hub::{self, Progress};
use crate::machine;
use crate::ranks::{GroupWatch, Leader, Offer, RankConfig, RankGroup, Room, Setup};
use crate::text::{TextConfig, TextStage};
use kernels::comm::messages::Messages;
use kernels::ops::WeightForm;
use kernels::{Backend, DType};
use models::weights::shard::num_kv_heads;
use models::{ChatTemplateSource, Checkpoint, LoadError, ShardSpec};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// Everything that runs, and what the operator is told of it.
pub struct Loaded {
    pub serving: Serving,
    pub engine_thread: EngineThread,
    pub names: Vec<String>,
    pub path: PathBuf,
    /// "cpu, Avx512, 8 threads, pinned".
    pub device: String,
    pub memory: MemoryPlan,
    /// Says when a rank in another process is lost, also between steps.
    pub lost: oneshot::Receiver<RunnerError>,
    /// Over the processes of the other ranks, if there are any.
    pub watch: Option<GroupWatch>,
}

/// Takes seconds to minutes; run it on a thread of its own. `others`: the processes of the other
/// ranks, if there are any.
pub fn load(config: &ServeConfig, others: Option<Others>) -> Result<Loaded, StartupError> {
    let leader = others.as_ref().map(|others| Leader::new(others.messages.clone()));
    let leader = leader.transpose().map_err(StartupError::watch_thread)?;
    let model = Opened::find(config, others.as_ref().map(|others| &*others.messages))?;
    let text = start_text(config, &model.checkpoint)?;
    let mut memory = model.memory.clone();
    let (lost_sender, lost) = oneshot::channel();
    let devices = match &others {
        Some(Others { messages, .. }) => Devices::one_of(&config.compute, messages.local_size())?,
        None => {
            Devices::share(&config.compute, config.compute.tensor_parallel, model.activation())?
        }
    }
    .qualified(&config.hub.cache_dir)?
    .with_products(&model.plain_products(config)?, &config.compute, &config.hub.cache_dir)?;
    if let Some(leader) = &leader {
        let setup = |room| model.setup(config, room, text.vocab_size());
        let Setup { room, .. } = leader.agree(model.offer(&devices.ranks[0]), setup)?;
        (memory.num_blocks, memory.max_model_len) = (room.num_blocks, room.max_model_len);
        leader.on_loss(move |error| {
            // Nobody listens when the server has stopped already.
            let _ = lost_sender.send(error);
        });
    }
    let mut eos_token_ids = model.checkpoint.config.eos_token_ids.clone();
    for id in text.eos_token_ids() {
        if !eos_token_ids.contains(id) {
            eos_token_ids.push(*id);
        }
    }
    let names = match config.served_model_names.is_empty() {
        true => vec![model.name.clone()],
        false => config.served_model_names.clone(),
    };
    let served = ServedModel {
        names: names.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        max_model_len: memory.max_model_len,
        vocab_size: text.vocab_size(),
        eos_token_ids,
        generation: model.checkpoint.generation.clone(),
    };
    let path = model.path.clone();
    let setup = model.setup(config, Room::of(&memory), text.vocab_size());
    let watch = leader.as_ref().map(Leader::watch);
    let (runner, device) = match (others, leader) {
        (Some(others), Some(leader)) => {
            start_leading(config, &devices, model, &setup, others, leader)?
        }
        _ => start_local(config, &devices, model, &setup)?,
    };
    let (engine, engine_thread) = engine::start(engine_config(config, &memory), runner);
    let serving = Serving { text, engine, model: served };
    Ok(Loaded { serving, engine_thread, names, path, device, memory, lost, watch })
}

/// A model that was found, opened and measured, on any rank.
pub struct Opened {
    pub name: String,
    pub path: PathBuf,
    pub checkpoint: Checkpoint,
    pub memory: MemoryPlan,
    kv_dtype: DType,
}

impl Opened {
    /// `messages`: the links to the processes of the other ranks, if there are any.
    pub fn find(
        config: &ServeConfig,
        messages: Option<&dyn Messages>,
    ) -> Result<Opened, StartupError> {
        let found = hub::resolve(config.model.as_deref(), &config.hub, &Progress::detect())?;
        tracing::info!(path = %found.path.display(), "opening the model");
        let mut checkpoint = Checkpoint::open(&found.path)?;
        if let Some(template) = &config.text.chat_template {
            checkpoint.chat_template = Some(ChatTemplateSource { template: template.clone() });
        }
        let world_size = config.compute.tensor_parallel;
        let here = messages.map_or(world_size, |messages| messages.local_size());
        let spec = ShardSpec { rank: 0, world_size };
        let kv_heads_each = num_kv_heads(&checkpoint.config, spec)?;
        // Each GPU holds one rank, the memory of the host all that are here.
        let here = if uses_cuda(config.compute.device) { 1 } else { here };
        let ranks = RankShare { world_size, here, kv_heads_each };
        let kv_dtype = kv_dtype(config, &checkpoint);
        let memory = plan_memory(config, &checkpoint, kv_dtype, ranks)?;
        Ok(Opened { name: found.name, path: found.path, checkpoint, memory, kv_dtype })
    }

    /// What a GPU computes the model in.
    pub fn activation(&self) -> DType {
        models::cuda_activation(&self.checkpoint)
    }

    /// Shapes of plain weights on the GPUs, over all ranks.
    fn plain_products(&self, config: &ServeConfig) -> Result<Vec<[usize; 2]>, LoadError> {
        if !uses_cuda(config.compute.device) {
            return Ok(Vec::new());
        }
        let world_size = config.compute.tensor_parallel;
        let mut shapes = BTreeSet::new();
        for rank in 0..world_size {
            shapes.extend(self.checkpoint.plain_products(ShardSpec { rank, world_size })?);
        }
        Ok(shapes.into_iter().collect())
    }

    /// What a rank with this model on `device` brings.
    pub fn offer(&self, device: &RankDevice) -> Offer {
        Offer { room: Room::of(&self.memory), arithmetic: device.arithmetic() }
    }

    fn setup(&self, config: &ServeConfig, room: Room, sampleable_vocab: usize) -> Setup {
        Setup {
            room,
            block_size: config.cache.block_size,
            kv_in_f16: self.kv_dtype == DType::F16,
            max_num_seqs: config.limits.max_num_seqs,
            max_num_batched_tokens: config.limits.max_num_batched_tokens,
            sampleable_vocab,
        }
    }
}

impl Room {
    fn of(memory: &MemoryPlan) -> Room {
        Room { num_blocks: memory.num_blocks, max_model_len: memory.max_model_len }
    }
}

/// What a rank on `device` allocates.
pub fn rank_config(config: &ServeConfig, setup: &Setup, device: &RankDevice) -> RankConfig {
    RankConfig {
        backend: device.backend.clone(),
        num_blocks: setup.room.num_blocks,
        block_size: setup.block_size,
        kv_dtype: match &device.backend {
            Backend::Cuda(gpu) => gpu.activation_dtype(),
            _ if setup.kv_in_f16 => DType::F16,
            _ => DType::F32,
        },
        max_num_seqs: setup.max_num_seqs,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        pin_core: device.pin_core,
        sampleable_vocab: setup.sampleable_vocab,
        max_model_len: setup.room.max_model_len,
        cuda_graphs: config.compute.cuda_graphs,
        stall_time_max: config.compute.stall_time_max,
    }
}

/// All ranks in this process. Also says what they run on.
fn start_local(
    config: &ServeConfig,
    devices: &Devices,
    model: Opened,
    setup: &Setup,
) -> Result<(RankGroup, String), StartupError> {
    let configs = devices.ranks.iter().map(|device| rank_config(config, setup, device)).collect();
    let (checkpoint, max_model_len) = (model.checkpoint, setup.room.max_model_len);
    let group = RankGroup::start_local(configs, move |backend, spec| {
        models::load_model(backend, &checkpoint, spec, max_model_len)
    })?;
    Ok((group, devices.to_string()))
}

/// Rank 0 here, the others in processes of their own.
fn start_leading(
    config: &ServeConfig,
    devices: &Devices,
    model: Opened,
    setup: &Setup,
    others: Others,
    leader: Leader,
) -> Result<(RankGroup, String), StartupError> {
    let device = &devices.ranks[0];
    let (rank_config, backend) = (rank_config(config, setup, device), device.backend.clone());
    let spec = ShardSpec { rank: 0, world_size: others.messages.world_size() };
    let max_model_len = setup.room.max_model_len;
    let group = RankGroup::start_leading(leader, rank_config, others.communicator, move || {
        models::load_model(&backend, &model.checkpoint, spec, max_model_len)
    })?;
    Ok((group, format!("rank 0 of {} processes: {devices}", spec.world_size)))
}

fn kv_dtype(config: &ServeConfig, checkpoint: &Checkpoint) -> DType {
    if uses_cuda(config.compute.device) {
        return models::cuda_activation(checkpoint);
    }
    match (config.cache.dtype, config.compute.device) {
        (KvCacheDtype::F32, _) | (KvCacheDtype::Auto, DeviceChoice::Reference) => DType::F32,
        (KvCacheDtype::F16 | KvCacheDtype::Auto, _) => DType::F16,
    }
}

fn plan_memory(
    config: &ServeConfig,
    checkpoint: &Checkpoint,
    kv_dtype: DType,
    ranks: RankShare,
) -> Result<MemoryPlan, StartupError> {
    let request = MemoryRequest {
        weight_bytes: weight_bytes(config, checkpoint, ranks)?,
        ranks,
        available_bytes: match uses_cuda(config.compute.device) {
            true => Some(device::free_gpu_memory(&config.compute)?),
            false => machine::available_memory(),
        },
        cache_share: match uses_cuda(config.compute.device) {
            true => CacheShare::All,
            false => CacheShare::Part,
        },
        kv_cache_bytes: config.cache.memory_bytes,
        kv_dtype,
        block_size: config.cache.block_size,
        max_model_len: config.limits.max_model_len,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
    };
    Ok(memory::plan(&checkpoint.config, &request)?)
}

/// What the weights of the ranks on this machine take once loaded; on GPUs those of the largest
/// rank, since each has one.
fn weight_bytes(
    config: &ServeConfig,
    checkpoint: &Checkpoint,
    ranks: RankShare,
) -> Result<u64, StartupError> {
    let form = match (uses_cuda(config.compute.device), config.compute.device) {
        (true, _) => WeightForm::Cuda,
        (false, DeviceChoice::Reference) => WeightForm::Reference,
        (false, _) => WeightForm::Cpu,
    };
    let of_rank =
        |rank| checkpoint.loaded_bytes(ShardSpec { rank, world_size: ranks.world_size }, form);
    let mut each = (0..ranks.world_size).map(of_rank).collect::<Result<Vec<u64>, LoadError>>()?;
    // Which ranks are here is not told: the largest.
    each.sort_unstable_by(|a, b| b.cmp(a));
    Ok(each.iter().take(ranks.here).fold(0, |sum, &bytes| sum.saturating_add(bytes)))
}

fn start_text(config: &ServeConfig, checkpoint: &Checkpoint) -> Result<TextStage, StartupError> {
    const TOKENIZER_THREADS_DEFAULT_MAX: usize = 4;
    let half = (machine::cores() / 2).clamp(1, TOKENIZER_THREADS_DEFAULT_MAX);
    let text_config = TextConfig {
        tokenizer_threads: config.text.tokenizer_threads.unwrap_or(half),
        waiting_jobs_max: config.limits.waiting_requests_max,
        input_bytes_max: config.listen.body_bytes_max,
        ..TextConfig::default()
    };
    Ok(TextStage::new(
        &checkpoint.tokenizer,
        checkpoint.chat_template.as_ref(),
        checkpoint.config.vocab_size,
        text_config,
    )?)
}

fn engine_config(config: &ServeConfig, memory: &MemoryPlan) -> EngineConfig {
    EngineConfig {
        block_size: config.cache.block_size,
        num_blocks: memory.num_blocks,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
        max_model_len: memory.max_model_len,
        waiting_requests_max: config.limits.waiting_requests_max,
        // One prompt of any length that fits the context always finds room in an empty queue.
        waiting_tokens_max: config.limits.waiting_tokens_max.max(memory.max_model_len),
        policy: match config.limits.policy {
            SchedulingPolicy::Fcfs => PolicyKind::Fcfs,
            SchedulingPolicy::Priority => PolicyKind::Priority,
        },
        prefix_caching: match config.cache.prefix_caching {
            PrefixCachingChoice::Enabled => PrefixCaching::Enabled,
            PrefixCachingChoice::Disabled => PrefixCaching::Disabled,
        },
        overlap: match config.limits.overlap {
            OverlapChoice::Auto | OverlapChoice::On => Overlap::Enabled,
            OverlapChoice::Off => Overlap::Disabled,
        },
    }
}
