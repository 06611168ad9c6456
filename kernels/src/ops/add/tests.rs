use super::*;
use crate::ops::testing::*;

#[test]
fn sums_equal_the_reference_to_the_bit() {
    for shape in [[0, 5], [1, 1], [3, 16], [7, 33], [40, 1001]] {
        let (x, y) = (tensor(1, &shape, 2.0), tensor(2, &shape, 1e-3));
        let mut expected = Tensor::from_f32(&shape, x.f32());
        add_assign(&Backend::Reference, &mut expected, &y).expect("shapes fit");
        for backend in cpu_backends() {
            let mut sum = Tensor::from_f32(&shape, x.f32());
            add_assign(&backend, &mut sum, &y).expect("shapes fit");
            assert_same_bits(sum.f32(), expected.f32(), &format!("{backend:?} {shape:?}"));
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    for backend in cpu_backends() {
        let (mut x, y) = (tensor(1, &[2, 3], 1.0), tensor(2, &[3, 2], 1.0));
        let error = add_assign(&backend, &mut x, &y).expect_err("shapes differ");
        assert!(matches!(error, KernelError::Shape { what: "x", .. }), "{error}");
    }
}

#[test]
fn sums_on_a_gpu_are_those_of_the_reference() {
    for device in cuda_devices() {
        for shape in [[0, 5], [1, 1], [3, 16], [7, 33], [40, 1001]] {
            let (x, y) = (tensor(1, &shape, 2.0), tensor(2, &shape, 1e-3));
            let mut expected = Tensor::from_f32(&shape, x.f32());
            add_assign(&Backend::Reference, &mut expected, &y).expect("shapes fit");
            let [mut sum, y] = [x, y].map(|t| on_device(&device, DType::F32, &shape, t.f32()));
            add_assign(&Backend::Cuda(device.clone()), &mut sum, &y).expect("shapes fit");
            let sum = sum.to_f32().expect("read");
            assert_same_bits(&sum, expected.f32(), &format!("{device:?} {shape:?}"));
        }
    }
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    let Some(device) = cuda_devices().into_iter().next() else { return };
    let there = |seed, len| on_device(&device, DType::F32, &[1, len], &values(seed, len, 2.0));
    let (y, parts) = (there(2, 1030), there(3, 3 * 1030));
    check_schedules("add_assign", || {
        let mut x = there(1, 1030);
        add_assign(&Backend::Cuda(device.clone()), &mut x, &y).expect("shapes fit");
        x.to_f32().expect("read")
    });
    check_schedules("sum_parts", || {
        let mut x = there(1, 1030);
        cuda::sum_parts(&device, &mut x, parts.device_ptr(), 3).expect("launched");
        x.to_f32().expect("read")
    });
}
