//! What each token id stands for, in bytes.

use models::TokenId;

/// All tokens as bytes, in one table, and which of them are special.
pub struct Vocabulary {
    /// Token i is bytes[starts[i]..starts[i + 1]]; empty where the tokenizer has no such id.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    special: Vec<bool>,
}

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
        let byte_of_char = byte_of_char();
        let mut table = Self { bytes: Vec::new(), starts: vec![0], special: Vec::new() };
        for entry in entries {
            let token = entry.token.unwrap_or("");
            // A token with any character outside the alphabet stands for its own UTF-8, as in the
            // ByteLevel decoder of Hugging Face's tokenizers.
            let byte_level: Option<Vec<u8>> =
                token.chars().map(|c| byte_of_char.get(c as usize).copied().flatten()).collect();
            match byte_level {
                Some(bytes) => table.bytes.extend(bytes),
                None => table.bytes.extend(token.as_bytes()),
            }
            table.starts.push(u32::try_from(table.bytes.len()).expect("vocabulary under 4 GiB"));
            table.special.push(entry.kind == TokenKind::Special);
        }
        table
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
pub(super) fn byte_of_char() -> Vec<Option<u8>> {
    let mut table = vec![None; 0x200];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            table[byte as usize] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}
