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
