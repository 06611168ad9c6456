//! Inputs that are the same everywhere, on the host and on a device, and how far results may lie
//! apart.

use crate::device::cuda::{CudaDevice, DeviceBuffer};
use crate::{DType, Indices, KernelError, Tensor};
use half::{bf16, f16};

/// Numbers spread over -range..range, the same for the same seed.
pub fn values(seed: u64, len: usize, range: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| (next() * 2.0 - 1.0) * range).collect()
}

/// `values` as they are after a turn through `dtype`.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    let round = |&x: &f32| match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    };
    values.iter().map(round).collect()
}

/// `values`, rounded to `dtype`, as they lie in memory.
pub fn bytes_of(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => panic!("{dtype} is no format of tensors"),
    }
}

/// `values`, rounded to `dtype`, on the device.
pub fn on_device(
    device: &CudaDevice,
    dtype: DType,
    shape: &[usize],
    values: &[f32],
) -> Result<Tensor, KernelError> {
    Tensor::from_bytes_on(device, dtype, shape, &bytes_of(dtype, values))
}

/// Indices with a copy on the device, which is returned to be kept alive.
pub fn indices_on(
    device: &CudaDevice,
    indices: &[u32],
) -> Result<(Indices, DeviceBuffer), KernelError> {
    let bytes: Vec<u8> = indices.iter().flat_map(|x| x.to_le_bytes()).collect();
    let buffer = DeviceBuffer::from_bytes(device, &bytes)?;
    let mut indices = Indices::from(indices);
    indices.set_device(buffer.ptr());
    Ok((indices, buffer))
}

/// Legal blocks with every code, and among the scales zero, negative ones and large ones.
pub fn weight_bytes(dtype: DType, n: usize, k: usize) -> Vec<u8> {
    let len = dtype.row_bytes(k).expect("whole blocks") * n;
    let numbers = values(7, n * k, 2.0);
    if !dtype.is_quantized() {
        return bytes_of(dtype, &numbers);
    }
    let mut bytes: Vec<u8> = values(8, len, 128.0).iter().map(|&x| (x + 128.0) as u8).collect();
    let scale_places: &[usize] = match dtype {
        DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q6K => &[208],
        _ => &[0],
    };
    let scales = values(9, len, 0.02);
    for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        match i % 7 {
            2 => block.fill(0xff),
            4 => block.fill(0x00),
            5 => block.fill(0x80),
            _ => {}
        }
        for (j, &place) in scale_places.iter().enumerate() {
            let scale = match (i + j) % 11 {
                3 => 0.0,
                6 => 5.0,
                _ => scales[2 * i + j],
            };
            block[place..place + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}

/// How far results may lie from the reference: by a share of it, or by an amount.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    pub relative: f32,
    pub absolute: f32,
}

impl Tolerance {
    /// One unit in the last place of `dtype`, of the value or of `absolute` at least.
    pub fn of(dtype: DType, absolute: f32) -> Tolerance {
        let relative = match dtype {
            DType::BF16 => 1.0 / 128.0,
            DType::F16 => 1.0 / 1024.0,
            _ => 1e-5,
        };
        Tolerance { relative, absolute: relative * absolute }
    }

    /// The largest distance of `actual` from `expected`, in units of what is allowed: up to 1 is
    /// fine. Infinite where either is no number or lengths differ.
    pub fn deviation(&self, actual: &[f32], expected: &[f32]) -> f64 {
        if actual.len() != expected.len() {
            return f64::INFINITY;
        }
        let one = |(&a, &e): (&f32, &f32)| {
            let allowed = self.absolute.max(self.relative * e.abs());
            let distance = f64::from((a - e).abs()) / f64::from(allowed);
            // NaN must not pass for a small number.
            if distance.is_nan() && a.to_bits() != e.to_bits() { f64::INFINITY } else { distance }
        };
        let distances = actual.iter().zip(expected).map(one);
        distances.map(|d| if d.is_nan() { 0.0 } else { d }).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_in_units_of_what_is_allowed_and_nan_is_never_fine() {
        let tolerance = Tolerance { relative: 0.1, absolute: 0.01 };
        let near = |a: f64, b: f64| (a - b).abs() < 1e-3;
        assert!(near(tolerance.deviation(&[1.05, 0.0], &[1.0, 0.0]), 0.5));
        assert!(near(tolerance.deviation(&[0.03], &[0.01]), 2.0));
        assert_eq!(tolerance.deviation(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(tolerance.deviation(&[1.0], &[f32::NAN]), f64::INFINITY);
        assert_eq!(tolerance.deviation(&[1.0], &[]), f64::INFINITY);
    }
}
