//! What the processes of a clique say to each other over a socket: frames of words, which are a
//! message, and data, which is mostly what lies in buffers.

use crate::abi::Code;
use crate::clique::{Call, Kind};
use crate::driver::Ticket;
use crate::reduce::{DataType, Operation};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// Longer ones are no frames of this library.
const WORDS_MAX: u64 = 1 << 20;
const DATA_BYTES_MAX: u64 = 1 << 36;

/// From a rank to the process in which its clique meets.
#[derive(Debug)]
pub enum ToHub {
    /// The first message. The data: the id.
    Join {
        num_ranks: usize,
        rank: usize,
        device: i32,
    },
    /// An operation has come to its turn. The data: what its calls send, one after the other.
    Arrive {
        ticket: Ticket,
        calls: Vec<(Call, Sent)>,
    },
    Abort,
}

/// How many bytes a call sends, or the CUDA error of reading them.
pub type Sent = std::result::Result<usize, u32>;

/// From that process to a rank.
#[derive(Debug)]
pub enum FromHub {
    /// The rank has joined; perhaps not all have.
    Accepted,
    /// The data: why.
    Refused { code: Code },
    /// All ranks have joined.
    Complete,
    /// The communicator's asynchronous error.
    Failed { code: Code },
    /// An operation has ended, well or with a CUDA error. The data: what its calls receive, each so
    /// many bytes.
    Ended { ticket: Ticket, error: u32, received: Vec<usize> },
}

/// A message as words.
pub trait Message: Sized {
    fn to_words(&self) -> Vec<u64>;
    /// `None`: they are no such message.
    fn from_words(words: &mut Words) -> Option<Self>;
}

pub type Words = std::vec::IntoIter<u64>;

pub struct Frame {
    words: Vec<u64>,
    data: Vec<u8>,
}

impl Frame {
    pub fn new(message: &impl Message, data: Vec<u8>) -> Frame {
        Frame { words: message.to_words(), data }
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let lens = [self.words.len() as u64, self.data.len() as u64];
        let words = lens.iter().chain(&self.words);
        let head: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        to.write_all(&head)?;
        to.write_all(&self.data)
    }
}

/// The next message and its data.
///
/// Errors: the other process is gone, or says something else.
pub fn read<T: Message>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let other = || io::Error::other("not a frame of the Virtual GPU's NCCL");
    let (num_words, num_bytes) = (read_word(from)?, read_word(from)?);
    if num_words > WORDS_MAX || num_bytes > DATA_BYTES_MAX {
        return Err(other());
    }
    let words = (0..num_words).map(|_| read_word(from)).collect::<io::Result<Vec<u64>>>()?;
    let message = T::from_words(&mut words.into_iter()).ok_or_else(other)?;
    let mut data = vec![0; num_bytes as usize];
    from.read_exact(&mut data)?;
    Ok((message, data))
}

fn read_word(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Sends frames from a thread of its own, so that nobody waits for a process that stands still. A
/// rank has at most one frame on its way for each of its operations.
///
/// When the last sender is dropped the connection ends, after what was sent.
pub fn sender(mut socket: UnixStream) -> Sender<Frame> {
    let (sender, frames) = channel::<Frame>();
    thread::spawn(move || {
        // When the other process is gone, nobody needs the rest.
        let _ = frames.iter().try_for_each(|frame| frame.write(&mut socket));
        let _ = socket.shutdown(Shutdown::Both);
    });
    sender
}

impl Message for ToHub {
    fn to_words(&self) -> Vec<u64> {
        match self {
            ToHub::Join { num_ranks, rank, device } => {
                vec![0, *num_ranks as u64, *rank as u64, *device as u64]
            }
            ToHub::Arrive { ticket, calls } => {
                let mut words = vec![1, *ticket, calls.len() as u64];
                for (call, sent) in calls {
                    words.extend(call.to_words());
                    words.extend(match *sent {
                        Ok(len) => [0, len as u64],
                        Err(code) => [1, u64::from(code)],
                    });
                }
                words
            }
            ToHub::Abort => vec![2],
        }
    }

    fn from_words(words: &mut Words) -> Option<ToHub> {
        Some(match words.next()? {
            0 => ToHub::Join {
                num_ranks: words.next()? as usize,
                rank: words.next()? as usize,
                device: words.next()? as i32,
            },
            1 => {
                let (ticket, num_calls) = (words.next()?, words.next()?);
                let mut call = || {
                    let call = Call::from_words(words)?;
                    let (is_error, value) = (words.next()? == 1, words.next()?);
                    Some((call, if is_error { Err(value as u32) } else { Ok(value as usize) }))
                };
                let calls = (0..num_calls).map(|_| call()).collect::<Option<_>>()?;
                ToHub::Arrive { ticket, calls }
            }
            2 => ToHub::Abort,
            _ => return None,
        })
    }
}

impl Message for FromHub {
    fn to_words(&self) -> Vec<u64> {
        match self {
            FromHub::Accepted => vec![0],
            FromHub::Refused { code } => vec![1, u64::from(code.0)],
            FromHub::Complete => vec![2],
            FromHub::Failed { code } => vec![3, u64::from(code.0)],
            FromHub::Ended { ticket, error, received } => {
                let lens = received.iter().map(|len| *len as u64);
                [4, *ticket, u64::from(*error)].into_iter().chain(lens).collect()
            }
        }
    }

    fn from_words(words: &mut Words) -> Option<FromHub> {
        Some(match words.next()? {
            0 => FromHub::Accepted,
            1 => FromHub::Refused { code: Code(words.next()? as u32) },
            2 => FromHub::Complete,
            3 => FromHub::Failed { code: Code(words.next()? as u32) },
            4 => FromHub::Ended {
                ticket: words.next()?,
                error: words.next()? as u32,
                received: words.map(|len| len as usize).collect(),
            },
            _ => return None,
        })
    }
}

impl Message for Call {
    fn to_words(&self) -> Vec<u64> {
        let (kind, operation, rank) = match self.kind {
            Kind::AllReduce(operation) => (0, operation as u64, 0),
            Kind::AllGather => (1, 0, 0),
            Kind::ReduceScatter(operation) => (2, operation as u64, 0),
            Kind::Broadcast { root } => (3, 0, root),
            Kind::Reduce { operation, root } => (4, operation as u64, root),
            Kind::Send { peer } => (5, 0, peer),
            Kind::Recv { peer } => (6, 0, peer),
        };
        let (count, data_type) = (self.count as u64, self.data_type as u64);
        vec![kind, operation, rank as u64, count, data_type, self.send, self.recv]
    }

    fn from_words(words: &mut Words) -> Option<Call> {
        let (kind, operation, rank) = (words.next()?, words.next()?, words.next()? as usize);
        let operation = Operation::from_raw(operation as u32).ok()?;
        let kind = match kind {
            0 => Kind::AllReduce(operation),
            1 => Kind::AllGather,
            2 => Kind::ReduceScatter(operation),
            3 => Kind::Broadcast { root: rank },
            4 => Kind::Reduce { operation, root: rank },
            5 => Kind::Send { peer: rank },
            6 => Kind::Recv { peer: rank },
            _ => return None,
        };
        let count = words.next()? as usize;
        let data_type = DataType::from_raw(words.next()? as u32).ok()?;
        Some(Call { kind, count, data_type, send: words.next()?, recv: words.next()? })
    }
}
