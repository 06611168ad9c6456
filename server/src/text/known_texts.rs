//! Tokens of texts that came before: in the next turn of a chat all its messages but the last do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use models::TokenId;

/// Shorter texts are encoded as quickly as they are looked up.
const TEXT_BYTES_MIN: usize = 256;
/// All that is remembered, with what each entry takes beside its tokens.
const BYTES_MAX: usize = 16 * 1024 * 1024;
const ENTRY_BYTES: usize = 128;

/// Texts by a strong hash of them and of who may know that they came: a client that could see by
/// the clock what others had sent would learn it.
pub struct KnownTexts {
    generations: Mutex<Generations>,
    bytes_max: usize,
}

type Digest = [u8; 32];

/// What was used since the young one began, and what was used in the one before. When the young
/// one has taken half of the room, it becomes the old one, and what was not used again is gone.
#[derive(Default)]
struct Generations {
    young: HashMap<Digest, Arc<[TokenId]>>,
    old: HashMap<Digest, Arc<[TokenId]>>,
    young_bytes: usize,
}

impl Default for KnownTexts {
    fn default() -> Self {
        Self { generations: Mutex::default(), bytes_max: BYTES_MAX }
    }
}

impl KnownTexts {
    /// Appends the tokens of `text`, which `encode` appends if they are not known.
    pub fn append<E>(
        &self,
        salt: &[u8; 32],
        text: &str,
        ids: &mut Vec<TokenId>,
        encode: impl FnOnce(&mut Vec<TokenId>) -> Result<(), E>,
    ) -> Result<(), E> {
        if text.len() < TEXT_BYTES_MIN {
            return encode(ids);
        }
        let digest = blake3::keyed_hash(salt, text.as_bytes()).into();
        let known = self.lock().get(&digest, self.bytes_max);
        if let Some(known) = known {
            ids.extend_from_slice(&known);
            return Ok(());
        }
        let start = ids.len();
        encode(ids)?;
        let tokens = ids[start..].into();
        self.lock().insert(digest, tokens, self.bytes_max);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn get(&mut self, digest: &Digest, bytes_max: usize) -> Option<Arc<[TokenId]>> {
        if let Some(tokens) = self.young.get(digest) {
            return Some(tokens.clone());
        }
        let tokens = self.old.remove(digest)?;
        self.insert(*digest, tokens.clone(), bytes_max);
        Some(tokens)
    }

    fn insert(&mut self, digest: Digest, tokens: Arc<[TokenId]>, bytes_max: usize) {
        let bytes = size_of_val(&*tokens) + ENTRY_BYTES;
        if bytes > bytes_max / 2 {
            return;
        }
        if self.young_bytes + bytes > bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(digest, tokens).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const SALT: [u8; 32] = [1; 32];

    /// Whether `text`, as long as it takes to be remembered, has to be encoded.
    fn is_new(known: &KnownTexts, salt: &[u8; 32], text: u32) -> bool {
        let long = format!("{text:>width$}", width = TEXT_BYTES_MIN);
        let (mut ids, mut encoded) = (vec![TokenId(7)], false);
        let encode = |ids: &mut Vec<TokenId>| {
            encoded = true;
            ids.extend([TokenId(text), TokenId(text + 1)]);
            Ok::<_, Infallible>(())
        };
        let Ok(()) = known.append(salt, &long, &mut ids, encode);
        assert_eq!(ids, [TokenId(7), TokenId(text), TokenId(text + 1)]);
        encoded
    }

    #[test]
    fn a_text_is_encoded_once_for_each_salt() {
        let known = KnownTexts::default();
        assert!(is_new(&known, &SALT, 1));
        assert!(!is_new(&known, &SALT, 1));
        assert!(is_new(&known, &SALT, 2));
        assert!(is_new(&known, &[2; 32], 1));
        assert!(!is_new(&known, &[2; 32], 1));
    }

    #[test]
    fn short_texts_and_those_that_fail_are_not_remembered() {
        let known = KnownTexts::default();
        let (mut ids, mut count) = (Vec::new(), 0);
        let mut append = |text: &str, result| {
            known.append(&SALT, text, &mut ids, |_| {
                count += 1;
                result
            })
        };
        let long = "x".repeat(TEXT_BYTES_MIN);
        assert_eq!([append("x", Ok(())), append("x", Ok(()))], [Ok(()); 2]);
        assert_eq!(
            [append(&long, Err(1)), append(&long, Ok(())), append(&long, Err(2))],
            [Err(1), Ok(()), Ok(())]
        );
        assert_eq!(count, 4);
    }

    #[test]
    fn what_was_not_used_for_long_goes_and_memory_is_bounded() {
        let entry = ENTRY_BYTES + 2 * size_of::<TokenId>();
        let known = KnownTexts { bytes_max: 8 * entry, ..KnownTexts::default() };
        for text in 0..100 {
            assert!(is_new(&known, &SALT, 10 * text + 10));
            assert_eq!(is_new(&known, &SALT, 0), text == 0, "it is used all the time");
            let generations = known.lock();
            assert!(generations.young.len() <= 4 && generations.old.len() <= 4);
            assert_eq!(generations.young_bytes, entry * generations.young.len());
        }
        assert!(!is_new(&known, &SALT, 1000), "it came last");
        assert!(is_new(&known, &SALT, 10), "it came first");
    }
}
