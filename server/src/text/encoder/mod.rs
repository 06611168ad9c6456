//! Text -> ids by the byte pairs of Qwen's tokenizers, many times quicker than the tokenizers
//! crate, and with the same ids: the parts here are held to those of the crate in their tests, the
//! whole in `tests/tokenizer_parity.rs`.

mod chars;
mod merges;
mod normal_form;
mod word_cache;
mod words;
#[cfg(test)]
mod tests;

pub use merges::Merge;
pub use words::WordPattern;

use std::ops::Range;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use models::TokenId;

use merges::{MergeBuffers, Merges};
use normal_form::nfc;
use word_cache::{Key, WordCache};

/// Encodes text without added tokens: NFC, then words, then byte pairs.
pub struct Encoder {
    pattern: WordPattern,
    merges: Merges,
    /// As many as ever encoded at once; each caller takes the one that was used last.
    scratch: Mutex<Vec<Scratch>>,
}

#[derive(Default)]
struct Scratch {
    cache: WordCache,
    buffers: MergeBuffers,
}

/// Makes the table of characters, which the first text would else wait for.
pub fn prepare() {
    LazyLock::force(&chars::CHARS);
}

impl Encoder {
    /// `byte_ids`: of the tokens of one byte; `merges`: the ids of left, right and merged token, by
    /// rank. `None`: more tokens than the tables are made for.
    pub fn new(pattern: WordPattern, byte_ids: [TokenId; 256], merges: &[Merge]) -> Option<Self> {
        let merges = Merges::new(byte_ids, merges)?;
        Some(Self { pattern, merges, scratch: Mutex::default() })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<TokenId>) {
        let kept = self.lock().pop();
        let mut scratch = kept.unwrap_or_default();
        self.encode_with(&mut scratch, text, ids);
        self.lock().push(scratch);
    }

    fn encode_with(&self, scratch: &mut Scratch, text: &str, ids: &mut Vec<TokenId>) {
        let text = nfc(text);
        let text = text.as_bytes();
        let mut start = 0;
        while start < text.len() {
            let end = self.pattern.word_end(text, start);
            let word = &text[start..end];
            match word {
                [byte] => ids.push(self.merges.byte_id(*byte)),
                _ if word.len() > word_cache::WORD_BYTES_MAX => {
                    self.merges.encode_word(word, &mut scratch.buffers, ids);
                }
                _ => self.encode_short_word(scratch, text, start..end, ids),
            }
            start = end;
        }
    }

    fn encode_short_word(
        &self,
        scratch: &mut Scratch,
        text: &[u8],
        range: Range<usize>,
        ids: &mut Vec<TokenId>,
    ) {
        let word = &text[range.clone()];
        let key = Key::new(text, range);
        if let Some(known) = scratch.cache.get(key, word) {
            return ids.extend_from_slice(known);
        }
        let first = ids.len();
        self.merges.encode_word(word, &mut scratch.buffers, ids);
        scratch.cache.insert(key, word, &ids[first..]);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Scratch>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
