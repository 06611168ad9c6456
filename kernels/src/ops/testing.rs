//! What the op tests share: backends, numbers and comparisons.

use crate::device::cpu::{CpuDevice, Isa};
use crate::device::cuda::DeviceBuffer;
use crate::device::cuda::{self, CudaDevice, images};
use crate::qualify::numbers;
pub use crate::qualify::numbers::values;
use crate::{Backend, DType, Indices, Tensor};

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

/// As `numbers::on_device`, for tensors that surely fit.
pub fn on_device(device: &CudaDevice, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
    numbers::on_device(device, dtype, shape, values).expect("a small tensor")
}

/// As `numbers::indices_on`.
pub fn indices_on(device: &CudaDevice, indices: &[u32]) -> (Indices, DeviceBuffer) {
    numbers::indices_on(device, indices).expect("a small buffer")
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

/// Launches of the schedule tests. The virtual GPU draws an order of warps and of copies' arrivals
/// for each launch anew, from its seed and the launch's number, with all checks on unless told
/// otherwise: a hazard is a failed launch.
const NUM_SCHEDULES: usize = 50;

/// The op's bits are the same under every schedule.
pub fn check_schedules(case: &str, mut run: impl FnMut() -> Vec<f32>) {
    let first = run();
    assert!(!first.is_empty(), "{case}: nothing to compare");
    for nth in 1..NUM_SCHEDULES {
        assert_same_bits(&run(), &first, &format!("{case}, schedule {nth}"));
    }
}
