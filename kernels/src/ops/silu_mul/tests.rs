use super::*;
use crate::ops::testing::*;

#[test]
fn gates_are_within_four_ulp_of_the_reference() {
    for (shape, range) in [([1, 1], 1.0), ([2, 16], 4.0), ([3, 45], 20.0), ([20, 4864], 86.0)] {
        let (gate, up) = (tensor(1, &shape, range), tensor(2, &shape, 3.0));
        let mut expected = tensor(3, &shape, 1.0);
        silu_mul(&Backend::Reference, &mut expected, &gate, &up).expect("shapes fit");
        for backend in cpu_backends() {
            let mut out = tensor(4, &shape, 1.0);
            silu_mul(&backend, &mut out, &gate, &up).expect("shapes fit");
            let case = format!("{backend:?} {shape:?}");
            assert_close(out.f32(), expected.f32(), 4.0 * f32::EPSILON, 1e-36, &case);
        }
    }
}

#[test]
fn extreme_gates_give_limits_and_nan_stays_nan() {
    let gate = Tensor::from_f32(&[1, 5], &[-1000.0, 1000.0, f32::NAN, 0.0, -0.0]);
    let up = Tensor::from_f32(&[1, 5], &[2.0; 5]);
    for backend in cpu_backends() {
        let mut out = tensor(1, &[1, 5], 1.0);
        silu_mul(&backend, &mut out, &gate, &up).expect("shapes fit");
        let out = out.f32();
        assert!(out[0].abs() < 1e-30 && out[1] == 2000.0 && out[2].is_nan(), "{out:?}");
        assert!(out[3] == 0.0 && out[4] == 0.0, "{out:?}");
    }
}

#[test]
fn a_value_does_not_depend_on_its_place() {
    for backend in cpu_backends() {
        let (gate, up) = (tensor(1, &[1, 40_000], 9.0), tensor(2, &[1, 40_000], 3.0));
        let mut whole = tensor(3, &[1, 40_000], 1.0);
        silu_mul(&backend, &mut whole, &gate, &up).expect("shapes fit");
        for start in [0, 1, 5, 39_990] {
            let len = 10.min(40_000 - start);
            let part = |x: &Tensor| Tensor::from_f32(&[1, len], &x.f32()[start..start + len]);
            let mut out = tensor(4, &[1, len], 1.0);
            silu_mul(&backend, &mut out, &part(&gate), &part(&up)).expect("shapes fit");
            assert_same_bits(out.f32(), &whole.f32()[start..start + len], &format!("{start}"));
        }
    }
}

#[test]
fn gates_on_a_gpu_are_the_reference_rounded_to_the_activation_format() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        for (shape, range) in [([1, 1], 1.0), ([2, 16], 4.0), ([3, 45], 20.0), ([5, 4864], 86.0)] {
            let len = shape[0] * shape[1];
            let gate = on_device(&device, dtype, &shape, &values(1, len, range));
            let up = on_device(&device, dtype, &shape, &values(2, len, 3.0));
            let [gate_here, up_here] =
                [&gate, &up].map(|t| Tensor::from_f32(&shape, &t.to_f32().expect("read")));
            let mut expected = tensor(3, &shape, 1.0);
            silu_mul(&Backend::Reference, &mut expected, &gate_here, &up_here).expect("fits");
            let mut out = Tensor::zeros_on(&backend, dtype, &shape).expect("small");
            silu_mul(&backend, &mut out, &gate, &up).expect("shapes fit");
            let case = format!("{device:?} {shape:?}");
            let (relative, absolute) = rounding(dtype);
            let out = out.to_f32().expect("read");
            assert_close(&out, expected.f32(), relative, absolute, &case);
        }
    }
}

#[test]
fn extreme_gates_on_a_gpu_give_limits_and_nan_stays_nan() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        let gate = on_device(&device, dtype, &[1, 5], &[-1000.0, 1000.0, f32::NAN, 0.0, -0.0]);
        let up = on_device(&device, dtype, &[1, 5], &[2.0; 5]);
        let mut out = Tensor::zeros_on(&backend, dtype, &[1, 5]).expect("small");
        silu_mul(&backend, &mut out, &gate, &up).expect("shapes fit");
        let out = out.to_f32().expect("read");
        assert!(out[0].abs() < 1e-30 && out[1] == 2000.0 && out[2].is_nan(), "{out:?}");
        assert!(out[3] == 0.0 && out[4] == 0.0, "{out:?}");
    }
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        let [gate, up] =
            [1, 2].map(|seed| on_device(&device, dtype, &[1, 2100], &values(seed, 2100, 4.0)));
        check_schedules(&format!("{device:?}"), || {
            let mut out = Tensor::zeros_on(&backend, dtype, &[1, 2100]).expect("small");
            silu_mul(&backend, &mut out, &gate, &up).expect("shapes fit");
            out.to_f32().expect("read")
        });
    }
}
