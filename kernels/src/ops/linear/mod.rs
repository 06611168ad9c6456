//! Matrix product with a weight: every projection of a model.

pub mod reference;
pub mod cpu;
pub mod cuda;
#[cfg(test)]
mod tests;

use super::{expect, not_on};
use crate::{Backend, DType, KernelError, Tensor};
use bytes::Bytes;

const OP: &str = "linear";

/// A weight matrix [out_features, in_features] in the form that one backend multiplies with.
/// It stays quantised; the CPU repacks it once, into the order its instructions want.
#[derive(Debug)]
pub struct Weight {
    pub dtype: DType,
    pub out_features: usize,
    pub in_features: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    /// As in the checkpoint: row-major blocks, little endian.
    Raw(Bytes),
    /// In tiles, for the CPU.
    Packed(cpu::pack::Packed),
}

impl Weight {
    /// Takes `bytes`, row-major as in the checkpoint, and prepares them for `backend`.
    ///
    /// Errors: `Shape` if `bytes` is not [out_features, in_features] of `dtype`; `OutOfMemory`.
    pub fn load(
        backend: &Backend,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: Bytes,
    ) -> Result<Weight, KernelError> {
        let expected_len = dtype.row_bytes(in_features).and_then(|n| n.checked_mul(out_features));
        if expected_len != Some(bytes.len()) || bytes.is_empty() {
            let expected = format!("the bytes of [{out_features}, {in_features}] {dtype} values");
            return Err(KernelError::Shape {
                op: OP,
                what: "weight",
                got: vec![bytes.len()],
                expected,
            });
        }
        let storage = match backend {
            Backend::Reference => Storage::Raw(bytes),
            Backend::Cuda(_) => return Err(not_on(OP, backend)),
            Backend::Cpu(device) => Storage::Packed(cpu::pack::Packed::new(
                device,
                dtype,
                out_features,
                in_features,
                &bytes,
            )?),
        };
        Ok(Weight { dtype, out_features, in_features, storage })
    }

    /// Panics if the weight was loaded for another backend than the one that asks.
    fn raw(&self) -> &[u8] {
        match &self.storage {
            Storage::Raw(bytes) => bytes,
            Storage::Packed(_) => panic!("this weight was loaded for the CPU backend"),
        }
    }

    /// As `raw`.
    fn packed(&self) -> &cpu::pack::Packed {
        match &self.storage {
            Storage::Packed(packed) => packed,
            Storage::Raw(_) => panic!("this weight was loaded for the reference backend"),
        }
    }
}

/// out = x W^T + bias.
///
/// Shapes: `x` [num_tokens, in_features], `out` [num_tokens, out_features], `bias` [out_features],
/// all F32.
/// Numbers: the value of an output element depends on its row of `x`, its row of W and its bias
/// alone, to the bit: never on num_tokens or the number of threads. Quantised weights on the CPU
/// meet activations rounded to 8 bits in groups of 32 (relative error of the sum about 2^-8); bf16
/// weights meet bf16 activations where the machine multiplies bf16, else f32.
/// Errors: `Shape`, `DType`.
pub fn linear(
    backend: &Backend,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
) -> Result<(), KernelError> {
    linear_many(backend, &mut [out], x, &[(weight, bias)])
}

/// Several `linear`s of one `x`, in one parallel region: outs[i] = x W_i^T + bias_i. Same numbers
/// as one by one.
pub fn linear_many(
    backend: &Backend,
    outs: &mut [&mut Tensor],
    x: &Tensor,
    weights: &[(&Weight, Option<&Tensor>)],
) -> Result<(), KernelError> {
    assert_eq!(outs.len(), weights.len(), "one output for each weight");
    for (out, (weight, bias)) in outs.iter().zip(weights) {
        expect(OP, "x", x, DType::F32, &[x.rows(), weight.in_features])?;
        expect(OP, "out", out, DType::F32, &[x.rows(), weight.out_features])?;
        if let Some(bias) = bias {
            expect(OP, "bias", bias, DType::F32, &[weight.out_features])?;
        }
    }
    match backend {
        Backend::Cpu(device) => cpu::linear_many(device, outs, x, weights),
        Backend::Cuda(_) => return Err(not_on(OP, backend)),
        Backend::Reference => {
            for (out, (weight, bias)) in outs.iter_mut().zip(weights) {
                reference::linear(out, x, weight, *bias);
            }
        }
    }
    Ok(())
}
