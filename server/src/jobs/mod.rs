//! Batch jobs: files and jobs that survive the process. State lies in SQLite, bytes in an object
//! store. What a line of a file says, and how it is answered, is behind the trait `Rows`: this room
//! knows neither JSON nor the engine.
//!
//! A kill at any moment loses no row and doubles none. An answer counts when it is committed, under
//! its job and line; what was not committed is computed again after a restart. The files of a job's
//! results are written from the committed answers alone, under names that follow from the job's id,
//! and the job ends in the transaction that makes them known: written twice, they are the same.

pub mod config;
pub mod database;
pub mod lines;
pub mod bytes;
pub mod files;
pub mod batches;
pub mod results;
pub mod validate;
pub mod rows;
pub mod finish;
pub mod runner;
pub mod offline;
pub mod store;

pub use batches::{BatchRecord, Counts, NewBatch, Status};
pub use config::{Clock, JobsConfig, JobsLimits};
pub use files::FileRecord;
pub use store::{Jobs, Page};

use std::future::Future;
use std::time::Duration;

/// Whose files and jobs these are: made of the digest of an API key, from which neither can be
/// found again; empty where no keys are set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner(pub String);

/// What the lines of a job mean. The rows of the jobs go through it, one future each.
pub trait Rows: Send + Sync + 'static {
    /// The line's own name, which is to be its only one in the file.
    ///
    /// Errors: a line that is no request, or none to `endpoint`; without an endpoint any will do.
    fn check(&self, endpoint: Option<&str>, line: &[u8]) -> Result<String, LineFault>;

    /// Whether the owner may still have rows answered, and by this model.
    fn can_run(&self, owner: &Owner, model: &str) -> bool;

    /// Answers a line that passed `check`.
    fn answer(&self, owner: &Owner, line: &[u8]) -> impl Future<Output = Answer> + Send;

    /// What stands in the results for a line that was not answered.
    fn unanswered(&self, line: &[u8], why: Unanswered) -> Vec<u8>;
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done(RowResult),
    /// The load is too high, or the server is about to end.
    Busy {
        retry_after: Duration,
    },
    /// It failed for no fault of its own: worth another try or two.
    Broken(RowResult),
}

/// A line of a job's results, without the line break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowResult {
    pub verdict: Verdict,
    pub line: Vec<u8>,
}

/// Which file a result belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Answered,
    Failed,
}

/// Why a row was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    Expired,
    Cancelled,
    /// A fault of our own.
    Lost,
}

/// What is wrong with a line, or with the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFault {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// The first is 1; `None`: the whole file.
    pub line: Option<u64>,
}

/// Why the store of jobs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JobsStartError {
    #[error("{path}: {source}")]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("{path} is in use by another server")]
    InUse { path: std::path::PathBuf },
    #[error("{path}: {source}")]
    Database { path: std::path::PathBuf, source: rusqlite::Error },
    #[error("{path} was written by a newer version of monsoon (layout {found}, known {known})")]
    TooNew { path: std::path::PathBuf, found: i64, known: i64 },
    #[error("{url} is no place for files: {reason}")]
    Store { url: String, reason: String },
}

/// Why something could not be done with files or jobs.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    #[error("the job database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("the job database has stopped")]
    Stopped,
    #[error("the file store: {0}")]
    Store(#[from] object_store::Error),
    #[error("{path}: {source}")]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("the file {id} is gone from the store")]
    Gone { id: String },
    #[error("a line is longer than {bytes_max} bytes")]
    LineTooLong { line: u64, bytes_max: usize },
    #[error("rows of the job have no answer yet")]
    RowsLeft,
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What a client asked for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is no file '{id}'")]
    NoFile { id: String },
    #[error("there is no batch '{id}'")]
    NoBatch { id: String },
    #[error("the file is longer than {bytes_max} bytes")]
    FileTooLong { bytes_max: u64 },
    #[error("{files} files are kept, the limit is {files_max}; delete some")]
    TooManyFiles { files: u64, files_max: u64 },
    #[error("files of {bytes} bytes are kept, the limit is {bytes_max}; delete some")]
    TooManyBytes { bytes: u64, bytes_max: u64 },
    #[error("{batches} batches are not done, the limit is {batches_max}; wait or cancel some")]
    TooManyBatches { batches: u64, batches_max: u64 },
    #[error("{uploads} files are being sent, the limit is {uploads_max}")]
    TooManyUploads { uploads: usize, uploads_max: usize },
    #[error("the file '{id}' is the input of {batch}, which is not done; cancel that first")]
    FileInUse { id: String, batch: String },
    #[error("the batch '{id}' is {status}: it cannot be cancelled any more")]
    HasEnded { id: String, status: &'static str },
    #[error(
        "the file '{id}' has the purpose {purpose}, a batch reads files with the purpose batch"
    )]
    WrongPurpose { id: String, purpose: String },
}
