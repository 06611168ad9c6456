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
        let bytes = self.vocabulary.bytes(token);
        // Most tokens are whole characters.
        if let Ok(text) = std::str::from_utf8(bytes)
            && self.pending.is_empty()
        {
            return (!text.is_empty()).then(|| text.to_owned());
        }
        self.pending.extend_from_slice(bytes);
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

#[cfg(test)]
mod tests {
    use super::super::testing::{IM_END, THINK, stage};
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], pieces: &[Option<&str>], tail: Option<&str>) {
        let mut decoder = stage("").decoder(SpecialTokens::Keep);
        let got: Vec<_> = bytes.iter().map(|&byte| decoder.push(TokenId(byte.into()))).collect();
        assert_eq!(got.iter().map(Option::as_deref).collect::<Vec<_>>(), pieces);
        assert_eq!(decoder.finish().as_deref(), tail);
        assert_eq!(decoder.finish(), None);
    }

    #[test]
    fn characters_are_held_back_until_they_are_whole() {
        check("é😀".as_bytes(), &[None, Some("é"), None, None, None, Some("😀")], None);
    }

    #[test]
    fn broken_bytes_are_replaced_as_soon_as_they_are_known_to_be_broken() {
        check(b"\xff\xc3a", &[Some("\u{fffd}"), None, Some("\u{fffd}a")], None);
        check(b"\xf0\x9f", &[None, None], Some("\u{fffd}"));
        check(b"\xed\xa0", &[None, Some("\u{fffd}\u{fffd}")], None);
        check(b"\xe4\xbd\xe4", &[None, None, Some("\u{fffd}")], Some("\u{fffd}"));
    }

    #[test]
    fn special_tokens_are_skipped_or_kept_and_unknown_ids_are_nothing() {
        let text = |special| {
            let mut decoder = stage("").decoder(special);
            let ids = [TokenId(97), IM_END, THINK, TokenId(262), TokenId(u32::MAX)];
            ids.iter().filter_map(|&id| decoder.push(id)).collect::<String>()
        };
        assert_eq!(text(SpecialTokens::Skip), "a<think>");
        assert_eq!(text(SpecialTokens::Keep), "a<|im_end|><think>");
    }

    #[test]
    fn a_skipped_token_does_not_break_a_character() {
        let mut decoder = stage("").decoder(SpecialTokens::Skip);
        assert_eq!(decoder.push(TokenId(0xc3)), None);
        assert_eq!(decoder.push(IM_END), None);
        assert_eq!(decoder.push(TokenId(0xa9)).as_deref(), Some("é"));
    }
}
