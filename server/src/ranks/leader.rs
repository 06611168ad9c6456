//! Rank 0's side of a group whose other ranks are processes of their own.

use super::group::RankStartError;
use super::link::{PLANS_WAITING_MAX, RankLink, Reply};
use super::meet::{Breaker, Sums, link_to_others};
use super::peers::Peers;
use super::progress::Progress;
use super::wire::{Offer, Room, Setup, Sign, Start, Work, encode};
use crate::engine::{Plan, RunnerError, StepOutput};
use kernels::Backend;
use kernels::comm::Communicator;
use kernels::comm::messages::{Channel, Messages};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Hands plans to the other processes and watches them.
pub struct Leader {
    messages: Arc<dyn Messages>,
    peers: Arc<Peers>,
}

/// The watch over the other processes.
pub struct GroupWatch(Arc<Peers>);

impl GroupWatch {
    /// This process was told to end, perhaps because another one is lost: from now on a short
    /// silence is a loss.
    pub fn hurry(&self) {
        self.0.hurry();
    }

    /// This process could not start: the others need not wait for it.
    pub fn fail(&self, reason: String) {
        self.0.say(Sign::Failed { reason });
    }
}

impl Leader {
    /// Errors: the system has no thread for the watch.
    pub fn new(messages: Arc<dyn Messages>) -> std::io::Result<Leader> {
        let others = 1..messages.world_size();
        Ok(Leader { peers: Peers::watch(messages.clone(), others)?, messages })
    }

    /// Waits until every rank has told what it brings, and tells all what to load, for the smallest
    /// plan.
    ///
    /// Errors: a process was lost or could not open the model, or computes otherwise.
    pub fn agree(
        &self,
        own: Offer,
        setup: impl FnOnce(Room) -> Setup,
    ) -> Result<Setup, RankStartError> {
        let offers = self.peers.offers().map_err(RankStartError::Process)?;
        for (index, offer) in offers.iter().enumerate() {
            if offer.arithmetic != own.arithmetic {
                let (rank, other) = (index + 1, offer.arithmetic.clone());
                let error = RankStartError::Unlike { rank, other, own: own.arithmetic };
                self.fail(error.to_string());
                return Err(error);
            }
        }
        let rooms = offers.into_iter().map(|offer| offer.room);
        let setup = setup(rooms.fold(own.room, Room::smaller));
        self.send(&Work::Setup(setup.clone()));
        Ok(setup)
    }

    /// Calls `act` when the first process is lost, whether or not a plan is under way.
    pub fn on_loss(&self, act: impl FnOnce(RunnerError) + Send + 'static) {
        self.peers.on_loss(act);
    }

    /// The watch over the processes, for whoever is told to end.
    pub fn watch(&self) -> GroupWatch {
        GroupWatch(self.peers.clone())
    }

    pub(super) fn num_others(&self) -> usize {
        self.messages.world_size() - 1
    }

    pub(super) fn lost(&self) -> Option<RunnerError> {
        self.peers.lost()
    }

    /// Tells the others that nothing more will come.
    pub(super) fn fail(&self, reason: String) {
        self.peers.say(Sign::Failed { reason });
    }

    pub(super) fn close(&self) {
        self.peers.close();
    }

    /// Rank 0's link for sums with the others.
    pub(super) fn meet(
        &self,
        sums: Sums,
        backend: &Backend,
    ) -> Result<(Box<dyn Communicator>, Option<Breaker>), RankStartError> {
        link_to_others(sums, backend, (0, self.messages.world_size()), &self.peers)
    }

    /// What another thread sends, unless a process is lost first.
    pub(super) fn receive<T>(&self, from: &Receiver<T>) -> Result<Option<T>, RunnerError> {
        self.peers.receive(from)
    }

    /// Waits until the other ranks have loaded. The blocks that the smallest has room for.
    pub(super) fn loaded(&self) -> Result<usize, RunnerError> {
        Ok(self.peers.loaded()?.into_iter().min().expect("there are others"))
    }

    pub(super) fn start(&self, start: Start) {
        self.send(&Work::Start(start));
    }

    fn send(&self, work: &Work) {
        let bytes = encode(work);
        for rank in 1..self.messages.world_size() {
            self.messages.send(rank, Channel::Work, &bytes);
        }
    }

    /// Links to the other ranks, once they have started.
    pub(super) fn links(
        &self,
        progress: &mut Progress,
        replies: &SyncSender<Reply>,
    ) -> Result<Vec<RankLink>, RankStartError> {
        self.peers.tell(progress.clone());
        self.peers.ready().map_err(RankStartError::Process)?;
        self.peers.progress().into_iter().for_each(|counter| progress.add(counter));
        (1..self.messages.world_size()).map(|rank| self.link(rank, replies.clone())).collect()
    }

    fn link(&self, rank: usize, replies: SyncSender<Reply>) -> Result<RankLink, RankStartError> {
        let (sender, plans) = sync_channel(PLANS_WAITING_MAX);
        let messages = self.messages.clone();
        let thread = std::thread::Builder::new()
            .name(format!("rank-{rank}-link"))
            .spawn(move || pass_on(rank, &*messages, &plans, &replies))
            .map_err(|source| RankStartError::Thread { rank, source })?;
        Ok(RankLink::new(sender, thread))
    }
}

/// Sends plans until the link closes. A plan that was sent counts as answered: the sums of rank 0
/// wait for those of the other ranks, and what goes wrong with them is told by signs.
fn pass_on(
    rank: usize,
    messages: &dyn Messages,
    plans: &Receiver<Arc<Plan>>,
    replies: &SyncSender<Reply>,
) {
    while let Ok(plan) = plans.recv() {
        messages.send(rank, Channel::Work, &encode(&Work::Plan(plan)));
        let result = Ok(StepOutput::default());
        if replies.send(Reply { rank, result }).is_err() {
            return;
        }
    }
    messages.send(rank, Channel::Work, &encode(&Work::End));
}
