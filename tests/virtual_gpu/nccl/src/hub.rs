//! The process that made an id is where the clique meets: ranks of other processes of this machine
//! find it by a socket that the id names.

use crate::abi::{Code, Result, refuse};
use crate::clique::{Clique, Member};
use crate::wire::{self, Frame, FromHub, ToHub};
use crate::{group, watchdog};
use std::io::{self, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// The 128 bytes of an `ncclUniqueId`: four words and zeros.
pub type Key = [u8; 128];

const ID_MARK: u64 = u64::from_le_bytes(*b"vgpunccl");

/// The process that made an id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    process: u64,
    /// When it made its first id: process numbers are used again.
    since: u64,
}

/// A new id, for ranks of this process and of others.
///
/// Errors: `SYSTEM_ERROR` when others could not find it.
pub fn new_id() -> Result<Key> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let maker = match this_process() {
        Ok(maker) => maker,
        Err(error) => return refuse(Code::SYSTEM_ERROR, &format!("no socket: {error}")),
    };
    let nth = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    let mut key = [0; 128];
    for (to, word) in key.chunks_mut(8).zip([ID_MARK, maker.process, maker.since, nth]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Ok(key)
}

/// Who made an id; `None`: this process.
///
/// Errors: `INVALID_ARGUMENT` for an id of something else.
pub fn maker_of(key: &Key) -> Result<Option<Maker>> {
    let word = |at: usize| u64::from_le_bytes(key[8 * at..][..8].try_into().expect("8 bytes"));
    if word(0) != ID_MARK {
        return refuse(Code::INVALID_ARGUMENT, "not an id of the Virtual GPU's NCCL");
    }
    let maker = Maker { process: word(1), since: word(2) };
    let is_own = maker.process == u64::from(std::process::id())
        && this_process().is_ok_and(|this| this == maker);
    Ok((!is_own).then_some(maker))
}

impl Maker {
    pub fn connect(self) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&self.address()?)
    }

    /// In the abstract namespace: it vanishes with the process.
    fn address(self) -> io::Result<SocketAddr> {
        let Maker { process, since } = self;
        SocketAddr::from_abstract_name(format!("virtual-gpu-nccl-{process}-{since:x}"))
    }
}

/// This process as a maker of ids. From the first call on it listens for ranks of others.
fn this_process() -> std::result::Result<Maker, &'static io::Error> {
    static THIS: OnceLock<io::Result<Maker>> = OnceLock::new();
    let listen = || -> io::Result<Maker> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let maker = Maker { process: u64::from(std::process::id()), since: since as u64 };
        let listener = UnixListener::bind_addr(&maker.address()?)?;
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                thread::spawn(move || serve(socket));
            }
        });
        Ok(maker)
    };
    THIS.get_or_init(listen).as_ref().copied()
}

/// Stands in for a rank of another process until its connection ends. When its process is lost the
/// others go on waiting for it, as with the real library between GPUs of one machine.
fn serve(socket: UnixStream) {
    let Ok(read_half) = socket.try_clone() else { return };
    let mut messages = BufReader::new(read_half);
    let Ok((ToHub::Join { num_ranks, rank, device }, id)) = wire::read(&mut messages) else {
        return;
    };
    let link = wire::sender(socket);
    let member = Member { device, link: Some(link.clone()) };
    let joined = match Key::try_from(id) {
        Ok(key) => group::take_in(&key, num_ranks, rank, member),
        Err(_) => Err((Code::INVALID_ARGUMENT, "an id of another length".to_string())),
    };
    let clique = match joined {
        Ok(clique) => clique,
        Err((code, why)) => {
            // The rank's process is gone if this fails, here and below.
            let _ = link.send(Frame::new(&FromHub::Refused { code }, why.into_bytes()));
            return;
        }
    };
    drop(link);
    while let Ok((message, data)) = wire::read(&mut messages) {
        take(&clique, rank, message, &data);
    }
}

fn take(clique: &Arc<Clique>, rank: usize, message: ToHub, data: &[u8]) {
    match message {
        ToHub::Arrive { ticket, calls } => {
            watchdog::watch(clique.clone());
            let mut rest = data;
            let mut next = |len: usize| {
                let (bytes, after) = rest.split_at(len);
                rest = after;
                bytes.to_vec()
            };
            let calls = calls.into_iter().map(|(call, sent)| (call, sent.map(&mut next)));
            clique.arrive_from(rank, calls.collect(), ticket);
        }
        ToHub::Abort => clique.abort(rank),
        ToHub::Join { .. } => eprintln!("virtual GPU: NCCL: rank {rank} joins twice"),
    }
}
