use super::*;
use crate::config::testing::tiny_config;
use kernels::DType;

fn spec(rank: usize, world_size: usize) -> ShardSpec {
    ShardSpec { rank, world_size }
}

/// [rows, cols] of numbers that name their place, or blocks whose first byte does.
fn tensor(dtype: DType, rows: usize, cols: usize) -> StoredTensor {
    let blocks = rows * cols / dtype.block_len();
    let bytes = (0..blocks).flat_map(|b| {
        let mut block = vec![0u8; dtype.block_bytes()];
        block[0] = b as u8;
        block
    });
    StoredTensor { dtype, shape: vec![rows, cols], bytes: bytes.collect() }
}

fn blocks(tensor: &StoredTensor) -> Vec<u8> {
    tensor.bytes.chunks_exact(tensor.dtype.block_bytes()).map(|block| block[0]).collect()
}

#[test]
fn parts_of_all_ranks_are_the_whole_without_gaps() {
    for world_size in [1, 2, 3, 4, 6, 12] {
        let kv_heads = Split::KvHeads { num_kv_heads: 12 };
        for split in [Split::OutFeatures, Split::InFeatures, kv_heads] {
            let ranges = (0..world_size).map(|r| feature_range(split, 24, spec(r, world_size)));
            let all: Vec<usize> = ranges.flatten().collect();
            assert_eq!(all, (0..24).collect::<Vec<_>>());
        }
    }
    assert_eq!(feature_range(Split::Whole, 24, spec(3, 4)), 0..24);
}

#[test]
fn more_ranks_than_kv_heads_hold_them_in_neighbouring_groups() {
    let split = Split::KvHeads { num_kv_heads: 2 };
    let range = |rank| feature_range(split, 2 * 8, spec(rank, 4));
    assert_eq!([range(0), range(1), range(2), range(3)], [0..8, 0..8, 8..16, 8..16]);
}

#[test]
fn rows_are_views_and_columns_are_copies_of_whole_blocks() {
    let whole = tensor(DType::Q8_0, 4, 128);
    let rows = slice(whole.clone(), Split::OutFeatures, spec(1, 2)).unwrap();
    assert_eq!((&rows.shape[..], blocks(&rows)), (&[2, 128][..], (8..16).collect()));
    assert_eq!(rows.bytes.as_ptr(), whole.bytes[whole.bytes.len() / 2..].as_ptr());
    let columns = slice(whole.clone(), Split::InFeatures, spec(1, 2)).unwrap();
    let expected = vec![2, 3, 6, 7, 10, 11, 14, 15];
    assert_eq!((&columns.shape[..], blocks(&columns)), (&[4, 64][..], expected));
    let plain = slice(tensor(DType::F16, 2, 4), Split::InFeatures, spec(0, 4)).unwrap();
    assert_eq!((&plain.shape[..], blocks(&plain)), (&[2, 1][..], vec![0, 4]));
    let bias = StoredTensor { shape: vec![4], ..tensor(DType::F32, 1, 4) };
    let bias = slice(bias, Split::OutFeatures, spec(3, 4)).unwrap();
    assert_eq!((&bias.shape[..], blocks(&bias)), (&[1][..], vec![3]));
    let same = slice(whole.clone(), Split::InFeatures, ShardSpec::SOLO).unwrap();
    assert_eq!(same.bytes.as_ptr(), whole.bytes.as_ptr());
}

#[test]
fn a_cut_through_a_quantisation_block_keeps_every_value() {
    let bytes: Vec<u8> = (0..4 * DType::Q6K.block_bytes()).map(|i| (i * 37 % 101) as u8).collect();
    let whole = StoredTensor { dtype: DType::Q6K, shape: vec![2, 512], bytes: bytes.into() };
    let values = |tensor: &StoredTensor| {
        let mut values = vec![0f32; tensor.shape.iter().product()];
        dequantize(tensor.dtype, &tensor.bytes, &mut values).unwrap();
        values
    };
    let all = values(&whole);
    for (world_size, dtype) in [(2, DType::Q6K), (4, DType::F32)] {
        for rank in 0..world_size {
            let part = slice(whole.clone(), Split::InFeatures, spec(rank, world_size)).unwrap();
            let len = 512 / world_size;
            assert_eq!((part.dtype, &part.shape[..]), (dtype, &[2, len][..]));
            let columns = rank * len..(rank + 1) * len;
            let expected: Vec<f32> =
                all.chunks(512).flat_map(|row| &row[columns.clone()]).copied().collect();
            assert_eq!(values(&part), expected, "rank {rank} of {world_size}");
        }
    }
}

#[test]
fn the_mlp_is_cut_between_blocks_where_it_can_be() {
    // Qwen2.5-0.5B has 19 blocks of 256; two blocks are too few for four ranks.
    for (len, block_len, world_size, lens) in [
        (4864, 1, 2, vec![2432, 2432]),
        (4864, 32, 2, vec![2432, 2432]),
        (4864, 256, 2, vec![2304, 2560]),
        (4864, 256, 4, vec![1024, 1280, 1280, 1280]),
        (512, 256, 2, vec![256, 256]),
        (512, 256, 4, vec![128; 4]),
        (96, 1, 3, vec![32; 3]),
        (4864, 1, 3, vec![1600, 1632, 1632]),
    ] {
        let unit = inner_unit(len, block_len, world_size).unwrap();
        let range = |rank| feature_range(Split::InUnits { unit }, len, spec(rank, world_size));
        let ranges: Vec<_> = (0..world_size).map(range).collect();
        assert_eq!(ranges.iter().map(Range::len).collect::<Vec<_>>(), lens);
        let out = |rank| feature_range(Split::OutUnits { unit }, len, spec(rank, world_size));
        assert_eq!((0..world_size).map(out).collect::<Vec<_>>(), ranges);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!((ranges[0].start, ranges[world_size - 1].end), (0, len));
    }
    assert_eq!(inner_unit(100, 1, 3), None);
    assert_eq!(inner_unit(512, 256, 3), None);
}

#[test]
fn sizes_of_a_rank_and_uneven_groups() {
    let config = tiny_config(); // 4 heads, 2 kv heads, 96 intermediate features
    let sizes = |n| shard_sizes(&config, spec(0, n), 1);
    let expected = |num_heads, num_kv_heads, intermediate_size| ShardSizes {
        num_heads,
        num_kv_heads,
        intermediate_size,
        inner_unit: intermediate_size,
    };
    assert_eq!(sizes(1).unwrap(), expected(4, 2, 96));
    assert_eq!(sizes(2).unwrap(), expected(2, 1, 48));
    assert_eq!(sizes(4).unwrap(), expected(1, 1, 24));
    for (world_size, word) in [(3, "num_key_value_heads 2"), (8, "num_attention_heads 4")] {
        let error = sizes(world_size).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
