//! Finding markup in text that arrives in pieces.

/// Where the first tag is, or may come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// `tag`: its place in the list.
    Found {
        start: usize,
        tag: usize,
    },
    /// From here on the text is the beginning of a tag, as far as it goes.
    MayBegin(usize),
    Absent,
}

impl Scan {
    /// The first byte that may be markup, of a text of `len` bytes.
    pub fn sure(self, len: usize) -> usize {
        match self {
            Scan::Found { start, .. } | Scan::MayBegin(start) => start,
            Scan::Absent => len,
        }
    }
}

/// Looks for the first of `tags`, all of which begin with `<` and none with another.
pub fn scan(text: &str, tags: &[&str]) -> Scan {
    for (start, _) in text.match_indices('<') {
        let rest = &text[start..];
        if let Some(tag) = tags.iter().position(|tag| rest.starts_with(tag)) {
            return Scan::Found { start, tag };
        }
        if tags.iter().any(|tag| tag.starts_with(rest)) {
            return Scan::MayBegin(start);
        }
    }
    Scan::Absent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_tags_first_and_beginnings_only_at_the_end() {
        let tags = ["</think>", "<tool_call>"];
        assert_eq!(scan("a < b", &tags), Scan::Absent);
        assert_eq!(scan("a</think>b<tool_call>", &tags), Scan::Found { start: 1, tag: 0 });
        assert_eq!(scan("<t <tool_call>", &tags), Scan::Found { start: 3, tag: 1 });
        assert_eq!(scan("ab<", &tags), Scan::MayBegin(2));
        assert_eq!(scan("<x></thin", &tags), Scan::MayBegin(3));
        assert_eq!(scan("", &tags), Scan::Absent);
        assert_eq!((Scan::Absent.sure(4), Scan::MayBegin(2).sure(4)), (4, 2));
    }
}
