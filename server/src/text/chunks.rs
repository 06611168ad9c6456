//! Cuts long text where no token can lie across the cut, so that a long text needs no more memory
//! at once than a short one.

/// A piece has at least so many bytes, and ends at the next place where it may.
pub const CHUNK_BYTES_MIN: usize = 32 * 1024;
/// Longer stretches without a place to cut are refused: encoding one needs some 200 to 300 times
/// its size in memory.
pub const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// The pieces of `text`, in order; their tokens, one after the other, are those of `text`.
///
/// This holds for the word patterns of Qwen (`QWEN2_WORDS`, `QWEN35_WORDS`) after NFC. They look
/// at nothing before a word, and every word that contains the character before a cut ends there:
/// - before a space, as words only begin with one or are nothing but white space;
/// - between a line feed and what is not white space, as nothing but line feeds follows one;
/// - behind a digit, as each digit is a word;
/// - between a letter and what is no letter nor mark; taken here where Han meets its punctuation,
///   in texts that have no spaces.
///
/// None of the characters after a cut is ever joined by NFC with one before it.
pub fn chunks(text: &str, bytes_min: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (chunk, tail) = rest.split_at(cut_position(rest, bytes_min));
        rest = tail;
        Some(chunk)
    })
}

/// The first place from `bytes_min` on where `text` may be cut; its end, if there is none.
fn cut_position(text: &str, bytes_min: usize) -> usize {
    let start = (bytes_min.min(text.len())..).find(|&at| text.is_char_boundary(at));
    let start = start.expect("the end of a text is a boundary");
    let mut before = text[..start].chars().next_back();
    for (offset, after) in text[start..].char_indices() {
        if before.is_some_and(|before| may_cut(before, after)) {
            return start + offset;
        }
        before = Some(after);
    }
    text.len()
}

fn may_cut(before: char, after: char) -> bool {
    let solid = |c: char| c.is_ascii_graphic() || c.is_alphanumeric();
    match (before, after) {
        (before, ' ') => solid(before),
        ('\n', after) => solid(after),
        ('0'..='9', after) => after.is_ascii_graphic(),
        ('\u{4e00}'..='\u{9fff}', '、' | '。' | '，' | '！' | '？' | '：' | '；') => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, bytes_min: usize, expected: &[&str]) {
        assert_eq!(chunks(text, bytes_min).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn cuts_lie_before_words_and_lines_and_han_punctuation() {
        check("a bc  d\n\n e\nf", 1, &["a", " bc", "  d\n\n e\n", "f"]);
        check("a12.b", 1, &["a1", "2", ".b"]);
        check("你好，世界。x", 1, &["你好", "，世界", "。x"]);
        check("'s\u{301} x", 1, &["'s\u{301} x"]);
    }

    #[test]
    fn pieces_are_as_long_as_asked_and_whole_characters() {
        check("aaaa bb cc dd", 6, &["aaaa bb", " cc dd"]);
        check("好好好 好", 2, &["好好好", " 好"]);
        check("", 1, &[]);
        check(&"x".repeat(100), 10, &[&"x".repeat(100)]);
    }
}
