//! Matrix product with a weight: every projection of a model.

pub mod reference;
pub mod cpu;
pub mod cuda;
#[cfg(test)]
mod tests;

use super::expect;
use crate::device::cuda::CudaDevice;
use crate::{Backend, DType, KernelError, Tensor};
use bytes::Bytes;
use cuda::DeviceWeight;

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

/// Where a weight goes, and so in what form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    Reference,
    Cpu,
    Cuda,
}

impl WeightForm {
    /// Bytes that a weight takes once loaded; `None` when they overflow or blocks do not fit.
    pub fn num_bytes(self, dtype: DType, out_features: usize, in_features: usize) -> Option<usize> {
        match self {
            WeightForm::Reference => dtype.row_bytes(in_features)?.checked_mul(out_features),
            WeightForm::Cpu => cpu::pack::packed_bytes(dtype, out_features, in_features),
            WeightForm::Cuda => {
                let format = cuda::layout::Format::of(dtype);
                let layout = cuda::layout::Layout { format, out_features, in_features };
                dtype.row_bytes(in_features)?.checked_mul(out_features)?;
                Some(layout.codes_bytes() + layout.headers_bytes())
            }
        }
    }
}

#[derive(Debug)]
enum Storage {
    /// As in the checkpoint: row-major blocks, little endian.
    Raw(Bytes),
    /// In tiles, for the CPU.
    Packed(cpu::pack::Packed),
    /// On a GPU.
    Device(DeviceWeight),
}

/// One of the two ways to load a weight on a GPU.
type LoadOnDevice =
    fn(&CudaDevice, DType, usize, usize, &[u8]) -> Result<DeviceWeight, KernelError>;

impl Weight {
    /// Takes `bytes`, row-major as in the checkpoint, and prepares them for `backend`. A row gives
    /// the same bits in a weight that holds a part of another's rows.
    ///
    /// Errors: `Shape` if `bytes` is not [out_features, in_features] of `dtype`; `OutOfMemory`;
    /// `Device` when no kernel for such weights is to be trusted.
    pub fn load(
        backend: &Backend,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: Bytes,
    ) -> Result<Weight, KernelError> {
        Self::load_with(backend, dtype, out_features, in_features, bytes, DeviceWeight::new)
    }

    /// As `load`, for a weight whose products get no bias. On CUDA they are computed by cuBLASLt
    /// where that was chosen for weights of this shape; then a part of its rows, being of another
    /// shape, may give other bits. `linear` panics when such a weight meets a bias.
    pub fn load_without_bias(
        backend: &Backend,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: Bytes,
    ) -> Result<Weight, KernelError> {
        let load_on_device = DeviceWeight::without_bias;
        Self::load_with(backend, dtype, out_features, in_features, bytes, load_on_device)
    }

    fn load_with(
        backend: &Backend,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: Bytes,
        load_on_device: LoadOnDevice,
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
            Backend::Cpu(device) => Storage::Packed(cpu::pack::Packed::new(
                device,
                dtype,
                out_features,
                in_features,
                &bytes,
            )?),
            Backend::Cuda(device) => {
                Storage::Device(load_on_device(device, dtype, out_features, in_features, &bytes)?)
            }
        };
        Ok(Weight { dtype, out_features, in_features, storage })
    }

    /// Memory that it takes.
    pub fn num_bytes(&self) -> usize {
        match &self.storage {
            Storage::Raw(bytes) => bytes.len(),
            Storage::Packed(packed) => packed.num_bytes(),
            Storage::Device(weight) => weight.num_bytes(),
        }
    }

    /// Panics if the weight was loaded for another backend than the one that asks.
    fn raw(&self) -> &[u8] {
        match &self.storage {
            Storage::Raw(bytes) => bytes,
            _ => panic!("this weight was not loaded for the reference backend"),
        }
    }

    /// As `raw`.
    fn packed(&self) -> &cpu::pack::Packed {
        match &self.storage {
            Storage::Packed(packed) => packed,
            _ => panic!("this weight was not loaded for the CPU backend"),
        }
    }

    /// As `raw`.
    fn on_device(&self) -> &DeviceWeight {
        match &self.storage {
            Storage::Device(weight) => weight,
            _ => panic!("this weight was not loaded for the CUDA backend"),
        }
    }
}

/// out = x W^T + bias.
///
/// Shapes: `x` [num_tokens, in_features], `out` [num_tokens, out_features], `bias` [out_features].
/// `x` is of the backend's activation dtype, `bias` F32, `out` either of both.
/// Numbers: the value of an output element depends on its row of `x`, its row of W and its bias
/// alone, to the bit: never on num_tokens or the number of threads. Quantised weights on the CPU
/// meet activations rounded to 8 bits in groups of 32 (relative error of the sum about 2^-8); bf16
/// weights meet bf16 activations where the machine multiplies bf16, else f32. CUDA rounds each
/// weight once to the activation dtype and adds in f32.
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
        let out_dtype = match out.dtype() {
            DType::F32 => DType::F32,
            _ => backend.activation_dtype(),
        };
        check(backend, out, out_dtype, x, weight, *bias)?;
    }
    match backend {
        Backend::Cpu(device) => cpu::linear_many(device, outs, x, weights),
        Backend::Cuda(device) => {
            for (out, (weight, bias)) in outs.iter_mut().zip(weights) {
                cuda::linear(device, out, x, weight.on_device(), *bias)?;
            }
        }
        Backend::Reference => {
            for (out, (weight, bias)) in outs.iter_mut().zip(weights) {
                reference::linear(out, x, weight, *bias);
            }
        }
    }
    Ok(())
}

fn check(
    backend: &Backend,
    out: &Tensor,
    out_dtype: DType,
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
) -> Result<(), KernelError> {
    expect(OP, "x", x, backend.activation_dtype(), &[x.rows(), weight.in_features])?;
    expect(OP, "out", out, out_dtype, &[x.rows(), weight.out_features])?;
    match bias {
        Some(bias) => expect(OP, "bias", bias, DType::F32, &[weight.out_features]),
        None => Ok(()),
    }
}
