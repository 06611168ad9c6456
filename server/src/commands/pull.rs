//! `monsoon pull`: a model from a hub to this machine, checked.

use super::{CommandError, StartupError};
use crate::config::PullConfig;
use crate::hub::{self, Progress};

/// Prints the path of the model on standard output, so that scripts can use it.
pub fn run(config: PullConfig) -> Result<(), CommandError> {
    let found = hub::pull(config.model.as_deref(), &config.hub, &Progress::detect());
    let found = found.map_err(StartupError::from)?;
    println!("{}", found.path.display());
    Ok(())
}
