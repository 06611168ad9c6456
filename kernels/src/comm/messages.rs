//! Messages between the processes of a group: what is said beside the sums.

/// What a message is about; each kind keeps its own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// What is to be computed.
    Work,
    /// Who is alive.
    Life,
}

/// The links of one process to all others of its group.
pub trait Messages: Send + Sync {
    fn rank(&self) -> usize;
    fn world_size(&self) -> usize;
    /// Ranks on this machine, this one included.
    fn local_size(&self) -> usize;
    /// This rank's place among them.
    fn local_rank(&self) -> usize;
    /// May wait until `to` takes a long message, for ever if `to` is lost.
    fn send(&self, to: usize, channel: Channel, bytes: &[u8]);
    /// The next message and its sender; never waits.
    fn try_receive(&self, channel: Channel) -> Option<(usize, Vec<u8>)>;
}
