//! Tokens of words that came before. Each word has one place, which a later word may take.

use std::ops::Range;

use models::TokenId;

use super::super::hashing::{hash_bytes, mix};

/// Longer words hardly ever come again.
pub const WORD_BYTES_MAX: usize = 64;
/// Up to here a word and its length fit in the place itself.
const SHORT_BYTES_MAX: usize = 15;
const NUM_PLACES: usize = 1 << 14;
/// When this many bytes or ids of words are kept, all are forgotten.
const KEPT_MAX: usize = 1 << 17;

pub struct WordCache {
    places: Vec<Place>,
    /// Longer words, one after the other.
    bytes: Vec<u8>,
    ids: Vec<TokenId>,
}

#[derive(Clone, Copy)]
struct Place {
    /// Of a short word itself; of a longer one its hash, with its length on top.
    key: u128,
    /// Where a longer word begins in `bytes`.
    word: u32,
    /// Where the tokens begin in `ids`, unless there is one only.
    first: u32,
    only: TokenId,
    /// 0: no word is here.
    num_ids: u32,
}

const EMPTY: Place = Place { key: 0, word: 0, first: 0, only: TokenId(0), num_ids: 0 };

/// A word to look up.
#[derive(Clone, Copy)]
pub struct Key {
    key: u128,
    place: usize,
}

impl Default for WordCache {
    fn default() -> Self {
        let places = vec![EMPTY; NUM_PLACES];
        Self { places, bytes: Vec::new(), ids: Vec::new() }
    }
}

impl Key {
    /// Of the word text[range], at most `WORD_BYTES_MAX` long.
    #[inline]
    pub fn new(text: &[u8], range: Range<usize>) -> Self {
        let Range { start, end } = range;
        let len = end - start;
        if len <= SHORT_BYTES_MAX {
            let word = match text.get(start..start + 16) {
                Some(bytes) => {
                    let bytes: [u8; 16] = bytes.try_into().expect("16 bytes");
                    u128::from_le_bytes(bytes) & ((1 << (8 * len)) - 1)
                }
                None => {
                    let mut bytes = [0; 16];
                    bytes[..len].copy_from_slice(&text[start..end]);
                    u128::from_le_bytes(bytes)
                }
            };
            let key = word | (len as u128) << 120;
            return Self { key, place: mix(key as u64, (key >> 64) as u64) as usize % NUM_PLACES };
        }
        let hash = hash_bytes(&text[start..end]);
        Self { key: u128::from(hash) | (len as u128) << 120, place: hash as usize % NUM_PLACES }
    }
}

impl WordCache {
    #[inline]
    pub fn get(&self, key: Key, word: &[u8]) -> Option<&[TokenId]> {
        let place = &self.places[key.place];
        if place.num_ids == 0 || place.key != key.key {
            return None;
        }
        if word.len() > SHORT_BYTES_MAX {
            let start = place.word as usize;
            if &self.bytes[start..start + word.len()] != word {
                return None;
            }
        }
        if place.num_ids == 1 {
            return Some(std::slice::from_ref(&place.only));
        }
        let first = place.first as usize;
        Some(&self.ids[first..first + place.num_ids as usize])
    }

    pub fn insert(&mut self, key: Key, word: &[u8], ids: &[TokenId]) {
        if self.bytes.len() + word.len() > KEPT_MAX || self.ids.len() + ids.len() > KEPT_MAX {
            self.places.fill(EMPTY);
            self.bytes.clear();
            self.ids.clear();
        }
        let mut place = Place { key: key.key, num_ids: ids.len() as u32, ..EMPTY };
        if word.len() > SHORT_BYTES_MAX {
            place.word = self.bytes.len() as u32;
            self.bytes.extend_from_slice(word);
        }
        if let [id] = ids {
            place.only = *id;
        } else {
            place.first = self.ids.len() as u32;
            self.ids.extend_from_slice(ids);
        }
        self.places[key.place] = place;
    }
}
