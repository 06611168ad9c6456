//! The columns that several ranks have computed, side by side.

pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::expect;
use crate::comm::{part_len_max, part_range};
use crate::{Backend, DType, KernelError, Tensor};

const OP: &str = "join_columns";

/// out[t, c] = the value of row t and column c in the part that has column c: part p has the
/// columns `comm::part_range(len, p, num_parts)`, its rows one after the other from the start of
/// `parts[p]` on; what follows them there is not read.
///
/// Shapes: `out` [num_rows, len] F32; `parts` [num_parts, room for the rows of the largest part]
/// F32. Numbers: exact. Errors: `Shape`, `DType`.
pub fn join_columns(
    backend: &Backend,
    out: &mut Tensor,
    parts: &Tensor,
) -> Result<(), KernelError> {
    expect(OP, "out", out, DType::F32, &[out.rows(), out.row_len()])?;
    expect(OP, "parts", parts, DType::F32, &[parts.rows(), parts.row_len()])?;
    let (num_parts, room) = (parts.rows(), parts.row_len());
    let needed = out.rows() * part_len_max(out.row_len(), num_parts.max(1));
    if num_parts == 0 || room < needed {
        let expected = format!("one part or more, each of at least {needed} values");
        let got = parts.shape().to_vec();
        return Err(KernelError::Shape { op: OP, what: "parts", got, expected });
    }
    match backend {
        // Nothing but copies, so the CPU has no form of its own.
        Backend::Reference | Backend::Cpu(_) => {
            for part in 0..num_parts {
                let columns = part_range(out.row_len(), part, num_parts);
                reference::place_columns(out, columns, parts.f32_row(part));
            }
        }
        Backend::Cuda(device) => {
            cuda::join_columns(device, out, parts.device_ptr(), num_parts, room)?;
        }
    }
    Ok(())
}
