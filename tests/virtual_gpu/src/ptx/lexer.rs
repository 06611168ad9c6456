//! Characters -> tokens with their line.

use super::ParseError;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A name, register, directive or opcode with its modifiers: `ld.global.v4.u32`, `%tid.x`,
    /// `.reg`, `$L__BB0_1`.
    Word(String),
    /// An integer, two's complement.
    Int(i128),
    /// `0f3F800000` as f32 bits.
    F32(u32),
    /// `0d3FF0000000000000` as f64 bits.
    F64(u64),
    Text(String),
    Punct(char),
}

#[derive(Debug, Clone)]
pub struct Spanned {
    pub token: Token,
    pub line: u32,
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn is_word_part(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

pub fn lex(text: &str) -> Result<Vec<Spanned>, ParseError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len() / 5);
    let mut at = 0;
    let mut line = 1u32;
    while at < bytes.len() {
        let c = bytes[at];
        if c == b'\n' {
            line += 1;
            at += 1;
        } else if c.is_ascii_whitespace() || c == 0 {
            at += 1;
        } else if bytes[at..].starts_with(b"//") {
            at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
        } else if bytes[at..].starts_with(b"/*") {
            let end = text[at..]
                .find("*/")
                .ok_or_else(|| ParseError::new(line, "comment without an end"))?;
            line += bytes[at..at + end].iter().filter(|&&b| b == b'\n').count() as u32;
            at += end + 2;
        } else if c == b'"' {
            let end = text[at + 1..]
                .find('"')
                .ok_or_else(|| ParseError::new(line, "string without an end"))?;
            let token = Token::Text(text[at + 1..at + 1 + end].to_string());
            tokens.push(Spanned { token, line });
            at += end + 2;
        } else if is_word_start(c) {
            let end = word_end(bytes, at);
            tokens.push(Spanned { token: Token::Word(text[at..end].to_string()), line });
            at = end;
        } else if c.is_ascii_digit() {
            let mut end = at;
            while end < bytes.len() && bytes[end].is_ascii_alphanumeric() {
                end += 1;
            }
            tokens.push(Spanned { token: number(&text[at..end], line)?, line });
            at = end;
        } else if c.is_ascii() {
            tokens.push(Spanned { token: Token::Punct(c as char), line });
            at += 1;
        } else {
            return Err(ParseError::new(line, "a character that is not ASCII"));
        }
    }
    Ok(tokens)
}

/// The end of the word at `at`; `::` followed by a letter or digit belongs to it (`.L2::128B`).
fn word_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at;
    loop {
        while end < bytes.len() && is_word_part(bytes[end]) {
            end += 1;
        }
        let qualified = bytes[end..].starts_with(b"::")
            && bytes.get(end + 2).is_some_and(|b| b.is_ascii_alphanumeric());
        if !qualified {
            return end;
        }
        end += 2;
    }
}

fn number(text: &str, line: u32) -> Result<Token, ParseError> {
    let bad = || ParseError::new(line, format!("number {text:?}"));
    if let Some(hex) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).map(Token::F32).map_err(|_| bad());
    }
    if let Some(hex) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).map(Token::F64).map_err(|_| bad());
    }
    let text = text.trim_end_matches('U');
    let value = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        i128::from_str_radix(hex, 16)
    } else if let Some(binary) = text.strip_prefix("0b") {
        i128::from_str_radix(binary, 2)
    } else if text.len() > 1 && text.starts_with('0') {
        i128::from_str_radix(text, 8)
    } else {
        text.parse::<i128>()
    };
    value.map(Token::Int).map_err(|_| bad())
}
