//! Token ids -> text, whole characters only.

use std::sync::Arc;

use models::TokenId;

use super::vocabulary::Vocabulary;

/// What becomes of special tokens (`<|im_end|>` and the like) in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    Skip,
    Keep,
}

/// Turns one sequence's tokens into text as they come, each character as soon as it is whole.
///
/// Bytes that cannot begin or continue a character become U+FFFD, one for each maximal broken part
/// (the Unicode standard's practice, and Python's `errors="replace"`).
pub struct TextDecoder {
    vocabulary: Arc<Vocabulary>,
    special: SpecialTokens,
    /// The beginning of a character, 0 to 3 bytes between calls.
    pending: Vec<u8>,
}

impl TextDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, special: SpecialTokens) -> Self {
        Self { vocabulary, special, pending: Vec::new() }
    }

    /// The characters that `token` completes; `None` if there are none yet.
    pub fn push(&mut self, token: TokenId) -> Option<String> {
        if self.special == SpecialTokens::Skip && self.vocabulary.is_special(token) {
            return None;
        }
        self.pending.extend_from_slice(self.vocabulary.bytes(token));
        let mut text = String::new();
        let used = append_whole_characters(&mut text, &self.pending);
        self.pending.drain(..used);
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end: a character that was never completed, as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let broken = !self.pending.is_empty();
        self.pending.clear();
        broken.then(|| char::REPLACEMENT_CHARACTER.to_string())
    }
}

/// Appends all of `bytes` but an incomplete character at their end; returns how many it used.
fn append_whole_characters(text: &mut String, bytes: &[u8]) -> usize {
    let mut used = 0;
    loop {
        let rest = &bytes[used..];
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => error,
        };
        let (valid, _) = rest.split_at(error.valid_up_to());
        text.push_str(std::str::from_utf8(valid).expect("from_utf8 has just accepted it"));
        used += valid.len();
        match error.error_len() {
            Some(broken) => used += broken,
            None => return used,
        }
        text.push(char::REPLACEMENT_CHARACTER);
    }
}
