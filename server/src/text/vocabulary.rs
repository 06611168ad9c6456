//! What each token id stands for, in bytes.

use models::TokenId;

use super::hashing::hash_bytes;

/// All tokens as bytes, in one table, and which of them are special.
pub struct Vocabulary {
    /// Token i is bytes[starts[i]..starts[i + 1]]; empty where the tokenizer has no such id.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    special: Vec<bool>,
    /// Ids by the hash of their bytes: open addressing, a power of two long, at most half full.
    slots: Vec<u32>,
    repeated: Option<(TokenId, TokenId)>,
}

const NO_ID: u32 = u32::MAX;

/// One entry, in the order of the ids.
pub struct Entry<'a> {
    /// As the tokenizer file spells it: in GPT-2's printable alphabet of bytes.
    pub token: Option<&'a str>,
    pub kind: TokenKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Text,
    Special,
}

impl Vocabulary {
    pub fn new<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Self {
        let alphabet = ByteAlphabet::default();
        let mut table = Self {
            bytes: Vec::new(),
            starts: vec![0],
            special: Vec::new(),
            slots: Vec::new(),
            repeated: None,
        };
        let mut literal = Vec::new();
        for entry in entries {
            let token = entry.token.unwrap_or("");
            // A token with any character outside the alphabet stands for its own UTF-8, as in the
            // ByteLevel decoder of Hugging Face's tokenizers.
            if !alphabet.append_bytes(token, &mut table.bytes) {
                table.bytes.extend(token.as_bytes());
                literal.push(TokenId(table.special.len() as u32));
            }
            table.starts.push(u32::try_from(table.bytes.len()).expect("vocabulary under 4 GiB"));
            table.special.push(entry.kind == TokenKind::Special);
        }
        table.index(&literal);
        table
    }

    /// Makes the ids findable. Of equal bytes those spelled in the alphabet are found, not the
    /// `literal` ones.
    fn index(&mut self, literal: &[TokenId]) {
        self.slots = vec![NO_ID; (2 * self.num_ids()).next_power_of_two()];
        let mut is_literal = vec![false; self.num_ids()];
        literal.iter().for_each(|id| is_literal[id.0 as usize] = true);
        for id in (0..self.num_ids() as u32).map(TokenId) {
            if self.bytes(id).is_empty() {
                continue;
            }
            let slot = self.slot(self.bytes(id));
            let first = TokenId(self.slots[slot]);
            let is_known = first.0 != NO_ID;
            if is_known && is_literal[first.0 as usize] == is_literal[id.0 as usize] {
                self.repeated.get_or_insert((first, id));
            }
            if !is_known || is_literal[first.0 as usize] {
                self.slots[slot] = id.0;
            }
        }
    }

    /// Where the token of these bytes is, or would be.
    fn slot(&self, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash_bytes(bytes) as usize & mask;
        while self.slots[slot] != NO_ID && self.bytes(TokenId(self.slots[slot])) != bytes {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// The token that stands for `bytes`.
    pub fn id(&self, bytes: &[u8]) -> Option<TokenId> {
        let id = self.slots[self.slot(bytes)];
        (id != NO_ID).then_some(TokenId(id))
    }

    /// The first two ids that are spelled alike.
    pub fn repeated(&self) -> Option<(TokenId, TokenId)> {
        self.repeated
    }

    /// Number of ids; every id below it may be sampled.
    pub fn num_ids(&self) -> usize {
        self.special.len()
    }

    /// Empty for an id that the tokenizer does not have.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let index = token.0 as usize;
        if index >= self.num_ids() {
            return &[];
        }
        &self.bytes[self.starts[index] as usize..self.starts[index + 1] as usize]
    }

    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.get(token.0 as usize).copied().unwrap_or(false)
    }
}

/// GPT-2 spells each byte as one printable character: itself where it is printable in Latin-1,
/// else the next of the characters from U+0100 on.
pub struct ByteAlphabet {
    byte_of_char: Vec<Option<u8>>,
}

impl Default for ByteAlphabet {
    fn default() -> Self {
        let mut byte_of_char = vec![None; 0x200];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
                byte_of_char[byte as usize] = Some(byte);
            } else {
                byte_of_char[next] = Some(byte);
                next += 1;
            }
        }
        Self { byte_of_char }
    }
}

impl ByteAlphabet {
    /// Appends what `token` spells; false, and nothing, if a character is none of the alphabet.
    pub fn append_bytes(&self, token: &str, bytes: &mut Vec<u8>) -> bool {
        let start = bytes.len();
        for c in token.chars() {
            let Some(byte) = self.byte_of_char.get(c as usize).copied().flatten() else {
                bytes.truncate(start);
                return false;
            };
            bytes.push(byte);
        }
        true
    }
}

/// The byte that each character of the alphabet spells.
#[cfg(test)]
pub(super) fn byte_of_char() -> Vec<Option<u8>> {
    ByteAlphabet::default().byte_of_char
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[Option<&str>]) -> Vocabulary {
        Vocabulary::new(tokens.iter().map(|&token| Entry { token, kind: TokenKind::Text }))
    }

    #[test]
    fn tokens_are_found_by_what_they_stand_for() {
        let tokens = vocabulary(&[Some("a"), None, Some("Ġa"), Some("你"), None]);
        let found = ["a", " a", "你", "Ġa", ""].map(|text| tokens.id(text.as_bytes()));
        assert_eq!(found, [Some(TokenId(0)), Some(TokenId(2)), Some(TokenId(3)), None, None]);
        assert_eq!(tokens.repeated(), None);
    }

    #[test]
    fn the_token_in_the_alphabet_is_found_before_a_literal_one() {
        for tokens in [[" ", "Ġ"], ["Ġ", " "]] {
            let alphabet = tokens.iter().position(|token| *token == "Ġ").unwrap() as u32;
            let tokens = vocabulary(&tokens.map(Some));
            assert_eq!(tokens.id(b" "), Some(TokenId(alphabet)));
            assert_eq!(tokens.repeated(), None);
        }
    }

    #[test]
    fn tokens_that_are_spelled_alike_are_told() {
        let tokens = vocabulary(&[Some("b"), Some("a"), Some("c"), Some("a"), Some("b")]);
        assert_eq!(tokens.repeated(), Some((TokenId(1), TokenId(3))));
    }
}
