//! One rank = many ranks: the same greedy tokens, and logits within the rounding of f32, however
//! many ranks share a model out; below HTTP and over it.

use kernels::Backend;
use kernels::device::cpu::CpuDevice;
use kernels::ops::WeightForm;
use models::config::Architecture;
use models::qwen2::Qwen2;
use models::qwen3::Qwen3;
use models::weights::loader::Loader;
use models::{Checkpoint, ShardSpec, TokenId};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use server::commands::serve::load::load;
use server::config::{Command, Environment, parse};
use server::engine::{Request, SamplingParams};
use server::http::{AppState, HttpConfig, serve};
use std::path::{Path, PathBuf};
use tests::golden::{Golden, golden_paths};
use tests::http::{Answer, post_bytes};
use tests::observed::{Arrivals, run_engine};
use tests::random::Random;
use tests::serving::{Limits, MODEL_LEN_MAX, TINY_VOCAB, start_ranks, tiny_checkpoint};
use tests::session::{Session, argmax, max_abs_difference};

const DENSE: [&str; 5] = ["qwen2-tied", "qwen2-untied", "qwen3-tied", "qwen3-untied", "qwen3-yarn"];
/// What the order of f32 additions may change in a logit; measured: 1e-5.
const TOLERANCE: f32 = 1e-4;
/// The CPU keeps keys and values in F16 and quantised models' activations in 8 bits, so a change
/// in the last bit may become one of such a step; and four ranks read parts of 256-value blocks as
/// F32, without rounding activations at all. In parts of the largest logit.
const TOLERANCE_CPU: f32 = 0.05;
/// Where the two best logits are nearer than this, rounding may choose the other one: a tie.
const MARGIN_MIN: f32 = 0.01;

#[test]
fn many_ranks_give_the_logits_of_one() {
    for (path, golden) in golden_models() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let prompt = prompts(&golden).into_iter().max_by_key(Vec::len).unwrap();
        let prompt = &prompt[..prompt.len().min(20)];
        for backend in [Backend::Reference, Backend::Cpu(CpuDevice::new(1, None))] {
            let alone = Session::new(&backend, &checkpoint, 1, MODEL_LEN_MAX);
            let alone = run_steps(alone, prompt);
            let largest = alone.iter().flatten().fold(0f32, |max, x| max.max(x.abs()));
            let tolerance = match backend {
                Backend::Reference => TOLERANCE,
                _ => TOLERANCE_CPU * largest,
            };
            for world_size in [2, 4] {
                let ranks = run_ranks(&backend, &checkpoint, world_size, prompt);
                assert!(ranks.iter().all(|logits| logits == &ranks[0]), "ranks differ: {path:?}");
                for (one, many) in alone.iter().zip(&ranks[0]) {
                    let difference = max_abs_difference(one, many);
                    let what = format!("{world_size} ranks on {} of {path:?}", backend.name());
                    assert!(difference < tolerance, "{what}: {difference}, allowed {tolerance}");
                }
            }
        }
    }
}

/// What is told before loading is what loading takes, also where a cut through blocks widens.
#[test]
fn every_rank_takes_the_memory_that_was_told() {
    for (path, _) in golden_models() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut of_one_rank = 0;
        for world_size in [1, 2, 4] {
            let cpu = Backend::Cpu(CpuDevice::new(1, None));
            let mut on_host = vec![(Backend::Reference, WeightForm::Reference)];
            on_host.push((cpu, WeightForm::Cpu));
            on_host.extend(tests::gpu().map(|gpu| (Backend::Cuda(gpu), WeightForm::Cuda)));
            for (backend, form) in on_host {
                let of_rank = |rank| {
                    let spec = ShardSpec { rank, world_size };
                    let (config, weights) = (&checkpoint.config, &checkpoint.weights);
                    let mut loader = Loader::new(&backend, config, weights, spec).unwrap();
                    match config.architecture {
                        Architecture::Qwen2 => drop(Qwen2::load(&mut loader, 64).unwrap()),
                        Architecture::Qwen3 => drop(Qwen3::load(&mut loader, 64).unwrap()),
                    }
                    let told = checkpoint.loaded_bytes(spec, form).unwrap();
                    assert_eq!(loader.loaded_bytes, told, "{spec:?} on {form:?}, {path:?}");
                    told
                };
                let all: Vec<u64> = (0..world_size).map(of_rank).collect();
                match (form, world_size) {
                    (WeightForm::Reference, 1) => of_one_rank = all[0],
                    // Embedding and head are a good part of these models. (Blocks may be widened.)
                    (WeightForm::Reference, 2) if path.is_dir() => {
                        assert!(all[0] * 10 < of_one_rank * 6);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A vocabulary that no number of ranks divides, with tied and with untied embeddings.
#[test]
fn uneven_vocabularies_give_the_logits_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    for head in ["tied", "untied"] {
        let path = folder.path().join(head);
        write_uneven(&tiny_checkpoint("models/qwen2-tied").unwrap(), &path, head == "tied");
        let checkpoint = Checkpoint::open(&path).unwrap();
        // The last row, and those at the borders of parts.
        let prompt = [0, 1148, 573, 574, 286, 287, 861, 5, 860, 1147];
        for backend in [Backend::Reference, Backend::Cpu(CpuDevice::new(1, None))] {
            let alone = Session::new(&backend, &checkpoint, 1, MODEL_LEN_MAX);
            let alone = run_steps(alone, &prompt);
            assert!(alone.iter().all(|logits| logits.len() == UNEVEN_VOCAB));
            for world_size in [2, 4] {
                let ranks = run_ranks(&backend, &checkpoint, world_size, &prompt);
                assert!(ranks.iter().all(|logits| logits == &ranks[0]), "ranks differ: {head}");
                for (one, many) in alone.iter().zip(&ranks[0]) {
                    let difference = max_abs_difference(one, many);
                    let what = format!("{world_size} ranks on {}, {head}", backend.name());
                    let largest = one.iter().fold(0f32, |max, x| max.max(x.abs()));
                    let tolerance = match backend {
                        Backend::Reference => TOLERANCE,
                        _ => TOLERANCE_CPU * largest,
                    };
                    assert!(difference < tolerance, "{what}: {difference}");
                }
            }
        }
    }
}

const UNEVEN_VOCAB: usize = 1149;

/// The first `UNEVEN_VOCAB` rows of a tied checkpoint's embedding, with all other tensors as they
/// are; untied, the head has the same rows in another order.
fn write_uneven(from: &Path, to: &Path, is_tied: bool) {
    std::fs::create_dir(to).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(UNEVEN_VOCAB);
    config["tie_word_embeddings"] = json!(is_tied);
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let files = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path());
    let of_model = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    let files: Vec<_> = files.filter(of_model).map(|path| std::fs::read(path).unwrap()).collect();
    let files: Vec<_> =
        files.iter().map(|bytes| SafeTensors::deserialize(bytes).unwrap()).collect();
    let mut all: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = Vec::new();
    for (name, view) in files.iter().flat_map(SafeTensors::tensors) {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if name == "model.embed_tokens.weight" {
            let row_bytes = data.len() / shape[0];
            shape[0] = UNEVEN_VOCAB;
            data.truncate(UNEVEN_VOCAB * row_bytes);
            if !is_tied {
                let rows = data.chunks_exact(row_bytes).rev();
                let head = rows.flatten().copied().collect();
                all.push(("lm_head.weight".to_string(), shape.clone(), view.dtype(), head));
            }
        }
        all.push((name, shape, view.dtype(), data));
    }
    let views = all.iter().map(|(name, shape, dtype, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
}

#[test]
fn many_ranks_continue_as_the_golden_data_and_every_run_alike() {
    for (path, golden) in golden_models() {
        for (world_size, cpu) in [(1, false), (2, false), (4, false), (2, true), (4, true)] {
            let backends = (0..world_size).map(|_| match cpu {
                true => Backend::Cpu(CpuDevice::new(1, None)),
                false => Backend::Reference,
            });
            let backends: Vec<Backend> = backends.collect();
            let first = continuations(&backends, &path, &golden);
            if cpu {
                // Nobody says which rank comes first; the bits must not depend on it.
                assert_eq!(first, continuations(&backends, &path, &golden), "{path:?}");
                continue;
            }
            let mut num_compared = 0;
            for (case, tokens) in golden.cases("prompts").iter().zip(&first) {
                let is_sure = |margin: &f32| *margin >= MARGIN_MIN;
                let sure = case.margins.iter().take_while(|margin| is_sure(margin)).count();
                let what = format!("{world_size} ranks, {path:?}");
                assert_eq!(tokens[..sure], case.continuation[..sure], "{what}");
                num_compared += sure;
            }
            assert!(num_compared > 0, "nothing was compared for {path:?}");
        }
    }
}

#[test]
fn the_server_answers_alike_with_one_rank_and_with_many() {
    let path = tiny_checkpoint("models/qwen2-tied").unwrap();
    let answers: Vec<Value> = [1, 2, 4].into_iter().map(|ranks| serve_with(&path, ranks)).collect();
    assert_eq!(answers[0]["choices"][0]["finish_reason"], "length");
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().unwrap().to_string();
    assert!(!text(&answers[0]).is_empty());
    assert_eq!(text(&answers[1]), text(&answers[0]));
    assert_eq!(text(&answers[2]), text(&answers[0]));
}

#[test]
fn a_count_of_ranks_that_the_heads_do_not_allow_is_refused() {
    let path = tiny_checkpoint("models/qwen2-tied").unwrap();
    let error = load(&config(&path, 3), None).err().unwrap().to_string();
    assert!(error.contains("tensor parallel size") && error.contains('3'), "{error}");
}

/// The copies in this repository and, of those beside it, what fits the time.
fn golden_models() -> Vec<(PathBuf, Golden)> {
    let mut models = Vec::new();
    for folder in golden_paths("models", |name| DENSE.contains(&name)) {
        let golden = Golden::read(&folder.join("golden.json"), &folder.join("golden.safetensors"));
        models.push((folder, golden));
    }
    for path in golden_paths("gguf", |name| name.starts_with("tiny-") && name.ends_with(".gguf")) {
        let golden =
            Golden::read(&path.with_extension("json"), &path.with_extension("golden.safetensors"));
        models.push((path, golden));
    }
    let data = tests::data_dir();
    models.retain(|(path, _)| path.starts_with(&data));
    assert!(models.len() >= 3, "the copies in tests/data are missing");
    models
}

fn prompts(golden: &Golden) -> Vec<Vec<u32>> {
    golden.cases("prompts").into_iter().map(|case| case.ids).collect()
}

/// The logits after the prompt and after some greedy tokens of the first rank's choice.
fn run_steps(mut session: Session, prompt: &[u32]) -> Vec<Vec<f32>> {
    let mut logits = vec![session.step(&[(0, prompt)]).remove(0)];
    // The same tokens whatever the logits are, so that one flip does not change all that follows.
    for token in prompt.iter().rev().take(4) {
        logits.push(session.step(&[(0, &[*token])]).remove(0));
    }
    assert!((argmax(&logits[0]) as usize) < logits[0].len());
    logits
}

fn run_ranks(
    backend: &Backend,
    checkpoint: &Checkpoint,
    world_size: usize,
    prompt: &[u32],
) -> Vec<Vec<Vec<f32>>> {
    std::thread::scope(|scope| {
        let start = |link: kernels::comm::local::Local| {
            let backend = match backend {
                Backend::Reference => Backend::Reference,
                Backend::Cpu(_) => Backend::Cpu(CpuDevice::new(1, None)),
                Backend::Cuda(_) => unreachable!("GPUs add up by another communicator"),
            };
            scope.spawn(move || {
                let link = Box::new(link);
                let session = Session::new_sharded(&backend, checkpoint, 1, MODEL_LEN_MAX, link);
                run_steps(session, prompt)
            })
        };
        let ranks: Vec<_> =
            kernels::comm::local::group(world_size).into_iter().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Greedy tokens for every golden prompt, all in one batch.
fn continuations(backends: &[Backend], path: &Path, golden: &Golden) -> Vec<Vec<u32>> {
    let limits =
        Limits { num_blocks: 64, block_size: 16, max_num_seqs: 8, max_num_batched_tokens: 48 };
    let group = start_ranks(backends, path, limits, TINY_VOCAB);
    let requests: Vec<Request> = golden
        .cases("prompts")
        .iter()
        .map(|case| {
            let prompt = case.ids.iter().map(|&id| TokenId(id)).collect();
            let max_new_tokens = case.continuation.len();
            let sampling = SamplingParams { max_new_tokens, ..Default::default() };
            Request {
                prompt,
                sampling,
                pooling: None,
                priority: 0,
                lane: Default::default(),
                tenant: Default::default(),
                cache_salt: Default::default(),
                constraint: None,
            }
        })
        .collect();
    let config = limits.engine_config();
    let (outcomes, ..) = run_engine(config, group, &requests, Arrivals::AtOnce, &mut Random(0));
    outcomes.iter().map(|outcome| outcome.token_ids()).collect()
}

fn config(path: &Path, ranks: usize) -> server::config::ServeConfig {
    let (path, ranks) = (path.to_str().unwrap(), ranks.to_string());
    let args = ["monsoon", "serve", path, "--device", "cpu", "--tensor-parallel", &ranks];
    let args = args.into_iter().chain(["--kv-cache-memory", "8MiB"]).map(Into::into);
    let command = parse(args, &Environment::new()).unwrap();
    let Command::Serve(config) = command else { panic!("another command") };
    *config
}

/// The answer to one completion of a whole server.
fn serve_with(path: &Path, ranks: usize) -> Value {
    let loaded = load(&config(path, ranks), None).unwrap();
    let state = AppState::new();
    state.set_serving(loaded.serving);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let server = tokio::spawn(serve(listener, HttpConfig::default(), state, shutdown));
        let body = json!({"prompt": "The rain", "max_tokens": 24, "temperature": 0}).to_string();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, &post_bytes("/v1/completions", &body)).unwrap();
            Answer::read(&mut stream)
        });
        let answer = answer.await.unwrap();
        drop(stop);
        server.await.unwrap();
        answer
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    loaded.engine_thread.join().unwrap();
    answer.json()
}
