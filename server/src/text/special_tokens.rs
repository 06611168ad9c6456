//! Finds special tokens in text that may name them.

use models::TokenId;
use tokenizers::AddedToken;

use super::error::TextStartError;

/// Cuts text at its special tokens, as Hugging Face's tokenizers do: of all added tokens the
/// leftmost is taken, of those that begin together the longest.
pub struct SpecialTokenSplitter {
    /// Longest first.
    tokens: Vec<Added>,
    /// Indices into `tokens` by first byte, longest first.
    by_first_byte: Vec<Vec<usize>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Special(TokenId),
    /// Never empty.
    Text(&'a str),
}

struct Added {
    content: String,
    id: TokenId,
    special: bool,
}

impl SpecialTokenSplitter {
    /// Errors: special tokens that change the text around them.
    pub(super) fn new(added: &[(TokenId, AddedToken)]) -> Result<Self, TextStartError> {
        let mut tokens = Vec::new();
        for (id, token) in added {
            let plain = !(token.lstrip || token.rstrip || token.single_word || token.normalized);
            if token.special && !plain {
                return Err(TextStartError::Unsupported {
                    key: format!("special token {:?}", token.content),
                    value: "lstrip, rstrip, single_word or normalized".to_owned(),
                    supported: "none of these".to_owned(),
                });
            }
            if plain && !token.content.is_empty() {
                let (content, special) = (token.content.clone(), token.special);
                tokens.push(Added { content, id: *id, special });
            }
        }
        tokens.sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        let mut by_first_byte = vec![Vec::new(); 256];
        for (index, token) in tokens.iter().enumerate() {
            by_first_byte[token.content.as_bytes()[0] as usize].push(index);
        }
        Ok(Self { tokens, by_first_byte })
    }

    /// The text of an added token.
    pub fn content(&self, id: TokenId) -> &str {
        self.tokens.iter().find(|token| token.id == id).map_or("", |token| &token.content)
    }

    /// The special tokens in `text` and the text between them.
    pub fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut text_start = 0;
        let mut position = 0;
        while position < text.len() {
            let Some(token) = self.token_at(&text.as_bytes()[position..]) else {
                position += 1;
                continue;
            };
            let end = position + token.content.len();
            // Other added tokens hide special ones that overlap them, but stay in the text.
            if token.special {
                if text_start < position {
                    pieces.push(Piece::Text(&text[text_start..position]));
                }
                pieces.push(Piece::Special(token.id));
                text_start = end;
            }
            position = end;
        }
        if text_start < text.len() {
            pieces.push(Piece::Text(&text[text_start..]));
        }
        pieces
    }

    fn token_at(&self, bytes: &[u8]) -> Option<&Added> {
        let candidates = self.by_first_byte[bytes[0] as usize].iter();
        candidates.map(|&i| &self.tokens[i]).find(|t| bytes.starts_with(t.content.as_bytes()))
    }
}
