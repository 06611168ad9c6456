//! NFC, without a copy where text is in that form already.

use std::borrow::Cow;

use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::chars::CHARS;

/// `text` as the normaliser of the tokenizers crate would have it. Only stretches that may change
/// are given to it: from the last starter before them to the next one behind.
pub fn nfc(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut normal = String::new();
    let (mut num_done, mut starter, mut position) = (0, 0, 0);
    let mut combines = false;
    while position < bytes.len() {
        if bytes[position] < 0x80 {
            (starter, combines) = (position, false);
            position += 1;
            continue;
        }
        let c = CHARS.at(bytes, position);
        let end = position + c.len;
        if c.is_starter() {
            (starter, combines) = (position, false);
        } else if c.is_unstable() || combines && !is_in_order(&text[..end]) {
            let end = next_starter(bytes, end);
            normal.push_str(&text[num_done..starter]);
            normal.extend(text[starter..end].nfc().map(|(c, _)| c));
            (num_done, starter, combines) = (end, end, false);
            position = end;
            continue;
        } else {
            combines = true;
        }
        position = end;
    }
    if num_done == 0 {
        return Cow::Borrowed(text);
    }
    normal.push_str(&text[num_done..]);
    Cow::Owned(normal)
}

/// Whether the last two characters, which both combine, stand in the order of NFC.
fn is_in_order(text: &str) -> bool {
    let mut last = text.chars().rev();
    let (second, first) = (last.next(), last.next());
    is_nfc_quick(first.into_iter().chain(second)) != IsNormalized::No
}

fn next_starter(bytes: &[u8], mut position: usize) -> usize {
    while position < bytes.len() {
        let c = CHARS.at(bytes, position);
        if c.is_starter() {
            return position;
        }
        position += c.len;
    }
    bytes.len()
}
