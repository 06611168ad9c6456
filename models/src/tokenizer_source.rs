//! What a checkpoint says about its text: where the vocabulary comes from and how a chat is
//! written.

use std::path::PathBuf;

/// Where the tokenizer of a checkpoint comes from. Nothing is interpreted here: the text stage
/// knows what it means.
#[derive(Debug, Clone)]
pub enum TokenizerSource {
    /// The files of a Hugging Face folder.
    HuggingFace { tokenizer_json: PathBuf, tokenizer_config: Option<serde_json::Value> },
    /// The metadata of a GGUF file.
    Gguf(GgufTokenizer),
}

/// The `tokenizer.ggml.*` keys of a GGUF file, as they stand there.
#[derive(Debug, Clone, Default)]
pub struct GgufTokenizer {
    /// Which pre-tokenizer: "qwen2", "qwen35".
    pub pre: String,
    /// One for each id, in the printable byte alphabet of GPT-2.
    pub tokens: Vec<String>,
    /// "left right", best first.
    pub merges: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; as long as `tokens`.
    pub token_types: Vec<i32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    pub bos: Option<u32>,
    /// Ends every text that an embedding model is given.
    pub appended: Option<u32>,
}

/// A chat template in the Jinja language.
#[derive(Debug, Clone)]
pub struct ChatTemplateSource {
    pub template: String,
}
