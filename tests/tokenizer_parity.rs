//! Token ids, streamed text and rendered chats against Hugging Face's tokenizers and transformers,
//! with the published Qwen3 tokenizer. Formats: tests/data/text and tests/data/chat hold a part of
//! the reference data in its own format; where the whole lies beside the repository, all is used.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use models::{ChatTemplateSource, TokenId, TokenizerSource};
use serde_json::Value;
use server::text::{SpecialTokens, TextConfig, TextStage};

/// Rows of the embedding of every Qwen3 up to 32B.
const EMBEDDING_ROWS: usize = 151_936;

static QWEN3: LazyLock<TextStage> = LazyLock::new(|| stage("qwen3.jinja"));

fn stage(template: &str) -> TextStage {
    let dir = tests::data_dir().join("text");
    let mut json = Vec::new();
    let packed = fs::File::open(dir.join("qwen3-tokenizer.json.xz")).unwrap();
    lzma_rs::xz_decompress(&mut BufReader::new(packed), &mut json).unwrap();
    let unpacked = tempfile::tempdir().unwrap();
    let tokenizer_json = unpacked.path().join("tokenizer.json");
    fs::write(&tokenizer_json, json).unwrap();
    let config = fs::read_to_string(dir.join("qwen3-tokenizer_config.json")).unwrap();
    let tokenizer_config = Some(serde_json::from_str(&config).unwrap());
    let source = TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config };
    let template = fs::read_to_string(tests::data_dir().join("chat").join(template)).unwrap();
    let template = ChatTemplateSource { template };
    TextStage::new(&source, Some(&template), EMBEDDING_ROWS, TextConfig::default()).unwrap()
}

/// The whole reference file if it is there, else the part in this repository.
fn golden(folder: &str, part: &str, file: &str) -> PathBuf {
    let whole = tests::golden_dir().map(|dir| dir.join(folder).join(file));
    whole.filter(|path| path.is_file()).unwrap_or_else(|| tests::data_dir().join(part).join(file))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn encode(text: &str) -> Vec<TokenId> {
    block_on(QWEN3.encode_text(text.to_owned())).unwrap().token_ids
}

/// What is sent after each token, and at the end.
fn stream(token_ids: &[TokenId], special: SpecialTokens) -> (Vec<String>, String) {
    let mut decoder = QWEN3.decoder(special);
    let pieces = token_ids.iter().map(|&id| decoder.push(id).unwrap_or_default()).collect();
    (pieces, decoder.finish().unwrap_or_default())
}

fn check_text(case: &Value) {
    let (Some(text), id) = (case["text"].as_str(), &case["id"]) else { return };
    let token_ids = encode(text);
    assert_eq!(token_ids, ids(&case["ids"]), "{id}");
    let (pieces, tail) = stream(&token_ids, SpecialTokens::Keep);
    let expected: Vec<&str> =
        case["stream"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(pieces, expected, "{id}");
    assert_eq!(tail, case["stream_tail"].as_str().unwrap_or(""), "{id}");
    let decoded = case["decoded"].as_str().unwrap_or(text);
    assert_eq!(pieces.concat() + &tail, decoded, "{id}");
    let (skipped, tail) = stream(&token_ids, SpecialTokens::Skip);
    let skipped_expected = case["decoded_skip_special"].as_str().unwrap_or(decoded);
    assert_eq!(skipped.concat() + &tail, skipped_expected, "{id}");
    let bytes: Vec<u8> =
        token_ids.iter().flat_map(|&token| QWEN3.token_bytes(token).to_vec()).collect();
    assert_eq!(bytes, decoded.as_bytes(), "{id}");
}

#[test]
fn every_language_gets_the_reference_ids_and_streams_whole_characters() {
    let cases = lines(&golden("tokenizer", "text", "languages.jsonl"));
    assert!(cases.len() >= 60, "{} cases", cases.len());
    cases.iter().for_each(check_text);
}

#[test]
fn nasty_texts_get_the_reference_ids() {
    let cases = lines(&golden("tokenizer", "text", "nasty.jsonl"));
    assert!(cases.len() >= 200, "{} cases", cases.len());
    cases.iter().for_each(check_text);
}
