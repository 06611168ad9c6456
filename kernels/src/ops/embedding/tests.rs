use super::*;
use crate::ops::testing::*;

/// A table whose row i of F32 holds i, i + 1/4096, ...; quantised ones get any legal bytes.
fn table(dtype: DType, rows: usize, row_len: usize) -> Table {
    let num_bytes = dtype.row_bytes(row_len).expect("whole blocks") * rows;
    // Bytes below 0x40 keep every f16 and f32 within finite numbers.
    let bytes: Vec<u8> = (0..num_bytes).map(|i| ((i * 37 + i / 251) % 61) as u8).collect();
    Table::load(&Backend::Reference, dtype, rows, row_len, Bytes::from(bytes)).expect("lengths fit")
}

#[test]
fn rows_equal_the_reference_to_the_bit_for_every_dtype() {
    let many: Vec<u32> = (0..60).map(|i| (i * 7) % 20).collect();
    for dtype in DType::ALL {
        let table = table(dtype, 20, 768);
        for token_ids in [&[][..], &[19], &[3, 0, 3], &many] {
            let shape = [token_ids.len(), 768];
            let mut expected = tensor(1, &shape, 1.0);
            embedding(&Backend::Reference, &mut expected, &table, &token_ids.into()).expect("fits");
            for backend in cpu_backends() {
                let mut out = tensor(2, &shape, 1.0);
                embedding(&backend, &mut out, &table, &token_ids.into()).expect("fits");
                assert_same_bits(out.f32(), expected.f32(), &format!("{backend:?} {dtype}"));
            }
        }
    }
}

#[test]
fn plain_rows_are_what_the_checkpoint_holds() {
    let values = values(1, 30, 5.0);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = Table::load(&Backend::Reference, DType::F32, 3, 10, Bytes::from(bytes))
        .expect("lengths fit");
    for backend in cpu_backends() {
        let mut out = tensor(2, &[2, 10], 1.0);
        embedding(&backend, &mut out, &table, &vec![2, 0].into()).expect("fits");
        assert_same_bits(out.f32_row(0), &values[20..], "row 2");
        assert_same_bits(out.f32_row(1), &values[..10], "row 0");
    }
}

#[test]
fn ids_outside_the_table_and_wrong_lengths_are_refused() {
    for backend in cpu_backends() {
        let error = embedding(
            &backend,
            &mut tensor(1, &[1, 32], 1.0),
            &table(DType::Q4_0, 4, 32),
            &vec![4].into(),
        );
        assert!(matches!(error, Err(KernelError::Index { index: 4, len: 4, .. })), "{error:?}");
    }
    let short = Table::load(&Backend::Reference, DType::Q4_0, 4, 32, Bytes::from_static(&[0; 71]));
    assert!(matches!(short, Err(KernelError::Shape { what: "table", .. })), "{short:?}");
}

#[test]
fn rows_on_a_gpu_equal_the_reference_to_the_bit_for_every_dtype() {
    let many: Vec<u32> = (0..60).map(|i| (i * 7) % 20).collect();
    for device in cuda_devices() {
        let backend = Backend::Cuda(device.clone());
        for dtype in DType::ALL {
            // Plain rows also of a length that is no whole number of vectors.
            let row_lens = if dtype.is_quantized() { [768, 2048] } else { [768, 331] };
            for row_len in row_lens {
                let num_bytes = dtype.row_bytes(row_len).expect("whole blocks") * 20;
                let bytes: Vec<u8> =
                    (0..num_bytes).map(|i| ((i * 37 + i / 251) % 61 * 4 + i % 3) as u8).collect();
                let load = |backend: &Backend| {
                    let bytes = Bytes::from(bytes.clone());
                    Table::load(backend, dtype, 20, row_len, bytes).expect("lengths fit")
                };
                let (here, there) = (load(&Backend::Reference), load(&backend));
                let mut expected = tensor(1, &[60, row_len], 1.0);
                let (token_ids, _buffer) = indices_on(&device, &many);
                embedding(&Backend::Reference, &mut expected, &here, &token_ids).expect("fits");
                let mut out =
                    on_device(&device, DType::F32, &[60, row_len], &vec![1.0; 60 * row_len]);
                embedding(&backend, &mut out, &there, &token_ids).expect("fits");
                for (i, (a, e)) in
                    out.to_f32().expect("read").iter().zip(expected.f32()).enumerate()
                {
                    // Any bytes may be NaN as f16.
                    let is_same = a.to_bits() == e.to_bits() || (a.is_nan() && e.is_nan());
                    assert!(is_same, "{device:?} {dtype} {row_len}: value {i} is {a}, not {e}");
                }
            }
        }
    }
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    let Some(device) = cuda_devices().into_iter().next() else { return };
    let backend = Backend::Cuda(device.clone());
    let (token_ids, _buffer) = indices_on(&device, &[1, 0]);
    for dtype in DType::ALL {
        let bytes = crate::qualify::numbers::weight_bytes(dtype, 2, 256);
        let table = Table::load(&backend, dtype, 2, 256, bytes.into()).expect("lengths fit");
        check_schedules(dtype.name(), || {
            let mut out = on_device(&device, DType::F32, &[2, 256], &[1.0; 512]);
            embedding(&backend, &mut out, &table, &token_ids).expect("fits");
            out.to_f32().expect("read")
        });
    }
}
