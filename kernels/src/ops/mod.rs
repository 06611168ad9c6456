//! The list of ops. One op = one folder: contract, reference, SIMD, tests.

pub mod add;
pub mod attention;
pub mod dequantize;
pub mod embedding;
pub mod gather_rows;
pub mod join_columns;
pub mod kv_write;
pub mod linear;
pub mod qkv_rope_write;
pub mod rms_norm;
pub mod rope;
pub mod sampling;
pub mod silu_mul;
#[cfg(test)]
pub(crate) mod testing;

pub use add::add_assign;
pub use attention::{AttentionBatch, DeviceAttention, attention};
pub use dequantize::dequantize;
pub use embedding::{Table, embedding};
pub use gather_rows::gather_rows;
pub use join_columns::join_columns;
pub use kv_write::kv_write;
pub use linear::{Weight, WeightForm, linear, linear_many};
pub use qkv_rope_write::qkv_rope_write;
pub use rms_norm::{add_rms_norm, rms_norm};
pub use rope::{RopeTable, rope};
pub use silu_mul::silu_mul;

use crate::device::cuda::{CudaDevice, KernelSpec};
use crate::{Backend, DType, KernelError, Tensor};

/// Every CUDA kernel of every op, as the host launches it.
pub fn cuda_kernels() -> impl Iterator<Item = &'static KernelSpec> {
    let tables = [
        add::cuda::KERNELS,
        attention::cuda::KERNELS,
        embedding::cuda::KERNELS,
        gather_rows::cuda::KERNELS,
        join_columns::cuda::KERNELS,
        linear::cuda::KERNELS,
        qkv_rope_write::cuda::KERNELS,
        rms_norm::cuda::KERNELS,
        sampling::cuda::KERNELS,
        silu_mul::cuda::KERNELS,
    ];
    tables.into_iter().flatten()
}

/// Loads every kernel and makes the memory that ops share, since neither can be done while a step
/// is recorded.
///
/// Errors: `Device`, `OutOfMemory`.
pub fn prepare_all(device: &CudaDevice) -> Result<(), KernelError> {
    cuda_kernels().try_for_each(|kernel| device.prepare(kernel, 0))?;
    device.scratch().map(|_| ())
}

/// The answer of an op that a backend does without.
fn not_on(op: &'static str, backend: &Backend) -> KernelError {
    KernelError::Backend { op, backend: backend.name() }
}

/// Rows of a tensor that go with `indices`: as many, and on a GPU any number from there on, for a
/// recorded step has padding behind its rows.
fn rows_for(backend: &Backend, indices: &[u32], tensor: &Tensor) -> usize {
    match backend {
        Backend::Cuda(_) => tensor.rows().max(indices.len()),
        Backend::Reference | Backend::Cpu(_) => indices.len(),
    }
}

/// The check every contract makes: `tensor` has `dtype` and exactly `shape`.
pub(crate) fn expect(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    dtype: DType,
    shape: &[usize],
) -> Result<(), KernelError> {
    if tensor.dtype() != dtype {
        let (got, expected) = (tensor.dtype().name(), dtype.name());
        return Err(KernelError::DType { op, what, got, expected });
    }
    if tensor.shape() != shape {
        let (got, expected) = (tensor.shape().to_vec(), format!("{shape:?}"));
        return Err(KernelError::Shape { op, what, got, expected });
    }
    Ok(())
}

/// The check for ids, slots and row numbers: every one lies below `len`.
fn expect_indices(
    op: &'static str,
    what: &'static str,
    indices: &[u32],
    len: usize,
) -> Result<(), KernelError> {
    match indices.iter().find(|&&i| i as usize >= len) {
        Some(&i) => Err(KernelError::Index { op, what, index: i as usize, len }),
        None => Ok(()),
    }
}
