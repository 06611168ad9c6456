use super::*;
use crate::ops::testing::*;

fn table(num_positions: usize, half: usize) -> RopeTable {
    let angle = |i: usize| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
    let tensor = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..num_positions * half).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_f32(&[num_positions, half], &values)
    };
    RopeTable { cos: tensor(f64::cos), sin: tensor(f64::sin) }
}

#[test]
fn heads_are_rotated_like_the_reference() {
    // num_tokens, heads, head_dim, half of the rotated part
    let cases = [
        [1, 1, 2, 1],
        [5, 2, 32, 16],
        [3, 14, 64, 32],
        [70, 8, 128, 64],
        [4, 2, 80, 20],
        [2, 3, 256, 32],
    ];
    for [num_tokens, heads, head_dim, half] in cases {
        let (shape, table) = ([num_tokens, heads * head_dim], table(100, half));
        let positions: Vec<u32> = (0..num_tokens as u32).map(|t| (t * 37) % 100).collect();
        let mut expected = tensor(1, &shape, 2.0);
        rope(&Backend::Reference, &mut expected, &positions, &table, head_dim).expect("fits");
        for backend in cpu_backends() {
            let mut x = tensor(1, &shape, 2.0);
            rope(&backend, &mut x, &positions, &table, head_dim).expect("fits");
            let case = format!("{backend:?} {shape:?} {head_dim} {half}");
            assert_close(x.f32(), expected.f32(), 0.0, 5e-7, &case);
            for (x, old) in
                x.f32().chunks(head_dim).zip(tensor(1, &shape, 2.0).f32().chunks(head_dim))
            {
                assert_same_bits(&x[2 * half..], &old[2 * half..], &case);
            }
        }
    }
}

#[test]
fn a_token_has_the_same_bits_alone_and_in_any_batch() {
    let table = table(64, 32);
    for backend in cpu_backends() {
        let positions: Vec<u32> = (0..64).collect();
        let mut batch = tensor(1, &[64, 640], 2.0);
        rope(&backend, &mut batch, &positions, &table, 64).expect("fits");
        for t in [0, 13, 63] {
            let mut alone = Tensor::from_f32(&[1, 640], tensor(1, &[64, 640], 2.0).f32_row(t));
            rope(&backend, &mut alone, &positions[t..=t], &table, 64).expect("fits");
            assert_same_bits(alone.f32(), batch.f32_row(t), &format!("{backend:?} token {t}"));
        }
    }
}

#[test]
fn positions_outside_the_table_are_refused() {
    for backend in cpu_backends() {
        let error = rope(&backend, &mut tensor(1, &[1, 64], 1.0), &[10], &table(10, 32), 64);
        assert!(matches!(error, Err(KernelError::Index { index: 10, len: 10, .. })), "{error:?}");
    }
}
