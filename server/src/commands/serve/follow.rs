//! A rank other than 0 as a process of its own: no HTTP, no text, no engine.

use super::device::Devices;
use super::load::{Opened, blocks_on, rank_config};
use super::processes::Others;
use super::start_logging;
use crate::commands::{CommandError, StartupError};
use crate::config::ServeConfig;
use crate::ranks::{Follower, RankStartError, Sums};
use models::ShardSpec;

/// Computes what rank 0 sends until it has served to its end. Signals are left to rank 0, which
/// first lets running requests end.
///
/// Errors: whatever keeps the rank from starting; rank 0 or this rank is lost.
pub async fn run(config: ServeConfig, others: Others) -> Result<(), CommandError> {
    start_logging(&config.log);
    let _ignored = super::Signals::new()
        .map_err(|source| StartupError::Io { path: "signal handlers".into(), source })?;
    let follower = Follower::new(others.messages.clone()).map_err(StartupError::watch_thread)?;
    // Nothing else runs on this thread.
    let result = follow(&config, others, &follower);
    if let Err(error) = &result {
        follower.fail(error.to_string());
    }
    result
}

fn follow(config: &ServeConfig, others: Others, follower: &Follower) -> Result<(), CommandError> {
    let Others { messages, communicator } = others;
    let model = Opened::find(config, Some(&*messages))?;
    let devices = Devices::one_of(&config.compute, &*messages, model.activation())?;
    let memory = model.plan(config, &devices)?;
    let devices = devices.qualified(&config.hub.cache_dir)?.with_products(
        &model.plain_products(config).map_err(StartupError::from)?,
        &config.compute,
        &config.hub.cache_dir,
    )?;
    let device = &devices.ranks[0];
    let setup = follower.offer(device.offer(&memory))?;
    let memory = memory.within(setup.room).map_err(StartupError::from)?;
    let spec = ShardSpec { rank: messages.rank(), world_size: messages.world_size() };
    tracing::info!("rank {} of {}: {devices}", spec.rank, spec.world_size);
    let (rank_config, backend) = (rank_config(config, &setup, device), device.backend.clone());
    let (checkpoint, max_model_len) = (model.checkpoint, setup.room.max_model_len);
    let sums = Sums::new(&setup, communicator);
    let rank = follower.load(rank_config, sums, move || {
        models::load_model(&backend, &checkpoint, spec, max_model_len)
    });
    let rank = rank.map_err(command_error)?;
    let fraction = config.compute.gpu_memory_fraction;
    let num_blocks = blocks_on(&devices, &memory, fraction, &[rank.free_bytes()])?;
    rank.serve(num_blocks).map_err(command_error)
}

fn command_error(error: RankStartError) -> CommandError {
    match error {
        RankStartError::Process(lost) => CommandError::DeviceLost(lost),
        other => CommandError::Startup(other.into()),
    }
}
