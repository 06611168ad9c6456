use super::*;
use crate::ops::testing::*;

/// num_tokens, groups, n
const CASES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [1, 1, 896],
    [3, 1, 100],
    [5, 16, 128],
    [64, 14, 64],
    [2, 1, 5120],
    [33, 1, 896],
    [0, 1, 64],
];

#[test]
fn rows_are_close_to_the_reference_out_of_place_and_in_place() {
    for [num_tokens, groups, n] in CASES {
        let shape = [num_tokens, groups * n];
        let (x, weight) = (tensor(1, &shape, 3.0), tensor(2, &[n], 2.0));
        let mut expected = tensor(3, &shape, 1.0);
        rms_norm(&Backend::Reference, &mut expected, &x, &weight, 1e-6).expect("shapes fit");
        for backend in cpu_backends() {
            let case = format!("{backend:?} {num_tokens} x {groups} x {n}");
            let mut out = tensor(4, &shape, 1.0);
            rms_norm(&backend, &mut out, &x, &weight, 1e-6).expect("shapes fit");
            assert_close(out.f32(), expected.f32(), 1e-6, 1e-30, &case);
            let mut in_place = Tensor::from_f32(&shape, x.f32());
            rms_norm_in_place(&backend, &mut in_place, &weight, 1e-6).expect("shapes fit");
            assert_same_bits(in_place.f32(), out.f32(), &case);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    for backend in cpu_backends() {
        let (x, weight) = (tensor(1, &[70, 900], 3.0), tensor(2, &[900], 2.0));
        let mut batch = tensor(3, &[70, 900], 1.0);
        rms_norm(&backend, &mut batch, &x, &weight, 1e-6).expect("shapes fit");
        for row in [0, 1, 35, 69] {
            let x = Tensor::from_f32(&[1, 900], x.f32_row(row));
            let mut alone = tensor(4, &[1, 900], 1.0);
            rms_norm(&backend, &mut alone, &x, &weight, 1e-6).expect("shapes fit");
            assert_same_bits(alone.f32(), batch.f32_row(row), &format!("{backend:?} row {row}"));
        }
    }
}

#[test]
fn a_zero_row_stays_zero() {
    for backend in cpu_backends() {
        let (mut x, weight) = (tensor(1, &[2, 32], 0.0), tensor(2, &[32], 2.0));
        rms_norm_in_place(&backend, &mut x, &weight, 1e-6).expect("shapes fit");
        assert!(x.f32().iter().all(|&x| x == 0.0), "{backend:?}");
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    for backend in cpu_backends() {
        let (mut x, weight) = (tensor(1, &[2, 32], 1.0), tensor(2, &[5], 2.0));
        let error = rms_norm_in_place(&backend, &mut x, &weight, 1e-6).expect_err("5 in 32");
        assert!(matches!(error, KernelError::Shape { what: "x", .. }), "{error}");
    }
}

#[test]
fn adding_and_norming_in_one_has_the_bits_of_the_two_ops() {
    for backend in [vec![Backend::Reference], cpu_backends()].concat() {
        let shape = [5, 900];
        let (x, y, weight) =
            (tensor(1, &shape, 3.0), tensor(2, &shape, 1.0), tensor(3, &[900], 2.0));
        let mut sum = Tensor::from_f32(&shape, x.f32());
        add_assign(&backend, &mut sum, &y).expect("shapes fit");
        for (delta, start, summed) in [(Some(&y), &x, &sum), (None, &sum, &sum)] {
            let mut expected = tensor(4, &shape, 1.0);
            rms_norm(&backend, &mut expected, summed, &weight, 1e-6).expect("shapes fit");
            let mut hidden = Tensor::from_f32(&shape, start.f32());
            let mut out = tensor(5, &shape, 1.0);
            add_rms_norm(&backend, &mut hidden, delta, &mut out, &weight, 1e-6).expect("fits");
            assert_same_bits(hidden.f32(), summed.f32(), &format!("{backend:?}"));
            assert_same_bits(out.f32(), expected.f32(), &format!("{backend:?}"));
        }
    }
}

#[test]
fn rows_on_a_gpu_are_the_reference_rounded_to_the_activation_format() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        // Longer rows than registers hold, and shorter ones than a block has threads.
        for [num_tokens, n] in
            [[1, 4], [3, 100], [2, 896], [3, 1024], [2, 5120], [2, 9000], [0, 64]]
        {
            let shape = [num_tokens, n];
            let (x, y, weight) =
                (tensor(1, &shape, 3.0), tensor(2, &shape, 1.0), tensor(3, &[n], 2.0));
            let there = |t: &Tensor| on_device(&device, DType::F32, t.shape(), t.f32());
            let weight_there = there(&weight);
            for delta in [Some(&y), None] {
                let mut sum = Tensor::from_f32(&shape, x.f32());
                let mut expected = tensor(4, &shape, 1.0);
                add_rms_norm(&Backend::Reference, &mut sum, delta, &mut expected, &weight, 1e-6)
                    .expect("shapes fit");
                let (mut hidden, delta) = (there(&x), delta.map(there));
                let mut out = Tensor::zeros_on(&backend, dtype, &shape).expect("small");
                add_rms_norm(&backend, &mut hidden, delta.as_ref(), &mut out, &weight_there, 1e-6)
                    .expect("shapes fit");
                let case = format!("{device:?} {shape:?}");
                assert_same_bits(&hidden.to_f32().expect("read"), sum.f32(), &case);
                let (relative, absolute) = rounding(dtype);
                let out = out.to_f32().expect("read");
                assert_close(&out, expected.f32(), relative, absolute, &case);
            }
        }
    }
}

#[test]
fn a_row_on_a_gpu_has_the_same_bits_alone_and_in_any_batch() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        let x = tensor(1, &[9, 900], 3.0);
        let weight = on_device(&device, DType::F32, &[900], tensor(2, &[900], 2.0).f32());
        let norm = |values: &[f32]| {
            let shape = [values.len() / 900, 900];
            let mut hidden = on_device(&device, DType::F32, &shape, values);
            let mut out = Tensor::zeros_on(&backend, dtype, &shape).expect("small");
            add_rms_norm(&backend, &mut hidden, None, &mut out, &weight, 1e-6).expect("fits");
            out.to_f32().expect("read")
        };
        let batch = norm(x.f32());
        for row in [0, 4, 8] {
            let alone = norm(x.f32_row(row));
            assert_same_bits(&alone, &batch[row * 900..][..900], &format!("{device:?} {row}"));
        }
    }
}

#[test]
fn rows_that_are_no_whole_vectors_are_refused_on_a_gpu() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        let zeros =
            |dtype, shape: &[usize]| Tensor::zeros_on(&backend, dtype, shape).expect("small");
        let (mut hidden, weight) = (zeros(DType::F32, &[1, 6]), zeros(DType::F32, &[6]));
        let mut out = zeros(dtype, &[1, 6]);
        let error = add_rms_norm(&backend, &mut hidden, None, &mut out, &weight, 1e-6);
        assert!(matches!(error, Err(KernelError::Shape { what: "weight", .. })), "{error:?}");
    }
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        let there = |seed| on_device(&device, DType::F32, &[1, 1100], &values(seed, 1100, 3.0));
        let weight = on_device(&device, DType::F32, &[1100], &values(3, 1100, 2.0));
        for has_delta in [true, false] {
            check_schedules(&format!("{device:?}, delta {has_delta}"), || {
                let (mut hidden, delta) = (there(1), has_delta.then(|| there(2)));
                let mut out = Tensor::zeros_on(&backend, dtype, &[1, 1100]).expect("small");
                add_rms_norm(&backend, &mut hidden, delta.as_ref(), &mut out, &weight, 1e-6)
                    .expect("shapes fit");
                [hidden, out].map(|t| t.to_f32().expect("read")).concat()
            });
        }
    }
}
