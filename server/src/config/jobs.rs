//! The flags of batch jobs, on a server and from file to file.

use super::args::count;
use super::{Command, ConfigError, Environment, ServeConfig, flag_error, parse};
use crate::units::parse_bytes;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

/// What `--jobs-dir` takes instead of a folder.
const OFF: &str = "off";

/// Batch jobs of a server.
#[derive(Debug, Args)]
pub struct JobsArgs {
    /// Folder for batch jobs and their files, of this server alone; off: no /v1/files and
    /// /v1/batches [default: ~/.local/share/monsoon/jobs, and off where that is in use]
    #[arg(long, value_name = "FOLDER")]
    pub jobs_dir: Option<PathBuf>,
    /// Where the files of batch jobs lie instead: s3://BUCKET/PREFIX with the variables AWS_* (a
    /// build with the feature s3), or file:///FOLDER
    #[arg(long, value_name = "URL")]
    pub jobs_store: Option<String>,
    /// Largest file that a client may send to /v1/files; larger ones are answered 413
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = parse_bytes)]
    pub max_file_bytes: u64,
    /// Most files kept, results included; further ones are answered 429
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub max_files: u64,
    /// Most bytes of all files kept; further files are answered 429
    #[arg(long, value_name = "BYTES", default_value = "64GiB", value_parser = parse_bytes)]
    pub max_files_bytes: u64,
    /// Most batch jobs kept: beyond it the oldest ended ones are forgotten, and where none has
    /// ended new ones are answered 429
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub max_batches: u64,
    /// Most requests in the file of a batch job; a job with more fails
    #[arg(long, value_name = "COUNT", default_value_t = 5_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub max_batch_rows: u64,
    /// Most requests of batch jobs under way at once [default: as --max-num-seqs]
    #[arg(long, value_name = "COUNT", value_parser = count(1..=65_536))]
    pub batch_concurrency: Option<usize>,
}

/// The same, checked.
#[derive(Debug, Clone)]
pub struct JobsSlice {
    pub folder: JobsFolder,
    pub store: Option<String>,
    pub file_bytes_max: u64,
    pub files_max: u64,
    pub files_bytes_max: u64,
    pub batches_max: u64,
    pub rows_max: u64,
    pub rows_in_flight_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobsFolder {
    Off,
    /// Asked for: a server that cannot use it does not start.
    Named(PathBuf),
    /// Used if it can be.
    Default(PathBuf),
}

impl JobsSlice {
    pub fn check(
        args: JobsArgs,
        max_num_seqs: usize,
        env: &Environment,
    ) -> Result<JobsSlice, ConfigError> {
        let folder = match args.jobs_dir {
            Some(folder) if folder.as_os_str() == OFF => JobsFolder::Off,
            Some(folder) => JobsFolder::Named(folder),
            None => default_folder(env).map_or(JobsFolder::Off, JobsFolder::Default),
        };
        if folder == JobsFolder::Off && args.jobs_store.is_some() {
            let reason = "needs --jobs-dir FOLDER: the jobs themselves are kept there";
            return Err(flag_error("--jobs-store", reason.into()));
        }
        Ok(JobsSlice {
            folder,
            store: args.jobs_store,
            file_bytes_max: args.max_file_bytes,
            files_max: args.max_files,
            files_bytes_max: args.max_files_bytes,
            batches_max: args.max_batches,
            rows_max: args.max_batch_rows,
            rows_in_flight_max: args.batch_concurrency.unwrap_or(max_num_seqs),
        })
    }
}

/// Where the XDG Base Directory Specification has it. `None`: there is no home.
fn default_folder(env: &Environment) -> Option<PathBuf> {
    let variable = |name: &str| env.get(name).filter(|value| value.starts_with('/'));
    let data = match variable("XDG_DATA_HOME") {
        Some(data) => PathBuf::from(data),
        None => PathBuf::from(variable("HOME")?).join(".local/share"),
    };
    Some(data.join("monsoon/jobs"))
}

/// A batch job from file to file.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Requests, one JSON object a line: {"custom_id", "method": "POST", "url", "body"}
    pub input: PathBuf,
    /// TOML file; this command reads its [batch] table, and the model's flags from the top
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the results go, in the order in which they come; a job that was stopped goes on from
    /// what is there
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Where the results of failed requests go [default: the output's name with .errors.jsonl];
    /// without it a second run tries them again
    #[arg(long, value_name = "FILE")]
    pub errors: Option<PathBuf>,
    /// As MODEL of `monsoon serve`
    #[arg(long)]
    pub model: Option<String>,
    /// Most requests under way at once [default: twice --max-num-seqs]
    #[arg(long, value_name = "COUNT", value_parser = count(1..=65_536))]
    pub concurrency: Option<usize>,
    /// Flags of `monsoon serve` after --, such as -- --max-num-seqs 128 --threads 8
    #[arg(last = true, value_name = "SERVE FLAGS")]
    pub serve: Vec<OsString>,
}

/// The same, checked.
#[derive(Debug)]
pub struct BatchConfig {
    pub input: PathBuf,
    pub output: PathBuf,
    pub errors: PathBuf,
    pub rows_in_flight_max: usize,
    /// The model and how it is computed.
    pub serve: ServeConfig,
}

impl BatchConfig {
    pub fn check(args: BatchArgs, env: &Environment) -> Result<BatchConfig, ConfigError> {
        let mut typed: Vec<OsString> = vec!["monsoon".into(), "serve".into()];
        typed.extend(args.serve);
        if let Some(config) = args.config {
            typed.extend(["--config".into(), config.into_os_string()]);
        }
        typed.extend(args.model.map(OsString::from));
        let Command::Serve(serve) = parse(typed, env)? else {
            return Err(flag_error("--", "takes flags of serve alone".into()));
        };
        let errors = args.errors.unwrap_or_else(|| args.output.with_extension("errors.jsonl"));
        let files = [&args.input, &args.output, &errors];
        if files[0] == files[1] || files[0] == files[2] || files[1] == files[2] {
            let reason = "input, output and errors are to be three files";
            return Err(flag_error("--output", reason.into()));
        }
        Ok(BatchConfig {
            rows_in_flight_max: args.concurrency.unwrap_or(2 * serve.limits.max_num_seqs),
            input: args.input,
            output: args.output,
            errors,
            serve: *serve,
        })
    }
}
