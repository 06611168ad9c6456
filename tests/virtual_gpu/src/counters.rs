//! What a launch executed, in numbers that do not depend on the machine: instructions, bytes,
//! sectors, bank conflicts.

use std::collections::BTreeMap;

/// What an instruction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InstClass {
    Mma,
    Ldmatrix,
    CpAsync,
    LdGlobal,
    StGlobal,
    LdShared,
    StShared,
    /// Local, parameter and constant memory.
    OtherMemory,
    Atomic,
    Fp,
    Int,
    /// Moves, conversions, selects.
    Move,
    Shuffle,
    Control,
    Sync,
    Fence,
}

pub const INST_CLASSES: [InstClass; 16] = [
    InstClass::Mma,
    InstClass::Ldmatrix,
    InstClass::CpAsync,
    InstClass::LdGlobal,
    InstClass::StGlobal,
    InstClass::LdShared,
    InstClass::StShared,
    InstClass::OtherMemory,
    InstClass::Atomic,
    InstClass::Fp,
    InstClass::Int,
    InstClass::Move,
    InstClass::Shuffle,
    InstClass::Control,
    InstClass::Sync,
    InstClass::Fence,
];

/// How often a shared-memory access was served in how many passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wavefronts {
    pub actual: u64,
    /// The passes that the bytes alone would need.
    pub minimal: u64,
}

impl Wavefronts {
    /// 1.0 means free of bank conflicts.
    pub fn ways(&self) -> f64 {
        if self.minimal == 0 { 1.0 } else { self.actual as f64 / self.minimal as f64 }
    }
}

/// Bytes that threads asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// The counters of one launch, or of several after `merge`. Independent of seed and threads for
/// race-free kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub launches: u64,
    pub blocks: u64,
    pub warps: u64,
    pub warp_instructions: u64,
    /// Instructions times active threads.
    pub thread_instructions: u64,
    pub by_class: BTreeMap<InstClass, u64>,
    pub global: Traffic,
    pub shared: Traffic,
    pub local: Traffic,
    /// Memory instructions that touched global memory (one per warp instruction).
    pub global_requests: u64,
    /// 32-byte sectors that those requests touched.
    pub global_sectors: u64,
    /// Sectors that the distinct bytes would need if they lay side by side.
    pub global_sectors_minimal: u64,
    /// Bytes per thread of a global access -> number of thread accesses.
    pub global_widths: BTreeMap<u32, u64>,
    pub shared_wavefronts: Wavefronts,
    /// PTX line -> passes of the shared accesses of that line. After `merge` of different modules
    /// lines may mix.
    pub shared_by_line: BTreeMap<u32, Wavefronts>,
    /// PTX line -> executed warp instructions.
    pub executed_by_line: BTreeMap<u32, u64>,
    pub barriers: u64,
    pub fences: u64,
}

impl Counters {
    pub fn class(&self, class: InstClass) -> u64 {
        self.by_class.get(&class).copied().unwrap_or(0)
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Counters) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        self.warps += other.warps;
        self.warp_instructions += other.warp_instructions;
        self.thread_instructions += other.thread_instructions;
        for (&class, &count) in &other.by_class {
            *self.by_class.entry(class).or_default() += count;
        }
        for (mine, theirs) in [
            (&mut self.global, &other.global),
            (&mut self.shared, &other.shared),
            (&mut self.local, &other.local),
        ] {
            mine.read_bytes += theirs.read_bytes;
            mine.written_bytes += theirs.written_bytes;
        }
        self.global_requests += other.global_requests;
        self.global_sectors += other.global_sectors;
        self.global_sectors_minimal += other.global_sectors_minimal;
        for (&width, &count) in &other.global_widths {
            *self.global_widths.entry(width).or_default() += count;
        }
        self.shared_wavefronts.actual += other.shared_wavefronts.actual;
        self.shared_wavefronts.minimal += other.shared_wavefronts.minimal;
        for (&line, theirs) in &other.shared_by_line {
            let mine = self.shared_by_line.entry(line).or_default();
            mine.actual += theirs.actual;
            mine.minimal += theirs.minimal;
        }
        for (&line, &count) in &other.executed_by_line {
            *self.executed_by_line.entry(line).or_default() += count;
        }
        self.barriers += other.barriers;
        self.fences += other.fences;
    }
}
