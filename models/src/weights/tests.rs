use super::*;
use crate::weights::gguf::testing::tiny_qwen2;
use serde_json::json;

/// A folder with a config and one tensor.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 4, "max_position_embeddings": 512, "rope_theta": 1e6, "eos_token_id": 1,
    });
    write(&folder, "config.json", &config.to_string());
    let header = r#"{"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 4]);
    std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

fn write(folder: &tempfile::TempDir, name: &str, text: &str) {
    std::fs::write(folder.path().join(name), text).unwrap();
}

fn open(folder: &tempfile::TempDir) -> Checkpoint {
    Checkpoint::open(folder.path()).unwrap()
}

#[test]
fn end_tokens_of_both_files_count_generation_config_first() {
    let folder = folder();
    assert_eq!(open(&folder).config.eos_token_ids, [TokenId(1)]);
    let generation = json!({"eos_token_id": [2, 1], "temperature": 0.5});
    write(&folder, "generation_config.json", &generation.to_string());
    let checkpoint = open(&folder);
    assert_eq!(checkpoint.config.eos_token_ids, [TokenId(2), TokenId(1)]);
    assert_eq!(checkpoint.generation.temperature, Some(0.5));
    write(&folder, "generation_config.json", &json!({"eos_token_id": 3}).to_string());
    assert_eq!(open(&folder).config.eos_token_ids, [TokenId(3), TokenId(1)]);
    write(&folder, "generation_config.json", &json!({"eos_token_id": 4}).to_string());
    assert!(Checkpoint::open(folder.path()).is_err(), "an end token outside the vocabulary");
}

#[test]
fn chat_template_comes_from_its_own_file_then_from_the_tokenizer_config() {
    let folder = folder();
    let template = || open(&folder).chat_template.map(|source| source.template);
    assert_eq!(template(), None);
    let named =
        json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    write(&folder, "tokenizer_config.json", &json!({"chat_template": named}).to_string());
    assert_eq!(template().unwrap(), "d");
    write(&folder, "tokenizer_config.json", &json!({"chat_template": "s"}).to_string());
    assert_eq!(template().unwrap(), "s");
    write(&folder, "chat_template.jinja", "j");
    assert_eq!(template().unwrap(), "j");
    let TokenizerSource::HuggingFace { tokenizer_config, .. } = open(&folder).tokenizer else {
        panic!("a folder has a Hugging Face tokenizer")
    };
    assert_eq!(tokenizer_config.unwrap()["chat_template"], "s");
}

#[test]
fn gguf_is_opened_as_a_file_or_as_the_only_one_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Checkpoint::open(folder.path()).is_err());
    let file = tiny_qwen2().string("tokenizer.chat_template", "g").build();
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, &file).unwrap();
    for path in [folder.path(), &path] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.chat_template.unwrap().template, "g");
        let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer else {
            panic!("a GGUF file has its own tokenizer")
        };
        assert_eq!((tokenizer.tokens.len(), tokenizer.eos), (4, Some(3)));
    }
    std::fs::write(folder.path().join("b.gguf"), &file).unwrap();
    assert!(Checkpoint::open(folder.path()).is_err(), "which of the two is meant?");
    assert!(matches!(Checkpoint::open(Path::new("/no/such")), Err(LoadError::Io { .. })));
}

#[test]
fn oversized_json_is_refused_before_it_is_read() {
    let folder = folder();
    let file = std::fs::File::create(folder.path().join("generation_config.json")).unwrap();
    file.set_len(JSON_BYTES_MAX + 1).unwrap();
    let error = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("the limit is 16777216"), "{error}");
}
