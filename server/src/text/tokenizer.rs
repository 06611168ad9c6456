//! Prompt string -> token ids.

use std::sync::Arc;

use models::{TokenId, TokenizerSource};

use super::chat_template::Rendered;
use super::chunks::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, chunks};
use super::error::{TextError, TextStartError};
use super::known_texts::KnownTexts;
use super::special_tokens::{Piece, SpecialTokenSplitter};
use super::tokenizer_parts::{Cuts, Encoding, TokenizerParts};
use super::vocabulary::Vocabulary;

/// A checkpoint's tokenizer: byte-level byte pairs, as all of Qwen uses.
pub struct Tokenizer {
    encoding: Encoding,
    special: SpecialTokenSplitter,
    vocabulary: Arc<Vocabulary>,
    eos: Vec<TokenId>,
    named_special: Vec<(String, String)>,
    frame: TextFrame,
    /// No limit where it is not known that text may be cut.
    chunk_bytes_min: usize,
    known_texts: KnownTexts,
}

/// What a tokenizer puts around every text of its own accord.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextFrame {
    pub before: Vec<TokenId>,
    pub after: Vec<TokenId>,
}

impl Tokenizer {
    /// Errors: a file that cannot be read, and every kind of tokenizer that is not byte-level
    /// byte pairs with plain special tokens.
    pub fn load(source: &TokenizerSource) -> Result<Self, TextStartError> {
        let TokenizerParts { encoding, vocabulary, added, named_special, frame, cuts } =
            TokenizerParts::load(source)?;
        let eos = named_special.iter().filter(|(name, _)| name == "eos_token");
        let eos = eos.filter_map(|(_, token)| vocabulary.id(token.as_bytes())).collect();
        let chunk_bytes_min = match cuts {
            Cuts::Allowed => CHUNK_BYTES_MIN,
            Cuts::Unknown => usize::MAX,
        };
        Ok(Self {
            special: SpecialTokenSplitter::new(&added)?,
            vocabulary: Arc::new(vocabulary),
            encoding,
            eos,
            named_special,
            frame,
            chunk_bytes_min,
            known_texts: KnownTexts::default(),
        })
    }

    /// Encodes `text`, in which special tokens stand for themselves.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::new();
        for piece in self.special.pieces(text) {
            match piece {
                Piece::Token(id) => ids.push(id),
                Piece::Text(text) => self.encode_as_text(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Encodes `text` in which no special token has a meaning; appends to `ids`.
    pub fn encode_as_text(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), TextError> {
        let bytes_min = self.chunk_bytes_min;
        chunks(text, bytes_min).try_for_each(|chunk| self.encode_chunk(chunk, ids))
    }

    fn encode_chunk(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), TextError> {
        if text.len() > CHUNK_BYTES_MAX {
            let (bytes, bytes_max) = (text.len(), CHUNK_BYTES_MAX);
            return Err(TextError::UnbrokenTooLong { bytes, bytes_max });
        }
        match &self.encoding {
            Encoding::Own(encoder) => {
                for piece in self.special.other_pieces(text) {
                    match piece {
                        Piece::Token(id) => ids.push(id),
                        Piece::Text(text) => encoder.encode(text, ids),
                    }
                }
            }
            Encoding::Crate(inner) => {
                let encoding = inner
                    .encode_fast(text, false)
                    .map_err(|e| TextError::Crashed { reason: e.to_string() })?;
                ids.extend(encoding.get_ids().iter().copied().map(TokenId));
            }
        }
        Ok(())
    }

    /// Encodes a rendered chat: special tokens are those of the template, all else is text.
    /// Messages that came before, in a chat of the same `salt`, are not encoded again; without a
    /// salt, nothing is remembered.
    pub fn encode_rendered(
        &self,
        rendered: &Rendered,
        salt: Option<&[u8; 32]>,
    ) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::new();
        let mut text_start = 0;
        for (range, id) in &rendered.special {
            self.encode_message(&rendered.text[text_start..range.start], salt, &mut ids)?;
            ids.push(*id);
            text_start = range.end;
        }
        self.encode_message(&rendered.text[text_start..], salt, &mut ids)?;
        Ok(ids)
    }

    /// As `encode_as_text`. The pieces that a text is cut into depend only on what is before their
    /// end, so those of a text that grew are known up to where it grew.
    fn encode_message(
        &self,
        text: &str,
        salt: Option<&[u8; 32]>,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TextError> {
        let Some(salt) = salt else { return self.encode_as_text(text, ids) };
        for chunk in chunks(text, self.chunk_bytes_min) {
            self.known_texts.append(salt, chunk, ids, |ids| self.encode_chunk(chunk, ids))?;
        }
        Ok(())
    }

    /// What surrounds a text that is embedded; never that of a chat or a completion.
    pub fn frame(&self) -> &TextFrame {
        &self.frame
    }

    pub fn special(&self) -> &SpecialTokenSplitter {
        &self.special
    }

    /// The special tokens that have a role, by the variable that templates know them by.
    pub fn named_special(&self) -> &[(String, String)] {
        &self.named_special
    }

    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The token that stands for this text.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.vocabulary.id(token.as_bytes())
    }

    /// The end-of-sequence tokens that the tokenizer itself names.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }
}

#[cfg(test)]
mod tests {
    use models::GgufTokenizer;

    use super::super::testing::{IM_END, IM_START, THINK, VOCAB_SIZE, gguf};
    use super::*;

    fn load(gguf: GgufTokenizer) -> Result<Tokenizer, TextStartError> {
        Tokenizer::load(&TokenizerSource::Gguf(gguf))
    }

    #[track_caller]
    fn check(text: &str, expected: &[u32]) {
        let ids = load(gguf()).unwrap().encode(text).unwrap();
        assert_eq!(ids, expected.iter().copied().map(TokenId).collect::<Vec<_>>(), "{text:?}");
    }

    #[test]
    fn byte_pairs_merge_within_words_only() {
        check("abc ab c", &[257, 32, 256, 32, 99]);
        check("é", &[0xc3, 0xa9]);
        check("e\u{301}", &[0xc3, 0xa9]);
        check("", &[]);
    }

    #[test]
    fn added_tokens_are_found_and_the_leftmost_wins() {
        check("<|im_start|>a<|im_end|>", &[IM_START.0, 97, IM_END.0]);
        check("<<think>>", &[60, THINK.0, 62]);
        check("<|im_<|im_end|>", &[60, 124, 105, 109, 95, IM_END.0]);
    }

    #[test]
    fn special_tokens_may_be_taken_for_text() {
        let tokenizer = load(gguf()).unwrap();
        let mut ids = Vec::new();
        tokenizer.encode_as_text("<|im_end|><think>", &mut ids).unwrap();
        let mut expected: Vec<_> = "<|im_end|>".bytes().map(|b| TokenId(b.into())).collect();
        expected.push(THINK);
        assert_eq!(ids, expected);
    }

    #[test]
    fn unused_tokens_at_the_end_are_no_ids() {
        let tokenizer = load(gguf()).unwrap();
        assert_eq!(tokenizer.vocabulary().num_ids(), VOCAB_SIZE);
        assert_eq!(tokenizer.token_id("[PAD261]"), None);
        assert_eq!(tokenizer.eos(), [IM_END]);
        assert_eq!(tokenizer.token_id("<think>"), Some(THINK));
        assert!(tokenizer.vocabulary().is_special(IM_END));
        assert!(!tokenizer.vocabulary().is_special(THINK));
    }

    #[test]
    fn broken_metadata_is_refused() {
        let refused = |change: fn(&mut GgufTokenizer)| {
            let mut broken = gguf();
            change(&mut broken);
            load(broken).err().expect("it must be refused").to_string()
        };
        let unknown = refused(|gguf| gguf.pre = "llama-bpe".to_owned());
        assert!(unknown.contains("llama-bpe") && unknown.contains("qwen35"), "{unknown}");
        assert!(refused(|gguf| gguf.token_types.clear()).contains("263 tokens, but 0"));
        assert!(refused(|gguf| gguf.tokens[9] = "ab".to_owned()).contains("both"));
        assert!(refused(|gguf| gguf.merges[0] = "ab".to_owned()).contains("merge \"ab\""));
        let long = refused(|gguf| gguf.merges.push("<|im_start|> <|im_end|>".to_owned()));
        assert!(long.contains("merge"), "{long}");
    }

    #[test]
    fn only_endless_words_are_too_long() {
        let tokenizer = load(gguf()).unwrap();
        let bytes_max = CHUNK_BYTES_MAX;
        let text = "ab ".repeat(bytes_max / 2);
        assert!(tokenizer.encode(&text).is_ok_and(|ids| ids.len() > bytes_max / 2));
        let bytes = bytes_max + 1;
        let refused = Err(TextError::UnbrokenTooLong { bytes, bytes_max });
        assert_eq!(tokenizer.encode(&"!".repeat(bytes)), refused);
    }

    #[test]
    fn cutting_long_text_keeps_its_ids() {
        let mut tokenizer = load(gguf()).unwrap();
        assert_eq!(tokenizer.chunk_bytes_min, CHUNK_BYTES_MIN);
        let text = "abc ab\n\n  <think> x,abc 你好，世界\n<|im_end|> abc";
        let whole = tokenizer.encode(text).unwrap();
        for bytes_min in 1..text.len() {
            tokenizer.chunk_bytes_min = bytes_min;
            assert_eq!(tokenizer.encode(text).unwrap(), whole, "{bytes_min}");
        }
    }
}
