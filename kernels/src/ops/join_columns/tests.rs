use super::*;
use crate::ops::testing::*;

/// Rows, their length, and parts; in even and uneven shares, and with some that are empty.
const CASES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [1, 8, 2],
    [3, 7, 2],
    [2, 5000, 3],
    [5, 4096, 4],
    [2, 9001, 4],
    [4, 3, 8],
    [0, 12, 2],
];

/// The rows, and the same cut into parts, with nonsense behind each.
fn case(seed: u64, [num_rows, len, num_parts]: [usize; 3]) -> (Tensor, Vec<f32>, usize) {
    let whole = tensor(seed, &[num_rows, len], 5.0);
    let room = (num_rows * part_len_max(len, num_parts)).next_multiple_of(4) + 4;
    let mut parts = Vec::new();
    for part in 0..num_parts {
        let columns = part_range(len, part, num_parts);
        for row in 0..num_rows {
            parts.extend_from_slice(&whole.f32_row(row)[columns.clone()]);
        }
        parts.resize((part + 1) * room, 1e30);
    }
    (whole, parts, room)
}

#[test]
fn columns_come_to_their_places() {
    for (seed, case_of) in (1..).zip(CASES) {
        let (whole, parts, room) = case(seed, case_of);
        let parts = Tensor::from_f32(&[case_of[2], room], &parts);
        for backend in [vec![Backend::Reference], cpu_backends()].concat() {
            let mut out = tensor(99, whole.shape(), 1.0);
            join_columns(&backend, &mut out, &parts).expect("shapes fit");
            assert_same_bits(out.f32(), whole.f32(), &format!("{backend:?} {case_of:?}"));
        }
    }
}

#[test]
fn columns_come_to_their_places_on_a_gpu() {
    for device in cuda_devices() {
        let backend = Backend::Cuda(device.clone());
        for (seed, case_of) in (1..).zip(CASES) {
            let (whole, parts, room) = case(seed, case_of);
            let parts = on_device(&device, DType::F32, &[case_of[2], room], &parts);
            let mut out = on_device(&device, DType::F32, whole.shape(), &vec![9.0; whole.len()]);
            join_columns(&backend, &mut out, &parts).expect("shapes fit");
            let out = out.to_f32().expect("read");
            assert_same_bits(&out, whole.f32(), &format!("{device:?} {case_of:?}"));
        }
    }
}

#[test]
fn parts_without_room_for_all_rows_are_refused() {
    for shape in [[2, 5], [0, 6]] {
        let parts = tensor(1, &shape, 1.0);
        let error = join_columns(&Backend::Reference, &mut tensor(2, &[3, 4], 1.0), &parts);
        assert!(matches!(error, Err(KernelError::Shape { what: "parts", .. })), "{error:?}");
    }
}
