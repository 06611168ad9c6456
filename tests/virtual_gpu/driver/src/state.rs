//! Everything the driver knows, behind one lock. Work runs outside the lock, in `run.rs`.

use crate::abi::{Code, DevicePtr, Result, STREAM_LEGACY, STREAM_NULL, STREAM_PER_THREAD};
use crate::capture::{Capture, Graph, GraphExec, Node};
use crate::config::Config;
use crate::engine::DeviceMemory;
use crate::module::{Function, Module};
use crate::queue::{Queue, Ticket};
use crate::report::Report;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

pub struct Driver {
    pub config: Config,
    /// One per device; outside the lock since they lock themselves.
    pub memories: Vec<DeviceMemory>,
    /// Kernels started so far, per device.
    pub launches: Vec<AtomicU64>,
    pub report: Mutex<Report>,
    state: Mutex<State>,
    /// Signalled whenever an operation ends or one becomes ready.
    pub wake: Condvar,
}

pub struct State {
    pub devices: Vec<Device>,
    pub contexts: BTreeMap<u64, Context>,
    pub streams: BTreeMap<u64, Stream>,
    pub per_thread_streams: Vec<(u64, ThreadId, u64)>,
    pub events: BTreeMap<u64, Event>,
    pub modules: BTreeMap<u64, LoadedModule>,
    pub functions: BTreeMap<u64, LoadedFunction>,
    pub captures: BTreeMap<u64, Capture>,
    pub graphs: BTreeMap<u64, Graph>,
    pub graph_execs: BTreeMap<u64, GraphExec>,
    pub allocations: BTreeMap<DevicePtr, Allocation>,
    pub pinned: BTreeMap<u64, Pinned>,
    pub queue: Queue,
    pub num_allocations: u64,
    next_handle: u64,
}

pub struct Device {
    pub primary: Option<u64>,
    pub primary_retains: u32,
    pub lost: Option<Code>,
    pub used_bytes: u64,
    pub used_bytes_high: u64,
    pub num_allocations: u64,
    pub pool_release_threshold: u64,
}

pub struct Context {
    pub device: usize,
    /// The error that every later call returns, until the context is reset.
    pub sticky: Option<Code>,
    pub legacy_stream: u64,
}

pub struct Stream {
    pub context: u64,
    pub kind: StreamKind,
    pub priority: i32,
    /// The operation enqueued last.
    pub last: Option<Ticket>,
    pub capturing: Option<Capturing>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamKind {
    Legacy,
    /// Ordered with the legacy stream.
    Blocking,
    NonBlocking,
}

/// A stream's part in a capture.
#[derive(Clone)]
pub struct Capturing {
    pub capture: u64,
    /// The nodes that the next node of this stream will wait for.
    pub tail: Vec<usize>,
}

pub struct Event {
    pub context: u64,
    pub timing: bool,
    pub recorded: Recorded,
}

#[derive(Clone)]
pub enum Recorded {
    Never,
    /// In a stream; the cell is set when the operation has run.
    InStream {
        ticket: Ticket,
        at: Arc<OnceLock<Instant>>,
    },
    InCapture {
        capture: u64,
        nodes: Vec<usize>,
    },
}

pub struct LoadedModule {
    pub context: u64,
    pub module: Arc<Module>,
    pub functions: Vec<u64>,
}

pub struct LoadedFunction {
    pub context: u64,
    pub function: Arc<Function>,
    /// Dynamic shared memory that the program asked leave for.
    pub dynamic_shared_bytes_max: u32,
}

#[derive(Clone, Copy)]
pub struct Allocation {
    pub bytes: u64,
    pub device: usize,
    pub context: u64,
    pub owner: AllocationOwner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AllocationOwner {
    Program,
    /// The program gave it back with `cuMemFreeAsync`, which has not run.
    Queue,
    /// It is a variable of a module.
    Module,
}

#[derive(Clone, Copy)]
pub struct Pinned {
    pub bytes: u64,
    pub context: u64,
    pub owner: PinnedOwner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PinnedOwner {
    /// From `cuMemHostAlloc`.
    Driver,
    /// From `cuMemHostRegister`.
    Program,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

thread_local! {
    static CONTEXT_STACK: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// Set while a host function runs: it may not call the driver.
    static IN_CALLBACK: Cell<u32> = const { Cell::new(0) };
}

impl Driver {
    /// The driver, made by the first call.
    ///
    /// Errors: `NO_DEVICE` if the environment asks for none, `UNKNOWN` (and a line on stderr) if it
    /// asks for something that does not exist.
    pub fn init() -> Result<&'static Driver> {
        if let Some(driver) = DRIVER.get() {
            return Ok(driver);
        }
        let config = Config::from_env().map_err(|message| {
            eprintln!("virtual GPU: {message}");
            Code::UNKNOWN
        })?;
        if config.num_devices == 0 {
            return Err(Code::NO_DEVICE);
        }
        let mut is_new = false;
        let driver = DRIVER.get_or_init(|| {
            is_new = true;
            Driver::new(config)
        });
        if is_new {
            crate::report::write_at_exit();
        }
        Ok(driver)
    }

    /// Errors: `NOT_INITIALIZED` before `cuInit`.
    pub fn get() -> Result<&'static Driver> {
        DRIVER.get().ok_or(Code::NOT_INITIALIZED)
    }

    fn new(config: Config) -> Driver {
        let devices = (0..config.num_devices).map(|_| Device {
            primary: None,
            primary_retains: 0,
            lost: None,
            used_bytes: 0,
            used_bytes_high: 0,
            num_allocations: 0,
            pool_release_threshold: 0,
        });
        let state = State {
            devices: devices.collect(),
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            per_thread_streams: Vec::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            graph_execs: BTreeMap::new(),
            allocations: BTreeMap::new(),
            pinned: BTreeMap::new(),
            queue: Queue::new(config.num_devices, config.seed),
            num_allocations: 0,
            // No canonical address: a program that dereferences a handle crashes at once.
            next_handle: 0x5647_0000_0000_0000,
        };
        Driver {
            memories: (0..config.num_devices).map(DeviceMemory::new).collect(),
            launches: (0..config.num_devices).map(|_| AtomicU64::new(0)).collect(),
            report: Mutex::default(),
            state: Mutex::new(state),
            wake: Condvar::new(),
            config,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn device(&self, ordinal: i32) -> Result<usize> {
        usize::try_from(ordinal)
            .ok()
            .filter(|ordinal| *ordinal < self.config.num_devices)
            .ok_or(Code::INVALID_DEVICE)
    }
}

/// The driver, its locked state and the calling thread's context, if that context is sound.
///
/// Errors: `INVALID_CONTEXT` if the thread has none; the context's sticky error.
pub fn current() -> Result<(&'static Driver, MutexGuard<'static, State>, u64)> {
    let driver = Driver::get()?;
    let context = current_context().ok_or(Code::INVALID_CONTEXT)?;
    let state = driver.lock();
    state.check_context(context)?;
    Ok((driver, state, context))
}

/// As `current`, for calls that need nothing of it.
pub fn check_current() -> Result<()> {
    current().map(drop)
}

pub fn current_context() -> Option<u64> {
    CONTEXT_STACK.with_borrow(|stack| stack.last().copied())
}

pub fn with_context_stack<T>(f: impl FnOnce(&mut Vec<u64>) -> T) -> T {
    CONTEXT_STACK.with_borrow_mut(f)
}

pub fn in_callback() -> bool {
    IN_CALLBACK.get() > 0
}

/// Runs a host function, during which the driver refuses calls of this thread.
pub fn as_callback(f: impl FnOnce()) {
    IN_CALLBACK.set(IN_CALLBACK.get() + 1);
    f();
    IN_CALLBACK.set(IN_CALLBACK.get() - 1);
}

impl State {
    pub fn new_handle(&mut self) -> u64 {
        self.next_handle += 16;
        self.next_handle
    }

    /// Errors: `CONTEXT_IS_DESTROYED`; the sticky error of the context or of its lost device.
    pub fn check_context(&self, context: u64) -> Result<()> {
        let context = self.contexts.get(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?;
        match self.devices[context.device].lost.or(context.sticky) {
            Some(code) => Err(code),
            None => Ok(()),
        }
    }

    pub fn device_of(&self, context: u64) -> usize {
        self.contexts[&context].device
    }

    pub fn new_context(&mut self, device: usize) -> u64 {
        let context = self.new_handle();
        let legacy_stream = self.new_stream(context, StreamKind::Legacy, 0);
        self.contexts.insert(context, Context { device, sticky: None, legacy_stream });
        context
    }

    pub fn new_stream(&mut self, context: u64, kind: StreamKind, priority: i32) -> u64 {
        let handle = self.new_handle();
        let stream = Stream { context, kind, priority, last: None, capturing: None };
        self.streams.insert(handle, stream);
        handle
    }

    /// The stream behind a handle as a program passes it.
    pub fn stream(&mut self, handle: u64, context: u64) -> Result<u64> {
        match handle {
            STREAM_NULL | STREAM_LEGACY => Ok(self.contexts[&context].legacy_stream),
            STREAM_PER_THREAD => Ok(self.per_thread_stream(context)),
            _ => {
                let stream = self.streams.get(&handle).ok_or(Code::INVALID_HANDLE)?;
                self.check_context(stream.context)?;
                Ok(handle)
            }
        }
    }

    fn per_thread_stream(&mut self, context: u64) -> u64 {
        let thread = std::thread::current().id();
        let known = self.per_thread_streams.iter().find(|s| s.0 == context && s.1 == thread);
        if let Some((_, _, stream)) = known {
            return *stream;
        }
        let stream = self.new_stream(context, StreamKind::Blocking, 0);
        self.per_thread_streams.push((context, thread, stream));
        stream
    }

    /// The live allocation that holds `bytes` bytes from `address` on.
    pub fn allocation(&self, address: DevicePtr, bytes: u64) -> Option<(DevicePtr, Allocation)> {
        let (base, allocation) = self.allocations.range(..=address).next_back()?;
        let end = address.checked_add(bytes)?;
        (end <= base + allocation.bytes && address < base + allocation.bytes)
            .then_some((*base, *allocation))
    }

    pub fn pinned_range(&self, address: u64, bytes: u64) -> Option<Pinned> {
        let (base, pinned) = self.pinned.range(..=address).next_back()?;
        (address.checked_add(bytes)? <= base + pinned.bytes).then_some(*pinned)
    }

    /// Forgets a context and all that lives in it. The caller has waited for its work, or gives it
    /// up.
    pub fn destroy_context(&mut self, context: u64, memories: &[DeviceMemory]) {
        self.queue.cancel(context);
        let addresses: Vec<DevicePtr> = self
            .allocations
            .iter()
            .filter(|(_, allocation)| allocation.context == context)
            .map(|(address, _)| *address)
            .collect();
        for address in addresses {
            self.free(address, memories);
        }
        self.streams.retain(|_, stream| stream.context != context);
        self.per_thread_streams.retain(|stream| stream.0 != context);
        self.events.retain(|_, event| event.context != context);
        self.modules.retain(|_, module| module.context != context);
        self.functions.retain(|_, function| function.context != context);
        self.captures.retain(|_, capture| capture.context != context);
        let is_foreign = |nodes: &[Node]| nodes.iter().all(|node| node.context != context);
        self.graphs.retain(|_, graph| is_foreign(&graph.nodes));
        self.graph_execs.retain(|_, exec| is_foreign(&exec.nodes));
        self.contexts.remove(&context);
    }

    /// Gives an allocation back. Returns whether there was one.
    pub fn free(&mut self, address: DevicePtr, memories: &[DeviceMemory]) -> bool {
        let Some(allocation) = self.allocations.remove(&address) else { return false };
        self.devices[allocation.device].used_bytes -= allocation.bytes;
        memories[allocation.device].free(address);
        true
    }
}
