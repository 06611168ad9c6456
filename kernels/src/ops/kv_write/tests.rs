use super::*;
use crate::ops::testing::*;
use half::f16;

fn cache_bits(cache: &Tensor) -> Vec<u32> {
    match cache.dtype() {
        DType::F16 => cache.f16().iter().map(|x| u32::from(x.to_bits())).collect(),
        DType::BF16 => cache.bf16().iter().map(|x| u32::from(x.to_bits())).collect(),
        _ => cache.f32().iter().map(|x| x.to_bits()).collect(),
    }
}

#[test]
fn slots_hold_what_the_reference_writes_and_others_are_left_alone() {
    let kinds = [Kind::Keys, Kind::Values];
    for (dtype, kind) in kinds
        .into_iter()
        .flat_map(|kind| [DType::F16, DType::BF16, DType::F32].map(|dtype| (dtype, kind)))
    {
        // kv_heads, block_size, head_dim
        for [kv_heads, block_size, head_dim] in [[1, 8, 40], [2, 16, 64], [8, 32, 128], [3, 1, 7]] {
            if dtype == DType::BF16 && block_size % 16 != 0 {
                continue;
            }
            let shape = [6, kv_heads, block_size, head_dim];
            let num_slots = (6 * block_size) as u32;
            let slots: Vec<u32> = (0..num_slots).step_by(2).map(|i| (i * 5) % num_slots).collect();
            let slots = &slots[..slots.len().min(3)];
            let x = tensor(1, &[slots.len(), kv_heads * head_dim], 70_000.0);
            let mut expected = Tensor::zeros(dtype, &shape).expect("small");
            kv_write(&Backend::Reference, kind, &mut expected, &x, slots).expect("fits");
            for backend in cpu_backends() {
                let mut cache = Tensor::zeros(dtype, &shape).expect("small");
                kv_write(&backend, kind, &mut cache, &x, slots).expect("fits");
                let case = format!("{backend:?} {dtype} {kind:?} {shape:?}");
                assert!(cache_bits(&cache) == cache_bits(&expected), "{case}");
            }
        }
    }
}

#[test]
fn f16_is_rounded_to_nearest_even() {
    // 1 + 2^-11 lies between 1 and the next f16; 1 + 3 * 2^-11 between two others: even bits win.
    let (low, high) = (1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11));
    for backend in cpu_backends() {
        let mut cache = Tensor::zeros(DType::F16, &[1, 1, 1, 18]).expect("small");
        let mut values = [low; 18];
        values[1] = high;
        values[17] = high;
        let x = Tensor::from_f32(&[1, 18], &values);
        kv_write(&backend, Kind::Keys, &mut cache, &x, &[0]).expect("fits");
        let (even_low, even_high) = (f16::from_f32(1.0), f16::from_f32(1.0 + 2f32.powi(-9)));
        let cache = cache.f16();
        assert_eq!(
            [cache[0], cache[1], cache[16], cache[17]],
            [even_low, even_high, even_low, even_high]
        );
    }
}

#[test]
fn slots_outside_the_cache_are_refused() {
    for backend in cpu_backends() {
        let mut cache = Tensor::zeros(DType::F16, &[2, 1, 8, 16]).expect("small");
        let x = tensor(1, &[1, 16], 1.0);
        let error = kv_write(&backend, Kind::Keys, &mut cache, &x, &[16]);
        assert!(matches!(error, Err(KernelError::Index { index: 16, len: 16, .. })), "{error:?}");
    }
}

#[test]
fn bf16_blocks_hold_keys_by_pairs_of_dimensions_and_values_by_pairs_of_tokens() {
    let x: Vec<f32> = (0..16 * 4).map(|i| i as f32).collect();
    let x = Tensor::from_f32(&[16, 4], &x);
    let slots: Vec<u32> = (0..16).collect();
    for backend in [vec![Backend::Reference], cpu_backends()].concat() {
        let write = |kind| {
            let mut cache = Tensor::zeros(DType::BF16, &[1, 1, 16, 4]).expect("small");
            kv_write(&backend, kind, &mut cache, &x, &slots).expect("fits");
            cache.to_f32().expect("host")
        };
        // Token t has 4 t, 4 t + 1, 4 t + 2, 4 t + 3.
        let keys = write(Kind::Keys);
        assert_eq!(keys[..4], [0.0, 1.0, 4.0, 5.0], "{backend:?}");
        assert_eq!(keys[32..36], [2.0, 3.0, 6.0, 7.0], "{backend:?}");
        let values = write(Kind::Values);
        assert_eq!(values[..8], [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0], "{backend:?}");
        assert_eq!(values[8..12], [8.0, 12.0, 9.0, 13.0], "{backend:?}");
    }
}

#[test]
fn bf16_blocks_that_do_not_pair_are_refused() {
    for shape in [[2, 1, 8, 16], [2, 1, 16, 15]] {
        let mut cache = Tensor::zeros(DType::BF16, &shape).expect("small");
        let x = tensor(1, &[1, shape[3]], 1.0);
        let error = kv_write(&Backend::Reference, Kind::Keys, &mut cache, &x, &[0]);
        assert!(matches!(error, Err(KernelError::Shape { what: "cache", .. })), "{error:?}");
    }
}
