//! What a tokenizer is made of, from its file or from a GGUF file's metadata.

use std::path::Path;

use models::{GgufTokenizer, TokenId, TokenizerSource};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, SplitDelimiterBehavior,
};

use super::encoder::{self, Encoder, Merge, WordPattern};
use super::error::TextStartError;
use super::merge_list::merges_of_json;
use super::tokenizer::TextFrame;
use super::vocabulary::{ByteAlphabet, Entry, TokenKind, Vocabulary};

/// Variables that chat templates may print; the GGUF keys follow in this order.
const NAMED_SPECIAL: [&str; 3] = ["bos_token", "eos_token", "pad_token"];

// Values of tokenizer.ggml.token_type.
const GGUF_CONTROL: i32 = 3;
const GGUF_USER_DEFINED: i32 = 4;
const GGUF_UNUSED: i32 = 5;

pub struct TokenizerParts {
    pub encoding: Encoding,
    pub vocabulary: Vocabulary,
    /// In the order of their ids.
    pub added: Vec<(TokenId, AddedToken)>,
    pub named_special: Vec<(String, String)>,
    pub frame: TextFrame,
    pub cuts: Cuts,
}

pub enum Encoding {
    Own(Box<Encoder>),
    /// What our own does not know. Takes special tokens in its input for plain text.
    Crate(Box<tokenizers::Tokenizer>),
}

/// Whether long text may be cut as `chunks` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuts {
    Allowed,
    Unknown,
}

impl TokenizerParts {
    pub fn load(source: &TokenizerSource) -> Result<Self, TextStartError> {
        match source {
            TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config } => {
                let named = tokenizer_config.as_ref().map(config_named_special);
                parts_of_file(tokenizer_json, named.unwrap_or_default())
            }
            TokenizerSource::Gguf(gguf) => parts_of_gguf(gguf),
        }
    }
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

fn parts_of_file(
    path: &Path,
    named_special: Vec<(String, String)>,
) -> Result<TokenizerParts, TextStartError> {
    let unreadable = |reason| TextStartError::File { path: path.to_owned(), reason };
    let json = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    let (inner, merges) = std::thread::scope(|scope| {
        let merges = scope.spawn(|| {
            encoder::prepare();
            merges_of_json(&json)
        });
        let inner = tokenizers::Tokenizer::from_bytes(&json);
        (inner, merges.join().ok().flatten())
    });
    let mut inner = inner.map_err(|e| unreadable(e.to_string()))?;
    let frame = post_processed(&inner)?;
    let bytes = matches!(inner.get_model(), ModelWrapper::BPE(_))
        && matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    if !bytes {
        let (key, value) = ("model and decoder".to_owned(), "of another kind".to_owned());
        let supported = "byte-level BPE".to_owned();
        return Err(TextStartError::Unsupported { key, value, supported });
    }
    inner.with_truncation(None).map_err(invalid)?;
    inner.with_padding(None);
    inner.set_encode_special_tokens(true);
    let (added, vocabulary) = (added_tokens(&inner), vocabulary(&inner));
    let may_cut = known_words(&inner).is_some() && added.iter().all(|(_, token)| is_solid(token));
    let encoding = match own_encoder(&inner, merges, &vocabulary, &added) {
        Ok(encoder) => Encoding::Own(Box::new(encoder)),
        Err(reason) => {
            let path = path.display();
            tracing::info!(%path, reason, "text is encoded by the tokenizers crate, more slowly");
            Encoding::Crate(Box::new(inner))
        }
    };
    let cuts = if may_cut { Cuts::Allowed } else { Cuts::Unknown };
    Ok(TokenizerParts { encoding, vocabulary, added, named_special, frame, cuts })
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

fn added_tokens(inner: &tokenizers::Tokenizer) -> Vec<(TokenId, AddedToken)> {
    let mut added: Vec<_> =
        inner.get_added_tokens_decoder().into_iter().map(|(id, t)| (TokenId(id), t)).collect();
    added.sort_by_key(|(id, _)| *id);
    added
}

fn vocabulary(inner: &tokenizers::Tokenizer) -> Vocabulary {
    let added = inner.get_added_tokens_decoder();
    // Ids rarely have gaps, and a copy of all tokens in a map is slow.
    let num_tokens = inner.get_vocab_size(true) as u32;
    let mut tokens: Vec<_> = (0..num_tokens).map(|id| inner.id_to_token(id)).collect();
    if tokens.iter().any(Option::is_none) {
        let last = inner.get_vocab(true).values().copied().max().unwrap_or(0);
        tokens = (0..=last).map(|id| inner.id_to_token(id)).collect();
    }
    Vocabulary::new(tokens.iter().enumerate().map(|(id, token)| {
        let special = added.get(&(id as u32)).is_some_and(|token| token.special);
        let kind = if special { TokenKind::Special } else { TokenKind::Text };
        Entry { token: token.as_deref(), kind }
    }))
}

/// How text is normalised and cut into words, if it is one of the ways known here.
fn known_words(inner: &tokenizers::Tokenizer) -> Option<WordPattern> {
    let Some(PreTokenizerWrapper::Sequence(sequence)) = inner.get_pre_tokenizer() else {
        return None;
    };
    let [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)] =
        sequence.as_ref()
    else {
        return None;
    };
    let plain = matches!(inner.get_normalizer(), Some(NormalizerWrapper::NFC(_)))
        && split.behavior == SplitDelimiterBehavior::Isolated
        && !split.invert
        && !bytes.add_prefix_space
        && !bytes.use_regex;
    let mut patterns = WordPattern::ALL.into_iter().filter(|_| plain);
    patterns.find(|words| split.pattern == SplitPattern::Regex(words.regex().to_owned()))
}

/// Whether no cut can lie in the token or change it.
fn is_solid(token: &AddedToken) -> bool {
    let plain = !(token.lstrip || token.rstrip || token.single_word);
    plain && token.content.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Errors: what it is that only the tokenizers crate knows.
fn own_encoder(
    inner: &tokenizers::Tokenizer,
    merges: Option<Vec<(String, String)>>,
    vocabulary: &Vocabulary,
    added: &[(TokenId, AddedToken)],
) -> Result<Encoder, &'static str> {
    let pattern = known_words(inner).ok_or("other words")?;
    let ModelWrapper::BPE(model) = inner.get_model() else { return Err("another model") };
    let is_empty = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
    let plain = is_empty(&model.continuing_subword_prefix)
        && is_empty(&model.end_of_word_suffix)
        && !model.ignore_merges
        && model.dropout.is_none_or(|share| share == 0.0);
    if !plain {
        return Err("other ways to merge");
    }
    if !added.iter().all(|(_, token)| is_solid(token) && !token.normalized) {
        return Err("other added tokens");
    }
    if vocabulary.repeated().is_some() {
        return Err("two ids of one token");
    }
    let merges = merges.ok_or("another list of merges")?;
    let merges = merges.iter().map(|(left, right)| (left.as_str(), right.as_str()));
    let merges = known_merges(vocabulary, merges).map_err(|_| "merges of other tokens")?;
    let byte_ids = byte_ids(vocabulary).map_err(|_| "not all bytes")?;
    Encoder::new(pattern, byte_ids, &merges).ok_or("too many tokens")
}

/// The ids of merges, or the first merge that is not two tokens that make a third.
fn known_merges<'a>(
    vocabulary: &Vocabulary,
    merges: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Merge>, usize> {
    let alphabet = ByteAlphabet::default();
    let mut bytes = Vec::new();
    let mut merge = |(left, right): (&str, &str)| {
        bytes.clear();
        let spelled = alphabet.append_bytes(left, &mut bytes);
        let middle = bytes.len();
        if !spelled || !alphabet.append_bytes(right, &mut bytes) {
            return None;
        }
        let [left, right, merged] = [&bytes[..middle], &bytes[middle..], &bytes];
        let (left, right) = (vocabulary.id(left)?, vocabulary.id(right)?);
        Some(Merge { left, right, merged: vocabulary.id(merged)? })
    };
    merges.enumerate().map(|(rank, pair)| merge(pair).ok_or(rank)).collect()
}

/// The tokens of single bytes, or a byte that has none.
fn byte_ids(vocabulary: &Vocabulary) -> Result<[TokenId; 256], u8> {
    let mut ids = [TokenId(0); 256];
    for (id, byte) in ids.iter_mut().zip(0..=u8::MAX) {
        *id = vocabulary.id(&[byte]).ok_or(byte)?;
    }
    Ok(ids)
}

/// What the published tokenizer.json of the same model holds.
fn parts_of_gguf(gguf: &GgufTokenizer) -> Result<TokenizerParts, TextStartError> {
    let pattern = match gguf.pre.as_str() {
        "qwen2" => WordPattern::Qwen2,
        "qwen35" => WordPattern::Qwen35,
        other => {
            let (key, value) = ("tokenizer.ggml.pre".to_owned(), other.to_owned());
            let supported = "qwen2, qwen35".to_owned();
            return Err(TextStartError::Unsupported { key, value, supported });
        }
    };
    encoder::prepare();
    let broken = |reason| TextStartError::Invalid { reason };
    let vocabulary = gguf_vocabulary(gguf)?;
    let pairs = gguf.merges.iter().map(|merge| merge.split_once(' ').unwrap_or((merge, "")));
    let merges = known_merges(&vocabulary, pairs).map_err(|rank| {
        broken(format!("merge {:?} is not two tokens that make a third", gguf.merges[rank]))
    })?;
    let byte_ids = byte_ids(&vocabulary)
        .map_err(|byte| broken(format!("it has no token for the byte {byte:#04x}")))?;
    let encoder = Encoder::new(pattern, byte_ids, &merges)
        .ok_or_else(|| broken(format!("{} merges are too many", merges.len())))?;
    let added = gguf.tokens.iter().zip(&gguf.token_types).zip(0..).filter_map(|(token, id)| {
        let (token, &kind) = token;
        let special = kind == GGUF_CONTROL;
        let added = special || kind == GGUF_USER_DEFINED;
        let token = || AddedToken::from(token.as_str(), special).normalized(false);
        added.then(|| (TokenId(id), token()))
    });
    let added: Vec<_> = added.collect();
    let may_cut = added.iter().all(|(_, token)| is_solid(token));
    Ok(TokenizerParts {
        encoding: Encoding::Own(Box::new(encoder)),
        vocabulary,
        added,
        named_special: gguf_named_special(gguf),
        frame: TextFrame {
            before: Vec::new(),
            after: gguf.appended.into_iter().map(TokenId).collect(),
        },
        cuts: if may_cut { Cuts::Allowed } else { Cuts::Unknown },
    })
}

/// All tokens but the unused ones, which only pad the embedding.
fn gguf_vocabulary(gguf: &GgufTokenizer) -> Result<Vocabulary, TextStartError> {
    let (tokens, types) = (gguf.tokens.len(), gguf.token_types.len());
    if tokens != types {
        let reason = format!("{tokens} tokens, but {types} token types");
        return Err(TextStartError::Invalid { reason });
    }
    let num_ids = gguf.token_types.iter().rposition(|&kind| kind != GGUF_UNUSED);
    let num_ids = num_ids.map_or(0, |last| last + 1);
    let entries = gguf.tokens.iter().zip(&gguf.token_types).take(num_ids);
    let vocabulary = Vocabulary::new(entries.map(|(token, &kind)| Entry {
        token: (kind != GGUF_UNUSED).then_some(token),
        kind: if kind == GGUF_CONTROL { TokenKind::Special } else { TokenKind::Text },
    }));
    if let Some((first, id)) = vocabulary.repeated() {
        let reason = format!("token {:?} is both {first} and {id}", gguf.tokens[id.0 as usize]);
        return Err(TextStartError::Invalid { reason });
    }
    Ok(vocabulary)
}

fn gguf_named_special(gguf: &GgufTokenizer) -> Vec<(String, String)> {
    let ids = [gguf.bos, gguf.eos, gguf.pad];
    let named = NAMED_SPECIAL.iter().zip(ids).filter_map(|(name, id)| {
        let token = gguf.tokens.get(id? as usize)?;
        Some(((*name).to_owned(), token.clone()))
    });
    named.collect()
}

fn invalid(error: tokenizers::Error) -> TextStartError {
    TextStartError::Invalid { reason: error.to_string() }
}
