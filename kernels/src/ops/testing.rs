//! What the op tests share: backends, numbers and comparisons.

use crate::device::cpu::{CpuDevice, Isa};
use crate::device::cuda::DeviceBuffer;
use crate::device::cuda::{self, CudaDevice, images};
use crate::{Backend, DType, Indices, Tensor};
use half::{bf16, f16};

/// A CPU backend for every instruction set of this machine, each with one and with three threads.
pub fn cpu_backends() -> Vec<Backend> {
    let devices = [1, 3].map(|num_threads| CpuDevice::new(num_threads, None));
    let isas = Isa::available();
    let backend = |(device, isa): (&CpuDevice, Isa)| Backend::Cpu(device.with_isa(isa));
    isas.into_iter().flat_map(|isa| devices.iter().map(move |d| (d, isa))).map(backend).collect()
}

/// A GPU for each activation format, when this machine has one (a virtual one counts) and the build
/// holds kernels. With MONSOON_REQUIRE_CUDA=1 it is an error that there is none.
pub fn cuda_devices() -> Vec<CudaDevice> {
    let found = images::has_kernels() && cuda::device_count() > 0;
    let required = std::env::var("MONSOON_REQUIRE_CUDA").is_ok_and(|v| v == "1");
    assert!(found || !required, "MONSOON_REQUIRE_CUDA is set, but there is no GPU or no kernels");
    if !found {
        return Vec::new();
    }
    let device = CudaDevice::open(0).expect("the driver shows a device");
    [DType::BF16, DType::F16].map(|dtype| device.with_activation(dtype)).to_vec()
}

/// `values`, rounded to `dtype`, on the device.
pub fn on_device(device: &CudaDevice, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => panic!("{dtype} is no format of tensors"),
    };
    Tensor::from_bytes_on(device, dtype, shape, &bytes).expect("a small tensor")
}

/// Indices with a copy on the device, which is returned to be kept alive.
pub fn indices_on(device: &CudaDevice, indices: &[u32]) -> (Indices, DeviceBuffer) {
    let bytes: Vec<u8> = indices.iter().flat_map(|x| x.to_le_bytes()).collect();
    let buffer = DeviceBuffer::from_bytes(device, &bytes).expect("a small buffer");
    let mut indices = Indices::from(indices);
    indices.set_device(buffer.ptr());
    (indices, buffer)
}

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

pub fn tensor(seed: u64, shape: &[usize], range: f32) -> Tensor {
    Tensor::from_f32(shape, &values(seed, shape.iter().product(), range))
}

/// Each value within `relative` of the expected one, or within `absolute`.
pub fn assert_close(actual: &[f32], expected: &[f32], relative: f32, absolute: f32, case: &str) {
    assert_eq!(actual.len(), expected.len(), "{case}");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let error = (a - e).abs();
        assert!(
            error <= absolute.max(relative * e.abs()),
            "{case}: value {i} is {a}, the reference has {e}"
        );
    }
}

/// The same numbers to the bit.
pub fn assert_same_bits(actual: &[f32], expected: &[f32], case: &str) {
    assert_eq!(actual.len(), expected.len(), "{case}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), e.to_bits(), "{case}: value {i} is {a}, not {e}");
    }
}

/// Relative and absolute error of one rounding to `dtype`, with room for f32 arithmetic before it.
pub fn rounding(dtype: DType) -> (f32, f32) {
    match dtype {
        DType::BF16 => (1.02 / 256.0, 1e-36),
        // Below 2^-14 steps are 2^-24 wide.
        DType::F16 => (1.02 / 2048.0, 3.1e-8),
        _ => panic!("{dtype} is no activation format"),
    }
}
