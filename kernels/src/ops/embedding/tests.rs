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

/// The bytes of a table of 20 rows.
fn bytes_of_table(dtype: DType, row_len: usize) -> Vec<u8> {
    let num_bytes = dtype.row_bytes(row_len).expect("whole blocks") * 20;
    (0..num_bytes).map(|i| ((i * 37 + i / 251) % 61) as u8).collect()
}

/// The run of rows that `rank` of three has: 6, 7 and 7.
fn part_of_table(backend: &Backend, dtype: DType, row_len: usize, rank: usize) -> Table {
    let part = crate::comm::part_range(20, rank, 3);
    let bytes = bytes_of_table(dtype, row_len);
    let row_bytes = bytes.len() / 20;
    let own = bytes[part.start * row_bytes..part.end * row_bytes].to_vec();
    Table::load_part(backend, dtype, 20, part, row_len, own.into()).expect("lengths fit")
}

const IDS: [u32; 10] = [0, 5, 6, 19, 12, 13, 6, 0, 11, 18];

#[test]
fn a_row_comes_from_the_rank_that_has_it_and_zeros_from_the_others() {
    for (dtype, backend) in DType::ALL.into_iter().flat_map(|dtype| {
        [vec![Backend::Reference], cpu_backends()].concat().into_iter().map(move |b| (dtype, b))
    }) {
        let mut whole = tensor(1, &[IDS.len(), 256], 1.0);
        let table = Table::load(&backend, dtype, 20, 256, bytes_of_table(dtype, 256).into());
        embedding(&backend, &mut whole, &table.expect("lengths fit"), &IDS[..].into())
            .expect("fits");
        for rank in 0..3 {
            let mut part = tensor(2, &[IDS.len(), 256], 1.0);
            let table = part_of_table(&backend, dtype, 256, rank);
            embedding(&backend, &mut part, &table, &IDS[..].into()).expect("fits");
            check_part(part.f32(), whole.f32(), rank, &format!("{backend:?} {dtype}"));
        }
        let error = embedding(
            &backend,
            &mut whole,
            &part_of_table(&backend, dtype, 256, 0),
            &vec![20; IDS.len()].into(),
        );
        assert!(matches!(error, Err(KernelError::Index { index: 20, len: 20, .. })), "{error:?}");
    }
}

fn check_part(part: &[f32], whole: &[f32], rank: usize, case: &str) {
    let rows = crate::comm::part_range(20, rank, 3);
    let row_len = whole.len() / IDS.len();
    for ((id, part), whole) in IDS.iter().zip(part.chunks(row_len)).zip(whole.chunks(row_len)) {
        let zeros = vec![0.0; row_len];
        let expected = if rows.contains(&(*id as usize)) { whole } else { &zeros };
        assert_same_bits(part, expected, &format!("{case}, rank {rank}, id {id}"));
    }
}

#[test]
fn ranks_on_gpus_have_their_rows_and_zeros_for_the_others() {
    for device in cuda_devices() {
        let backend = Backend::Cuda(device.clone());
        for dtype in DType::ALL {
            // Plain rows also of a length that is no whole number of vectors.
            let row_len = if dtype.is_quantized() { 256 } else { 331 };
            let (ids, _buffer) = indices_on(&device, &IDS);
            let mut whole = tensor(1, &[IDS.len(), row_len], 1.0);
            let bytes = bytes_of_table(dtype, row_len).into();
            let table = Table::load(&Backend::Reference, dtype, 20, row_len, bytes);
            embedding(&Backend::Reference, &mut whole, &table.expect("lengths fit"), &ids)
                .expect("fits");
            for rank in 0..3 {
                let table = part_of_table(&backend, dtype, row_len, rank);
                let ones = vec![1.0; whole.len()];
                let mut part = on_device(&device, DType::F32, whole.shape(), &ones);
                embedding(&backend, &mut part, &table, &ids).expect("fits");
                let part = part.to_f32().expect("read");
                check_part(&part, whole.f32(), rank, &format!("{device:?} {dtype}"));
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
