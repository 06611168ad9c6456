//! Prompt string -> token ids.

use std::path::Path;
use std::sync::Arc;

use models::{GgufTokenizer, TokenId, TokenizerSource};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, SplitDelimiterBehavior,
};

use super::chat_template::Rendered;
use super::chunks::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, chunks};
use super::error::{TextError, TextStartError};
use super::special_tokens::{Piece, SpecialTokenSplitter};
use super::vocabulary::{Entry, TokenKind, Vocabulary};

/// How Qwen2, 2.5 and 3 cut text into words before byte pairs are merged (spec section 11).
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// The same for Qwen3.5 and later: marks belong to the letters before them.
const QWEN35_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Variables that chat templates may print; the GGUF keys follow in this order.
const NAMED_SPECIAL: [&str; 3] = ["bos_token", "eos_token", "pad_token"];

// Values of tokenizer.ggml.token_type.
const GGUF_CONTROL: i32 = 3;
const GGUF_USER_DEFINED: i32 = 4;
const GGUF_UNUSED: i32 = 5;

/// A checkpoint's tokenizer: byte-level byte pairs, as all of Qwen uses.
pub struct Tokenizer {
    /// Takes special tokens in its input for plain text: they are cut out before.
    inner: tokenizers::Tokenizer,
    special: SpecialTokenSplitter,
    vocabulary: Arc<Vocabulary>,
    eos: Vec<TokenId>,
    named_special: Vec<(String, String)>,
    frame: TextFrame,
    /// No limit where it is not known that text may be cut.
    chunk_bytes_min: usize,
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
        let (mut inner, named_special) = match source {
            TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config } => {
                let named = tokenizer_config.as_ref().map(config_named_special);
                (from_file(tokenizer_json)?, named.unwrap_or_default())
            }
            TokenizerSource::Gguf(gguf) => (from_gguf(gguf)?, gguf_named_special(gguf)),
        };
        let frame = match source {
            TokenizerSource::HuggingFace { .. } => post_processed(&inner)?,
            TokenizerSource::Gguf(gguf) => {
                let after = gguf.appended.into_iter().map(TokenId).collect();
                TextFrame { before: Vec::new(), after }
            }
        };
        let bytes = matches!(inner.get_model(), ModelWrapper::BPE(_))
            && matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        if !bytes {
            let (key, value) = ("model and decoder".to_owned(), "of another kind".to_owned());
            let supported = "byte-level BPE".to_owned();
            return Err(TextStartError::Unsupported { key, value, supported });
        }
        let truncation = inner.with_truncation(None).map(|_| ());
        truncation.map_err(|e| TextStartError::Invalid { reason: e.to_string() })?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let eos = named_special.iter().filter(|(name, _)| name == "eos_token");
        let eos = eos.filter_map(|(_, token)| inner.token_to_id(token)).map(TokenId).collect();
        let added = added_tokens(&inner);
        let may_cut = has_known_words(&inner) && added.iter().all(|(_, token)| is_solid(token));
        Ok(Self {
            chunk_bytes_min: if may_cut { CHUNK_BYTES_MIN } else { usize::MAX },
            special: SpecialTokenSplitter::new(&added)?,
            vocabulary: Arc::new(vocabulary(&inner)),
            eos,
            named_special,
            frame,
            inner,
        })
    }

    /// Encodes `text`, in which special tokens stand for themselves.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::new();
        for piece in self.special.pieces(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
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
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| TextError::Crashed { reason: e.to_string() })?;
        ids.extend(encoding.get_ids().iter().copied().map(TokenId));
        Ok(())
    }

    /// Encodes a rendered chat: special tokens are those of the template, all else is text.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::new();
        let mut text_start = 0;
        for (range, id) in &rendered.special {
            self.encode_as_text(&rendered.text[text_start..range.start], &mut ids)?;
            ids.push(*id);
            text_start = range.end;
        }
        self.encode_as_text(&rendered.text[text_start..], &mut ids)?;
        Ok(ids)
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

    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(TokenId)
    }

    /// The end-of-sequence tokens that the tokenizer itself names.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }
}

/// What the post-processor adds: seen on a text, since it can be written in many ways.
fn post_processed(inner: &tokenizers::Tokenizer) -> Result<TextFrame, TextStartError> {
    let encode = |special| inner.encode_fast("a", special).map_err(invalid);
    let (plain, whole) = (encode(false)?, encode(true)?);
    let (plain, whole) = (plain.get_ids(), whole.get_ids());
    let start = whole.windows(plain.len().max(1)).position(|ids| ids == plain);
    let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect();
    match start {
        Some(start) => Ok(TextFrame {
            before: ids(&whole[..start]),
            after: ids(&whole[start + plain.len()..]),
        }),
        None => Err(TextStartError::Invalid {
            reason: "its post-processor changes the tokens of a text".to_owned(),
        }),
    }
}

fn from_file(path: &Path) -> Result<tokenizers::Tokenizer, TextStartError> {
    tokenizers::Tokenizer::from_file(path)
        .map_err(|e| TextStartError::File { path: path.to_owned(), reason: e.to_string() })
}

/// In tokenizer_config.json a token is a string or an object with its content.
fn config_named_special(config: &serde_json::Value) -> Vec<(String, String)> {
    let named = NAMED_SPECIAL.iter().filter_map(|name| {
        let token = config.get(name)?;
        let content = token.as_str().or_else(|| token.get("content")?.as_str())?;
        Some(((*name).to_owned(), content.to_owned()))
    });
    named.collect()
}

fn gguf_named_special(gguf: &GgufTokenizer) -> Vec<(String, String)> {
    let ids = [gguf.bos, gguf.eos, gguf.pad];
    let named = NAMED_SPECIAL.iter().zip(ids).filter_map(|(name, id)| {
        let token = gguf.tokens.get(id? as usize)?;
        Some(((*name).to_owned(), token.clone()))
    });
    named.collect()
}

/// Builds what the published tokenizer.json of the same model holds.
fn from_gguf(gguf: &GgufTokenizer) -> Result<tokenizers::Tokenizer, TextStartError> {
    let words = match gguf.pre.as_str() {
        "qwen2" => QWEN2_WORDS,
        "qwen35" => QWEN35_WORDS,
        other => {
            let (key, value) = ("tokenizer.ggml.pre".to_owned(), other.to_owned());
            let supported = "qwen2, qwen35".to_owned();
            return Err(TextStartError::Unsupported { key, value, supported });
        }
    };
    let vocab = gguf_vocab(gguf)?;
    let merges = gguf_merges(gguf, &vocab)?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(invalid)?;
    let pattern = SplitPattern::Regex(words.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(invalid)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(NFC)).map_err(invalid)?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    tokenizer.with_decoder(Some(bytes));
    let added = gguf.tokens.iter().zip(&gguf.token_types).filter_map(|(token, &kind)| {
        let special = kind == GGUF_CONTROL;
        let added = special || kind == GGUF_USER_DEFINED;
        added.then(|| AddedToken::from(token.as_str(), special).normalized(false))
    });
    tokenizer.add_tokens(added).map_err(invalid)?;
    Ok(tokenizer)
}

/// Ids of all tokens but the unused ones, which only pad the embedding.
fn gguf_vocab(gguf: &GgufTokenizer) -> Result<Vocab, TextStartError> {
    let (tokens, types) = (gguf.tokens.len(), gguf.token_types.len());
    if tokens != types {
        let reason = format!("{tokens} tokens, but {types} token types");
        return Err(TextStartError::Invalid { reason });
    }
    let mut vocab = Vocab::default();
    for (id, (token, &kind)) in gguf.tokens.iter().zip(&gguf.token_types).enumerate() {
        if kind == GGUF_UNUSED {
            continue;
        }
        let id =
            u32::try_from(id).map_err(|e| TextStartError::Invalid { reason: e.to_string() })?;
        if let Some(first) = vocab.insert(token.clone(), id) {
            let reason = format!("token {token:?} is both {first} and {id}");
            return Err(TextStartError::Invalid { reason });
        }
    }
    Ok(vocab)
}

fn gguf_merges(
    gguf: &GgufTokenizer,
    vocab: &Vocab,
) -> Result<Vec<(String, String)>, TextStartError> {
    let pair = |merge: &String| {
        let pair = merge.split_once(' ')?;
        // The builder of the tokenizers crate relies on it.
        vocab
            .contains_key(&[pair.0, pair.1].concat())
            .then(|| (pair.0.to_owned(), pair.1.to_owned()))
    };
    let merges = gguf.merges.iter().map(|merge| {
        let reason = format!("merge {merge:?} is not two tokens that make a third");
        pair(merge).ok_or(TextStartError::Invalid { reason })
    });
    merges.collect()
}

fn invalid(error: tokenizers::Error) -> TextStartError {
    TextStartError::Invalid { reason: error.to_string() }
}

fn added_tokens(inner: &tokenizers::Tokenizer) -> Vec<(TokenId, AddedToken)> {
    let mut added: Vec<_> =
        inner.get_added_tokens_decoder().into_iter().map(|(id, t)| (TokenId(id), t)).collect();
    added.sort_by_key(|(id, _)| *id);
    added
}

/// Whether text is normalised and cut into words as `chunks` relies on.
fn has_known_words(inner: &tokenizers::Tokenizer) -> bool {
    let Some(PreTokenizerWrapper::Sequence(sequence)) = inner.get_pre_tokenizer() else {
        return false;
    };
    let [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)] =
        sequence.as_ref()
    else {
        return false;
    };
    let known = |words: &str| split.pattern == SplitPattern::Regex(words.to_owned());
    matches!(inner.get_normalizer(), Some(NormalizerWrapper::NFC(_)))
        && (known(QWEN2_WORDS) || known(QWEN35_WORDS))
        && split.behavior == SplitDelimiterBehavior::Isolated
        && !split.invert
        && !bytes.add_prefix_space
        && !bytes.use_regex
}

/// Whether no cut can lie in the token or change it.
fn is_solid(token: &AddedToken) -> bool {
    let plain = !(token.lstrip || token.rstrip || token.single_word);
    plain && token.content.bytes().all(|byte| byte.is_ascii_graphic())
}

fn vocabulary(inner: &tokenizers::Tokenizer) -> Vocabulary {
    let added = inner.get_added_tokens_decoder();
    let num_ids = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
    let tokens: Vec<_> = (0..num_ids as u32).map(|id| inner.id_to_token(id)).collect();
    Vocabulary::new(tokens.iter().enumerate().map(|(id, token)| {
        let special = added.get(&(id as u32)).is_some_and(|token| token.special);
        let kind = if special { TokenKind::Special } else { TokenKind::Text };
        Entry { token: token.as_deref(), kind }
    }))
}

#[cfg(test)]
mod tests {
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
