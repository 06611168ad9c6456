//! Cuts text into the words within which byte pairs are merged.

use super::chars::{CHARS, Kind};

/// The pattern that a tokenizer cuts words with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordPattern {
    /// Of Qwen2, 2.5 and 3.
    Qwen2,
    /// Of Qwen3.5 and later: marks belong to the letters before them.
    Qwen35,
}

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

impl WordPattern {
    pub const ALL: [Self; 2] = [Self::Qwen2, Self::Qwen35];

    /// As a tokenizer.json has it (spec section 11).
    pub fn regex(self) -> &'static str {
        match self {
            Self::Qwen2 => QWEN2,
            Self::Qwen35 => QWEN35,
        }
    }

    /// The end of the word that begins at `start`, which is inside of the text.
    ///
    /// Each branch is one alternative of the pattern, in its order.
    pub fn word_end(self, text: &[u8], start: usize) -> usize {
        let first = CHARS.at(text, start);
        let second_at = start + first.len;
        let kind = self.kind(first.kind());
        if kind == Kind::Letter {
            return self.run_end(text, second_at, Kind::Letter);
        }
        if kind == Kind::Number {
            return second_at;
        }
        if text[start] == b'\''
            && let Some(end) = contraction_end(text, second_at)
        {
            return end;
        }
        let second = text.get(second_at).map(|_| CHARS.at(text, second_at));
        let second_kind = second.map(|second| self.kind(second.kind()));
        if second_kind == Some(Kind::Letter) && kind != Kind::Newline {
            return self.run_end(text, second_at, Kind::Letter);
        }
        if kind == Kind::Other || kind == Kind::Blank && second_kind == Some(Kind::Other) {
            let end = self.run_end(text, second_at, Kind::Other);
            return newlines_end(text, end);
        }
        white_space_end(text, start)
    }

    /// The kind as this pattern tells them apart: letters, numbers, white space and others.
    fn kind(self, kind: Kind) -> Kind {
        match (kind, self) {
            (Kind::Mark, Self::Qwen2) => Kind::Other,
            (Kind::Mark, Self::Qwen35) => Kind::Letter,
            (kind, _) => kind,
        }
    }

    /// Where the characters of one kind that are at `position` end.
    fn run_end(self, text: &[u8], mut position: usize, kind: Kind) -> usize {
        while position < text.len() {
            let next = CHARS.at(text, position);
            if self.kind(next.kind()) != kind {
                break;
            }
            position += next.len;
        }
        position
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`, of which `position` is behind the apostrophe. Without regard to
/// case, U+017F is an s.
fn contraction_end(text: &[u8], position: usize) -> Option<usize> {
    let lower = |i: usize| text.get(position + i).map(u8::to_ascii_lowercase);
    match (lower(0)?, lower(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(position + 1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) | (0xc5, Some(0xbf)) => Some(position + 2),
        _ => None,
    }
}

/// `[\r\n]*`
fn newlines_end(text: &[u8], mut position: usize) -> usize {
    while matches!(text.get(position), Some(b'\r' | b'\n')) {
        position += 1;
    }
    position
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` at white space: up to the last line end in it; without one, all
/// of it at the end of the text, else all but its last character, which goes with what follows.
fn white_space_end(text: &[u8], start: usize) -> usize {
    let (mut position, mut last) = (start, start);
    let mut line_end = None;
    while position < text.len() {
        let next = CHARS.at(text, position);
        if !matches!(next.kind(), Kind::Space | Kind::Blank | Kind::Newline) {
            break;
        }
        last = position;
        position += next.len;
        if next.kind() == Kind::Newline {
            line_end = Some(position);
        }
    }
    match line_end {
        Some(end) => end,
        None if position == text.len() || last == start => position,
        None => last,
    }
}
