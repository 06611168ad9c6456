//! From MODEL to a running engine: find, open, plan memory, load weights and tokenizer side by
//! side, share out what memory is left, start the threads.

use super::device::{Devices, RankDevice, uses_cuda};
use super::memory::{self, CacheShare, GpuMemory, MemoryPlan, MemoryRequest, RankShare};
use super::processes::Others;
use super::task::{self, Settled};
use super::timing;
use crate::commands::StartupError;
use crate::config::{
    DeviceChoice, KvCacheDtype, OverlapChoice, PrefixCachingChoice, ReasoningParser,
    SchedulingPolicy, ServeConfig, ToolCallParser,
};
use crate::engine::{
    self, EngineConfig, EngineThread, Overlap, PolicyKind, PrefixCaching, RunnerError,
};
use crate::http::{ServedModel, Serving, ThinkingModel};
use crate::hub::{self, Progress};
use crate::machine;
use crate::ranks::{
    GroupWatch, KvFormat, Leader, LoadedGroup, Offer, RankConfig, Room, Setup, Start, Sums,
};
use crate::text::{ReasoningMarkup, TextConfig, TextStage, ToolFormat, ToolMarkup};
use kernels::comm::messages::Messages;
use kernels::ops::WeightForm;
use kernels::{Backend, DType};
use models::weights::shard::num_kv_heads;
use models::{ChatTemplateSource, Checkpoint, LoadError, ShardSpec};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
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
    if let Some(times) = &config.timing {
        return timing::load(config, times);
    }
    let leader = others.as_ref().map(|others| Leader::new(others.messages.clone()));
    let leader = leader.transpose().map_err(StartupError::watch_thread)?;
    let watch = leader.as_ref().map(Leader::watch);
    let loaded = load_all(config, others.zip(leader));
    if let (Err(error), Some(watch)) = (&loaded, watch) {
        watch.fail(error.to_string());
    }
    loaded
}

fn load_all(
    config: &ServeConfig,
    others: Option<(Others, Leader)>,
) -> Result<Loaded, StartupError> {
    let messages = others.as_ref().map(|(others, _)| &*others.messages);
    let model = Opened::find(config, messages)?;
    let devices = match messages {
        Some(messages) => Devices::one_of(&config.compute, messages, model.activation())?,
        None => {
            Devices::share(&config.compute, config.compute.tensor_parallel, model.activation())?
        }
    };
    let mut memory = model.plan(config, &devices)?;
    let devices = devices.qualified(&config.hub.cache_dir)?.with_products(
        &model.plain_products(config)?,
        &config.compute,
        &config.hub.cache_dir,
    )?;
    let mut setup = model.setup(config, Room::of(&memory));
    let (lost_sender, lost) = oneshot::channel();
    if let Some((_, leader)) = &others {
        setup.nccl_id = devices.ranks[0].nccl_id()?;
        let offer = devices.ranks[0].offer(&memory);
        setup = leader.agree(offer, |room| Setup { room, ..setup.clone() })?;
        memory = memory.within(setup.room)?;
        leader.on_loss(move |error| {
            // Nobody listens when the server has stopped already.
            let _ = lost_sender.send(error);
        });
    }
    let watch = others.as_ref().map(|(_, leader)| leader.watch());
    let num_processes = messages.map(|messages| messages.world_size());
    let configs = devices.ranks.iter().map(|device| rank_config(config, &setup, device)).collect();
    let (text_config, checkpoint) = (config.clone(), model.checkpoint.clone());
    let (ranks_checkpoint, ranks_setup) = (model.checkpoint.clone(), setup.clone());
    let (text, ranks) = side_by_side(
        move || start_text(&text_config, &checkpoint),
        move || load_ranks(configs, ranks_checkpoint, ranks_setup, others),
    )?;
    let fraction = config.compute.gpu_memory_fraction;
    let num_blocks = blocks_on(&devices, &memory, fraction, ranks.free_bytes())?;
    memory = memory.with_blocks(ranks.least_blocks(num_blocks)?)?;
    let (room, sampleable_vocab) = (Room::of(&memory), text.vocab_size());
    let runner = ranks.start(Start { room, sampleable_vocab })?;
    let served = served_model(config, &model, &memory, &text)?;
    let (names, path) = (served.names.clone(), model.path);
    let device = match num_processes {
        Some(count) => format!("rank 0 of {count} processes: {devices}"),
        None => devices.to_string(),
    };
    let double_cost_context = model.checkpoint.config.double_cost_context();
    let engine_config = engine_config(config, &memory, double_cost_context);
    let (engine, engine_thread) = engine::start(engine_config, runner);
    let serving = Serving { text, engine, model: served };
    Ok(Loaded { serving, engine_thread, names, path, device, memory, lost, watch })
}

pub(super) fn served_model(
    config: &ServeConfig,
    model: &Opened,
    memory: &MemoryPlan,
    text: &TextStage,
) -> Result<ServedModel, StartupError> {
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
    Ok(ServedModel {
        names,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        max_model_len: memory.max_model_len,
        vocab_size: text.vocab_size(),
        eos_token_ids,
        generation: model.checkpoint.generation.clone(),
        tool_format: text.tool_format(),
        thinking: ThinkingModel::of(text),
        task: model.task.task(&model.checkpoint.config, text)?,
    })
}

/// Runs both at the same time, each on a thread of its own. The first failure is returned at once;
/// what the other one makes is dropped when it is there, and its threads end.
fn side_by_side<A: Send + 'static, B: Send + 'static>(
    first: impl FnOnce() -> Result<A, StartupError> + Send + 'static,
    second: impl FnOnce() -> Result<B, StartupError> + Send + 'static,
) -> Result<(A, B), StartupError> {
    enum Made<A, B> {
        First(A),
        Second(B),
    }
    fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), StartupError> {
        let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
        spawned
            .map(drop)
            .map_err(|source| StartupError::Io { path: format!("{name} thread").into(), source })
    }
    let (sender, made) = sync_channel(2);
    let other = sender.clone();
    // Nobody receives any more when the other one has failed.
    spawn("load-text", move || drop(sender.send(first().map(Made::First))))?;
    spawn("load-ranks", move || drop(other.send(second().map(Made::Second))))?;
    let (mut first, mut second) = (None, None);
    loop {
        match made.recv().unwrap_or(Err(StartupError::LoaderPanicked))? {
            Made::First(value) => first = Some(value),
            Made::Second(value) => second = Some(value),
        }
        if first.is_some() && second.is_some() {
            return Ok(first.zip(second).expect("both are there"));
        }
    }
}

/// The ranks of this process with all but keys and values.
fn load_ranks(
    mut configs: Vec<RankConfig>,
    checkpoint: Arc<Checkpoint>,
    setup: Setup,
    others: Option<(Others, Leader)>,
) -> Result<LoadedGroup, StartupError> {
    let max_model_len = setup.room.max_model_len;
    let model = move |backend: &Backend, spec: ShardSpec| {
        models::load_model(backend, &checkpoint, spec, max_model_len)
    };
    Ok(match others {
        Some((others, leader)) => {
            let sums = Sums::new(&setup, others.communicator);
            LoadedGroup::load_leading(leader, configs.remove(0), sums, model)?
        }
        None => LoadedGroup::load_local(configs, model)?,
    })
}

/// Blocks that every rank of this process has room for: as planned on a CPU, on GPUs by what is
/// left now. `left`: free bytes of each GPU.
///
/// Errors: there is no room.
pub fn blocks_on(
    devices: &Devices,
    planned: &MemoryPlan,
    fraction: f64,
    left: &[Option<u64>],
) -> Result<usize, StartupError> {
    let gpus = devices.ranks.iter().zip(left).filter_map(|(device, left)| {
        let (free_before, free_after) = (device.free_bytes?, (*left)?);
        Some(GpuMemory { free_before, free_after, fraction })
    });
    let blocks = gpus.map(|gpu| planned.blocks_on(gpu)).collect::<Result<Vec<usize>, _>>()?;
    Ok(blocks.into_iter().min().unwrap_or(planned.num_blocks))
}

/// A model that was found and opened, on any rank.
pub struct Opened {
    pub name: String,
    pub path: PathBuf,
    pub checkpoint: Arc<Checkpoint>,
    pub(super) task: Settled,
    pub(super) ranks: RankShare,
    pub(super) kv_dtype: DType,
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
        let task = task::settle(config.task, &found.name, &mut checkpoint.config);
        let world_size = config.compute.tensor_parallel;
        let here = messages.map_or(world_size, |messages| messages.local_size());
        let spec = ShardSpec { rank: 0, world_size };
        let kv_heads_each = num_kv_heads(&checkpoint.config, spec)?;
        // Each GPU holds one rank, the memory of the host all that are here.
        let here = if uses_cuda(config.compute.device) { 1 } else { here };
        let ranks = RankShare { world_size, here, kv_heads_each };
        let kv_dtype = kv_dtype(config, &checkpoint);
        let checkpoint = Arc::new(checkpoint);
        Ok(Opened { name: found.name, path: found.path, checkpoint, task, ranks, kv_dtype })
    }

    /// What a GPU computes the model in.
    pub fn activation(&self) -> DType {
        models::cuda_activation(&self.checkpoint)
    }

    /// Shares the memory out, on GPUs that of the fullest one, before anything large is loaded.
    ///
    /// Errors: what cannot fit, with the arithmetic.
    pub fn plan(
        &self,
        config: &ServeConfig,
        devices: &Devices,
    ) -> Result<MemoryPlan, StartupError> {
        let fraction = config.compute.gpu_memory_fraction;
        let least_free = devices.ranks.iter().filter_map(|device| device.free_bytes).min();
        let request = MemoryRequest {
            weight_bytes: weight_bytes(config, &self.checkpoint, self.ranks)?,
            ranks: self.ranks,
            available_bytes: match least_free {
                Some(free) => Some(memory::part_of(free, fraction)),
                None => machine::available_memory(),
            },
            cache_share: match least_free {
                Some(_) => CacheShare::All,
                None => CacheShare::Part,
            },
            kv_cache_bytes: config.cache.memory_bytes,
            kv_dtype: self.kv_dtype,
            block_size: config.cache.block_size,
            max_model_len: config.limits.max_model_len,
            max_num_seqs: config.limits.max_num_seqs,
            max_num_batched_tokens: config.limits.max_num_batched_tokens,
        };
        Ok(memory::plan(&self.checkpoint.config, &request)?)
    }

    /// Shapes of plain weights on the GPUs, over all ranks.
    pub fn plain_products(&self, config: &ServeConfig) -> Result<Vec<[usize; 2]>, LoadError> {
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

    fn setup(&self, config: &ServeConfig, room: Room) -> Setup {
        Setup {
            room,
            block_size: config.cache.block_size,
            kv_format: KvFormat::of(self.kv_dtype),
            max_num_seqs: config.limits.max_num_seqs,
            max_num_batched_tokens: config.limits.max_num_batched_tokens,
            nccl_id: None,
        }
    }
}

impl RankDevice {
    /// What a rank on this device brings.
    pub fn offer(&self, memory: &MemoryPlan) -> Offer {
        Offer { room: Room::of(memory), arithmetic: self.arithmetic() }
    }
}

impl Room {
    fn of(memory: &MemoryPlan) -> Room {
        Room { num_blocks: memory.num_blocks, max_model_len: memory.max_model_len }
    }
}

/// What a rank on `device` loads.
pub fn rank_config(config: &ServeConfig, setup: &Setup, device: &RankDevice) -> RankConfig {
    RankConfig {
        backend: device.backend.clone(),
        block_size: setup.block_size,
        kv_dtype: match &device.backend {
            Backend::Cuda(gpu) => gpu.activation_dtype(),
            _ => setup.kv_format.dtype(),
        },
        max_num_seqs: setup.max_num_seqs,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        pin_core: device.pin_core,
        max_model_len: setup.room.max_model_len,
        cuda_graphs: config.compute.cuda_graphs,
        stall_time_max: config.compute.stall_time_max,
    }
}

fn kv_dtype(config: &ServeConfig, checkpoint: &Checkpoint) -> DType {
    if uses_cuda(config.compute.device) {
        return models::cuda_activation(checkpoint);
    }
    match (config.cache.dtype, config.compute.device) {
        (KvCacheDtype::F32, _) | (KvCacheDtype::Auto, DeviceChoice::Reference) => DType::F32,
        (KvCacheDtype::F16 | KvCacheDtype::Auto, _) => DType::F16,
        (KvCacheDtype::Bf16, _) => DType::BF16,
    }
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

pub(super) fn start_text(
    config: &ServeConfig,
    checkpoint: &Checkpoint,
) -> Result<TextStage, StartupError> {
    const TOKENIZER_THREADS_DEFAULT_MAX: usize = 4;
    let half = (machine::cores() / 2).clamp(1, TOKENIZER_THREADS_DEFAULT_MAX);
    let text_config = TextConfig {
        tokenizer_threads: config.text.tokenizer_threads.unwrap_or(half),
        waiting_jobs_max: config.limits.waiting_requests_max,
        input_bytes_max: config.listen.body_bytes_max,
        tools: match config.text.tool_call_parser {
            ToolCallParser::Auto => ToolMarkup::Template,
            ToolCallParser::None => ToolMarkup::None,
            ToolCallParser::Hermes => ToolMarkup::Format(ToolFormat::Hermes),
            ToolCallParser::Qwen3Coder => ToolMarkup::Format(ToolFormat::Xml),
        },
        reasoning: match config.text.reasoning_parser {
            ReasoningParser::Auto => ReasoningMarkup::Template,
            ReasoningParser::None => ReasoningMarkup::None,
            ReasoningParser::Qwen3 => ReasoningMarkup::Think,
        },
        ..TextConfig::default()
    };
    Ok(TextStage::new(
        &checkpoint.tokenizer,
        checkpoint.chat_template.as_ref(),
        checkpoint.config.vocab_size,
        text_config,
    )?)
}

pub(super) fn engine_config(
    config: &ServeConfig,
    memory: &MemoryPlan,
    double_cost_context: usize,
) -> EngineConfig {
    EngineConfig {
        block_size: config.cache.block_size,
        num_blocks: memory.num_blocks,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
        max_model_len: memory.max_model_len,
        double_cost_context,
        waiting_requests_max: config.limits.waiting_requests_max,
        // One prompt of any length that fits the context always finds room in an empty queue, also
        // in the half of it that is not kept for other tenants.
        waiting_tokens_max: config.limits.waiting_tokens_max.max(2 * memory.max_model_len),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Tells when it is dropped.
    struct Threads(Sender<()>);

    impl Drop for Threads {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    fn failed() -> StartupError {
        StartupError::Mpi { reason: "no such luck".into() }
    }

    #[test]
    fn both_sides_are_there_whichever_is_first() {
        let (go, wait) = channel();
        let second = move || {
            go.send(2).expect("the first one waits");
            Ok("ranks")
        };
        let made = side_by_side(move || Ok(wait.recv_timeout(PATIENCE).expect("both run")), second);
        assert_eq!(made.expect("no failure"), (2, "ranks"));
    }

    #[test]
    fn a_failure_is_told_at_once_and_what_the_other_side_makes_is_dropped() {
        for is_second in [false, true] {
            let (go, wait) = channel();
            let (sender, dropped) = channel();
            let fails = || Err::<Threads, _>(failed());
            let slow = move || {
                wait.recv_timeout(PATIENCE).expect("the failure was told");
                Ok(Threads(sender))
            };
            let error = match is_second {
                true => side_by_side(slow, fails).err(),
                false => side_by_side(fails, slow).err(),
            };
            assert!(matches!(error, Some(StartupError::Mpi { .. })));
            go.send(()).expect("the slow side still runs");
            dropped.recv_timeout(PATIENCE).expect("it was dropped");
        }
    }

    #[test]
    fn a_side_that_panics_is_a_failure() {
        let made = side_by_side(|| Ok(1), || -> Result<u8, StartupError> { panic!("on purpose") });
        assert!(matches!(made, Err(StartupError::LoaderPanicked)));
    }
}
