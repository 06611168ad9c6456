//! `Tensor`: contiguous, row-major numbers on one device.

use crate::device::memory::AlignedVec;
use crate::{DType, KernelError};
use half::{bf16, f16};

/// Dimensions one tensor may have.
const DIMS_MAX: usize = 6;

/// A dense array in host memory. The first dimension may shrink and grow again up to what was
/// allocated (`set_rows`), so that one buffer serves steps of any size without a new allocation.
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
}

impl Tensor {
    /// Errors: `OutOfMemory`; `DType` for a quantised dtype (weights are `ops::linear::Weight`).
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, KernelError> {
        assert!(
            !shape.is_empty() && shape.len() <= DIMS_MAX,
            "a tensor has 1 to {DIMS_MAX} dimensions"
        );
        let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let no_memory = || KernelError::OutOfMemory {
            what: "tensor",
            bytes: len.and_then(|n| n.checked_mul(dtype.block_bytes())).unwrap_or(usize::MAX),
        };
        let len = len.ok_or_else(no_memory)?;
        let data = match dtype {
            DType::F32 => Data::F32(AlignedVec::try_zeroed(len).ok_or_else(no_memory)?),
            DType::F16 => Data::F16(AlignedVec::try_zeroed(len).ok_or_else(no_memory)?),
            DType::BF16 => Data::BF16(AlignedVec::try_zeroed(len).ok_or_else(no_memory)?),
            _ => {
                let (op, what) = ("Tensor::zeros", "dtype");
                return Err(KernelError::DType {
                    op,
                    what,
                    got: dtype.name(),
                    expected: "F32, F16 or BF16",
                });
            }
        };
        Ok(Tensor { shape: shape.to_vec(), data })
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

    /// Row `i` of an F32 tensor.
    pub fn f32_row(&self, i: usize) -> &[f32] {
        let n = self.row_len();
        &self.f32()[i * n..(i + 1) * n]
    }
}
