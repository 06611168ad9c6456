//! Products by the stand-in for cuBLASLt, through its C interface.
#![allow(unsafe_code)]

#[macro_use]
mod support;

use cudarc::driver::result as cuda;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use std::ffi::{CStr, c_void};
use support::{Gpu, on_virtual_gpu};

const R_32F: u32 = 0;
const R_16BF: u32 = 14;
const COMPUTE_32F: u32 = 68;
const TRANSA: u32 = 3;
const EPILOGUE: u32 = 7;
const COLUMNS: u32 = 3;
const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 7;
const NOT_SUPPORTED: u32 = 15;

/// out [m, n] = x [m, k] W^T, row-major, as three column-major matrices.
const N: usize = 24;
const K: usize = 40;
const M_MAX: usize = 40;

/// A function of the library, which is looked up by name.
macro_rules! call {
    ($name:literal ($($arg:expr => $type:ty),* $(,)?)) => {{
        type Function = unsafe extern "C" fn($($type),*) -> u32;
        raw!({
            let function: Function = std::mem::transmute(address($name));
            function($($arg),*)
        })
    }};
}

fn address(name: &CStr) -> *mut c_void {
    raw!({
        let library = libc::dlopen(c"libcublasLt.so.13".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "the library lies beside the driver");
        let found = libc::dlsym(library, name.as_ptr());
        assert!(!found.is_null(), "{name:?}");
        found
    })
}

fn set<T>(name: &CStr, descriptor: u64, which: u32, value: T) -> u32 {
    type Function = unsafe extern "C" fn(u64, u32, *const c_void, usize) -> u32;
    raw!({
        let function: Function = std::mem::transmute(address(name));
        function(descriptor, which, std::ptr::from_ref(&value).cast(), size_of::<T>())
    })
}

fn layout(data_type: u32, rows: usize, columns: usize, stride: usize) -> u64 {
    let mut layout = 0;
    let code = call!(c"cublasLtMatrixLayoutCreate" (
        &mut layout => &mut u64,
        data_type => u32,
        rows as u64 => u64,
        columns as u64 => u64,
        stride as i64 => i64,
    ));
    assert_eq!(code, SUCCESS);
    layout
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Suggestion {
    algorithm: [u64; 8],
    workspace: usize,
    state: u32,
    rest: [u32; 5],
}

/// Everything that a product needs. Each test spoils one part.
#[derive(Clone, Copy)]
struct Product {
    handle: u64,
    product: u64,
    layouts: [u64; 3],
    algorithm: [u64; 8],
    /// W, x and out.
    at: [u64; 3],
}

impl Product {
    fn new(gpu: &Gpu) -> Product {
        let (mut handle, mut product, mut preference) = (0, 0, 0);
        assert_eq!(call!(c"cublasLtCreate" (&mut handle => &mut u64)), SUCCESS);
        let code = call!(c"cublasLtMatmulDescCreate" (
            &mut product => &mut u64, COMPUTE_32F => u32, R_32F => u32,
        ));
        assert_eq!(code, SUCCESS);
        assert_eq!(set(c"cublasLtMatmulDescSetAttribute", product, TRANSA, 1i32), SUCCESS);
        let layouts =
            [layout(R_16BF, K, N, K), layout(R_16BF, K, M_MAX, K), layout(R_32F, N, M_MAX, N)];
        let code = call!(c"cublasLtMatmulPreferenceCreate" (&mut preference => &mut u64));
        assert_eq!(code, SUCCESS);
        let set_preference = |which, value: u32| {
            set(c"cublasLtMatmulPreferenceSetAttribute", preference, which, value)
        };
        for which in 5..=8 {
            assert_eq!(set_preference(which, 16), SUCCESS);
        }
        let mut found = [Suggestion { algorithm: [0; 8], workspace: 9, state: 9, rest: [0; 5] }; 4];
        let mut count = 0;
        let code = call!(c"cublasLtMatmulAlgoGetHeuristic" (
            handle => u64,
            product => u64,
            layouts[0] => u64,
            layouts[1] => u64,
            layouts[2] => u64,
            layouts[2] => u64,
            preference => u64,
            4 => i32,
            found.as_mut_ptr() => *mut Suggestion,
            &mut count => &mut i32,
        ));
        assert_eq!(code, SUCCESS);
        // Splits need a workspace, and none is allowed.
        assert!(found[..count as usize].iter().all(|s| s.workspace == 0));
        let usable = found[..count as usize].iter().find(|s| s.state == SUCCESS);
        let algorithm = usable.expect("one can be used").algorithm;
        let at = [gpu.upload(&words(&w())), gpu.upload(&words(&x())), gpu.upload(&[0; N * M_MAX])];
        Product { handle, product, layouts, algorithm, at }
    }

    fn launch(&self, gpu: &Gpu) -> u32 {
        let [w, x, out] = self.at;
        let [w_layout, x_layout, out_layout] = self.layouts;
        call!(c"cublasLtMatmul" (
            self.handle => u64,
            self.product => u64,
            &1.0 => &f32,
            w => u64,
            w_layout => u64,
            x => u64,
            x_layout => u64,
            &0.0 => &f32,
            out => u64,
            out_layout => u64,
            out => u64,
            out_layout => u64,
            &self.algorithm => &[u64; 8],
            0 => u64,
            0 => usize,
            gpu.raw() => cudarc::driver::sys::CUstream,
        ))
    }

    /// The first `m` rows of the result, bits of f32.
    fn run(&self, gpu: &Gpu, m: usize) -> Vec<u32> {
        for layout in &self.layouts[1..] {
            let code = set(c"cublasLtMatrixLayoutSetAttribute", *layout, COLUMNS, m as u64);
            assert_eq!(code, SUCCESS);
        }
        assert_eq!(self.launch(gpu), SUCCESS);
        gpu.download(self.at[2], m * N)
    }
}

/// With digits enough for the order of additions to show.
fn w() -> Vec<f32> {
    (0..N * K).map(|i| (i * 37 % 101) as f32 / 97.0 - 0.6).collect()
}

fn x() -> Vec<f32> {
    (0..M_MAX * K).map(|i| ((i * 53 % 89) as f32 / 83.0 - 0.5) * 3f32.powi(i as i32 % 5)).collect()
}

/// As bf16, two in each word.
fn words(values: &[f32]) -> Vec<u32> {
    let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    values.chunks(2).map(|pair| bits(pair[0]) | bits(pair[1]) << 16).collect()
}

fn exact(row: usize, output: usize) -> f64 {
    let (w, x) = (w(), x());
    let number = |x: f32| bf16::from_f32(x).to_f64();
    (0..K).map(|i| number(w[output * K + i]) * number(x[row * K + i])).sum()
}

fn check(bits: &[u32], what: &str) {
    for (i, bits) in bits.iter().enumerate() {
        let (actual, exact) = (f64::from(f32::from_bits(*bits)), exact(i / N, i % N));
        assert!((actual - exact).abs() < 1e-3, "{what}: {i} is {actual}, not {exact}");
    }
}

#[test]
fn products_are_right_and_rows_do_not_know_their_number() {
    on_virtual_gpu("products_are_right_and_rows_do_not_know_their_number", &[], || {
        let gpu = Gpu::open();
        let product = Product::new(&gpu);
        let all = product.run(&gpu, M_MAX);
        check(&all, "all rows");
        for m in [1, 2, 7, 16, 17] {
            assert_eq!(product.run(&gpu, m), all[..m * N], "{m} rows");
        }
    });
}

#[test]
fn a_product_keeps_to_its_stream_and_to_a_recording() {
    on_virtual_gpu("a_product_keeps_to_its_stream_and_to_a_recording", &[], || {
        let gpu = Gpu::open();
        let product = Product::new(&gpu);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let exec = raw!({
            cuda::stream::begin_capture(gpu.raw(), mode).unwrap();
            assert_eq!(product.launch(&gpu), SUCCESS);
            let graph = cuda::stream::end_capture(gpu.raw()).unwrap();
            cuda::graph::instantiate(graph, CUgraphInstantiate_flags(0)).unwrap()
        });
        assert!(gpu.download(product.at[2], N).iter().all(|bits| *bits == 0), "nothing ran");
        let zeros = vec![0u8; M_MAX * K * 2];
        raw!({
            // The replay comes after the copy on its stream, whatever order the queue draws.
            cuda::memcpy_htod_async(product.at[1], &zeros, gpu.raw()).unwrap();
            cuda::graph::launch(exec, gpu.raw()).unwrap();
        });
        assert!(gpu.download(product.at[2], N).iter().all(|bits| f32::from_bits(*bits) == 0.0));
        let x: Vec<u8> = words(&x()).iter().flat_map(|word| word.to_le_bytes()).collect();
        raw!({
            cuda::memcpy_htod_async(product.at[1], &x, gpu.raw()).unwrap();
            cuda::graph::launch(exec, gpu.raw()).unwrap();
        });
        check(&gpu.download(product.at[2], M_MAX * N), "replayed");
    });
}

#[test]
fn what_is_described_wrongly_is_refused_by_name() {
    let test = "what_is_described_wrongly_is_refused_by_name";
    on_virtual_gpu(test, &[("VIRTUAL_GPU_DEVICES", "2")], || {
        let gpu = Gpu::open();
        let good = Product::new(&gpu);
        assert_eq!(good.launch(&gpu), SUCCESS);
        let [w, x, out] = good.layouts;
        let cases = [
            (Product { layouts: [x, w, out], ..good }, INVALID_VALUE),
            (Product { layouts: [layout(R_16BF, K, N, K - 8), x, out], ..good }, INVALID_VALUE),
            (Product { layouts: [w, x, layout(R_32F, N, M_MAX, N + 1)], ..good }, NOT_SUPPORTED),
            (Product { layouts: [w, x, layout(2, N, M_MAX, N)], ..good }, NOT_SUPPORTED),
            (Product { at: [good.at[0] + 2, good.at[1], good.at[2]], ..good }, NOT_SUPPORTED),
            // Room for all rows but the last.
            (
                Product {
                    at: [good.at[0], gpu.upload(&[0; (M_MAX - 1) * K / 2]), good.at[2]],
                    ..good
                },
                INVALID_VALUE,
            ),
            (Product { at: [good.at[0], good.at[1], 0x1000], ..good }, INVALID_VALUE),
            (Product { algorithm: [1; 8], ..good }, INVALID_VALUE),
            (Product { product: good.handle, ..good }, INVALID_VALUE),
            (Product { handle: good.product, ..good }, 1),
        ];
        for (i, (product, code)) in cases.into_iter().enumerate() {
            assert_eq!(product.launch(&gpu), code, "case {i}");
        }
        let code = set(c"cublasLtMatmulDescSetAttribute", good.product, EPILOGUE, 4i32);
        assert_eq!(code, NOT_SUPPORTED);
        let code = set(c"cublasLtMatrixLayoutSetAttribute", x, COLUMNS, 4u32);
        assert_eq!(code, INVALID_VALUE, "of 8 bytes");
        let other = Gpu::open_device(1);
        assert_ne!(good.launch(&other), SUCCESS, "the stream is of another device");
    })
    .said("the matrices do not fit together")
    .said("columns of 40 rows lie 32 apart")
    .said("is not aligned to 16 bytes")
    .said("are not combined")
    .said("is not live memory of device 0")
    .said("not an algorithm of this library")
    .said("attribute 7 of a product, as 4, is not built")
    .said("attribute 3 has 8 bytes, not 4");
}

#[test]
fn rows_depend_on_their_number_when_told_so() {
    let test = "rows_depend_on_their_number_when_told_so";
    on_virtual_gpu(test, &[("VIRTUAL_GPU_FAULT", "cublaslt-batch")], || {
        let gpu = Gpu::open();
        let product = Product::new(&gpu);
        let all = product.run(&gpu, M_MAX);
        check(&all, "as near as ever");
        assert_ne!(product.run(&gpu, 1), all[..N]);
    });
}

#[test]
fn it_is_wrong_when_told_so() {
    let fault = ("VIRTUAL_GPU_FAULT", "cublaslt-wrong");
    on_virtual_gpu("it_is_wrong_when_told_so", &[fault], || {
        let gpu = Gpu::open();
        let row = Product::new(&gpu).run(&gpu, 1);
        let is_wrong = |i: &usize| (f64::from(f32::from_bits(row[*i])) - exact(0, *i)).abs() > 0.5;
        assert_eq!((0..N).filter(is_wrong).collect::<Vec<_>>(), [N / 2]);
    });
}
