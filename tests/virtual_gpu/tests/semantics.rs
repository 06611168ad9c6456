//! Real nvcc output, executed and compared with the same computed in Rust.

mod common;

use common::{Gpu, bf16, f32s};

const BASIC: &str = include_str!("../kernels/basic.ptx");

#[test]
fn axpy_handles_a_partial_last_block() {
    let gpu = Gpu::new(BASIC);
    let x: Vec<f32> = (0..1000).map(|i| i as f32 * 0.5).collect();
    let y: Vec<f32> = (0..1000).map(|i| 1.0 - i as f32).collect();
    let (dx, dy) = (gpu.upload(&f32s(&x)), gpu.upload(&f32s(&y)));
    let args = common::params(&[&dy, &dx, &2f32.to_bits(), &1000u32]);
    gpu.launch("axpy", [4, 1, 1], 256, &args).unwrap();
    let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2f32.mul_add(*x, *y)).collect();
    assert_eq!(gpu.floats(dy, 1000), want);
}

#[test]
fn block_sum_is_exact_on_integers_for_any_seed_and_thread_count() {
    let gpu = Gpu::new(BASIC);
    let x: Vec<f32> = (0..2048).map(|i| (i % 97) as f32).collect();
    let dx = gpu.upload(&f32s(&x));
    let want: Vec<f32> = x.chunks(256).map(|c| c.iter().sum()).collect();
    for seed in 0..20 {
        let out = gpu.memory.alloc(32);
        let mut config = gpu.config([8, 1, 1], 256);
        config.seed = seed;
        config.threads = 1 + seed as usize % 2;
        gpu.launch_with("block_sum", &config, &common::params(&[&out, &dx])).unwrap();
        assert_eq!(gpu.floats(out, 8), want);
    }
}

#[test]
fn divergent_loops_reconverge() {
    let gpu = Gpu::new(BASIC);
    let x: Vec<u32> = (1..=64).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (dx, out) = (gpu.upload(&bytes), gpu.memory.alloc(256));
    gpu.launch("collatz", [1, 1, 1], 64, &common::params(&[&out, &dx])).unwrap();
    let mut got = vec![0; 256];
    gpu.memory.read(out, &mut got).unwrap();
    for (i, value) in got.chunks(4).enumerate() {
        let (mut v, mut count) = (x[i], 0u32);
        while v != 1 {
            v = if v % 2 == 1 { 3 * v + 1 } else { v / 2 };
            count += 1;
        }
        assert_eq!(u32::from_le_bytes(value.try_into().unwrap()), count, "start {}", x[i]);
    }
}

#[test]
fn math_library_functions_agree_with_f64() {
    let gpu = Gpu::new(BASIC);
    let x: Vec<f32> = (0..32).map(|i| (i as f32 - 15.5) * 0.37).collect();
    let (dx, out) = (gpu.upload(&f32s(&x)), gpu.memory.alloc(7 * 128));
    gpu.launch("functions", [1, 1, 1], 32, &common::params(&[&out, &dx])).unwrap();
    let got = gpu.floats(out, 224);
    for (i, &v) in x.iter().enumerate() {
        let v = v as f64;
        let want = [
            v.exp(),
            v.abs().ln(),
            ((v as f32 * 1000.0) as f64).sin(),
            v.tanh(),
            v.abs().powf(1.7f32 as f64),
            1.0 / v.abs().sqrt(),
            v.exp(),
        ];
        for (k, want) in want.into_iter().enumerate() {
            let error = (got[k * 32 + i] as f64 - want).abs();
            assert!(error <= 1e-6 * want.abs().max(0.1), "function {k} of {v}: {error}");
        }
    }
}

/// One 16 x 16 by 16 x 8 tile; the largest error against f64.
fn tile_error(ptx: &str) -> f64 {
    let gpu = Gpu::new(ptx);
    let a: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0).collect();
    let b: Vec<f32> = (0..128).map(|i| ((i * 53 % 89) as f32 - 44.0) / 16.0).collect();
    let (da, db) = (gpu.upload(&bf16(&a)), gpu.upload(&bf16(&b)));
    let c = gpu.memory.alloc(512);
    gpu.launch("tile", [1, 1, 1], 32, &common::params(&[&c, &da, &db])).unwrap();
    let got = gpu.floats(c, 128);
    let mut worst: f64 = 0.0;
    for row in 0..16 {
        for column in 0..8 {
            let want: f64 =
                (0..16).map(|k| a[row * 16 + k] as f64 * b[column * 16 + k] as f64).sum();
            worst = worst.max((got[row * 8 + column] as f64 - want).abs());
        }
    }
    worst
}

#[test]
fn ldmatrix_and_mma_multiply_a_tile() {
    assert!(tile_error(BASIC) <= 1e-4);
}
