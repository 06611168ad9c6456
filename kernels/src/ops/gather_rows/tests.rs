use super::*;
use crate::ops::testing::*;

#[test]
fn rows_come_in_the_order_asked_for() {
    let wide: Vec<u32> = (0..90).map(|i| (i * 31) % 90).collect();
    for (num_rows, row_len, rows) in
        [(1, 1, &[0][..]), (5, 7, &[4, 0, 4]), (3, 64, &[]), (90, 896, &wide)]
    {
        let x = tensor(1, &[num_rows, row_len], 1.0);
        for backend in [vec![Backend::Reference], cpu_backends()].concat() {
            let mut out = tensor(2, &[rows.len(), row_len], 1.0);
            gather_rows(&backend, &mut out, &x, &rows.into()).expect("fits");
            for (i, &row) in rows.iter().enumerate() {
                assert_same_bits(out.f32_row(i), x.f32_row(row as usize), &format!("{backend:?}"));
            }
        }
    }
}

#[test]
fn rows_outside_are_refused() {
    for backend in cpu_backends() {
        let error = gather_rows(
            &backend,
            &mut tensor(1, &[1, 4], 1.0),
            &tensor(2, &[3, 4], 1.0),
            &vec![3].into(),
        );
        assert!(matches!(error, Err(KernelError::Index { index: 3, len: 3, .. })), "{error:?}");
    }
}

#[test]
fn rows_come_in_order_on_a_gpu_and_padding_may_follow() {
    let wide: Vec<u32> = (0..90).map(|i| (i * 31) % 90).collect();
    for device in cuda_devices() {
        for (num_rows, row_len, rows) in
            [(1, 1, &[0][..]), (5, 7, &[4, 0, 4]), (3, 64, &[]), (90, 896, &wide)]
        {
            let x = tensor(1, &[num_rows, row_len], 1.0);
            let x_there = on_device(&device, DType::F32, x.shape(), x.f32());
            let padded = [rows, &[0, 0]].concat();
            let (mut indices, buffer) = indices_on(&device, &padded);
            indices.clear();
            indices.extend_from_slice(rows);
            indices.set_device(buffer.ptr());
            let backend = Backend::Cuda(device.clone());
            let mut out = Tensor::zeros_on(&backend, DType::F32, &[padded.len(), row_len])
                .expect("a small tensor");
            gather_rows(&backend, &mut out, &x_there, &indices).expect("fits");
            let out = out.to_f32().expect("read");
            for (out, &row) in out.chunks_exact(row_len).zip(&padded) {
                assert_same_bits(out, x.f32_row(row as usize), &format!("{device:?}"));
            }
        }
    }
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    let Some(device) = cuda_devices().into_iter().next() else { return };
    let backend = Backend::Cuda(device.clone());
    let x = on_device(&device, DType::F32, &[3, 300], &values(1, 900, 1.0));
    let (indices, _buffer) = indices_on(&device, &[2, 0]);
    check_schedules("two rows of 300", || {
        let mut out = Tensor::zeros_on(&backend, DType::F32, &[2, 300]).expect("small");
        gather_rows(&backend, &mut out, &x, &indices).expect("fits");
        out.to_f32().expect("read")
    });
}
