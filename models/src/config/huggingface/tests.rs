use super::*;
use crate::config::testing::tiny_config;
use serde_json::json;

fn tiny_json() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "rope_theta": 1000000.0,
        "rope_scaling": null, "tie_word_embeddings": true, "eos_token_id": [3, 2],
        "sliding_window": 128, "max_window_layers": 1, "use_sliding_window": false,
        "torch_dtype": "bfloat16",
    })
}

/// The tiny config with some keys set.
fn with(changes: Value) -> Value {
    let mut json = tiny_json();
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

fn parse(json: &Value) -> Result<ModelConfig, LoadError> {
    parse_config(Path::new("config.json"), json)
}

fn check_refused(changes: Value, words: &str) {
    let error = parse(&with(changes)).expect_err(words).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn both_spellings_and_nesting_give_the_same_config() {
    let old = parse(&tiny_json()).unwrap();
    assert_eq!(old, tiny_config());
    let mut new = with(json!({
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "dtype": "bfloat16", "layer_types": ["full_attention", "full_attention"],
    }));
    for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
        new.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(parse(&new).unwrap(), old);
    let mut text = new;
    text["tie_word_embeddings"] = json!(false);
    let nested = json!({
        "architectures": ["Qwen2ForCausalLM"], "text_config": text, "tie_word_embeddings": true
    });
    assert_eq!(parse(&nested).unwrap(), old);
    let by_type = with(json!({"architectures": null}));
    assert_eq!(parse(&by_type).unwrap(), old);
}

#[test]
fn qwen3_has_its_own_head_size_and_biases() {
    let qwen3 = |changes: Value| {
        let mut json = with(json!({"architectures": ["Qwen3ForCausalLM"]}));
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        parse(&json).unwrap()
    };
    let config = qwen3(json!({"head_dim": 32}));
    assert_eq!((config.head_dim, config.qkv_bias, config.o_bias), (32, false, false));
    assert_eq!(qwen3(json!({})).head_dim, 128);
    assert_eq!(qwen3(json!({"head_dim": null})).head_dim, 16);
    let config = qwen3(json!({"attention_bias": true}));
    assert_eq!((config.qkv_bias, config.o_bias), (true, true));
}

#[test]
fn yarn_takes_its_magnitude_from_the_first_key_that_is_there() {
    let yarn = |changes: Value| {
        let mut scaling = json!({
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256
        });
        scaling.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config = parse(&with(json!({"rope_scaling": scaling}))).unwrap();
        assert_eq!(config.max_position_embeddings, 1024);
        config.rope.yarn.unwrap()
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    near(yarn(json!({})).attention_factor, 1.138629);
    near(yarn(json!({"attention_factor": 0.5, "mscale": 2})).attention_factor, 0.5);
    near(yarn(json!({"mscale": 2.0})).attention_factor, 1.138629);
    let ratio = 1.2772589 / 1.138629;
    near(yarn(json!({"mscale": 2.0, "mscale_all_dim": 1.0})).attention_factor, ratio);
    let yarn = yarn(json!({"beta_fast": 16, "beta_slow": 2, "truncate": false}));
    assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.truncate), (16.0, 2.0, false));
}

#[test]
fn dual_chunk_models_are_served_up_to_their_plain_length() {
    let dual = |changes: Value| {
        with(json!({
            "max_position_embeddings": 1010000, "dual_chunk_attention_config": changes
        }))
    };
    let config = parse(&dual(json!({"chunk_size": 262144, "local_size": 8192}))).unwrap();
    assert_eq!(config.max_position_embeddings, 253952);
    assert!(parse(&dual(json!({"chunk_size": 10, "local_size": 10}))).is_err());
}

#[test]
fn what_cannot_be_served_is_refused_with_key_and_value() {
    check_refused(json!({"architectures": ["Qwen3MoeForCausalLM"]}), "is Qwen3MoeForCausalLM");
    check_refused(json!({"architectures": ["LlamaForCausalLM"]}), "is LlamaForCausalLM");
    check_refused(json!({"architectures": [], "model_type": "qwen3_next"}), "is qwen3_next");
    check_refused(json!({"architectures": [], "model_type": null}), "architectures is missing");
    check_refused(json!({"quantization_config": {"quant_method": "awq"}}), "is \"awq\"");
    check_refused(json!({"hidden_act": "gelu"}), "hidden_act is gelu");
    check_refused(json!({"num_experts": 8}), "num_experts is 8");
    check_refused(json!({"use_sliding_window": true}), "use_sliding_window is true");
    let types = json!(["full_attention", "sliding_attention"]);
    check_refused(json!({"layer_types": types}), "sliding_attention");
    check_refused(json!({"layer_types": ["full_attention"]}), "one type for each layer");
    for kind in ["linear", "dynamic", "llama3", "longrope"] {
        let scaling = json!({"rope_type": kind, "factor": 2.0});
        check_refused(json!({"rope_scaling": scaling}), &format!("rope_type is {kind}"));
    }
    check_refused(json!({"rope_theta": null}), "rope_theta is missing");
    check_refused(json!({"rope_scaling": {"type": "yarn"}}), "factor is missing");
    check_refused(json!({"num_attention_heads": 3}), "a divisor of hidden_size 64");
    check_refused(json!({"num_key_value_heads": 3}), "evenly");
    check_refused(json!({"hidden_size": 1 << 20}), "outside 1..=65536");
    check_refused(json!({"hidden_size": -1}), "not a whole number");
    check_refused(json!({"vocab_size": "4"}), "vocab_size is \"4\"");
    check_refused(json!({"eos_token_id": 4}), "eos token id 4");
    check_refused(json!({"rms_norm_eps": 2}), "rms_norm_eps is 2");
}

#[test]
fn a_window_that_no_layer_uses_is_served() {
    assert!(parse(&with(json!({"use_sliding_window": true, "max_window_layers": 2}))).is_ok());
    assert!(parse(&with(json!({"use_sliding_window": true, "sliding_window": null}))).is_ok());
}

#[test]
fn strange_values_are_refused_without_a_panic() {
    let strange = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(u64::MAX),
        json!(1e308),
        json!("x"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"rope_type": "yarn", "factor": -1e308}),
    ];
    let keys = [
        "architectures",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "tie_word_embeddings",
        "eos_token_id",
        "layer_types",
        "text_config",
        "num_experts",
        "partial_rotary_factor",
        "dual_chunk_attention_config",
        "quantization_config",
    ];
    let mut refused = 0;
    for key in keys {
        for value in &strange {
            let mut json = tiny_json();
            json[key] = value.clone();
            refused += usize::from(parse(&json).is_err());
        }
    }
    assert!(refused > 100, "only {refused} strange configs were refused");
    assert!(parse(&json!([])).is_err());
}

#[test]
fn generation_config_sets_what_it_names() {
    let path = Path::new("generation_config.json");
    let json = json!({
        "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
        "repetition_penalty": 1.05, "eos_token_id": [3, 1]
    });
    let defaults = parse_generation(path, &json).unwrap();
    let expected = GenerationDefaults {
        temperature: Some(0.7),
        top_p: Some(0.8),
        top_k: Some(20),
        repetition_penalty: Some(1.05),
        ..GenerationDefaults::default()
    };
    assert_eq!(defaults, expected);
    assert_eq!(eos_token_ids(path, &json).unwrap(), [TokenId(3), TokenId(1)]);
    assert_eq!(eos_token_ids(path, &json!({"eos_token_id": 7})).unwrap(), [TokenId(7)]);
    for bad in [json!({"temperature": -1}), json!({"top_p": "x"}), json!({"top_k": 0.5})] {
        assert!(parse_generation(path, &bad).is_err(), "{bad}");
    }
    let many: Vec<u32> = (0..65).collect();
    assert!(eos_token_ids(path, &json!({"eos_token_id": many})).is_err());
}
