//! The store of batch jobs that a server opens.

use crate::commands::StartupError;
use crate::config::{JobsFolder, ServeConfig};
use crate::jobs::{Clock, Jobs, JobsConfig, JobsLimits};
use std::path::Path;

/// What a row has beside the body of its request.
const ROW_FRAME_BYTES: usize = 64 << 10;

/// Errors: the folder that the operator named, or the store, cannot be used. Without the default
/// folder there are no batch jobs.
pub fn open(config: &ServeConfig) -> Result<Option<Jobs>, StartupError> {
    let (folder, is_named) = match &config.jobs.folder {
        JobsFolder::Off => return Ok(None),
        JobsFolder::Named(folder) => (folder, true),
        JobsFolder::Default(folder) => (folder, config.jobs.store.is_some()),
    };
    match Jobs::open(&jobs_config(config, folder)) {
        Ok(jobs) => {
            tracing::info!(folder = %folder.display(), "batch jobs are kept");
            Ok(Some(jobs))
        }
        Err(error) if is_named => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "no batch jobs: see --jobs-dir");
            Ok(None)
        }
    }
}

fn jobs_config(config: &ServeConfig, folder: &Path) -> JobsConfig {
    let jobs = &config.jobs;
    JobsConfig {
        folder: folder.to_path_buf(),
        store: jobs.store.clone(),
        limits: JobsLimits {
            file_bytes_max: jobs.file_bytes_max,
            rows_max: jobs.rows_max,
            line_bytes_max: line_bytes_max(config),
            files_max: jobs.files_max,
            files_bytes_max: jobs.files_bytes_max,
            batches_max: jobs.batches_max,
            // More would only be refused, and try again.
            rows_in_flight_max: jobs.rows_in_flight_max.min(config.limits.waiting_requests_max),
        },
        clock: Clock::default(),
    }
}

/// Every request that the endpoint would take.
pub fn line_bytes_max(config: &ServeConfig) -> usize {
    config.listen.body_bytes_max.saturating_add(ROW_FRAME_BYTES)
}
