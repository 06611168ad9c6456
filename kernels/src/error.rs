//! What can go wrong in an op: always the caller's mistake or a lost device.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A tensor does not have the shape that the op's contract asks for.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape { op: &'static str, what: &'static str, got: Vec<usize>, expected: String },
    /// A tensor has a dtype that the op does not take.
    #[error("{op}: {what} has dtype {got}, expected {expected}")]
    DType { op: &'static str, what: &'static str, got: &'static str, expected: &'static str },
    /// An index (token id, slot, block, row) lies outside its table.
    #[error("{op}: {what} {index} is outside 0..{len}")]
    Index { op: &'static str, what: &'static str, index: usize, len: usize },
    /// The op has no implementation on this backend: the caller takes another op there.
    #[error("{op} does not run on {backend}")]
    Backend { op: &'static str, backend: &'static str },
    /// A buffer would not fit in memory.
    #[error("{what}: {bytes} bytes cannot be allocated")]
    OutOfMemory { what: &'static str, bytes: usize },
    /// The device is gone or returned an error; nothing more can be computed on it.
    #[error("device lost: {0}")]
    Device(String),
}
