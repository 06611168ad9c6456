//! The whole server on a GPU, over HTTP: every golden checkpoint at every tensor-parallel size,
//! with recorded and with eager steps, with the overlapped and the plain loop. On the virtual GPU
//! this runs the PTX that ships (`cargo xtask virtual-gpu`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
