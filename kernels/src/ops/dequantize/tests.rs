use super::*;
use crate::ops::testing::assert_same_bits;
use half::{bf16, f16};

/// Blocks with random legal content and their values according to the `gguf` Python package, for
/// each dtype: its name (8 bytes), the lengths in bytes of blocks and values (u32), blocks, values
/// (f32), little endian.
const GOLDEN: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/dequant_blocks.bin"));

#[test]
fn blocks_have_the_values_that_another_implementation_gives() {
    let mut rest = GOLDEN;
    let mut take = |len: usize| rest.split_off(..len).expect("the file has whole records");
    let mut seen = Vec::new();
    for _ in 0..7 {
        let name = String::from_utf8_lossy(take(8)).trim_end().to_owned();
        let mut length = || u32::from_le_bytes(take(4).try_into().expect("4 bytes")) as usize;
        let (blocks_len, values_len) = (length(), length());
        let (blocks, values) = (take(blocks_len), take(values_len));
        let expected: Vec<f32> =
            values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let dtype = DType::ALL.into_iter().find(|d| d.name() == name).expect("a known dtype");
        let mut out = vec![0.0; expected.len()];
        dequantize(dtype, blocks, &mut out).expect("lengths fit");
        assert_same_bits(&out, &expected, &name);
        seen.push(dtype);
    }
    assert!(rest.is_empty(), "more records than expected");
    let untested: Vec<_> = DType::ALL.into_iter().filter(|d| !seen.contains(d)).collect();
    assert_eq!(untested, [DType::F32, DType::F16], "these two are tested below");
}

#[test]
fn plain_values_are_widened_exactly() {
    type Rounded = fn(f32) -> f32;
    let values = [0.0, -1.5, 65504.0, 6.1e-5, f32::INFINITY];
    let bytes = |f: fn(f32) -> Vec<u8>| values.into_iter().flat_map(f).collect::<Vec<u8>>();
    let cases: [(DType, Vec<u8>, Rounded); 3] = [
        (DType::F32, bytes(|x| x.to_le_bytes().to_vec()), |x| x),
        (DType::F16, bytes(|x| f16::from_f32(x).to_le_bytes().to_vec()), |x| {
            f16::from_f32(x).to_f32()
        }),
        (DType::BF16, bytes(|x| bf16::from_f32(x).to_le_bytes().to_vec()), |x| {
            bf16::from_f32(x).to_f32()
        }),
    ];
    for (dtype, bytes, rounded) in cases {
        let mut out = [0.0; 5];
        dequantize(dtype, &bytes, &mut out).expect("lengths fit");
        assert_same_bits(&out, &values.map(rounded), dtype.name());
    }
}

#[test]
fn partial_blocks_are_refused() {
    for (dtype, num_bytes, num_values) in
        [(DType::Q4K, 143, 256), (DType::Q4K, 144, 255), (DType::Q8_0, 34, 33), (DType::F16, 3, 2)]
    {
        let error = dequantize(dtype, &vec![0; num_bytes], &mut vec![0.0; num_values]);
        assert!(matches!(error, Err(KernelError::Shape { .. })), "{dtype}: {error:?}");
    }
}
