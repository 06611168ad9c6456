//! How the ranks of a group come together to add up their parts.

use super::group::{RankConfig, RankStartError};
use super::peers::Peers;
use super::wire::Setup;
use kernels::comm::Communicator;
use kernels::comm::gpus::Gpus;
use kernels::comm::local;
use kernels::comm::nccl::{NcclAborter, NcclId};
use kernels::{Backend, KernelError};
use models::LoadError;
use std::sync::mpsc::sync_channel;

/// How ranks that are processes of their own add up their parts.
pub enum Sums {
    /// On the host, by what links the processes.
    Processes(Box<dyn Communicator>),
    /// Between their GPUs, which find each other by the id that rank 0 made.
    Gpus(NcclId),
}

impl Sums {
    /// As `setup` says; `communicator` links the processes.
    pub fn new(setup: &Setup, communicator: Box<dyn Communicator>) -> Sums {
        setup.nccl_id.map_or(Sums::Processes(communicator), Sums::Gpus)
    }
}

/// Ends the waiting of ranks for one that is lost.
pub(super) enum Breaker {
    Threads(local::Breaker),
    Gpu(NcclAborter),
}

impl Breaker {
    pub fn trip(&self) {
        match self {
            Breaker::Threads(breaker) => breaker.trip("another rank is lost"),
            Breaker::Gpu(aborter) => aborter.abort(),
        }
    }
}

type Links = (Vec<Box<dyn Communicator>>, Vec<Breaker>);

/// One link for each rank of this process: by NCCL between GPUs, else by shared memory.
pub(super) fn links_between(configs: &[RankConfig]) -> Result<Links, RankStartError> {
    let device = |config: &RankConfig| match &config.backend {
        Backend::Cuda(device) => Some(device.clone()),
        Backend::Reference | Backend::Cpu(_) => None,
    };
    let Some(devices) = configs.iter().map(device).collect::<Option<Vec<_>>>() else {
        let links = local::group(configs.len());
        let breakers = links.first().map(|link| Breaker::Threads(link.breaker()));
        let links = links.into_iter().map(|link| Box::new(link) as Box<dyn Communicator>);
        return Ok((links.collect(), breakers.into_iter().collect()));
    };
    let id = NcclId::new().map_err(LoadError::from)?;
    let world_size = devices.len();
    // Each call waits for all others.
    let joined: Vec<Result<Gpus, KernelError>> = std::thread::scope(|scope| {
        let join = |(rank, device)| move || Gpus::join(device, &id, rank, world_size);
        let threads: Vec<_> = devices.iter().enumerate().map(|d| scope.spawn(join(d))).collect();
        threads.into_iter().map(|thread| thread.join().expect("joining does not panic")).collect()
    });
    let links = joined.into_iter().collect::<Result<Vec<_>, _>>().map_err(LoadError::from)?;
    let breakers = links.iter().map(|link| Breaker::Gpu(link.aborter())).collect();
    Ok((links.into_iter().map(|link| Box::new(link) as _).collect(), breakers))
}

/// The link of the one rank of this process to those of others, and what ends its waiting.
///
/// Errors: the GPUs cannot be joined; a process was lost before all had come.
pub(super) fn link_to_others(
    sums: Sums,
    backend: &Backend,
    (rank, world_size): (usize, usize),
    peers: &Peers,
) -> Result<(Box<dyn Communicator>, Option<Breaker>), RankStartError> {
    let id = match sums {
        Sums::Processes(communicator) => return Ok((communicator, None)),
        Sums::Gpus(id) => id,
    };
    let Backend::Cuda(device) = backend else { panic!("only GPUs meet by an id") };
    let (device, (sender, joined)) = (device.clone(), sync_channel(1));
    // On a thread of its own: it waits for the others, for ever if one of them is lost.
    std::thread::Builder::new()
        .name(format!("rank-{rank}-join"))
        .spawn(move || {
            // Nobody listens when another process was lost meanwhile.
            let _ = sender.send(Gpus::join(&device, &id, rank, world_size));
        })
        .map_err(|source| RankStartError::Thread { rank, source })?;
    let told = peers.receive(&joined).map_err(RankStartError::Process)?;
    let gpus = told.expect("joining does not panic").map_err(LoadError::from)?;
    let breaker = Breaker::Gpu(gpus.aborter());
    Ok((Box::new(gpus), Some(breaker)))
}
