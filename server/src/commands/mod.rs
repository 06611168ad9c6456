//! One command of the program = one file. They join the rooms; no room knows them.

pub mod pull;
pub mod doctor;

use crate::hub::HubError;

/// The operator must act: `main` prints it and ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Hub(#[from] HubError),
}
