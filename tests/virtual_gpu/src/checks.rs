//! What is checked, and how a finding is told.

use std::fmt;

/// The checks of a launch. All are on by default; each costs time.
///
/// Accesses outside allocations are always refused, since the interpreter itself must not follow
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Poisons shared memory and the destination of copies in flight, and counts local bounds.
    pub memcheck: bool,
    /// Reads of bytes that nobody wrote.
    pub initcheck: bool,
    /// Accesses of two threads to the same shared bytes without a barrier between them.
    pub racecheck: bool,
    /// Barriers in divergent code or after exit, reads of bytes still in flight.
    pub synccheck: bool,
}

impl Checks {
    pub const ALL: Checks =
        Checks { memcheck: true, initcheck: true, racecheck: true, synccheck: true };
    /// For speed. Bounds, alignment and deadlocks are still found.
    pub const NONE: Checks =
        Checks { memcheck: false, initcheck: false, racecheck: false, synccheck: false };
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::ALL
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// An access outside every allocation, or of freed memory.
    Memcheck,
    Alignment,
    Initcheck,
    Racecheck,
    Synccheck,
    /// Grid, block, parameters or shared memory that the device refuses.
    Launch,
    /// `trap` or `brkpt` was executed.
    Trap,
    /// The instruction limit was reached.
    Timeout,
    /// An instruction outside what this interpreter knows, found only when it was executed.
    Unsupported,
}

/// A line of the CUDA source, from `.loc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    pub file: String,
    pub line: u32,
}

/// A finding: which check, where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub kind: CheckKind,
    pub kernel: String,
    pub block: [u32; 3],
    pub thread: Option<[u32; 3]>,
    /// Line of the PTX text; 0 before the first instruction.
    pub line: u32,
    pub source: Option<SourceLine>,
    pub address: Option<u64>,
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: kernel {}, block {:?}", self.kind, self.kernel, self.block)?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread:?}")?;
        }
        if self.line > 0 {
            write!(f, ", ptx line {}", self.line)?;
        }
        if let Some(source) = &self.source {
            write!(f, " ({}:{})", source.file, source.line)?;
        }
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Violation {}
