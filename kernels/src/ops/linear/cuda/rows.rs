//! A plain weight whose rows lie one after the other, as cuBLASLt multiplies with them.

#![allow(unsafe_code)]

use super::layout::{Format, Layout};
use super::pack::plain_bits;
use crate::device::cuda::cublaslt::{Algorithms, Product, Shape};
use crate::device::cuda::{CudaDevice, DeviceBuffer};
use crate::{DType, KernelError, Tensor};

/// W in the activation format, and how to multiply with it for each format of results.
#[derive(Debug)]
pub struct Rows {
    values: DeviceBuffer,
    to_activation: Product,
    to_f32: Product,
}

impl Rows {
    /// Rounds `bytes`, row-major of `dtype`, to the activation format and copies them to the
    /// device. Multiplies once, so that the library has loaded its kernels before any recording.
    ///
    /// Errors: `OutOfMemory`; `Device`, also when the algorithms are not for this shape.
    pub fn new(
        device: &CudaDevice,
        layout: &Layout,
        algorithms: &Algorithms,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<Rows, KernelError> {
        let [to_activation, to_f32] = products(device, layout, algorithms)?;
        let values = values(device, dtype, bytes)?;
        let rows = Rows { values, to_activation, to_f32 };
        let activation = device.activation_dtype();
        let x = DeviceBuffer::zeroed(device, layout.in_features * activation.block_bytes())?;
        let out_bytes = layout.out_features * DType::F32.block_bytes();
        let out = DeviceBuffer::zeroed(device, out_bytes)?;
        for product in [&rows.to_activation, &rows.to_f32] {
            // SAFETY: one row of x and of either format of out, and the weight made above; they
            // are freed after the wait below.
            unsafe { product.launch(out.ptr(), x.ptr(), rows.values.ptr(), 1)? };
        }
        device.synchronize()?;
        Ok(rows)
    }

    /// Bytes on the device.
    pub fn num_bytes(&self) -> usize {
        self.values.len()
    }

    /// out = x W^T. The op has checked the shapes. Errors: `Device`.
    pub fn multiply(&self, out: &mut Tensor, x: &Tensor) -> Result<(), KernelError> {
        if x.rows() == 0 {
            return Ok(());
        }
        let product = match out.dtype() {
            DType::F32 => &self.to_f32,
            _ => &self.to_activation,
        };
        // SAFETY: the tensors have the shapes and formats that the product was made for, as the
        // op's contract was checked; freeing them waits for queued work.
        unsafe { product.launch(out.device_ptr(), x.device_ptr(), self.values.ptr(), x.rows()) }
    }
}

/// Finds algorithms for weights of this shape.
///
/// Errors: `Device`, also when there are none.
pub fn find(device: &CudaDevice, layout: &Layout) -> Result<Algorithms, KernelError> {
    if !shape(device, layout, DType::F32).is_aligned() {
        let reason = "cuBLASLt is asked for rows of multiples of 16 bytes only";
        return Err(KernelError::Device(reason.to_string()));
    }
    let of =
        |out| Product::find(device, shape(device, layout, out)).map(|product| product.algorithm());
    Ok(Algorithms { to_activation: of(device.activation_dtype())?, to_f32: of(DType::F32)? })
}

/// Whether algorithms that were kept can still be used for weights [out_features, in_features].
///
/// Errors: `Device`, with the reason.
pub fn check(
    device: &CudaDevice,
    [out_features, in_features]: [usize; 2],
    algorithms: &Algorithms,
) -> Result<(), KernelError> {
    let layout = Layout { format: Format::Plain, out_features, in_features };
    products(device, &layout, algorithms).map(|_| ())
}

/// Products with results in the activation format, and in F32.
fn products(
    device: &CudaDevice,
    layout: &Layout,
    algorithms: &Algorithms,
) -> Result<[Product; 2], KernelError> {
    assert_eq!(layout.format, Format::Plain, "quantised weights have kernels of their own");
    let of = |out, algorithm| Product::of(device, shape(device, layout, out), algorithm);
    let to_activation = of(device.activation_dtype(), algorithms.to_activation)?;
    Ok([to_activation, of(DType::F32, algorithms.to_f32)?])
}

fn shape(device: &CudaDevice, layout: &Layout, out: DType) -> Shape {
    let Layout { out_features, in_features, .. } = *layout;
    Shape { out_features, in_features, activation: device.activation_dtype(), out }
}

/// A copy on the device, in its activation format.
fn values(device: &CudaDevice, dtype: DType, bytes: &[u8]) -> Result<DeviceBuffer, KernelError> {
    let activation = device.activation_dtype();
    if dtype == activation {
        return DeviceBuffer::from_bytes(device, bytes);
    }
    let mut rounded = Vec::new();
    let len = bytes.len() / dtype.block_bytes() * activation.block_bytes();
    let no_memory = |_| KernelError::OutOfMemory { what: "rounded weight", bytes: len };
    rounded.try_reserve_exact(len).map_err(no_memory)?;
    for value in bytes.chunks_exact(dtype.block_bytes()) {
        rounded.extend_from_slice(&plain_bits(dtype, activation, value).to_le_bytes());
    }
    DeviceBuffer::from_bytes(device, &rounded)
}
