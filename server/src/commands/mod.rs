//! One command of the program = one file. They join the rooms; no room knows them.

pub mod serve;
pub mod chat;
pub mod bench;
pub mod batch;
pub mod pull;
pub mod doctor;
pub mod qualification;
pub mod http_client;

use crate::engine::RunnerError;
use crate::hub::HubError;
use crate::jobs::JobsStartError;
use crate::jobs::offline::OfflineError;
use crate::ranks::RankStartError;
use crate::text::TextStartError;
use models::LoadError;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a command ended without doing what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// Nothing more can be computed; a supervisor should start the process anew.
    #[error("the compute device was lost, the server has stopped: {0}")]
    DeviceLost(#[from] RunnerError),
    #[error("the HTTP side ended by itself; a message above tells more")]
    HttpStopped,
    #[error("stopped at once by a second signal, {running} requests were cut")]
    Interrupted { running: usize },
    #[error("stopped before the processes of the other ranks could be told")]
    StoppedEarly,
    #[error(transparent)]
    Client(#[from] http_client::ClientError),
    #[error("{failed} of {sent} requests failed")]
    BenchFailed { failed: usize, sent: usize },
    /// Each has its result all the same.
    #[error("{failed} of {total} requests failed, see {errors}")]
    RowsFailed { failed: u64, total: u64, errors: PathBuf },
    #[error("stopped; run the same command again to go on")]
    BatchStopped,
    #[error(transparent)]
    Batch(OfflineError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// `doctor` has told more.
    #[error("a GPU does not compute what the reference does")]
    Unqualified,
}

/// The operator must act: `main` prints it and ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error("--host and --port: cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Text(#[from] TextStartError),
    #[error(transparent)]
    Rank(#[from] RankStartError),
    #[error("--jobs-dir, --jobs-store: {0}")]
    Jobs(#[from] JobsStartError),
    #[error(transparent)]
    Batch(OfflineError),
    #[error(transparent)]
    Memory(#[from] serve::memory::MemoryError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{variable} says that a launcher started {size} processes, but this build of monsoon knows \
         no MPI; build it with --features mpi, or start one process"
    )]
    NoMpi { variable: &'static str, size: String },
    #[error(
        "--tensor-parallel-size: {asked} ranks were asked for, but the launcher started {started} \
         processes, one for each rank; make them equal"
    )]
    ProcessCount { asked: usize, started: usize },
    /// A GPU cannot be opened or asked.
    #[error("--device: {0}")]
    Device(kernels::KernelError),
    #[error(
        "--device: this {device} does not compute what the reference does, so nothing is served on \
         it: {what} (and {others} more); see `monsoon doctor`, or use --device cpu"
    )]
    Unqualified { device: String, what: String, others: usize },
    #[error("--task: the tokenizer has no token '{word}', by which a reranker answers")]
    NoAnswerToken { word: &'static str },
    #[error(
        "--timing: {model} generates nothing, and what it computes of a prompt cannot be made up"
    )]
    TimingPools { model: String },
    #[error("MPI: {reason}")]
    Mpi { reason: String },
    #[error("loading the model failed without a reason; a message above tells more")]
    LoaderPanicked,
}

impl StartupError {
    fn watch_thread(source: std::io::Error) -> StartupError {
        StartupError::Io { path: "thread that watches the other processes".into(), source }
    }
}
