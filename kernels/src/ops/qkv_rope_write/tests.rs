use super::*;
use crate::ops::kv_write::Kind;
use crate::ops::rms_norm::rms_norm_in_place;
use crate::ops::testing::*;
use crate::ops::{kv_write, rope};

const BLOCK_SIZE: usize = 8;
const NUM_BLOCKS: usize = 6;
const NUM_POSITIONS: usize = 50;

/// Heads of queries, heads of keys, head_dim, rotary_dim.
type Shape = [usize; 4];

const SHAPES: [Shape; 9] = [
    [2, 1, 64, 64],
    [14, 2, 64, 64],
    [8, 2, 32, 32],
    [32, 8, 128, 128],
    [4, 2, 256, 256],
    [4, 4, 256, 64],
    [3, 1, 128, 96],
    // Heads that do not come in runs of eight.
    [4, 2, 80, 40],
    [3, 3, 6, 4],
];

/// One step's inputs, in host memory.
struct Step {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    weights: [Vec<f32>; 2],
    positions: Vec<u32>,
    slots: Vec<u32>,
}

fn step(shape: Shape, num_tokens: usize) -> Step {
    let [heads, kv_heads, head_dim, _] = shape;
    let kv_len = num_tokens * kv_heads * head_dim;
    Step {
        shape,
        q: values(1, num_tokens * heads * head_dim, 2.0),
        k: values(2, kv_len, 2.0),
        v: values(3, kv_len, 2.0),
        weights: [values(4, head_dim, 2.0), values(5, head_dim, 2.0)],
        positions: (0..num_tokens as u32).map(|t| t * 37 % NUM_POSITIONS as u32).collect(),
        slots: (0..num_tokens as u32).map(|t| t * 7 % (NUM_BLOCKS * BLOCK_SIZE) as u32).collect(),
    }
}

/// Cosines and sines.
fn table(half: usize) -> [Vec<f32>; 2] {
    let angle = |i: usize| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
    let of = |f: fn(f64) -> f64| (0..NUM_POSITIONS * half).map(|i| f(angle(i)) as f32).collect();
    [of(f64::cos), of(f64::sin)]
}

/// Queries, keys and values after the op: queries by token, then both caches.
fn run(backend: &Backend, step: &Step, has_norm: bool, padding: usize) -> [Vec<f32>; 3] {
    let [heads, kv_heads, head_dim, rotary_dim] = step.shape;
    let dtype = backend.activation_dtype();
    let num_tokens = step.positions.len();
    let place = |dtype, shape: &[usize], values: &[f32]| match backend {
        Backend::Cuda(device) => on_device(device, dtype, shape, values),
        _ => Tensor::from_f32(shape, values),
    };
    let rows = |values: &[f32], len: usize| {
        let mut values = values.to_vec();
        values.resize((num_tokens + padding) * len, 1.0);
        place(dtype, &[num_tokens + padding, len], &values)
    };
    let mut q = rows(&step.q, heads * head_dim);
    let mut k = rows(&step.k, kv_heads * head_dim);
    let v = rows(&step.v, kv_heads * head_dim);
    let [cos, sin] = table(rotary_dim / 2)
        .map(|values| place(DType::F32, &[NUM_POSITIONS, rotary_dim / 2], &values));
    let weights = [0, 1].map(|i| place(DType::F32, &[head_dim], &step.weights[i]));
    let cache_shape = [NUM_BLOCKS, kv_heads, BLOCK_SIZE, head_dim];
    let cache = || Tensor::zeros_on(backend, dtype, &cache_shape).expect("small");
    let (mut k_cache, mut v_cache) = (cache(), cache());
    let mut buffers = Vec::new();
    let mut indices = |values: &[u32], pad: u32| {
        let mut indices = Indices::from(values);
        if let Backend::Cuda(device) = backend {
            let padded: Vec<u32> =
                values.iter().copied().chain(std::iter::repeat_n(pad, padding)).collect();
            let (there, buffer) = indices_on(device, &padded);
            indices.set_device(there.device_ptr());
            buffers.push(buffer);
        }
        indices
    };
    let (positions, slots) = (indices(&step.positions, 0), indices(&step.slots, u32::MAX));
    let table = RopeTable { cos, sin };
    let norm = HeadNorm { q_weight: &weights[0], k_weight: &weights[1], eps: 1e-6 };
    let heads = Heads { head_dim, norm: has_norm.then_some(norm) };
    let places = Positions { positions: &positions, slots: &slots, table: &table };
    let caches = [&mut k_cache, &mut v_cache];
    qkv_rope_write(backend, &mut q, &mut k, &v, caches, &places, &heads).expect("fits");
    [q, k_cache, v_cache].map(|tensor| tensor.to_f32().expect("read"))
}

#[test]
fn one_op_has_the_bits_of_the_three() {
    for backend in [vec![Backend::Reference], cpu_backends()].concat() {
        let step = step([4, 2, 80, 40], 5);
        let [cos, sin] = table(20).map(|values| Tensor::from_f32(&[NUM_POSITIONS, 20], &values));
        let (table, positions) = (RopeTable { cos, sin }, &step.positions);
        let mut q = Tensor::from_f32(&[5, 320], &step.q);
        let mut k = Tensor::from_f32(&[5, 160], &step.k);
        for (x, weight) in [(&mut q, &step.weights[0]), (&mut k, &step.weights[1])] {
            let weight = Tensor::from_f32(&[80], weight);
            rms_norm_in_place(&backend, x, &weight, 1e-6).expect("fits");
            rope(&backend, x, positions, &table, 80).expect("fits");
        }
        let mut cache = Tensor::zeros(DType::F32, &[NUM_BLOCKS, 2, BLOCK_SIZE, 80]).expect("small");
        kv_write(&backend, Kind::Keys, &mut cache, &k, &step.slots).expect("fits");
        let [got_q, got_k, _] = run(&backend, &step, true, 0);
        assert_same_bits(&got_q, q.f32(), &format!("{backend:?}"));
        assert_same_bits(&got_k, cache.f32(), &format!("{backend:?}"));
    }
}

#[test]
fn a_gpu_rounds_the_reference_to_the_activation_format() {
    for device in cuda_devices() {
        let (backend, dtype) = (Backend::Cuda(device.clone()), device.activation_dtype());
        for shape in SHAPES {
            for has_norm in [false, true] {
                let mut step = step(shape, 5);
                for x in [&mut step.q, &mut step.k, &mut step.v] {
                    let rounded = on_device(&device, dtype, &[x.len()], x);
                    *x = rounded.to_f32().expect("read");
                }
                let expected = run(&Backend::Reference, &step, has_norm, 0);
                let got = run(&backend, &step, has_norm, 2);
                let case = format!("{device:?} {shape:?} norm {has_norm}");
                let (relative, absolute) = rounding(dtype);
                // A rotated value is a difference: rounding of f32 may show where it is near 0.
                for (got, expected) in got.iter().zip(&expected).take(2) {
                    let got = &got[..expected.len()];
                    assert_close(got, expected, relative, absolute.max(2e-6), &case);
                }
                // Values are copied, and padding has no slot.
                assert_same_bits(&got[2], &expected[2], &case);
            }
        }
    }
}

#[test]
fn a_token_on_a_gpu_has_the_same_bits_alone_and_in_any_batch() {
    for device in cuda_devices() {
        let backend = Backend::Cuda(device.clone());
        let [heads, kv_heads, head_dim, _] = [14, 2, 64, 64];
        let whole = step([heads, kv_heads, head_dim, 64], 7);
        let [q, ..] = run(&backend, &whole, true, 0);
        let part = |x: &[f32], len: usize| x[3 * len..4 * len].to_vec();
        let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
        let alone = Step {
            q: part(&whole.q, q_len),
            k: part(&whole.k, kv_len),
            v: part(&whole.v, kv_len),
            positions: whole.positions[3..4].to_vec(),
            slots: whole.slots[3..4].to_vec(),
            ..step([heads, kv_heads, head_dim, 64], 0)
        };
        let [alone_q, ..] = run(&backend, &alone, true, 1);
        assert_same_bits(&alone_q[..q_len], &q[3 * q_len..][..q_len], &format!("{device:?}"));
    }
}

#[test]
fn fifty_schedules_give_the_same_bits() {
    for device in cuda_devices() {
        for shape in [[2, 1, 64, 64], [3, 3, 6, 4]] {
            let (step, backend) = (step(shape, 2), Backend::Cuda(device.clone()));
            check_schedules(&format!("{device:?} {shape:?}"), || {
                run(&backend, &step, true, 1).concat()
            });
        }
    }
}
