//! The whole server on a GPU, over HTTP: every golden checkpoint at every tensor-parallel size,
//! with recorded and with eager steps, with the overlapped and the plain loop. On the virtual GPU
//! this runs the PTX that ships (`cargo xtask virtual-gpu`).

use kernels::device::cuda::{CudaDevice, DeviceBuffer};
use kernels::ops::WeightForm;
use kernels::{Backend, DType};
use models::{Checkpoint, KvCache, ShardSpec, load_model};
use server::commands::serve::memory::{
    self, CacheShare, GpuMemory, MemoryError, MemoryRequest, RankShare,
};
use server::ranks::{CudaGraphs, LoadedGroup, RankConfig, RankGroup, Room, Start};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tests::data_dir;
use tests::golden::{Golden, GreedyCase, golden_paths};
use tests::program::{Program, binary};
use tests::told::{Told, complete};

const DENSE: [&str; 5] = ["qwen2-tied", "qwen2-untied", "qwen3-tied", "qwen3-untied", "qwen3-yarn"];
/// Tokens of each continuation that are compared.
const NUM_TOKENS: usize = 8;
/// Of log-probabilities between a GPU and the CPU, or between rank counts, where all arithmetic is
/// BF16; the goldens' own figure for logits of these networks is 0.13 to 0.29.
const LOGPROB_TOLERANCE: f64 = 0.3;
const TENSOR_PARALLEL: [usize; 3] = [1, 2, 4];
/// How the steps run; tokens and log-probabilities must be the same to the bit.
const MODES: [&[&str]; 4] =
    [&[], &["--enforce-eager"], &["--overlap", "off"], &["--enforce-eager", "--overlap", "off"]];

/// A checkpoint and what is known of its continuations.
struct Model {
    name: String,
    path: PathBuf,
    cases: Vec<GreedyCase>,
    /// Below this margin BF16 may choose another token: of the logits' spread, not of our making.
    margin: f32,
}

#[test]
fn every_checkpoint_answers_alike_at_every_size_and_in_every_mode() {
    if tests::gpu().is_none() {
        return;
    }
    for model in models() {
        let on_cpu = answers(&model, &["--device", "cpu"]);
        check_golden(&model, &on_cpu, "cpu");
        for size in TENSOR_PARALLEL {
            let size = size.to_string();
            let base = ["--device", "cuda", "--tensor-parallel", &size];
            let first = answers(&model, &[&base[..], MODES[0]].concat());
            let what = format!("{} on {size} GPUs", model.name);
            check_golden(&model, &first, &what);
            check_near(&first, &on_cpu, &what);
            for mode in &MODES[1..] {
                let other = answers(&model, &[&base[..], mode].concat());
                assert!(other == first, "{what}, {mode:?}: {other:#?} is not {first:#?}");
            }
        }
    }
}

#[test]
fn the_cache_gets_what_is_really_left_once_the_model_is_loaded() {
    if tests::gpu().is_none() {
        return;
    }
    let path = data_dir().join("models/qwen2-tied");
    let checkpoint = Arc::new(Checkpoint::open(&path).expect("a checkpoint"));
    let block_bytes = KvCache::bytes_per_block(&checkpoint.config, 2, 16, DType::BF16) as u64;
    let (alone, group) = start_beside(&checkpoint, 0).expect("there is room");
    drop(group);
    let other = 32 << 20;
    let (beside, group) = start_beside(&checkpoint, other).expect("there is room");
    drop(group);
    let fewer = (alone - beside) as u64;
    let expected = other as u64 / block_bytes;
    assert!((expected..=expected + 1).contains(&fewer), "{alone} alone, {beside} beside {other}");
    let refused = start_beside(&checkpoint, ALLOWED_BYTES as usize).err().expect("no room");
    assert!(matches!(refused, MemoryError::NoRoomLeft { .. }), "{refused}");
}

/// What weights, buffers and cache may take in that test.
const ALLOWED_BYTES: u64 = 160 << 20;

/// Starts a rank while whose load something else takes `other` bytes of the same GPU. Also gives
/// the blocks of its cache.
fn start_beside(
    checkpoint: &Arc<Checkpoint>,
    other: usize,
) -> Result<(usize, RankGroup), MemoryError> {
    let device = CudaDevice::open(0).expect("the driver shows it");
    let free = |device: &CudaDevice| device.memory().expect("it answers").0 as u64;
    let free_before = free(&device);
    let config = RankConfig {
        backend: Backend::Cuda(device.clone()),
        block_size: 16,
        kv_dtype: DType::BF16,
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        pin_core: None,
        max_model_len: 256,
        cuda_graphs: CudaGraphs::Off,
        stall_time_max: None,
    };
    let ranks = RankShare { world_size: 1, here: 1, kv_heads_each: 2 };
    let request = MemoryRequest {
        weight_bytes: checkpoint.loaded_bytes(ShardSpec::SOLO, WeightForm::Cuda).expect("small"),
        ranks,
        available_bytes: Some(ALLOWED_BYTES),
        cache_share: CacheShare::All,
        kv_cache_bytes: None,
        kv_dtype: config.kv_dtype,
        block_size: config.block_size,
        max_model_len: Some(config.max_model_len),
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
    };
    let planned = memory::plan(&checkpoint.config, &request).expect("it fits");
    let (held, checkpoint) = (Arc::new(Mutex::new(None)), checkpoint.clone());
    let keep = held.clone();
    let loaded = LoadedGroup::load_local(vec![config], move |backend, spec| {
        let Backend::Cuda(device) = backend else { panic!("a GPU") };
        *keep.lock().expect("no panic") = Some(DeviceBuffer::uninit(device, other)?);
        load_model(backend, &checkpoint, spec, 256)
    })
    .expect("there is memory");
    let free_after = loaded.free_bytes()[0].expect("a GPU");
    let fraction = ALLOWED_BYTES as f64 / free_before as f64;
    let num_blocks = planned.blocks_on(GpuMemory { free_before, free_after, fraction })?;
    let room = Room { num_blocks, max_model_len: 256 };
    let group = loaded.start(Start { room, sampleable_vocab: 100 }).expect("it really fits");
    assert!(free_before - free(&device) <= ALLOWED_BYTES, "more was taken than allowed");
    drop(held);
    Ok((num_blocks, group))
}

#[test]
fn a_gpu_that_is_full_once_the_model_is_loaded_is_refused_with_the_arithmetic() {
    if tests::gpu().is_none() {
        return;
    }
    let path = data_dir().join("models/qwen2-tied");
    // The GPU is known from then on, so that its kernels are not tried below.
    drop(Server::start(&path, &["--device", "cuda"]));
    let mut command = Command::new(binary());
    command
        .args(["serve", "--device", "cuda", "--port", "0", "--max-num-seqs", "4"])
        .arg(&path)
        // The scratch memory of the kernels alone takes 64 MiB.
        .env("VIRTUAL_GPU_MEMORY", "72M");
    let output = command.output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr.lines().find(|line| line.starts_with("error: ")).expect("one says why");
    for part in ["of 72 MiB that were free 64.8 MiB may be taken", "which leaves 0 bytes", "needed"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
}

fn models() -> Vec<Model> {
    let mut models = Vec::new();
    for folder in golden_paths("models", |name| DENSE.contains(&name)) {
        let golden = Golden::read(&folder.join("golden.json"), &folder.join("golden.safetensors"));
        let margin = golden.number("/tolerance/bf16_max_abs_suggested");
        models.push(Model::new(folder, &golden, margin));
    }
    for path in golden_paths("gguf", |name| name.starts_with("tiny-") && name.ends_with(".gguf")) {
        let golden =
            Golden::read(&path.with_extension("json"), &path.with_extension("golden.safetensors"));
        // The margin of the plain formats of the same networks.
        models.push(Model::new(path, &golden, 0.6));
    }
    models
}

impl Model {
    fn new(path: PathBuf, golden: &Golden, margin: f32) -> Model {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        Model { name, path, cases: golden.cases("prompts"), margin }
    }
}

/// The greedy continuations of all prompts, asked for at once, from a server with `flags`.
fn answers(model: &Model, flags: &[&str]) -> Vec<Told> {
    let server = Server::start(&model.path, flags);
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            model.cases.iter().map(|case| scope.spawn(|| server.complete(&case.ids))).collect();
        asked.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    })
}

/// Up to the first token that the margin leaves open.
fn check_golden(model: &Model, told: &[Told], what: &str) {
    for (case, told) in model.cases.iter().zip(told) {
        let steps = told.tokens.iter().zip(&case.continuation).zip(&case.margins).enumerate();
        for (step, ((token, expected), margin)) in steps {
            if token != expected {
                let len = case.ids.len();
                assert!(*margin < model.margin, "{what}: prompt of {len}, step {step}: {margin}");
                break;
            }
        }
    }
}

/// Log-probabilities as long as the tokens are the same.
fn check_near(told: &[Told], expected: &[Told], what: &str) {
    for (told, expected) in told.iter().zip(expected) {
        let steps = told.tokens.iter().zip(&told.logprobs);
        for ((token, logprob), (other, near)) in
            steps.zip(expected.tokens.iter().zip(&expected.logprobs))
        {
            if token != other {
                break;
            }
            let difference = (logprob - near).abs();
            assert!(difference < LOGPROB_TOLERANCE, "{what}: {logprob} is not near {near}");
        }
    }
}

/// A server with a model.
struct Server(Program);

impl Server {
    fn start(model: &Path, flags: &[&str]) -> Server {
        let mut command = Command::new(binary());
        command
            .args(["serve", "--log-level", "warn", "--kv-cache-memory", "8MiB"])
            .args(["--max-num-seqs", "4", "--max-model-len", "256", "--stall-timeout", "0"])
            .args(flags)
            .arg(model)
            .env("VIRTUAL_GPU_DEVICES", "4")
            .stdout(Stdio::null());
        Server(Program::start(&mut command))
    }

    fn complete(&self, prompt: &[u32]) -> Told {
        complete(&self.0, prompt, NUM_TOKENS)
    }
}
