//! `Tensor`: contiguous, row-major numbers on one device.

use crate::device::cuda::{CudaDevice, DeviceBuffer};
use crate::device::memory::AlignedVec;
use crate::ops::{dequantize, expect};
use crate::{Backend, DType, KernelError};
use half::{bf16, f16};

/// Dimensions one tensor may have.
const DIMS_MAX: usize = 6;

/// A dense array in the memory of the host or of a GPU. The first dimension may shrink and grow
/// again up to what was allocated (`set_rows`), so that one buffer serves steps of any size without
/// a new allocation.
#[derive(Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    F32(AlignedVec<f32>),
    F16(AlignedVec<f16>),
    BF16(AlignedVec<bf16>),
    Cuda(DType, DeviceBuffer),
}

impl Tensor {
    /// Zeros in the memory that `backend` computes in. Errors: as `zeros`.
    pub fn zeros_on(
        backend: &Backend,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Tensor, KernelError> {
        let Backend::Cuda(device) = backend else { return Self::zeros(dtype, shape) };
        let bytes = num_bytes(dtype, shape)?;
        let buffer = DeviceBuffer::zeroed(device, bytes)?;
        Ok(Tensor { shape: shape.to_vec(), data: Data::Cuda(dtype, buffer) })
    }

    /// F32 values in the memory that `backend` computes in. Panics unless they fill `shape`.
    pub fn from_f32_on(
        backend: &Backend,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Tensor, KernelError> {
        let Backend::Cuda(device) = backend else { return Ok(Self::from_f32(shape, values)) };
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_bytes_on(device, DType::F32, shape, &bytes)
    }

    /// Values as they lie in memory, little endian, copied to `device`. Panics unless they fill
    /// `shape`.
    pub fn from_bytes_on(
        device: &CudaDevice,
        dtype: DType,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Tensor, KernelError> {
        assert_eq!(num_bytes(dtype, shape)?, bytes.len(), "values do not fill the shape");
        let buffer = DeviceBuffer::from_bytes(device, bytes)?;
        Ok(Tensor { shape: shape.to_vec(), data: Data::Cuda(dtype, buffer) })
    }

    /// A copy of the values in use, widened to F32, after all work queued so far.
    pub fn to_f32(&self) -> Result<Vec<f32>, KernelError> {
        match &self.data {
            Data::F32(v) => Ok(v[..self.len()].to_vec()),
            Data::F16(v) => Ok(v[..self.len()].iter().map(|x| x.to_f32()).collect()),
            Data::BF16(v) => Ok(v[..self.len()].iter().map(|x| x.to_f32()).collect()),
            Data::Cuda(dtype, buffer) => {
                let mut bytes = vec![0; self.len() * dtype.block_bytes()];
                buffer.read(0, &mut bytes)?;
                let mut out = vec![0.0; self.len()];
                dequantize(*dtype, &bytes, &mut out)?;
                Ok(out)
            }
        }
    }

    /// Takes the values of `from`, of the same shape, on the same device; on a GPU the copy is
    /// queued.
    ///
    /// Errors: `Shape`, `DType`; `Device`.
    pub fn copy_from(&mut self, from: &Tensor) -> Result<(), KernelError> {
        expect("copy_from", "from", from, self.dtype(), &self.shape)?;
        let len = self.len();
        match (&mut self.data, &from.data) {
            (Data::F32(to), Data::F32(from)) => to[..len].copy_from_slice(&from[..len]),
            (Data::F16(to), Data::F16(from)) => to[..len].copy_from_slice(&from[..len]),
            (Data::BF16(to), Data::BF16(from)) => to[..len].copy_from_slice(&from[..len]),
            (Data::Cuda(dtype, to), Data::Cuda(_, from)) => {
                to.copy_part(0, from, len * dtype.block_bytes())?;
            }
            _ => panic!("one tensor is in host memory, the other on a GPU"),
        }
        Ok(())
    }

    /// Address on the GPU. Panics for a tensor in host memory (ops check their contract first).
    pub fn device_ptr(&self) -> u64 {
        self.device_buffer().ptr()
    }

    /// The memory on the GPU. Panics as `device_ptr` does.
    pub fn device_buffer(&self) -> &DeviceBuffer {
        match &self.data {
            Data::Cuda(_, buffer) => buffer,
            _ => panic!("tensor is in host memory"),
        }
    }

    /// Errors: `OutOfMemory`; `DType` for a quantised dtype (weights are `ops::linear::Weight`).
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, KernelError> {
        let bytes = num_bytes(dtype, shape)?;
        let no_memory = || KernelError::OutOfMemory { what: "tensor", bytes };
        let len = bytes / dtype.block_bytes();
        let data = match dtype {
            DType::F32 => Data::F32(AlignedVec::try_zeroed(len).ok_or_else(no_memory)?),
            DType::F16 => Data::F16(AlignedVec::try_zeroed(len).ok_or_else(no_memory)?),
            DType::BF16 => Data::BF16(AlignedVec::try_zeroed(len).ok_or_else(no_memory)?),
            _ => unreachable!("num_bytes takes plain formats only"),
        };
        Ok(Tensor { shape: shape.to_vec(), data })
    }

    /// Has the system find the memory of a part of the values in use, as `AlignedVec::touch`.
    /// Memory of a GPU is there from the start.
    pub fn touch(&mut self, values: std::ops::Range<usize>) {
        match &mut self.data {
            Data::F32(v) => v.touch(values),
            Data::F16(v) => v.touch(values),
            Data::BF16(v) => v.touch(values),
            Data::Cuda(..) => {}
        }
    }

    /// Panics unless `values` fill `shape` exactly.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values do not fill the shape");
        Tensor { shape: shape.to_vec(), data: Data::F32(AlignedVec::from_slice(values)) }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::F16(_) => DType::F16,
            Data::BF16(_) => DType::BF16,
            Data::Cuda(dtype, _) => dtype,
        }
    }

    /// Number of values in use (the product of the shape).
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the first dimension.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Product of all dimensions but the first.
    pub fn row_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Sets the first dimension; the memory and its address stay. Panics beyond what was allocated.
    pub fn set_rows(&mut self, rows: usize) {
        let capacity = match &self.data {
            Data::F32(v) => v.len(),
            Data::F16(v) => v.len(),
            Data::BF16(v) => v.len(),
            Data::Cuda(dtype, buffer) => buffer.len() / dtype.block_bytes(),
        };
        let len = rows.checked_mul(self.row_len()).expect("row count overflows");
        assert!(len <= capacity, "{rows} rows exceed the allocated {capacity} values");
        self.shape[0] = rows;
    }

    /// The values. Panics unless the dtype is F32 (ops check dtypes in their contract first).
    pub fn f32(&self) -> &[f32] {
        let len = self.len();
        match &self.data {
            Data::F32(v) => &v[..len],
            _ => panic!("tensor is {}, not F32", self.dtype()),
        }
    }

    pub fn f32_mut(&mut self) -> &mut [f32] {
        let (len, dtype) = (self.len(), self.dtype());
        match &mut self.data {
            Data::F32(v) => &mut v[..len],
            _ => panic!("tensor is {dtype}, not F32"),
        }
    }

    pub fn f16(&self) -> &[f16] {
        let len = self.len();
        match &self.data {
            Data::F16(v) => &v[..len],
            _ => panic!("tensor is {}, not F16", self.dtype()),
        }
    }

    pub fn f16_mut(&mut self) -> &mut [f16] {
        let (len, dtype) = (self.len(), self.dtype());
        match &mut self.data {
            Data::F16(v) => &mut v[..len],
            _ => panic!("tensor is {dtype}, not F16"),
        }
    }

    pub fn bf16(&self) -> &[bf16] {
        let len = self.len();
        match &self.data {
            Data::BF16(v) => &v[..len],
            _ => panic!("tensor is {}, not BF16", self.dtype()),
        }
    }

    pub fn bf16_mut(&mut self) -> &mut [bf16] {
        let (len, dtype) = (self.len(), self.dtype());
        match &mut self.data {
            Data::BF16(v) => &mut v[..len],
            _ => panic!("tensor is {dtype}, not BF16"),
        }
    }

    /// Row `i` of an F32 tensor.
    pub fn f32_row(&self, i: usize) -> &[f32] {
        let n = self.row_len();
        &self.f32()[i * n..(i + 1) * n]
    }
}

/// Bytes of a tensor of a plain format. Errors: `OutOfMemory` when they overflow; `DType`.
fn num_bytes(dtype: DType, shape: &[usize]) -> Result<usize, KernelError> {
    assert!(
        !shape.is_empty() && shape.len() <= DIMS_MAX,
        "a tensor has 1 to {DIMS_MAX} dimensions"
    );
    if dtype.is_quantized() {
        let (op, what, expected) = ("Tensor::zeros", "dtype", "F32, F16 or BF16");
        return Err(KernelError::DType { op, what, got: dtype.name(), expected });
    }
    let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let bytes = len.and_then(|n| n.checked_mul(dtype.block_bytes()));
    bytes.ok_or(KernelError::OutOfMemory { what: "tensor", bytes: usize::MAX })
}
