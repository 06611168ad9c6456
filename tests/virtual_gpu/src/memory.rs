//! Global memory of one device: allocations at guest addresses, poisoned when fresh, with a record
//! of which bytes were ever written.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use crate::ptx::Module;

/// Fresh memory holds this byte: NaN in f16, bf16, f32 and f64.
pub const POISON: u8 = 0xFF;
/// Alignment of every allocation, as of cuMemAlloc.
pub const ALLOC_ALIGN: u64 = 256;
/// Between two allocations lies at least this much that belongs to nobody.
const GUARD_BYTES: u64 = 4096;
/// Each device has an address range of this size; the first begins at this address.
pub const DEVICE_BYTES: u64 = 1 << 40;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error("{address:#x} is not the start of a live allocation of device {ordinal}")]
    NotAllocated { ordinal: usize, address: u64 },
    #[error("{bytes} bytes at {address:#x} are not inside a live allocation: {nearest}")]
    OutOfBounds { address: u64, bytes: u64, nearest: String },
}

/// Memory of one allocation and one bit per byte: was it written?
pub struct Allocation {
    pub address: u64,
    pub size: u64,
    data: *mut u8,
    written: Box<[AtomicU64]>,
}

// SAFETY: `data` is owned by the allocation and freed once, in `drop`. Concurrent access through
// `host` is the access of GPU threads: kernels that race have racing values, exactly as on a
// device, and no Rust reference to the bytes exists.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    fn new(address: u64, size: u64) -> Allocation {
        let layout = Self::layout(size);
        // SAFETY: the layout has a size above zero.
        let data = unsafe { alloc(layout) };
        if data.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: `data` has `layout.size()` bytes.
        unsafe { data.write_bytes(POISON, layout.size()) };
        let words = size.div_ceil(64) as usize;
        let written = (0..words).map(|_| AtomicU64::new(0)).collect();
        Allocation { address, size, data, written }
    }

    fn layout(size: u64) -> Layout {
        // One cache line more, so that wide host loads at the end stay inside.
        Layout::from_size_align(size as usize + 64, 256).expect("a size below isize::MAX")
    }

    #[inline(always)]
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        address >= self.address && address - self.address + bytes <= self.size
    }

    /// The host address of a guest address inside this allocation.
    #[inline(always)]
    pub(crate) fn host(&self, address: u64) -> *mut u8 {
        debug_assert!(address >= self.address && address - self.address <= self.size);
        // SAFETY: the caller checked with `contains`.
        unsafe { self.data.add((address - self.address) as usize) }
    }

    /// Notes that `bytes` bytes from `address` were written.
    #[inline(always)]
    pub(crate) fn mark_written(&self, address: u64, bytes: u64) {
        let mut at = address - self.address;
        let end = at + bytes;
        while at < end {
            let bit = at % 64;
            let count = (64 - bit).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let word = &self.written[(at / 64) as usize];
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
            at += count;
        }
    }

    /// The first byte of the range that nobody wrote.
    #[inline(always)]
    pub(crate) fn first_unwritten(&self, address: u64, bytes: u64) -> Option<u64> {
        let mut at = address - self.address;
        let end = at + bytes;
        while at < end {
            let bit = at % 64;
            let count = (64 - bit).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let missing = !self.written[(at / 64) as usize].load(Ordering::Relaxed) & mask;
            if missing != 0 {
                return Some(self.address + (at & !63) + missing.trailing_zeros() as u64);
            }
            at += count;
        }
        None
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; nobody holds the pointer beyond the
        // Arc's life.
        unsafe { dealloc(self.data, Self::layout(self.size)) };
    }
}

/// The live allocations, sorted by address.
pub(crate) type Table = Vec<Arc<Allocation>>;

/// The index of the allocation that holds the range.
#[inline(always)]
pub(crate) fn find(table: &Table, address: u64, bytes: u64) -> Option<usize> {
    let after = table.partition_point(|a| a.address <= address);
    let index = after.checked_sub(1)?;
    table[index].contains(address, bytes).then_some(index)
}

struct State {
    table: Arc<Table>,
    next: u64,
    /// Freed ranges, start -> size. Addresses are never used again, so use after free is always
    /// seen.
    freed: BTreeMap<u64, u64>,
    /// Module id -> addresses of its variables.
    modules: HashMap<u64, Arc<Vec<u64>>>,
    live_bytes: u64,
}

/// Global memory of one device.
pub struct GlobalMemory {
    ordinal: usize,
    state: RwLock<State>,
}

impl GlobalMemory {
    pub fn new(ordinal: usize) -> GlobalMemory {
        let state = State {
            table: Arc::new(Vec::new()),
            next: (ordinal as u64 + 1) * DEVICE_BYTES,
            freed: BTreeMap::new(),
            modules: HashMap::new(),
            live_bytes: 0,
        };
        GlobalMemory { ordinal, state: RwLock::new(state) }
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Does the address belong to the address range of this device, live or not?
    pub fn owns_range_of(&self, address: u64) -> bool {
        address / DEVICE_BYTES == self.ordinal as u64 + 1
    }

    /// A fresh allocation of poisoned bytes; its address is aligned to `ALLOC_ALIGN` and never used
    /// again.
    pub fn alloc(&self, bytes: u64) -> u64 {
        let mut state = self.state.write().expect("memory lock");
        let address = state.next;
        state.next += (bytes + GUARD_BYTES).next_multiple_of(ALLOC_ALIGN);
        assert!(self.owns_range_of(state.next), "address range of device {} used up", self.ordinal);
        state.live_bytes += bytes;
        // New addresses are the highest, so the table stays sorted.
        let table = Arc::make_mut(&mut state.table);
        table.push(Arc::new(Allocation::new(address, bytes)));
        address
    }

    /// Errors: `NotAllocated` if the address is not the start of a live allocation.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut state = self.state.write().expect("memory lock");
        let index = state
            .table
            .binary_search_by_key(&address, |a| a.address)
            .map_err(|_| MemoryError::NotAllocated { ordinal: self.ordinal, address })?;
        let freed = Arc::make_mut(&mut state.table).remove(index);
        state.freed.insert(freed.address, freed.size);
        state.live_bytes -= freed.size;
        Ok(())
    }

    pub fn live_bytes(&self) -> u64 {
        self.state.read().expect("memory lock").live_bytes
    }

    /// Start and size of the live allocation that holds the address.
    pub fn allocation_of(&self, address: u64) -> Option<(u64, u64)> {
        let table = self.table();
        find(&table, address, 1).map(|i| (table[i].address, table[i].size))
    }

    /// Start and size of every live allocation, by address.
    pub fn allocations(&self) -> Vec<(u64, u64)> {
        self.table().iter().map(|a| (a.address, a.size)).collect()
    }

    /// Copies bytes to the host. Unwritten bytes read as poison.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let allocation = self.lookup(address, out.len() as u64)?;
        // SAFETY: `lookup` made sure that the range lies inside the allocation, which the Arc keeps
        // alive.
        unsafe {
            std::ptr::copy_nonoverlapping(allocation.host(address), out.as_mut_ptr(), out.len());
        }
        Ok(())
    }

    /// The first byte of the range that nobody ever wrote.
    pub fn first_unwritten(&self, address: u64, bytes: u64) -> Result<Option<u64>, MemoryError> {
        Ok(self.lookup(address, bytes)?.first_unwritten(address, bytes))
    }

    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let allocation = self.lookup(address, bytes.len() as u64)?;
        // SAFETY: as in `read`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), allocation.host(address), bytes.len());
        }
        allocation.mark_written(address, bytes.len() as u64);
        Ok(())
    }

    pub fn fill(&self, address: u64, byte: u8, bytes: u64) -> Result<(), MemoryError> {
        let allocation = self.lookup(address, bytes)?;
        // SAFETY: as in `read`.
        unsafe { allocation.host(address).write_bytes(byte, bytes as usize) };
        allocation.mark_written(address, bytes);
        Ok(())
    }

    /// Copies inside the device, or from another device when `source` is another memory. The record
    /// of written bytes is copied too.
    pub fn copy_from(
        &self,
        address: u64,
        source: &GlobalMemory,
        source_address: u64,
        bytes: u64,
    ) -> Result<(), MemoryError> {
        let to = self.lookup(address, bytes)?;
        let from = source.lookup(source_address, bytes)?;
        // SAFETY: both ranges were looked up; `copy` allows overlap.
        unsafe {
            std::ptr::copy(from.host(source_address), to.host(address), bytes as usize);
        }
        let mut at = 0;
        while at < bytes {
            let gap = from.first_unwritten(source_address + at, bytes - at);
            let end = gap.map_or(bytes, |hole| hole - source_address);
            if end > at {
                to.mark_written(address + at, end - at);
            }
            at = end + gap.is_some() as u64;
        }
        Ok(())
    }

    /// Poisons the range and forgets that it was written, as when a pool hands a block to a new
    /// owner.
    pub fn poison(&self, address: u64, bytes: u64) -> Result<(), MemoryError> {
        let allocation = self.lookup(address, bytes)?;
        // SAFETY: as in `read`.
        unsafe { allocation.host(address).write_bytes(POISON, bytes as usize) };
        for at in address - allocation.address..address - allocation.address + bytes {
            allocation.written[(at / 64) as usize].fetch_and(!(1 << (at % 64)), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The device address of a `.global` or `.const` variable of a module, and its size; loads the
    /// module's variables at first use.
    pub fn variable(&self, module: &Module, name: &str) -> Option<(u64, u64)> {
        let index = module.variables().iter().position(|v| v.name == name)?;
        let address = self.module_addresses(module)[index];
        Some((address, module.variables()[index].bytes.len() as u64))
    }

    pub(crate) fn module_addresses(&self, module: &Module) -> Arc<Vec<u64>> {
        if module.variables().is_empty() {
            return Arc::new(Vec::new());
        }
        if let Some(known) = self.state.read().expect("memory lock").modules.get(&module.id()) {
            return known.clone();
        }
        let mut addresses = Vec::new();
        for variable in module.variables() {
            let address = self.alloc(variable.bytes.len() as u64);
            self.write(address, &variable.bytes).expect("just allocated");
            addresses.push(address);
        }
        let mut state = self.state.write().expect("memory lock");
        state.modules.entry(module.id()).or_insert(Arc::new(addresses)).clone()
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.state.read().expect("memory lock").table.clone()
    }

    fn lookup(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, MemoryError> {
        let table = self.table();
        match find(&table, address, bytes) {
            Some(index) => Ok(table[index].clone()),
            None => {
                let nearest = self.describe(address);
                Err(MemoryError::OutOfBounds { address, bytes, nearest })
            }
        }
    }

    /// What lies at or near an address, for messages.
    pub fn describe(&self, address: u64) -> String {
        let state = self.state.read().expect("memory lock");
        if !self.owns_range_of(address) {
            return format!("not an address of device {}", self.ordinal);
        }
        if let Some((&start, &size)) = state.freed.range(..=address).next_back()
            && address < start + size
        {
            return format!(
                "byte {} of freed allocation {start:#x} of {size} bytes",
                address - start
            );
        }
        let after = state.table.partition_point(|a| a.address <= address);
        match after.checked_sub(1).map(|i| &state.table[i]) {
            Some(a) if address < a.address + a.size => {
                format!(
                    "byte {} of allocation {:#x} of {} bytes",
                    address - a.address,
                    a.address,
                    a.size
                )
            }
            Some(a) => format!(
                "{} bytes past the end of allocation {:#x} of {} bytes",
                address - a.address - a.size,
                a.address,
                a.size
            ),
            None => "before the first allocation".to_string(),
        }
    }
}

impl std::fmt::Debug for GlobalMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GlobalMemory").field("ordinal", &self.ordinal).finish_non_exhaustive()
    }
}
