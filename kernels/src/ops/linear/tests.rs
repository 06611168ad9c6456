use super::*;
use crate::device::cpu::{CpuDevice, Isa};
use crate::ops::dequantize;
use crate::ops::testing::{
    assert_same_bits, cpu_backends, cuda_devices, on_device, tensor, values,
};
pub(super) use crate::qualify::numbers::weight_bytes;
use half::{bf16, f16};

/// out_features, in_features; in_features is rounded up to whole blocks of the dtype. The largest
/// has two panels and three chunks.
const SHAPES: [[usize; 2]; 8] =
    [[1, 1], [3, 33], [16, 64], [17, 7], [40, 256], [100, 896], [33, 160], [70, 2306]];
const NUM_TOKENS: [usize; 6] = [1, 2, 3, 7, 16, 33];
const NUM_TOKENS_MAX: usize = 33;
/// What f32 sums in the kernels' order may differ from exact ones, relative to the sum of |w x|.
const SUM_ERROR: f64 = 1e-5;

struct Case {
    dtype: DType,
    n: usize,
    k: usize,
    bytes: Bytes,
    x: Tensor,
    bias: Tensor,
}

impl Case {
    fn new(dtype: DType, [n, k]: [usize; 2]) -> Case {
        let k = k.next_multiple_of(dtype.block_len());
        let bytes = weight_bytes(dtype, n, k).into();
        Case { dtype, n, k, bytes, x: activations(NUM_TOKENS_MAX, k), bias: tensor(9, &[n], 1.0) }
    }

    fn all() -> impl Iterator<Item = Case> {
        DType::ALL.into_iter().flat_map(|dtype| SHAPES.map(|shape| Case::new(dtype, shape)))
    }

    fn name(&self, backend: &Backend, num_tokens: usize) -> String {
        let isa = match backend {
            Backend::Cpu(device) => format!("{:?} {:?}", device, device.isa),
            other => other.name().into(),
        };
        format!("{isa}: {} [{}, {}] x {num_tokens}", self.dtype, self.n, self.k)
    }

    fn load(&self, backend: &Backend) -> Weight {
        Weight::load(backend, self.dtype, self.n, self.k, self.bytes.clone()).expect("valid bytes")
    }

    /// Rows `rows` of `x` through the weight.
    fn run(&self, backend: &Backend, weight: &Weight, rows: std::ops::Range<usize>) -> Vec<f32> {
        let x = &self.x.f32()[rows.start * self.k..rows.end * self.k];
        self.run_rows(backend, weight, x)
    }

    /// Rows `x` through the weight, with a bias and an F32 result.
    fn run_rows(&self, backend: &Backend, weight: &Weight, x: &[f32]) -> Vec<f32> {
        let num_tokens = x.len() / self.k;
        let x = on(backend, backend.activation_dtype(), &[num_tokens, self.k], x);
        let before = values(5, num_tokens * self.n, 1.0);
        let mut out = on(backend, DType::F32, &[num_tokens, self.n], &before);
        let bias = on(backend, DType::F32, &[self.n], self.bias.f32());
        linear(backend, &mut out, &x, weight, Some(&bias)).expect("shapes fit");
        out.to_f32().expect("the device works")
    }
}

/// A tensor in the memory of `backend`.
fn on(backend: &Backend, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
    match backend {
        Backend::Cuda(device) => on_device(device, dtype, shape, values),
        _ => Tensor::from_f32(shape, values),
    }
}

/// The CPU, and a GPU for each activation format where there is one.
fn backends() -> Vec<Backend> {
    cpu_backends().into_iter().chain(cuda_devices().into_iter().map(Backend::Cuda)).collect()
}

/// Rows of usual numbers, of zeros, with one huge number, of numbers too small to divide by, and
/// with ties.
fn activations(num_tokens: usize, k: usize) -> Tensor {
    let mut x = values(3, num_tokens * k, 3.0);
    for (t, row) in x.chunks_exact_mut(k).enumerate() {
        match t % 8 {
            2 => row.fill(0.0),
            3 => row[k / 2] = -3e4,
            5 => row.iter_mut().for_each(|x| *x *= 1e-38),
            6 => row.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 255) as f32 / 2.0 - 63.5),
            _ => {}
        }
    }
    Tensor::from_f32(&[num_tokens, k], &x)
}

/// What the kernels multiply with in place of `x`, and how far from it each value may lie.
fn rounded(dtype: DType, isa: Isa, x: &[f32]) -> Vec<(f64, f64)> {
    if dtype == DType::BF16 && isa >= Isa::Avx512Bf16 {
        // Eight bits of precision: half a unit in the last place is at most 2^-8 of the number.
        let error = |x: f32| f64::from(x.abs()) / 256.0;
        return x.iter().map(|&x| (bf16::from_f32(x).to_f64(), error(x))).collect();
    }
    if !dtype.is_quantized() {
        return x.iter().map(|&x| (f64::from(x), 0.0)).collect();
    }
    let round_block = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let scale = largest / 127.0;
        let inverse = if largest < 1e-36 { 0.0 } else { 127.0 / largest };
        let error = if largest < 1e-36 { 1e-36 } else { f64::from(scale) * 0.5001 };
        let round = |&x: &f32| {
            let code = (x * inverse).round_ties_even();
            (f64::from(scale) * f64::from(code), error)
        };
        x.iter().map(round).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(round_block).collect()
}

/// Each row of the weight as numbers, and the magnitudes of the terms that make each number.
fn weight_rows(case: &Case) -> Vec<Vec<(f64, f64)>> {
    let mut without_min = case.bytes.to_vec();
    if matches!(case.dtype, DType::Q4K | DType::Q5K) {
        let blocks = without_min.chunks_exact_mut(case.dtype.block_bytes());
        blocks.for_each(|block| block[2..4].fill(0));
    }
    let row_bytes = case.bytes.len() / case.n;
    let widen = |bytes: &[u8]| {
        let mut w = vec![0f32; case.k];
        dequantize::reference::dequantize(case.dtype, bytes, &mut w);
        w
    };
    let rows = case.bytes.chunks_exact(row_bytes).zip(without_min.chunks_exact(row_bytes));
    let row = |(bytes, without_min): (&[u8], &[u8])| {
        let pairs = widen(bytes).into_iter().zip(widen(without_min));
        let terms = |(w, scaled): (f32, f32)| {
            (f64::from(w), f64::from(scaled.abs()) + f64::from((w - scaled).abs()))
        };
        pairs.map(terms).collect()
    };
    rows.map(row).collect()
}

#[test]
fn products_are_those_of_the_rounded_activations_and_close_to_the_reference() {
    for case in Case::all() {
        let w = weight_rows(&case);
        let reference = {
            let weight = case.load(&Backend::Reference);
            case.run(&Backend::Reference, &weight, 0..NUM_TOKENS_MAX)
        };
        for backend in cpu_backends() {
            let Backend::Cpu(device) = &backend else { unreachable!("a CPU backend") };
            let weight = case.load(&backend);
            for num_tokens in NUM_TOKENS {
                let out = case.run(&backend, &weight, 0..num_tokens);
                let name = case.name(&backend, num_tokens);
                for t in 0..num_tokens {
                    let x = rounded(case.dtype, device.isa, case.x.f32_row(t));
                    check_row(&case, &name, t, &w, &x, &out, &reference);
                }
            }
        }
    }
}

fn check_row(
    case: &Case,
    name: &str,
    t: usize,
    w: &[Vec<(f64, f64)>],
    x: &[(f64, f64)],
    out: &[f32],
    reference: &[f32],
) {
    for (i, w) in w.iter().enumerate() {
        let (mut sum, mut magnitude, mut rounding) = (0.0, 0.0, 0.0);
        for (&(w, terms), &(x, error)) in w.iter().zip(x) {
            sum += w * x;
            magnitude += terms * x.abs();
            rounding += w.abs() * error;
        }
        let bias = f64::from(case.bias.f32()[i]);
        let at = t * case.n + i;
        let actual = f64::from(out[at]);
        let summing = SUM_ERROR * (magnitude + bias.abs());
        let error = (actual - sum - bias).abs();
        assert!(error <= summing, "{name}: [{t}, {i}] is {actual}, exact is {}", sum + bias);
        let expected = f64::from(reference[at]);
        let error = (actual - expected).abs();
        assert!(error <= summing + rounding, "{name}: [{t}, {i}] is {actual}, not {expected}");
    }
}

/// `x` as a GPU multiplies with it.
fn round_to(dtype: DType, x: f32) -> f64 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f64(),
        _ => bf16::from_f32(x).to_f64(),
    }
}

#[test]
fn products_on_a_gpu_are_those_of_the_operands_rounded_once() {
    for device in cuda_devices() {
        let dtype = device.activation_dtype();
        let backend = Backend::Cuda(device);
        for case in Case::all() {
            let mut w = vec![0.0; case.n * case.k];
            dequantize(case.dtype, &case.bytes, &mut w).expect("whole blocks");
            let w: Vec<f64> = w.iter().map(|&w| round_to(dtype, w)).collect();
            let weight = case.load(&backend);
            for num_tokens in [1, 7, NUM_TOKENS_MAX] {
                let out = case.run(&backend, &weight, 0..num_tokens);
                let name = format!("{dtype} on {}", case.name(&backend, num_tokens));
                check_sums(&case, &name, dtype, &w, &out);
            }
        }
    }
}

fn check_sums(case: &Case, name: &str, dtype: DType, w: &[f64], out: &[f32]) {
    for (t, out) in out.chunks_exact(case.n).enumerate() {
        let x: Vec<f64> = case.x.f32_row(t).iter().map(|&x| round_to(dtype, x)).collect();
        for ((i, &actual), w) in out.iter().enumerate().zip(w.chunks_exact(case.k)) {
            let bias = f64::from(case.bias.f32()[i]);
            let products = || w.iter().zip(&x).map(|(w, x)| w * x);
            let exact = products().sum::<f64>() + bias;
            let magnitude = products().map(f64::abs).sum::<f64>() + bias.abs();
            let error = (f64::from(actual) - exact).abs();
            assert!(
                error <= SUM_ERROR * magnitude,
                "{name}: [{t}, {i}] is {actual}, exact is {exact}"
            );
        }
    }
}

#[test]
fn results_on_a_gpu_are_rounded_at_the_very_end() {
    // 40 columns end within a tile; 33 outputs of a row do not start at multiples of 16 bytes.
    for (device, n) in cuda_devices().into_iter().flat_map(|d| [(d.clone(), 40), (d, 33)]) {
        let dtype = device.activation_dtype();
        let backend = Backend::Cuda(device);
        let case = Case::new(DType::Q8_0, [n, 512]);
        let weight = case.load(&backend);
        for num_tokens in [1, 5, NUM_TOKENS_MAX] {
            let name = case.name(&backend, num_tokens);
            let sums = case.run(&backend, &weight, 0..num_tokens);
            let shape = [num_tokens, n];
            let x = on(&backend, dtype, &[num_tokens, 512], &case.x.f32()[..num_tokens * 512]);
            let bias = on(&backend, DType::F32, &[n], case.bias.f32());
            let before = values(5, num_tokens * n, 1.0);

            let mut out = on(&backend, dtype, &shape, &before);
            linear(&backend, &mut out, &x, &weight, Some(&bias)).expect("shapes fit");
            let rounded: Vec<f32> = sums.iter().map(|&x| round_to(dtype, x) as f32).collect();
            assert_same_bits(&out.to_f32().expect("read"), &rounded, &name);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    for case in Case::all() {
        for backend in cpu_backends() {
            let weight = case.load(&backend);
            let batch = case.run(&backend, &weight, 0..NUM_TOKENS_MAX);
            for num_rows in [1, 2, 5, 8, 11] {
                for start in (0..NUM_TOKENS_MAX - num_rows + 1).step_by(num_rows) {
                    let rows = start..start + num_rows;
                    let expected = &batch[rows.start * case.n..rows.end * case.n];
                    let name = case.name(&backend, num_rows);
                    assert_same_bits(&case.run(&backend, &weight, rows), expected, &name);
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let devices = [1, 2, 4].map(|num_threads| CpuDevice::new(num_threads, None));
    for case in Case::all() {
        for isa in Isa::available() {
            let run = |device: &CpuDevice| {
                let backend = Backend::Cpu(device.with_isa(isa));
                let name = case.name(&backend, NUM_TOKENS_MAX);
                (case.run(&backend, &case.load(&backend), 0..NUM_TOKENS_MAX), name)
            };
            let (expected, _) = run(&devices[0]);
            for device in &devices[1..] {
                let (out, name) = run(device);
                assert_same_bits(&out, &expected, &name);
            }
        }
    }
}

#[test]
fn avx2_and_avx512_give_the_same_bits_for_quantised_weights() {
    let device = CpuDevice::new(1, None);
    let isas: Vec<Isa> = Isa::available().into_iter().filter(|&isa| isa >= Isa::Avx2).collect();
    for case in Case::all().filter(|case| case.dtype.is_quantized()) {
        let run = |isa: Isa| {
            let backend = Backend::Cpu(device.with_isa(isa));
            case.run(&backend, &case.load(&backend), 0..NUM_TOKENS_MAX)
        };
        for pair in isas.windows(2) {
            assert_same_bits(&run(pair[0]), &run(pair[1]), &format!("{pair:?} {}", case.dtype));
        }
    }
}

#[test]
fn many_weights_at_once_have_the_bits_of_one_by_one() {
    let k = 512;
    let cases: Vec<Case> =
        DType::ALL.into_iter().map(|dtype| Case::new(dtype, [20 + dtype.block_len(), k])).collect();
    for backend in cpu_backends() {
        let weights: Vec<Weight> = cases.iter().map(|case| case.load(&backend)).collect();
        for num_tokens in [1, 9] {
            let x = activations(num_tokens, k);
            let mut outs: Vec<Tensor> =
                cases.iter().map(|case| tensor(1, &[num_tokens, case.n], 1.0)).collect();
            let pairs: Vec<_> = weights.iter().zip(cases.iter().map(|c| Some(&c.bias))).collect();
            let mut refs: Vec<&mut Tensor> = outs.iter_mut().collect();
            linear_many(&backend, &mut refs, &x, &pairs).expect("shapes fit");
            for ((case, weight), out) in cases.iter().zip(&weights).zip(&outs) {
                let mut alone = tensor(2, &[num_tokens, case.n], 1.0);
                linear(&backend, &mut alone, &x, weight, Some(&case.bias)).expect("shapes fit");
                assert_same_bits(out.f32(), alone.f32(), &case.name(&backend, num_tokens));
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite_spoil_their_row_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dtype in DType::ALL {
            let case = Case::new(dtype, [18, 256]);
            let x = values(3, 3 * 256, 1.0);
            let mut spoilt = x.clone();
            spoilt[256 + 77] = bad;
            for backend in backends() {
                let weight = case.load(&backend);
                let out = case.run_rows(&backend, &weight, &spoilt);
                let expected = case.run_rows(&backend, &weight, &x);
                let name = case.name(&backend, 3);
                let row = |i: usize| i * case.n..(i + 1) * case.n;
                assert_same_bits(&out[row(0)], &expected[row(0)], &name);
                assert_same_bits(&out[row(2)], &expected[row(2)], &name);
                let all_bad = out[row(1)].iter().all(|x| !x.is_finite());
                assert!(all_bad, "{name}: {bad} became {:?}", &out[row(1)]);
            }
        }
    }
}

#[test]
fn no_tokens_give_no_output() {
    for backend in backends() {
        let case = Case::new(DType::Q8_0, [18, 64]);
        assert!(case.run(&backend, &case.load(&backend), 0..0).is_empty());
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let device = CpuDevice::new(1, None);
    for backend in [Backend::Reference, Backend::Cpu(device)] {
        let case = Case::new(DType::Q8_0, [18, 64]);
        let short = case.bytes.slice(1..);
        let refused = Weight::load(&backend, case.dtype, case.n, case.k, short);
        assert!(matches!(refused, Err(KernelError::Shape { .. })));
        let weight = case.load(&backend);
        let mut out = tensor(1, &[2, 18], 1.0);
        let wrong_x = linear(&backend, &mut out, &tensor(1, &[2, 32], 1.0), &weight, None);
        assert!(matches!(wrong_x, Err(KernelError::Shape { what: "x", .. })));
        let mut wrong = tensor(1, &[3, 18], 1.0);
        let x = tensor(1, &[2, 64], 1.0);
        let wrong_out = linear(&backend, &mut wrong, &x, &weight, None);
        assert!(matches!(wrong_out, Err(KernelError::Shape { what: "out", .. })));
        let bias = tensor(1, &[17], 1.0);
        let wrong_bias = linear(&backend, &mut out, &x, &weight, Some(&bias));
        assert!(matches!(wrong_bias, Err(KernelError::Shape { what: "bias", .. })));
    }
}

/// Logits must not depend on how many ranks share the vocabulary out.
#[test]
fn a_run_of_rows_of_a_weight_has_the_bits_of_the_whole() {
    let backends = [vec![Backend::Reference], backends()].concat();
    // On a GPU 1024 columns of so few rows are several splits, more of them for fewer rows.
    for (dtype, n, k) in DType::ALL.into_iter().flat_map(|d| [(d, 71, 256), (d, 300, 1024)]) {
        let bytes: Bytes = weight_bytes(dtype, n, k).into();
        let row_bytes = bytes.len() / n;
        let x = tensor(3, &[5, k], 1.0);
        for backend in &backends {
            let run = |weight: &Weight| {
                let x = on(backend, backend.activation_dtype(), &[5, k], x.f32());
                let shape = [5, weight.out_features];
                let mut out = on(backend, DType::F32, &shape, &vec![f32::NAN; 5 * shape[1]]);
                linear(backend, &mut out, &x, weight, None).expect("shapes fit");
                out.to_f32().expect("the device works")
            };
            let whole = Weight::load(backend, dtype, n, k, bytes.clone()).expect("valid bytes");
            let whole = run(&whole);
            for rank in 0..4 {
                let part = crate::comm::part_range(n, rank, 4);
                let own = bytes.slice(part.start * row_bytes..part.end * row_bytes);
                let weight = Weight::load(backend, dtype, part.len(), k, own);
                let out = run(&weight.expect("valid bytes"));
                for (row, out) in out.chunks_exact(part.len()).enumerate() {
                    let expected = &whole[row * n..][part.clone()];
                    let case = format!("{backend:?} {dtype} [{n}, {k}] rows {part:?}, row {row}");
                    assert_same_bits(out, expected, &case);
                }
            }
        }
    }
}
