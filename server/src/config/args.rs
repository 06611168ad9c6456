//! What can be typed: each flag's name, default, limits and help, in one place.

use super::jobs::{BatchArgs, JobsArgs};
use crate::hub::HubChoice;
use crate::units::parse_bytes;
use clap::builder::RangedU64ValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// LLM inference server for the Qwen family with an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "monsoon", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: CommandArgs,
}

#[derive(Debug, Subcommand)]
pub enum CommandArgs {
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
    /// Talk to a running server in the terminal
    Chat(ChatArgs),
    /// Put load on an OpenAI-compatible server and measure it
    Bench(Box<BenchArgs>),
    /// Answer a file of requests without a server
    Batch(Box<BatchArgs>),
    /// Download a model and check it
    Pull(PullArgs),
    /// Print what this machine has and where models are looked for
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A folder, a .gguf file, or OWNER/NAME on a hub (OWNER/NAME:FILE or :Q4_K_M for one GGUF of a
    /// repository). Without it, Qwen2.5-Coder-0.5B-Instruct (Q4_K_M) is served
    pub model: Option<String>,
    /// TOML file with the long flags as keys, for example max-num-seqs = 32
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; 0.0.0.0 or :: for every network
    #[arg(long, default_value = "127.0.0.1", value_parser = parse_host)]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// What computes; auto is cuda where there is a GPU that this build holds kernels for, else cpu
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Compute no model: answers are noise, and each step takes as long as FILE (TOML, see the
    /// README) says of a GPU; 0 takes no time. To put load on all but the model
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    pub timing: Option<String>,
    /// Names the API accepts for the model, the first one is used in answers; repeat or separate by
    /// commas. Default: the model's own name
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse_name)]
    pub served_model_name: Vec<String>,
    /// A key clients must send as "Authorization: Bearer KEY"; repeat or separate by commas.
    /// Without any key, every client is served
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    pub api_key: Vec<String>,
    /// File with one API key per line; empty lines and lines beginning with # are skipped
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// TOML file of tenants, each with its keys (as SHA-256), weight and limits; read again on
    /// SIGHUP
    #[arg(long, value_name = "FILE")]
    pub tenants: Option<PathBuf>,
    /// Longest prompt plus answer, in tokens [default: the model's own, or what the KV cache holds]
    #[arg(long, value_name = "TOKENS", value_parser = count(1..=16_777_216))]
    pub max_model_len: Option<usize>,
    /// Most requests computed at once
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = count(1..=4096))]
    pub max_num_seqs: usize,
    /// Most tokens in one step. More speeds long prompts up; less lets the answers of others flow
    /// more evenly meanwhile
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = count(1..=65_536))]
    pub max_num_batched_tokens: usize,
    /// Memory for keys and values, such as 2GiB or 512MiB [default: room for one full context, at
    /// least 1 GiB, at most 4 GiB and a quarter of the free memory]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub kv_cache_memory: Option<u64>,
    /// Part of a GPU's free memory that weights, buffers, keys and values may take together
    #[arg(long, value_name = "FRACTION", default_value_t = 0.9, value_parser = parse_fraction)]
    pub kv_memory_fraction: f64,
    /// Launch every GPU kernel by itself instead of replaying recorded decode steps (CUDA graphs)
    #[arg(long)]
    pub enforce_eager: bool,
    /// Who multiplies with unquantised weights on a GPU: auto takes cuBLASLt for those shapes with
    /// which it is right and the fastest, if it is installed; own never; cublaslt wherever it is
    /// right
    #[arg(long, value_enum, default_value_t = MatmulChoice::Auto)]
    pub cuda_matmul: MatmulChoice,
    /// Seconds without progress after which a rank or device counts as lost; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub stall_timeout: u64,
    /// Number format of keys and values; auto is f16 (reference: f32, cuda: that of the
    /// activations). bf16 is coarser, and much faster in long contexts where the CPU multiplies
    /// bf16 (AVX512-BF16)
    #[arg(long, value_enum, default_value_t = KvCacheDtype::Auto)]
    pub kv_cache_dtype: KvCacheDtype,
    /// Tokens in one block of the KV cache
    #[arg(long, value_enum, value_name = "TOKENS", default_value_t = BlockSize::B16)]
    pub block_size: BlockSize,
    /// Ranks that one model is split over: threads of this process with an equal share of the
    /// compute threads each, or the processes that mpirun or its like has started
    #[arg(long, visible_alias = "tensor-parallel", value_name = "RANKS")]
    #[arg(default_value_t = 1, value_parser = count(1..=1024))]
    pub tensor_parallel_size: usize,
    /// Compute threads [default: one for each core this process may use]
    #[arg(long, value_name = "COUNT", value_parser = count(1..=256))]
    pub threads: Option<usize>,
    /// Bind each compute thread to its core; auto does so when the process may use all cores of the
    /// machine and computes on all of them
    #[arg(long, value_enum, default_value_t = CpuPin::Auto)]
    pub cpu_pin: CpuPin,
    /// Who is served first: fcfs by arrival, priority by the request's priority field
    #[arg(long, value_enum, default_value_t = SchedulingPolicy::Fcfs)]
    pub scheduling_policy: SchedulingPolicy,
    /// Plan and start each step while the one before it is computed; auto is on. The answers are
    /// the same
    #[arg(long, value_enum, default_value_t = OverlapChoice::Auto)]
    pub overlap: OverlapChoice,
    /// Compute every prompt anew, even when its beginning is in the KV cache
    #[arg(long)]
    pub no_enable_prefix_caching: bool,
    /// Most requests waiting for their turn; further ones are answered 429
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = count(1..=1_000_000))]
    pub max_waiting_requests: usize,
    /// Most prompt tokens of waiting requests together; further requests are answered 429
    #[arg(long, value_name = "TOKENS", default_value_t = 1_048_576)]
    #[arg(value_parser = count(1..=1_073_741_824))]
    pub max_waiting_tokens: usize,
    /// Threads that turn text into tokens [default: half of the cores, 1 to 4]
    #[arg(long, value_name = "COUNT", value_parser = count(1..=64))]
    pub tokenizer_threads: Option<usize>,
    /// Largest request body, such as 16MiB; larger ones are answered 413
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = parse_body_bytes)]
    pub max_body_bytes: u64,
    /// File with the chat template to use instead of the model's own (Jinja)
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// What the model is for; auto is embed for embedding models, rerank for rerankers (known by
    /// their name), else generate. embed loads no output head
    #[arg(long, value_enum, default_value_t = TaskChoice::Auto)]
    pub task: TaskChoice,
    /// How calls of tools stand in answers; auto takes the form that the chat template teaches
    #[arg(long, value_enum, default_value_t = ToolCallParser::Auto)]
    pub tool_call_parser: ToolCallParser,
    /// How reasoning stands in answers; auto is qwen3 where the chat template knows <think>
    #[arg(long, value_enum, default_value_t = ReasoningParser::Auto)]
    pub reasoning_parser: ReasoningParser,
    /// Answer 400 to a request with a field that nobody knows, instead of naming it in the header
    /// x-monsoon-ignored-fields of the answer
    #[arg(long)]
    pub strict_fields: bool,
    /// Serve the API alone, without the web page at /
    #[arg(long)]
    pub no_web_page: bool,
    /// Seconds that running requests get to end after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub drain_timeout: u64,
    /// Least important messages to print
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    /// Form of the messages on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub jobs: JobsArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Where models come from.
#[derive(Debug, Args)]
pub struct HubArgs {
    /// Branch, tag or commit on the hub [default: main, on ModelScope master]
    #[arg(long, value_parser = parse_name)]
    pub revision: Option<String>,
    /// Folder for downloaded models, also MONSOON_CACHE [default: ~/.cache/monsoon]
    #[arg(long, value_name = "FOLDER")]
    pub download_dir: Option<PathBuf>,
    /// Never open a connection to fetch a model (HF_HUB_OFFLINE=1 does the same)
    #[arg(long)]
    pub offline: bool,
    /// Which hub has OWNER/NAME; auto asks Hugging Face, then ModelScope
    #[arg(long, value_enum, default_value_t = HubChoice::Auto)]
    pub hub: HubChoice,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// TOML file; this command reads its [chat] table
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Server to talk to
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model name to ask for [default: the first one the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// System message put before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// API key of the server
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Longest answer in tokens [default: the server's]
    #[arg(long, value_name = "TOKENS", value_parser = count(1..=16_777_216))]
    pub max_tokens: Option<usize>,
    /// 0 always takes the likeliest token [default: the model's]
    #[arg(long, value_parser = parse_temperature)]
    pub temperature: Option<f64>,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// TOML file; this command reads its [bench] table
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Server to measure
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model name to ask for [default: the first one the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// Which endpoint to call
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub endpoint: Endpoint,
    /// API key of the server
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Clients that each send their next request when the last one has ended [default: 1]
    #[arg(long, value_name = "COUNT", value_parser = count(1..=8192))]
    pub concurrency: Option<usize>,
    /// Requests a second, at random (Poisson) times, instead of --concurrency
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    pub request_rate: Option<f64>,
    /// Requests to send in all, after the warm-up [default: 100]
    #[arg(long, value_name = "COUNT", value_parser = count(1..=10_000_000))]
    pub num_requests: Option<usize>,
    /// Seconds to send requests for, instead of --num-requests
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub duration: Option<u64>,
    /// Words in each prompt; a word is about one token
    #[arg(long, value_name = "WORDS", default_value_t = 256, value_parser = count(1..=1_000_000))]
    pub input_len: usize,
    /// Tokens to generate for each request; ignore_eos is sent
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = count(1..=1_000_000))]
    pub output_len: usize,
    /// Words at the beginning of the prompt that are the same in all requests
    #[arg(long, value_name = "WORDS", default_value_t = 0, value_parser = count(0..=1_000_000))]
    pub shared_prefix_len: usize,
    /// Share of requests whose client closes the connection in the middle of the answer, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    pub drop_fraction: f64,
    /// The same seed sends the same prompts
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Requests sent one after the other before the measurement
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = count(0..=10_000))]
    pub warmup: usize,
    /// Write the result, with a row for each request, to this file; - prints it
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// OWNER/NAME on a hub, or OWNER/NAME:FILE; without it, the default model
    pub model: Option<String>,
    /// TOML file; this command reads its [pull] table
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// TOML file; this command reads its [doctor] table
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do with the GPUs: list them, try some or all cases of each kernel, or time them too
    #[arg(long, value_enum, default_value_t = GpuTrial::Timed)]
    pub gpus: GpuTrial,
    /// Write the findings about GPUs to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// How much `doctor` does with each GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GpuTrial {
    None,
    Short,
    Full,
    Timed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Reference,
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtype {
    Auto,
    Bf16,
    F16,
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BlockSize {
    #[value(name = "16")]
    B16,
    #[value(name = "32")]
    B32,
    #[value(name = "64")]
    B64,
    #[value(name = "128")]
    B128,
}

impl BlockSize {
    pub fn tokens(self) -> usize {
        match self {
            BlockSize::B16 => 16,
            BlockSize::B32 => 32,
            BlockSize::B64 => 64,
            BlockSize::B128 => 128,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CpuPin {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulingPolicy {
    Fcfs,
    Priority,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskChoice {
    Auto,
    Generate,
    #[value(alias = "embedding")]
    Embed,
    #[value(alias = "score")]
    Rerank,
}

/// Names as in vLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ToolCallParser {
    Auto,
    None,
    Hermes,
    #[value(name = "qwen3_coder", alias = "qwen3_xml")]
    Qwen3Coder,
}

/// Names as in vLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReasoningParser {
    Auto,
    None,
    Qwen3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MatmulChoice {
    Auto,
    Own,
    Cublaslt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OverlapChoice {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Endpoint {
    Chat,
    Completions,
}

/// The clap command of the whole program.
pub fn command() -> clap::Command {
    Cli::command()
}

pub(super) fn count(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// A part of the whole, above 0 and at most 1.
fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(fraction),
        _ => Err("allowed: above 0 and at most 1, such as 0.9".into()),
    }
}

fn parse_host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    text.parse().map_err(|_| "not an IP address; such as 127.0.0.1, 0.0.0.0 or ::".to_string())
}

fn parse_name(text: &str) -> Result<String, String> {
    const NAME_BYTES_MAX: usize = 256;
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(|c| c.is_control()) {
        return Err(format!("a name has 1 to {NAME_BYTES_MAX} bytes and no control characters"));
    }
    Ok(text.to_string())
}

fn parse_body_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    match bytes {
        1024..=1_073_741_824 => Ok(bytes),
        _ => Err(format!("{bytes} bytes is not in 1KiB..=1GiB")),
    }
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    parse_number(text, 0.0..=2.0)
}

fn parse_share(text: &str) -> Result<f64, String> {
    parse_number(text, 0.0..=1.0)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    parse_number(text, 0.001..=100_000.0)
}

fn parse_number(text: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    match range.contains(&value) {
        true => Ok(value),
        false => Err(format!("{value} is not in {}..={}", range.start(), range.end())),
    }
}
