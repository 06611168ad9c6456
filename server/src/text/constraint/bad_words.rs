//! Words that must not appear in an answer, however it is cut into tokens.

use super::super::vocabulary::Vocabulary;
use models::TokenId;

/// Most words of a request, and bytes of one.
pub const BAD_WORDS_MAX: usize = 128;
pub const BAD_WORD_BYTES_MAX: usize = 128;

/// For each word and each place where a token may begin in it: the tokens that complete it.
#[derive(Debug)]
pub struct BadWords {
    /// Tokens that hold a whole word.
    always: Vec<TokenId>,
    /// Banned where the text ends with these bytes.
    behind: Vec<(Vec<u8>, Vec<TokenId>)>,
    tail_max: usize,
}

impl BadWords {
    /// `words`: none is empty. Takes time: looks at the whole vocabulary for each of them.
    pub fn new(words: &[String], vocabulary: &Vocabulary) -> BadWords {
        let ids = || (0..vocabulary.num_ids() as u32).map(TokenId);
        // What is never shown cannot show a word.
        let texts = || ids().filter(|id| !vocabulary.is_special(*id));
        let has_any = |id: &TokenId| {
            let bytes = vocabulary.bytes(*id);
            words.iter().any(|word| contains(bytes, word.as_bytes()))
        };
        let always = texts().filter(has_any).collect();
        let mut behind = Vec::new();
        for word in words {
            let word = word.as_bytes();
            for cut in 1..word.len() {
                let completes = |id: &TokenId| vocabulary.bytes(*id).starts_with(&word[cut..]);
                let tokens: Vec<TokenId> = texts().filter(completes).collect();
                if !tokens.is_empty() {
                    behind.push((word[..cut].to_vec(), tokens));
                }
            }
        }
        let tail_max = words.iter().map(String::len).max().unwrap_or(0);
        BadWords { always, behind, tail_max }
    }

    /// Bytes of the text so far that matter.
    pub fn tail_max(&self) -> usize {
        self.tail_max
    }

    /// Takes the tokens out of `allowed` that would complete a word behind `tail`.
    pub fn remove(&self, tail: &[u8], allowed: &mut [u32]) {
        let behind = self.behind.iter().filter(|(before, _)| tail.ends_with(before));
        for id in self.always.iter().chain(behind.flat_map(|(_, tokens)| tokens)) {
            if let Some(word) = allowed.get_mut(id.0 as usize / 32) {
                *word &= !(1 << (id.0 % 32));
            }
        }
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
