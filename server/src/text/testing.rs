//! A tokenizer small enough to be written down: one token for each byte, two merges, and three
//! added tokens.

use models::{ChatTemplateSource, GgufTokenizer, TokenId, TokenizerSource};

use super::vocabulary::byte_of_char;
use super::{TextConfig, TextStage, TextStartError};

pub const IM_START: TokenId = TokenId(258);
pub const IM_END: TokenId = TokenId(259);
/// Added, but not special.
pub const THINK: TokenId = TokenId(260);
pub const VOCAB_SIZE: usize = 261;
pub const EMBEDDING_ROWS: usize = 264;

pub fn gguf() -> GgufTokenizer {
    let mut tokens = vec![String::new(); 256];
    for (code, byte) in byte_of_char().into_iter().enumerate() {
        if let Some(byte) = byte {
            tokens[byte as usize] = char::from_u32(code as u32).unwrap().to_string();
        }
    }
    let words = ["ab", "abc", "<|im_start|>", "<|im_end|>", "<think>", "[PAD261]", "[PAD262]"];
    tokens.extend(words.map(str::to_owned));
    let mut token_types = vec![1; 258];
    token_types.extend([3, 3, 4, 5, 5]);
    GgufTokenizer {
        pre: "qwen2".to_owned(),
        tokens,
        merges: vec!["a b".to_owned(), "ab c".to_owned()],
        token_types,
        eos: Some(IM_END.0),
        pad: None,
        bos: None,
        appended: None,
    }
}

pub fn stage(template: &str) -> TextStage {
    stage_with(template, TextConfig::default()).unwrap()
}

pub fn stage_with(template: &str, config: TextConfig) -> Result<TextStage, TextStartError> {
    let template = ChatTemplateSource { template: template.to_owned() };
    TextStage::new(&TokenizerSource::Gguf(gguf()), Some(&template), EMBEDDING_ROWS, config)
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// The text whole, in two pieces at each place, in characters, and in three pieces at many places.
pub fn every_cut(text: &str, mut check: impl FnMut(&[&str])) {
    check(&[text]);
    let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
    let characters: Vec<&str> = text.split("").filter(|piece| !piece.is_empty()).collect();
    check(&characters);
    for (i, &first) in places.iter().enumerate() {
        check(&[&text[..first], &text[first..]]);
        for &second in places[i..].iter().step_by(1 + places.len() / 16) {
            check(&[&text[..first], &text[first..second], &text[second..]]);
        }
    }
}
