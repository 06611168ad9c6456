//! A second opinion from candle: its GGUF reader on the same files, its Qwen2 and Qwen3 in f32 on
//! the same weights.

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{qwen2, qwen3};
use kernels::Backend;
use kernels::ops::dequantize;
use models::Checkpoint;
use models::config::Architecture;
use models::weights::gguf::GgufFile;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tests::golden::{Golden, golden_paths, greedy_case};
use tests::session::{Session, log_probability, max_abs_difference};

const LEN_MAX: usize = 256;
/// Both compute in f32 or better; the data's own noise is a tenth of this.
const TOLERANCE: f32 = 3e-4;

#[test]
fn gguf_tensors_have_candles_names_shapes_and_values() {
    let paths = golden_paths("gguf", |name| name.starts_with("tiny-") && name.ends_with(".gguf"));
    assert!(paths.len() >= 2);
    for path in paths {
        let ours = GgufFile::open(&path).unwrap();
        let mut reader = std::fs::File::open(&path).unwrap();
        let theirs = gguf_file::Content::read(&mut reader).unwrap();
        let names: BTreeSet<&str> = theirs.tensor_infos.keys().map(String::as_str).collect();
        assert_eq!(ours.tensor_names().collect::<BTreeSet<_>>(), names);
        for name in names {
            let tensor = ours.tensor(name).unwrap();
            let expected = theirs.tensor(&mut reader, name, &Device::Cpu).unwrap();
            assert_eq!(tensor.shape, expected.shape().dims(), "{name}");
            let expected = expected.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let expected: Vec<f32> = expected.to_vec1().unwrap();
            let mut values = vec![0f32; expected.len()];
            dequantize(tensor.dtype, &tensor.bytes, &mut values).unwrap();
            for (value, expected) in values.iter().zip(&expected) {
                // One rounding of the last product may differ in order.
                let near = (value - expected).abs() <= expected.abs() * f32::EPSILON;
                assert!(near, "{name} {}: {value}, {expected}", tensor.dtype);
            }
        }
        let tokens = theirs.metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
        let tokens: Vec<_> = tokens.iter().map(|t| t.to_string().unwrap().clone()).collect();
        assert_eq!(ours.strings("tokenizer.ggml.tokens").unwrap().unwrap(), tokens);
    }
}

#[test]
fn reference_agrees_with_candles_networks() {
    // candle knows no YaRN, so that model has no second opinion.
    let plain =
        |name: &str| ["qwen2-tied", "qwen2-untied", "qwen3-tied", "qwen3-untied"].contains(&name);
    for folder in golden_paths("models", plain) {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let golden = Golden::read(&folder.join("golden.json"), &folder.join("golden.safetensors"));
        let mut candle = Candle::new(&folder, checkpoint.config.architecture);
        let mut session = Session::new(&Backend::Reference, &checkpoint, 1, LEN_MAX);
        for case in golden.cases("prompts") {
            session.reset(0);
            let mut ours = session.step(&[(0, &case.ids)]).remove(0);
            let mut theirs = candle.forward(&case.ids, 0);
            for (step, &token) in case.continuation.iter().take(8).enumerate() {
                let difference = max_abs_difference(&ours, &theirs);
                assert!(difference <= TOLERANCE, "{folder:?} step {step}: {difference}");
                ours = session.step(&[(0, &[token])]).remove(0);
                theirs = candle.forward(&[token], case.ids.len() + step);
            }
        }
    }
}

/// The stored log-probabilities of the golden continuations, computed again in f32 by candle from
/// the dequantised weights. It takes 3 GB and minutes, so it waits for `MONSOON_REFERENCE_FULL=1`.
#[test]
fn stored_log_probabilities_are_those_of_candle_in_f32() {
    if std::env::var("MONSOON_REFERENCE_FULL").as_deref() != Ok("1") {
        println!("skipped: MONSOON_REFERENCE_FULL is not 1");
        return;
    }
    let Some(path) = tests::real_model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let data = tests::data_dir().join("real/qwen2.5-coder-0.5b-q4_k_m.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(data).unwrap()).unwrap();
    let (mut network, head) = dequantized_qwen2(&checkpoint);
    for json in golden["prompts"].as_array().unwrap() {
        let case = greedy_case(json);
        let ids: Vec<u32> = case.ids.iter().chain(&case.continuation).copied().collect();
        network.clear_kv_cache();
        let input = Tensor::new(&ids[..ids.len() - 1], &Device::Cpu).unwrap();
        let hidden = network.forward(&input.unsqueeze(0).unwrap(), 0, None).unwrap();
        let hidden = hidden.narrow(1, case.ids.len() - 1, case.continuation.len()).unwrap();
        let logits = head.forward(&hidden).unwrap().squeeze(0).unwrap();
        let logits: Vec<Vec<f32>> = logits.to_vec2().unwrap();
        let rows = logits.iter().zip(&case.continuation);
        let computed: Vec<f64> = rows.map(|(row, &token)| log_probability(row, token)).collect();
        let stored = json["reference_logprobs"].as_array().unwrap();
        assert_eq!(stored.len(), computed.len());
        for (computed, stored) in computed.iter().zip(stored) {
            let difference = computed - stored.as_f64().unwrap();
            assert!(difference.abs() < 1e-3, "{}: {difference}", json["name"]);
        }
    }
}

/// candle's network for one of our checkpoints, in f32.
enum Candle {
    Qwen2(qwen2::ModelForCausalLM),
    Qwen3(qwen3::ModelForCausalLM),
}

impl Candle {
    fn new(folder: &Path, architecture: Architecture) -> Candle {
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        if config["sliding_window"].is_null() {
            // candle's Qwen2 cannot read a null, though it uses the number only for a mask.
            config["sliding_window"] = config["max_position_embeddings"].clone();
        }
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap().to_str().unwrap();
            if name.starts_with("model-") && name.ends_with(".safetensors") {
                tensors.extend(candle_core::safetensors::load(&entry, &Device::Cpu).unwrap());
            }
        }
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        match architecture {
            Architecture::Qwen2 => {
                let config = serde_json::from_value(config).unwrap();
                Candle::Qwen2(qwen2::ModelForCausalLM::new(&config, weights).unwrap())
            }
            Architecture::Qwen3 => {
                let config = serde_json::from_value(config).unwrap();
                Candle::Qwen3(qwen3::ModelForCausalLM::new(&config, weights).unwrap())
            }
        }
    }

    /// The logits after `tokens`, which come at `offset`; a new sequence starts at 0.
    fn forward(&mut self, tokens: &[u32], offset: usize) -> Vec<f32> {
        let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = match self {
            Candle::Qwen2(model) => {
                if offset == 0 {
                    model.clear_kv_cache();
                }
                model.forward(&input, offset)
            }
            Candle::Qwen3(model) => {
                if offset == 0 {
                    model.clear_kv_cache();
                }
                model.forward(&input, offset)
            }
        };
        logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// Network and output head of a GGUF checkpoint, every tensor widened to f32.
fn dequantized_qwen2(checkpoint: &Checkpoint) -> (qwen2::Model, candle_nn::Linear) {
    let mut tensors = HashMap::new();
    for name in checkpoint.weights.names() {
        let tensor = checkpoint.weights.get(name).unwrap();
        let mut values = vec![0f32; tensor.shape.iter().product()];
        dequantize(tensor.dtype, &tensor.bytes, &mut values).unwrap();
        let tensor = Tensor::from_vec(values, &tensor.shape[..], &Device::Cpu).unwrap();
        tensors.insert(name.to_string(), tensor);
    }
    let head = candle_nn::Linear::new(tensors["lm_head.weight"].clone(), None);
    let config = &checkpoint.config;
    let json = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": 2048,
        "sliding_window": 2048,
        "max_window_layers": config.num_layers,
        "tie_word_embeddings": false,
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.rms_norm_eps,
        "use_sliding_window": false,
        "hidden_act": "silu",
    });
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    (qwen2::Model::new(&serde_json::from_value(json).unwrap(), weights).unwrap(), head)
}
