//! The shapes that the report counts: each op of Qwen3 0.6B, 8B and 32B at decode and prefill
//! sizes, as launches that finish in seconds on the virtual GPU.
//!
//! A case runs a slice of its op that whole thread blocks compute, as the rows of a norm, one
//! column tile of a weight, or one kv head. All slices do the same, so the counts of one, times
//! their number, are those of the op. Grids and arguments are those of `kernels/src/ops/*/cuda.rs`;
//! a launch that leaves a byte of its result unwritten is an error.

mod attention;
mod elementwise;
mod linear;

/// Bytes of an activation, and of a weight that is no code.
const ACT_BYTES: usize = 2;
const F32_BYTES: usize = 4;
/// Tokens of a prefill step, and keys that a decoding sequence sees.
const PREFILL_TOKENS: usize = 2048;
const CONTEXT: usize = 2048;

/// Sizes of one model, from its published config.json.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
}

pub const MODELS: [Model; 3] = [
    Model {
        name: "Qwen3-0.6B",
        hidden: 1024,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 3072,
        vocab: 151_936,
    },
    Model {
        name: "Qwen3-8B",
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 12_288,
        vocab: 151_936,
    },
    Model {
        name: "Qwen3-32B",
        hidden: 5120,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 25_600,
        vocab: 151_936,
    },
];

/// How many rows a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    pub name: &'static str,
    pub rows: usize,
    pub is_prefill: bool,
}

pub const CLASSES: [Class; 4] = [
    Class { name: "decode M=1", rows: 1, is_prefill: false },
    Class { name: "decode M=16", rows: 16, is_prefill: false },
    Class { name: "decode M=64", rows: 64, is_prefill: false },
    Class { name: "prefill 2k", rows: PREFILL_TOKENS, is_prefill: true },
];

/// One op at one shape.
#[derive(Debug, Clone)]
pub struct Case {
    pub op: String,
    pub model: &'static str,
    pub class: &'static str,
    pub buffers: Vec<Buffer>,
    pub launches: Vec<Launch>,
    /// The slice that runs.
    pub slice: String,
    /// Slices of the whole op.
    pub num_slices: f64,
    /// Of the whole op: each byte of memory that it needs, once.
    pub minimal_bytes: f64,
    /// Of the whole op: what more than one thread block must read of operands that they share,
    /// beyond the first time. In decode steps those are small and stay in the second-level cache;
    /// in prefill steps they are weights and keys, which need not.
    pub reread_bytes: f64,
    /// Of one thread block of a product: x and W, as it reads them.
    pub block_bytes: f64,
    /// Of the whole op: bytes of weights or of the KV cache, to be moved 16 at a time.
    pub wide_bytes: f64,
    pub flops: f64,
    pub limits: Limits,
}

/// What `--check` holds a case to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Counted bytes, less `reread_bytes`, over the minimal ones.
    pub bytes: Option<f64>,
    /// Passes of shared-memory accesses over those that the bytes alone need.
    pub ways: Option<f64>,
}

/// The limit, for both.
const RATIO_MAX: f64 = 1.1;

impl Limits {
    const BOTH: Limits = Limits { bytes: Some(RATIO_MAX), ways: Some(RATIO_MAX) };
    const WAYS: Limits = Limits { bytes: None, ways: Some(RATIO_MAX) };
}

#[derive(Debug, Clone)]
pub struct Launch {
    pub kernel: String,
    pub grid: [u32; 3],
    pub shared_bytes: u32,
    pub args: Vec<Value>,
}

#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// The address of a buffer of the case.
    Buffer(usize),
    Null,
    U32(u32),
    U64(u64),
    F32(f32),
}

#[derive(Debug, Clone)]
pub struct Buffer {
    pub bytes: usize,
    pub fill: Fill,
}

#[derive(Debug, Clone)]
pub enum Fill {
    Zeros,
    Words(Vec<u32>),
    /// To be written by the kernels, every byte.
    Result,
    /// To be written by the kernels as far as they need it.
    Scratch,
}

impl Case {
    /// A buffer more; gives its argument.
    fn buffer(&mut self, bytes: usize, fill: Fill) -> Value {
        self.buffers.push(Buffer { bytes, fill });
        Value::Buffer(self.buffers.len() - 1)
    }

    fn zeros(&mut self, bytes: usize) -> Value {
        self.buffer(bytes, Fill::Zeros)
    }

    fn result(&mut self, bytes: usize) -> Value {
        self.buffer(bytes, Fill::Result)
    }

    fn words(&mut self, words: Vec<u32>) -> Value {
        self.buffer(words.len() * size_of::<u32>(), Fill::Words(words))
    }

    /// Thread blocks of the whole op's first launch.
    pub fn num_blocks(&self) -> f64 {
        self.launches[0].grid.iter().map(|&n| f64::from(n)).product::<f64>() * self.num_slices
    }

    fn launch(&mut self, kernel: &str, grid: [u32; 3], shared_bytes: u32, args: Vec<Value>) {
        self.launches.push(Launch { kernel: kernel.to_string(), grid, shared_bytes, args });
    }
}

/// A case without launches yet.
fn case(op: &str, model: &Model, class: &Class) -> Case {
    Case {
        op: op.to_string(),
        model: model.name,
        class: class.name,
        buffers: Vec::new(),
        launches: Vec::new(),
        slice: "all".to_string(),
        num_slices: 1.0,
        minimal_bytes: 0.0,
        reread_bytes: 0.0,
        block_bytes: 0.0,
        wide_bytes: 0.0,
        flops: 0.0,
        limits: Limits::default(),
    }
}

/// All cases, by op, model and class.
pub fn all() -> Vec<Case> {
    let shapes = MODELS.iter().flat_map(|m| CLASSES.iter().map(move |c| (m, c)));
    let mut cases: Vec<Case> = Vec::new();
    for (model, class) in shapes {
        cases.extend(elementwise::cases(model, class));
        cases.extend(linear::cases(model, class));
        cases.extend(attention::cases(model, class));
    }
    // Stable: models and classes keep their order within an op.
    cases.sort_by_key(|case| case.launches[0].kernel.clone());
    cases
}

/// The most dynamic shared memory that launches of a kernel ask for, by the kernel's name.
pub fn dynamic_shared(kernel: &str) -> u32 {
    use kernels::ops::{attention, linear};
    /// The splitting attention kernel keeps a number for each sequence.
    const SEQS: usize = 64;
    let is_it = |spec: &&kernels::device::cuda::KernelSpec| spec.name == kernel;
    if let Some(spec) = linear::cuda::KERNELS.iter().find(is_it) {
        return linear::cuda::shared_bytes_of(spec).unwrap_or(0) as u32;
    }
    let parts: Vec<&str> = kernel.split('_').collect();
    let bytes = match parts[..] {
        ["attention", "decode", dim, _] => {
            dim.parse().map(|dim| attention::cuda::decode_shared_bytes(dim, SEQS))
        }
        ["attention", "prefill", dim, _] => dim.parse().map(attention::cuda::prefill_shared_bytes),
        _ => Ok(0),
    };
    bytes.unwrap_or(0) as u32
}
