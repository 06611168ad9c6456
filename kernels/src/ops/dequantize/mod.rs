//! Block formats -> f32.

pub mod reference;
#[cfg(test)]
mod tests;

use crate::{DType, KernelError};

/// Widens `bytes`, whole blocks of `dtype`, to f32.
///
/// Shapes: `bytes` holds out.len() / block_len blocks. Numbers: exact, each product rounded once to
/// f32 in the order that GGUF's own code has (q scaled by d * scale, then the minimum subtracted).
/// Errors: `Shape` if the lengths do not fit each other.
/// Source: the GGUF block layouts; plain formats are little endian.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    if dtype.row_bytes(out.len()) != Some(bytes.len()) {
        let (op, what) = ("dequantize", "bytes");
        let expected = format!("whole {dtype} blocks for {} values", out.len());
        return Err(KernelError::Shape { op, what, got: vec![bytes.len()], expected });
    }
    reference::dequantize(dtype, bytes, out);
    Ok(())
}
