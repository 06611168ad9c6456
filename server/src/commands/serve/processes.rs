//! The processes that serve one model together, one rank each, when a launcher such as mpirun
//! started several.

use crate::commands::StartupError;
use crate::config::{Environment, ServeConfig};
use kernels::comm::Communicator;
use kernels::comm::messages::Messages;
use std::sync::Arc;

/// The links to the processes of the other ranks.
pub struct Others {
    pub messages: Arc<dyn Messages>,
    pub communicator: Box<dyn Communicator>,
}

/// This process's place.
pub enum Place {
    Alone,
    /// Rank 0: HTTP, text and engine.
    Leader(Others),
    /// Any other rank.
    Follower(Others),
}

/// Belonging to the processes; kept by the main thread until the end.
pub struct Membership {
    #[cfg(feature = "mpi")]
    process: Option<kernels::comm::mpi::MpiProcess>,
}

/// Finds out whether a launcher started this process as one of several, and joins them.
///
/// Errors: this build has no MPI; the count of processes is not that of ranks.
pub fn join(config: &ServeConfig, env: &Environment) -> Result<(Membership, Place), StartupError> {
    match launch_of(env) {
        Some(launch) => join_launched(config, launch),
        None => Ok((Membership::alone(), Place::Alone)),
    }
}

/// How it shows that there is a launcher.
#[derive(Debug, PartialEq, Eq)]
struct Launch {
    variable: &'static str,
    /// As the variable says it.
    size: String,
}

/// Variables that launchers set for each process to the count of processes: Open MPI, MPICH and
/// Intel MPI, MVAPICH, Slurm. (Slurm's SLURM_NTASKS is set in batch scripts too, which run once.)
const SIZE_VARIABLES: [&str; 4] =
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// `None`: this process is the only one.
fn launch_of(env: &Environment) -> Option<Launch> {
    SIZE_VARIABLES.into_iter().find_map(|variable| {
        let size = env.get(variable)?.trim().to_string();
        (size != "1").then_some(Launch { variable, size })
    })
}

#[cfg(not(feature = "mpi"))]
fn join_launched(
    _config: &ServeConfig,
    launch: Launch,
) -> Result<(Membership, Place), StartupError> {
    Err(StartupError::NoMpi { variable: launch.variable, size: launch.size })
}

#[cfg(not(feature = "mpi"))]
impl Membership {
    fn alone() -> Membership {
        Membership {}
    }

    /// Ends the membership when all has gone well: waits for the others to do the same.
    pub fn leave(self) {}

    /// Ends it when something went wrong: the others may be lost, nobody waits for them.
    pub fn abandon(self) {}
}

#[cfg(feature = "mpi")]
fn join_launched(
    config: &ServeConfig,
    _launch: Launch,
) -> Result<(Membership, Place), StartupError> {
    use kernels::comm::mpi::MpiProcess;
    let process = MpiProcess::join().map_err(|e| StartupError::Mpi { reason: e.to_string() })?;
    let messages = process.messages();
    let (asked, started) = (config.compute.tensor_parallel, messages.world_size());
    let others = Others { communicator: Box::new(messages.communicator()), messages };
    let place = match others.messages.rank() {
        _ if started == 1 => Place::Alone,
        _ if asked != started => {
            // Every process finds the same, so all end here.
            process.leave();
            return Err(StartupError::ProcessCount { asked, started });
        }
        0 => Place::Leader(others),
        _ => Place::Follower(others),
    };
    Ok((Membership { process: Some(process) }, place))
}

#[cfg(feature = "mpi")]
impl Membership {
    fn alone() -> Membership {
        Membership { process: None }
    }

    /// Ends the membership when all has gone well: waits for the others to do the same.
    pub fn leave(self) {
        if let Some(process) = self.process {
            process.leave();
        }
    }

    /// Ends it when something went wrong: the others may be lost, nobody waits for them.
    pub fn abandon(self) {
        if let Some(process) = self.process {
            process.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_launcher_is_known_by_the_count_it_tells() {
        for alone in [&[][..], &[("PMI_SIZE", "1")], &[("SLURM_NTASKS", "4")]] {
            assert_eq!(launch_of(&env(alone)), None);
        }
        for variable in SIZE_VARIABLES {
            let launch = Launch { variable, size: "2".to_string() };
            assert_eq!(launch_of(&env(&[(variable, "2")])), Some(launch));
        }
    }
}
