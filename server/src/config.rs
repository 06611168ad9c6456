//! Every flag of every command: `Args` as typed, checked into one `Config` per command, of which
//! each part gets its slice.
//!
//! A value comes from the command line, else from a `MONSOON_` variable, else from the TOML file
//! named by `--config`, else it is the default written here. `layers.rs` joins the four; clap
//! checks them all with the same parsers.

pub mod args;
mod debug;
pub mod jobs;
pub mod layers;
pub mod tenants;
mod timing;
#[cfg(test)]
mod tests;

use crate::hub::{Access, HubConfig, HubOptions};
use crate::ranks::{CudaGraphs, GpuTimes};
use args::{BenchArgs, ChatArgs, Cli, CommandArgs, HubArgs, ServeArgs};
use clap::FromArgMatches;
use kernels::device::cuda;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use args::{
    CpuPin, DeviceChoice, Endpoint, GpuTrial, KvCacheDtype, LogFormat, LogLevel, MatmulChoice,
    OverlapChoice, ReasoningParser, SchedulingPolicy, TaskChoice, ToolCallParser,
};
pub use jobs::{BatchConfig, JobsFolder, JobsSlice};
pub use tenants::TenantsConfig;

/// Most API keys one server checks; each costs one comparison a request.
pub const API_KEYS_MAX: usize = 1024;
/// Longest API key, in bytes.
pub const API_KEY_BYTES_MAX: usize = 512;
/// Largest file given by a flag (configuration, keys, chat template), in bytes.
pub const FLAG_FILE_BYTES_MAX: u64 = 1 << 20;

/// The process environment, as a value so that tests need not touch the real one.
pub type Environment = BTreeMap<String, String>;

/// Why the command line, the environment or the configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// From the command line, or a wish for help or the version.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    #[error("{origin}: {reason}")]
    Value { origin: String, reason: String },
    #[error("{path}: unknown key {key}{}", did_you_mean(nearest))]
    UnknownKey { path: PathBuf, key: String, nearest: Option<String> },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
}

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    Serve(Box<ServeConfig>),
    Chat(ChatConfig),
    Bench(Box<BenchConfig>),
    Batch(Box<BatchConfig>),
    Pull(PullConfig),
    Doctor(DoctorConfig),
}

#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// As typed; `None` is the default model.
    pub model: Option<String>,
    pub task: TaskChoice,
    /// Empty: the model's own name.
    pub served_model_names: Vec<String>,
    pub listen: ListenConfig,
    pub compute: ComputeConfig,
    /// In place of a device.
    pub timing: Option<GpuTimes>,
    pub cache: CacheConfig,
    pub limits: LimitsConfig,
    pub text: TextSlice,
    pub jobs: JobsSlice,
    pub hub: HubConfig,
    pub log: LogConfig,
}

#[derive(Clone)]
pub struct ListenConfig {
    pub host: IpAddr,
    /// 0: any free port.
    pub port: u16,
    pub api_keys: Vec<String>,
    pub tenants: Option<TenantsConfig>,
    pub body_bytes_max: usize,
    pub drain_timeout: Duration,
    pub unknown_fields: UnknownFieldsChoice,
    pub web_page: WebPageChoice,
}

#[derive(Debug, Clone)]
pub struct ComputeConfig {
    pub device: DeviceChoice,
    /// `None`: one for each core this process may use.
    pub threads: Option<usize>,
    pub cpu_pin: CpuPin,
    /// Ranks that share the model out.
    pub tensor_parallel: usize,
    /// Of a GPU's free memory.
    pub gpu_memory_fraction: f64,
    pub cuda_graphs: CudaGraphs,
    pub matmul: MatmulChoice,
    /// `None`: a rank that stands still is waited for.
    pub stall_time_max: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct CacheConfig {
    pub block_size: usize,
    /// `None`: as `commands/serve/memory.rs` works out.
    pub memory_bytes: Option<u64>,
    pub dtype: KvCacheDtype,
    pub prefix_caching: PrefixCachingChoice,
}

/// Fields of a request that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownFieldsChoice {
    Ignored,
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebPageChoice {
    Served,
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixCachingChoice {
    Enabled,
    Disabled,
}

#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// `None`: the model's own, or what the cache holds.
    pub max_model_len: Option<usize>,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub waiting_requests_max: usize,
    pub waiting_tokens_max: usize,
    pub policy: SchedulingPolicy,
    pub overlap: OverlapChoice,
}

#[derive(Debug, Clone)]
pub struct TextSlice {
    /// `None`: half of the cores, 1 to 4.
    pub tokenizer_threads: Option<usize>,
    /// The contents of `--chat-template FILE`.
    pub chat_template: Option<String>,
    pub tool_call_parser: ToolCallParser,
    pub reasoning_parser: ReasoningParser,
}

#[derive(Debug, Clone)]
pub struct LogConfig {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Clone)]
pub struct ChatConfig {
    pub url: String,
    pub model: Option<String>,
    pub system: Option<String>,
    pub api_key: Option<String>,
    pub max_tokens: Option<usize>,
    pub temperature: Option<f64>,
}

#[derive(Clone)]
pub struct BenchConfig {
    pub url: String,
    pub model: Option<String>,
    pub endpoint: Endpoint,
    pub api_key: Option<String>,
    pub load: Load,
    pub stop: StopAfter,
    pub input_len: usize,
    pub output_len: usize,
    pub shared_prefix_len: usize,
    /// Share of requests whose client closes the connection mid-stream, 0 to 1.
    pub drop_fraction: f64,
    pub seed: u64,
    pub num_warmup: usize,
    pub json: Option<PathBuf>,
}

/// How requests arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many clients, each sending its next request when the last has ended.
    Closed { num_clients: usize },
    /// Poisson arrivals, so many requests a second on average, however many are under way.
    Open { requests_per_second: f64 },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StopAfter {
    Requests(usize),
    Time(Duration),
}

#[derive(Debug)]
pub struct PullConfig {
    pub model: Option<String>,
    pub hub: HubConfig,
}

#[derive(Debug)]
pub struct DoctorConfig {
    pub hub: HubConfig,
    pub gpus: GpuTrial,
    /// Where the findings about GPUs go.
    pub json: Option<PathBuf>,
}

/// Reads the command line (program name first), the environment and the file named by `--config`.
///
/// Errors: `ConfigError`, naming the flag, variable or file.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &Environment,
) -> Result<Command, ConfigError> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = layers::with_layers(args::command(), &args, env)?;
    let cli = Cli::from_arg_matches(&command.try_get_matches_from(args)?)?;
    Ok(match cli.command {
        CommandArgs::Serve(args) => Command::Serve(Box::new(check_serve(*args, env)?)),
        CommandArgs::Chat(args) => Command::Chat(check_chat(args)?),
        CommandArgs::Bench(args) => Command::Bench(Box::new(check_bench(*args)?)),
        CommandArgs::Batch(args) => Command::Batch(Box::new(BatchConfig::check(*args, env)?)),
        CommandArgs::Pull(args) => {
            Command::Pull(PullConfig { model: args.model, hub: check_hub(args.hub, env)? })
        }
        CommandArgs::Doctor(args) => Command::Doctor(DoctorConfig {
            hub: check_hub(args.hub, env)?,
            gpus: args.gpus,
            json: args.json,
        }),
    })
}

fn text_slice(args: &ServeArgs) -> Result<TextSlice, ConfigError> {
    Ok(TextSlice {
        tokenizer_threads: args.tokenizer_threads,
        chat_template: args.chat_template.as_deref().map(read_flag_file).transpose()?,
        tool_call_parser: args.tool_call_parser,
        reasoning_parser: args.reasoning_parser,
    })
}

fn compute_config(args: &ServeArgs) -> ComputeConfig {
    ComputeConfig {
        device: args.device,
        threads: args.threads,
        cpu_pin: args.cpu_pin,
        tensor_parallel: args.tensor_parallel_size,
        gpu_memory_fraction: args.kv_memory_fraction,
        cuda_graphs: match args.enforce_eager {
            true => CudaGraphs::Off,
            false => CudaGraphs::On,
        },
        matmul: args.cuda_matmul,
        stall_time_max: Some(args.stall_timeout)
            .filter(|&seconds| seconds > 0)
            .map(Duration::from_secs),
    }
}

fn check_serve(args: ServeArgs, env: &Environment) -> Result<ServeConfig, ConfigError> {
    check_device(&args)?;
    if args.max_num_batched_tokens < args.max_num_seqs {
        return Err(flag_error(
            "--max-num-batched-tokens",
            format!(
                "{} is below --max-num-seqs {}: a step must fit one token of each request",
                args.max_num_batched_tokens, args.max_num_seqs
            ),
        ));
    }
    let is_rounded = matches!(args.kv_cache_dtype, KvCacheDtype::F16 | KvCacheDtype::Bf16);
    if args.device == DeviceChoice::Reference && is_rounded {
        let dtype = if args.kv_cache_dtype == KvCacheDtype::F16 { "f16" } else { "bf16" };
        let reason = "is not for --device reference, which defines exact results; allowed:";
        return Err(flag_error("--kv-cache-dtype", format!("{dtype} {reason} auto, f32")));
    }
    let (text, compute) = (text_slice(&args)?, compute_config(&args));
    let timing = args.timing.as_deref();
    let timing = timing.map(|typed| timing::check(typed, args.tensor_parallel_size)).transpose()?;
    Ok(ServeConfig {
        model: args.model,
        task: args.task,
        served_model_names: args.served_model_name,
        listen: ListenConfig {
            host: args.host,
            port: args.port,
            api_keys: check_api_keys(args.api_key, args.api_key_file.as_deref())?,
            tenants: args.tenants.map(TenantsConfig::read).transpose()?,
            body_bytes_max: args.max_body_bytes as usize,
            drain_timeout: Duration::from_secs(args.drain_timeout),
            unknown_fields: match args.strict_fields {
                true => UnknownFieldsChoice::Refused,
                false => UnknownFieldsChoice::Ignored,
            },
            web_page: match args.no_web_page {
                true => WebPageChoice::Absent,
                false => WebPageChoice::Served,
            },
        },
        compute,
        timing,
        cache: CacheConfig {
            block_size: args.block_size.tokens(),
            memory_bytes: args.kv_cache_memory,
            dtype: args.kv_cache_dtype,
            prefix_caching: match args.no_enable_prefix_caching {
                true => PrefixCachingChoice::Disabled,
                false => PrefixCachingChoice::Enabled,
            },
        },
        limits: LimitsConfig {
            max_model_len: args.max_model_len,
            max_num_seqs: args.max_num_seqs,
            max_num_batched_tokens: args.max_num_batched_tokens,
            waiting_requests_max: args.max_waiting_requests,
            waiting_tokens_max: args.max_waiting_tokens,
            policy: args.scheduling_policy,
            overlap: args.overlap,
        },
        text,
        jobs: JobsSlice::check(args.jobs, args.max_num_seqs, env)?,
        hub: check_hub(args.hub, env)?,
        log: LogConfig { level: args.log_level, format: args.log_format },
    })
}

fn check_device(args: &ServeArgs) -> Result<(), ConfigError> {
    if args.device == DeviceChoice::Cuda {
        return cuda_obstacle().map_or(Ok(()), |obstacle| {
            let message =
                format!("cuda is not available: {obstacle}; allowed here: auto, cpu, reference");
            Err(flag_error("--device", message))
        });
    }
    Ok(())
}

/// Why no model can be served on a GPU here.
pub fn cuda_obstacle() -> Option<&'static str> {
    if !cuda::images::has_kernels() {
        return Some("this build holds no CUDA kernels");
    }
    (cuda::device_count() == 0).then_some(
        "no NVIDIA GPU was found: the driver's library libcuda.so.1 is missing or shows none",
    )
}

fn check_api_keys(typed: Vec<String>, file: Option<&Path>) -> Result<Vec<String>, ConfigError> {
    let from_file = file.map(read_flag_file).transpose()?.unwrap_or_default();
    let lines = from_file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let file_origin = file.map(|f| f.display().to_string()).unwrap_or_default();
    let keys: Vec<(String, String)> = typed
        .into_iter()
        .map(|key| (key, "--api-key".to_string()))
        .chain(lines.map(|key| (key.to_string(), file_origin.clone())))
        .collect();
    if file.is_some() && keys.is_empty() {
        return Err(flag_error("--api-key-file", format!("{file_origin} holds no key")));
    }
    if keys.len() > API_KEYS_MAX {
        return Err(flag_error(
            "--api-key",
            format!("{} keys, at most {API_KEYS_MAX}", keys.len()),
        ));
    }
    for (key, origin) in &keys {
        // The key itself stays out of the message: messages end up in logs.
        let well_formed = key.bytes().all(|b| b.is_ascii_graphic());
        if key.is_empty() || key.len() > API_KEY_BYTES_MAX || !well_formed {
            return Err(ConfigError::Value {
                origin: origin.clone(),
                reason: format!(
                    "a key has 1 to {API_KEY_BYTES_MAX} printable ASCII characters, no spaces"
                ),
            });
        }
    }
    Ok(keys.into_iter().map(|(key, _)| key).collect())
}

fn check_chat(args: ChatArgs) -> Result<ChatConfig, ConfigError> {
    Ok(ChatConfig {
        url: check_url(&args.url)?,
        model: args.model,
        system: args.system,
        api_key: args.api_key,
        max_tokens: args.max_tokens,
        temperature: args.temperature,
    })
}

fn check_bench(args: BenchArgs) -> Result<BenchConfig, ConfigError> {
    let load = match (args.concurrency, args.request_rate) {
        (Some(_), Some(_)) => {
            return Err(flag_error(
                "--request-rate",
                "cannot be used with --concurrency: arrivals are either timed or answer-driven"
                    .into(),
            ));
        }
        (_, Some(requests_per_second)) => Load::Open { requests_per_second },
        (num_clients, None) => Load::Closed { num_clients: num_clients.unwrap_or(1) },
    };
    let stop = match (args.num_requests, args.duration) {
        (Some(_), Some(_)) => {
            return Err(flag_error("--duration", "cannot be used with --num-requests".into()));
        }
        (_, Some(seconds)) => StopAfter::Time(Duration::from_secs(seconds)),
        (count, None) => StopAfter::Requests(count.unwrap_or(100)),
    };
    if args.shared_prefix_len > args.input_len {
        return Err(flag_error(
            "--shared-prefix-len",
            format!("{} is above --input-len {}", args.shared_prefix_len, args.input_len),
        ));
    }
    Ok(BenchConfig {
        url: check_url(&args.url)?,
        model: args.model,
        endpoint: args.endpoint,
        api_key: args.api_key,
        load,
        stop,
        input_len: args.input_len,
        output_len: args.output_len,
        shared_prefix_len: args.shared_prefix_len,
        drop_fraction: args.drop_fraction,
        seed: args.seed,
        num_warmup: args.warmup,
        json: args.json,
    })
}

/// Cuts a trailing slash and `/v1`, so that both `http://host:port` and the SDKs' base URL work.
fn check_url(url: &str) -> Result<String, ConfigError> {
    let base = url.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://"));
    if host.is_none_or(|h| h.is_empty() || h.starts_with('/')) {
        return Err(flag_error("--url", format!("{url} is no http:// or https:// address")));
    }
    Ok(base.to_string())
}

fn check_hub(args: HubArgs, env: &Environment) -> Result<HubConfig, ConfigError> {
    let options = HubOptions {
        revision: args.revision,
        cache_dir: args.download_dir,
        access: if args.offline { Access::Offline } else { Access::Online },
        choice: args.hub,
    };
    HubConfig::new(options, env)
        .map_err(|e| ConfigError::Value { origin: e.variable.to_string(), reason: e.reason })
}

fn read_flag_file(path: &Path) -> Result<String, ConfigError> {
    let error = |reason| ConfigError::File { path: path.to_path_buf(), reason };
    let size = std::fs::metadata(path).map_err(|e| error(e.to_string()))?.len();
    if size > FLAG_FILE_BYTES_MAX {
        return Err(error(format!("{size} bytes, the limit is {FLAG_FILE_BYTES_MAX}")));
    }
    std::fs::read_to_string(path).map_err(|e| error(e.to_string()))
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean {key}?")).unwrap_or_default()
}

fn flag_error(flag: &str, reason: String) -> ConfigError {
    ConfigError::Value { origin: flag.to_string(), reason }
}
