//! What the host knows of a kernel: its file, its name and the list of its parameters.

/// A kernel as the host launches it. A test compares the parameters with those in the PTX and in
/// the machine code, since the driver's launch call knows no types.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct KernelSpec {
    /// The `.cu` file's name without its ending.
    pub module: &'static str,
    /// The `extern "C"` name.
    pub name: &'static str,
    pub params: &'static [Param],
}

/// Kernels take device addresses and numbers only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Param {
    Ptr,
    U32,
    I32,
    U64,
    F32,
}

impl Param {
    pub fn bytes(self) -> usize {
        match self {
            Param::Ptr | Param::U64 => 8,
            Param::U32 | Param::I32 | Param::F32 => 4,
        }
    }
}

/// One argument of a launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A device address; 0 where the kernel allows none.
    Ptr(u64),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
}

impl Arg {
    pub fn param(self) -> Param {
        match self {
            Arg::Ptr(_) => Param::Ptr,
            Arg::U32(_) => Param::U32,
            Arg::I32(_) => Param::I32,
            Arg::U64(_) => Param::U64,
            Arg::F32(_) => Param::F32,
        }
    }

    /// The bits that the kernel reads, in the low bytes.
    pub(super) fn bits(self) -> u64 {
        match self {
            Arg::Ptr(x) | Arg::U64(x) => x,
            Arg::U32(x) => x.into(),
            Arg::I32(x) => (x as u32).into(),
            Arg::F32(x) => x.to_bits().into(),
        }
    }
}

/// How many threads run a kernel, and what they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks in x, y and z; none of them 0.
    pub grid: [u32; 3],
    /// Threads of a block, in x.
    pub block_threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}
