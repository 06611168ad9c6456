use super::*;
use crate::config::testing::tiny_config;
use crate::weights::gguf::testing::{Builder, tiny_qwen2};

fn parse(builder: Builder) -> Result<ModelConfig, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, builder.build()).unwrap();
    let file = GgufFile::open(&path)?;
    parse_config(&file, &parse_tokenizer(&file)?)
}

fn check_refused(builder: Builder, words: &str) {
    let error = parse(builder).expect_err(words).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn metadata_becomes_a_config() {
    assert_eq!(parse(tiny_qwen2()).unwrap(), tiny_config());
    let untied = tiny_qwen2().tensor("output.weight", &[64, 4], 0, vec![0; 1024]);
    assert!(!parse(untied).unwrap().tie_word_embeddings);
    let wide = tiny_qwen2().u32("qwen2.attention.key_length", 32);
    assert_eq!(parse(wide).unwrap().head_dim, 32);
}

#[test]
fn end_tokens_are_those_named_and_those_known_by_text() {
    let ids = |builder| parse(builder).unwrap().eos_token_ids;
    let named = tiny_qwen2().u32("tokenizer.ggml.eos_token_id", 2);
    assert_eq!(ids(named), [TokenId(2), TokenId(3)]);
    // A token that only looks like an end is text.
    let plain = tiny_qwen2().integers("tokenizer.ggml.token_type", &[1; 4]);
    assert_eq!(ids(plain.clone()), [TokenId(3)]);
    assert_eq!(ids(plain.u32("tokenizer.ggml.eot_token_id", 0)), [TokenId(3), TokenId(0)]);
    check_refused(tiny_qwen2().u32("tokenizer.ggml.eot_token_id", 4), "eos token id");
    check_refused(tiny_qwen2().u32("tokenizer.ggml.eos_token_id", 4), "outside 0..4");
}

#[test]
fn yarn_of_the_metadata() {
    let yarn = tiny_qwen2()
        .string("qwen2.rope.scaling.type", "yarn")
        .f32("qwen2.rope.scaling.factor", 4.0)
        .u32("qwen2.rope.scaling.original_context_length", 256);
    let config = parse(yarn.clone()).unwrap();
    assert_eq!(config.max_position_embeddings, 1024);
    let factor = config.rope.yarn.unwrap().attention_factor;
    assert!((factor - 1.138629).abs() < 1e-6, "{factor}");
    check_refused(yarn.clone().f32("qwen2.rope.scaling.factor", 0.5), "a factor of 0.5");
    check_refused(yarn.clone().f32("qwen2.rope.scaling.factor", 1e9), "max_position_embeddings");
    check_refused(yarn.string("qwen2.rope.scaling.type", "linear"), "is linear");
}

#[test]
fn what_cannot_be_served_is_refused_with_key_and_value() {
    check_refused(tiny_qwen2().string("general.architecture", "llama"), "is llama");
    check_refused(tiny_qwen2().without("general.architecture"), "general.architecture is ");
    check_refused(tiny_qwen2().string("tokenizer.ggml.model", "llama"), "is llama");
    check_refused(tiny_qwen2().without("tokenizer.ggml.tokens"), "tokens is missing");
    check_refused(tiny_qwen2().integers("tokenizer.ggml.token_type", &[1]), "1 token types");
    check_refused(tiny_qwen2().u32("qwen2.expert_count", 8), "qwen2.expert_count is 8");
    check_refused(tiny_qwen2().u32("qwen2.attention.sliding_window", 8), "sliding_window is 8");
    check_refused(tiny_qwen2().u32("qwen2.attention.value_length", 8), "value_length is 8");
    check_refused(tiny_qwen2().without("qwen2.rope.freq_base"), "rope.freq_base is missing");
    check_refused(tiny_qwen2().without("qwen2.block_count"), "block_count is missing");
    check_refused(tiny_qwen2().u32("qwen2.block_count", 0), "num_hidden_layers is 0");
    check_refused(tiny_qwen2().u32("qwen2.attention.head_count", 0), "is 0");
    check_refused(tiny_qwen2().u32("qwen2.attention.head_count_kv", 3), "evenly");
    let arrays = tiny_qwen2().integers("qwen2.attention.head_count_kv", &[2, 2]);
    check_refused(arrays, "head_count_kv is not a whole number");
}

#[test]
fn embedding_models_say_how_they_pool() {
    let purpose = |builder| parse(builder).unwrap().purpose;
    assert_eq!(purpose(tiny_qwen2().u32("qwen2.pooling_type", 0)), Purpose::Generation);
    let embedder = tiny_qwen2().u32("qwen2.pooling_type", 3);
    assert_eq!(purpose(embedder.clone()), Purpose::Embedding);
    check_refused(tiny_qwen2().u32("qwen2.pooling_type", 1), "qwen2.pooling_type is 1");
    let appended = |builder: Builder| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, builder.build()).unwrap();
        parse_tokenizer(&GgufFile::open(&path).unwrap()).unwrap().appended
    };
    assert_eq!((appended(embedder), appended(tiny_qwen2())), (Some(2), None));
}
