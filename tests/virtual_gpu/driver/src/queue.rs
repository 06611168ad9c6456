//! Work that was asked for and has not run: a graph of operations, each waiting for others.
//!
//! A stream is a chain of operations, an event a dependency between chains, a graph launch a bundle
//! of operations. Which of the ready ones runs next is drawn from a seeded generator, so that a
//! program that forgot an event sees an order it did not expect.

use crate::abi::DevicePtr;
use crate::launch::Launch;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Names an operation. Never used twice.
pub type Ticket = u64;

/// What an operation does when its turn comes. Cloned when a graph that holds it is launched.
#[derive(Clone)]
pub enum Work {
    /// Only carries dependencies.
    Join,
    RecordEvent(Arc<OnceLock<Instant>>),
    Kernel(Arc<Launch>),
    Copy {
        to: Place,
        from: Place,
        bytes: u64,
    },
    Set {
        to: DevicePtr,
        device: usize,
        fill: Fill,
    },
    HostFunction {
        function: unsafe extern "C" fn(*mut c_void),
        data: HostPtr,
    },
    Free(DevicePtr),
    External(Arc<External>),
}

#[derive(Clone)]
pub enum Place {
    Device {
        address: DevicePtr,
        device: usize,
    },
    /// Host memory read or written when the operation runs.
    Host(HostPtr),
    /// Host memory as it was at the call.
    Staged(Arc<[u8]>),
}

/// `rows` rows of `row_bytes` bytes, `pitch` bytes apart, filled with the first `unit` bytes of
/// `value`.
#[derive(Clone, Copy)]
pub struct Fill {
    pub value: u32,
    pub unit: usize,
    pub row_bytes: u64,
    pub rows: u64,
    pub pitch: u64,
}

/// An address in the program's memory.
#[derive(Clone, Copy)]
pub struct HostPtr(pub *mut c_void);

// SAFETY: the program promised, by the API's contract, that the memory stays valid until the
// operation ends, whatever thread runs it.
unsafe impl Send for HostPtr {}
// SAFETY: as above; the pointer itself is only copied.
unsafe impl Sync for HostPtr {}

/// An operation of the NCCL or the cuBLASLt library.
pub struct External {
    /// Starts it. Returns [`EXTERNAL_PENDING`] if `virtual_gpu_complete` will end it, else a code.
    pub start: unsafe extern "C" fn(*mut c_void, Ticket) -> u32,
    pub data: HostPtr,
    /// Called once, when no operation and no graph holds it any more.
    pub release: unsafe extern "C" fn(*mut c_void),
}

pub const EXTERNAL_PENDING: u32 = u32::MAX;

impl Drop for External {
    fn drop(&mut self) {
        // SAFETY: `data` came with `release` for this purpose; the last owner calls it.
        unsafe { (self.release)(self.data.0) }
    }
}

pub struct Queue {
    operations: BTreeMap<Ticket, Operation>,
    /// Per device, those that wait for nothing.
    ready: Vec<Vec<Ticket>>,
    last_ticket: Ticket,
    random: u64,
}

struct Operation {
    context: u64,
    device: usize,
    work: Option<Work>,
    num_waits: usize,
    dependents: Vec<Ticket>,
}

/// An operation taken out to run.
pub struct Job {
    pub ticket: Ticket,
    pub context: u64,
    pub device: usize,
    pub work: Work,
}

impl Queue {
    pub fn new(num_devices: usize, seed: u64) -> Queue {
        Queue {
            operations: BTreeMap::new(),
            ready: vec![Vec::new(); num_devices],
            last_ticket: 0,
            random: seed,
        }
    }

    /// Adds work that waits for those of `after` that have not run yet.
    pub fn submit(
        &mut self,
        context: u64,
        device: usize,
        after: impl IntoIterator<Item = Ticket>,
        work: Work,
    ) -> Ticket {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let mut num_waits = 0;
        for other in after {
            if let Some(other) = self.operations.get_mut(&other) {
                other.dependents.push(ticket);
                num_waits += 1;
            }
        }
        let operation =
            Operation { context, device, work: Some(work), num_waits, dependents: Vec::new() };
        self.operations.insert(ticket, operation);
        if num_waits == 0 {
            self.ready[device].push(ticket);
        }
        ticket
    }

    pub fn is_pending(&self, ticket: Ticket) -> bool {
        self.operations.contains_key(&ticket)
    }

    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn context_is_idle(&self, context: u64) -> bool {
        self.operations.values().all(|operation| operation.context != context)
    }

    /// The context of an operation that has not ended.
    pub fn context_of(&self, ticket: Ticket) -> Option<u64> {
        self.operations.get(&ticket).map(|operation| operation.context)
    }

    /// A random ready operation: of `device` if it has one, else of any.
    pub fn take_ready(&mut self, device: usize) -> Option<Job> {
        let device = if self.ready[device].is_empty() {
            self.ready.iter().position(|ready| !ready.is_empty())?
        } else {
            device
        };
        let pick = self.draw(self.ready[device].len());
        let ticket = self.ready[device].swap_remove(pick);
        let operation = self.operations.get_mut(&ticket)?;
        let work = operation.work.take().expect("a ready operation has its work");
        Some(Job { ticket, context: operation.context, device, work })
    }

    /// Ends an operation; those that waited for it alone become ready.
    pub fn complete(&mut self, ticket: Ticket) {
        let Some(operation) = self.operations.remove(&ticket) else { return };
        for dependent in operation.dependents {
            let Some(other) = self.operations.get_mut(&dependent) else { continue };
            other.num_waits -= 1;
            if other.num_waits == 0 {
                self.ready[other.device].push(dependent);
            }
        }
    }

    /// Drops all operations of a context without running them.
    pub fn cancel(&mut self, context: u64) {
        let tickets: Vec<Ticket> = self
            .operations
            .iter()
            .filter(|(_, operation)| operation.context == context)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in tickets {
            self.complete(ticket);
        }
        let operations = &self.operations;
        for ready in &mut self.ready {
            ready.retain(|ticket| operations.contains_key(ticket));
        }
    }

    /// A random number below `limit` (splitmix64, Steele et al. 2014).
    pub fn draw(&mut self, limit: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(self.random) % limit as u64) as usize
    }
}

/// The finaliser of splitmix64.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
