//! What the op tests share: backends, numbers and comparisons.

use crate::device::cpu::{CpuDevice, Isa};
use crate::{Backend, Tensor};

/// A CPU backend for every instruction set of this machine, each with one and with three threads.
pub fn cpu_backends() -> Vec<Backend> {
    let devices = [1, 3].map(|num_threads| CpuDevice::new(num_threads, None));
    let isas = Isa::available();
    let backend = |(device, isa): (&CpuDevice, Isa)| Backend::Cpu(device.with_isa(isa));
    isas.into_iter().flat_map(|isa| devices.iter().map(move |d| (d, isa))).map(backend).collect()
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
