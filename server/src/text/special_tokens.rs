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
    /// If all begin with the same character: text without it is passed over quickly.
    first_char: Option<char>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Token(TokenId),
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
        let mut first_chars = tokens.iter().filter_map(|token| token.content.chars().next());
        let first_char = first_chars.next().filter(|first| first_chars.all(|c| c == *first));
        Ok(Self { tokens, by_first_byte, first_char })
    }

    /// The text of an added token.
    pub fn content(&self, id: TokenId) -> &str {
        self.tokens.iter().find(|token| token.id == id).map_or("", |token| &token.content)
    }

    /// The special tokens in `text` and the text between them.
    pub fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        self.pieces_at(text, |token| token.special)
    }

    /// The added tokens in `text` that are not special, and the text between them.
    pub fn other_pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        self.pieces_at(text, |token| !token.special)
    }

    fn pieces_at<'a>(&self, text: &'a str, is_cut: impl Fn(&Added) -> bool) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut text_start = 0;
        let mut position = 0;
        while let Some((start, token)) = self.next_token(text, position) {
            position = start;
            let end = position + token.content.len();
            // Tokens of both kinds hide each other where they overlap.
            if is_cut(token) {
                if text_start < position {
                    pieces.push(Piece::Text(&text[text_start..position]));
                }
                pieces.push(Piece::Token(token.id));
                text_start = end;
            }
            position = end;
        }
        if text_start < text.len() {
            pieces.push(Piece::Text(&text[text_start..]));
        }
        pieces
    }

    /// The first token from `position` on, and where it begins.
    fn next_token(&self, text: &str, mut position: usize) -> Option<(usize, &Added)> {
        while position < text.len() {
            if let Some(token) = self.token_at(&text.as_bytes()[position..]) {
                return Some((position, token));
            }
            position += 1;
            if let Some(first) = self.first_char {
                position +=
                    text.get(position..).map_or(0, |text| text.find(first).unwrap_or(text.len()));
            }
        }
        None
    }

    fn token_at(&self, bytes: &[u8]) -> Option<&Added> {
        let candidates = self.by_first_byte[bytes[0] as usize].iter();
        candidates.map(|&i| &self.tokens[i]).find(|t| bytes.starts_with(t.content.as_bytes()))
    }
}
