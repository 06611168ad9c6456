//! From MODEL to a running engine: find, open, plan memory, load weights, start the threads.

use super::memory::{self, MemoryPlan, MemoryRequest};
use crate::commands::StartupError;
use crate::config::{
    ComputeConfig, CpuPin, DeviceChoice, KvCacheDtype, OverlapChoice, PrefixCachingChoice,
    SchedulingPolicy, ServeConfig,
};
use crate::engine::{
    self, EngineConfig, EngineHandle, EngineThread, Overlap, PolicyKind, PrefixCaching,
};
use crate::http::{ServedModel, Serving};
use crate::hub::{self, Progress};
use crate::machine;
use crate::ranks::{RankConfig, RankGroup};
use crate::text::{TextConfig, TextStage};
use kernels::device::cpu::CpuDevice;
use kernels::device::thread_pool::THREADS_MAX;
use kernels::{Backend, DType};
use models::{ChatTemplateSource, Checkpoint, ShardSpec};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything that runs, and what the operator is told of it.
pub struct Loaded {
    pub serving: Serving,
    pub engine_thread: EngineThread,
    pub names: Vec<String>,
    pub path: PathBuf,
    /// "cpu, Avx512, 8 threads, pinned".
    pub device: String,
    pub memory: MemoryPlan,
}

/// Takes seconds to minutes; run it on a thread of its own.
pub fn load(config: &ServeConfig) -> Result<Loaded, StartupError> {
    let found = hub::resolve(config.model.as_deref(), &config.hub, &Progress::detect())?;
    tracing::info!(path = %found.path.display(), "opening the model");
    let mut checkpoint = Checkpoint::open(&found.path)?;
    if let Some(template) = &config.text.chat_template {
        checkpoint.chat_template = Some(ChatTemplateSource { template: template.clone() });
    }
    let kv_dtype = kv_dtype(config);
    let memory = plan_memory(config, &checkpoint, &found.path, kv_dtype)?;
    let text = start_text(config, &checkpoint)?;
    let mut eos_token_ids = checkpoint.config.eos_token_ids.clone();
    for id in text.eos_token_ids() {
        if !eos_token_ids.contains(id) {
            eos_token_ids.push(*id);
        }
    }
    let names = match config.served_model_names.is_empty() {
        true => vec![found.name],
        false => config.served_model_names.clone(),
    };
    let model = ServedModel {
        names: names.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        max_model_len: memory.max_model_len,
        vocab_size: text.vocab_size(),
        eos_token_ids,
        generation: checkpoint.generation.clone(),
    };
    let device = Device::choose(&config.compute);
    let device_text = device.to_string();
    let (engine, engine_thread) =
        start_engine(config, checkpoint, device, kv_dtype, &memory, text.vocab_size())?;
    let serving = Serving { text, engine, model };
    Ok(Loaded { serving, engine_thread, names, path: found.path, device: device_text, memory })
}

/// What computes, and on which cores.
struct Device {
    backend: Backend,
    num_threads: usize,
    pin_to: Option<Vec<usize>>,
}

impl Device {
    fn choose(config: &ComputeConfig) -> Device {
        let num_threads = config.threads.unwrap_or_else(machine::cores).clamp(1, THREADS_MAX);
        if config.device == DeviceChoice::Reference {
            return Device { backend: Backend::Reference, num_threads: 1, pin_to: None };
        }
        let pin_to = match config.cpu_pin {
            CpuPin::Off => None,
            CpuPin::On => {
                let cores = machine::all_cores().unwrap_or_else(|| (0..num_threads).collect());
                (cores.len() >= num_threads).then_some(cores)
            }
            CpuPin::Auto => machine::all_cores().filter(|cores| cores.len() == num_threads),
        };
        let backend = Backend::Cpu(CpuDevice::new(num_threads, pin_to.as_deref()));
        Device { backend, num_threads, pin_to }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.backend {
            Backend::Cpu(cpu) => {
                let pinned = if self.pin_to.is_some() { ", pinned" } else { "" };
                let threads = if self.num_threads == 1 { "thread" } else { "threads" };
                write!(f, "cpu, {:?}, {} {threads}{pinned}", cpu.isa, self.num_threads)
            }
            other => write!(f, "{}: plain loops, for checking, very slow", other.name()),
        }
    }
}

fn kv_dtype(config: &ServeConfig) -> DType {
    match (config.cache.dtype, config.compute.device) {
        (KvCacheDtype::F32, _) | (KvCacheDtype::Auto, DeviceChoice::Reference) => DType::F32,
        (KvCacheDtype::F16 | KvCacheDtype::Auto, _) => DType::F16,
    }
}

fn plan_memory(
    config: &ServeConfig,
    checkpoint: &Checkpoint,
    path: &Path,
    kv_dtype: DType,
) -> Result<MemoryPlan, StartupError> {
    let request = MemoryRequest {
        weight_bytes: weight_bytes(path)
            .map_err(|source| StartupError::Io { path: path.to_path_buf(), source })?,
        available_bytes: machine::available_memory(),
        kv_cache_bytes: config.cache.memory_bytes,
        kv_dtype,
        block_size: config.cache.block_size,
        max_model_len: config.limits.max_model_len,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
    };
    Ok(memory::plan(&checkpoint.config, &request)?)
}

/// Size of the file, or of all weight files of the folder.
fn weight_bytes(path: &Path) -> std::io::Result<u64> {
    if path.is_file() {
        return Ok(std::fs::metadata(path)?.len());
    }
    let mut total = 0u64;
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "safetensors" || e == "gguf") {
            total = total.saturating_add(std::fs::metadata(&file)?.len());
        }
    }
    Ok(total)
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

fn start_engine(
    config: &ServeConfig,
    checkpoint: Checkpoint,
    device: Device,
    kv_dtype: DType,
    memory: &MemoryPlan,
    sampleable_vocab: usize,
) -> Result<(EngineHandle, EngineThread), StartupError> {
    let rank_config = RankConfig {
        backend: device.backend.clone(),
        num_blocks: memory.num_blocks,
        block_size: config.cache.block_size,
        kv_dtype,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
        pin_core: device.pin_to.as_ref().and_then(|cores| cores.first().copied()),
        sampleable_vocab,
    };
    let max_model_len = memory.max_model_len;
    let runner = RankGroup::start(rank_config, move || {
        models::load_model(&device.backend, &checkpoint, ShardSpec::SOLO, max_model_len)
    })?;
    let engine_config = EngineConfig {
        block_size: config.cache.block_size,
        num_blocks: memory.num_blocks,
        max_num_seqs: config.limits.max_num_seqs,
        max_num_batched_tokens: config.limits.max_num_batched_tokens,
        max_model_len,
        waiting_requests_max: config.limits.waiting_requests_max,
        // One prompt of any length that fits the context always finds room in an empty queue.
        waiting_tokens_max: config.limits.waiting_tokens_max.max(max_model_len),
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
    };
    Ok(engine::start(engine_config, runner))
}
