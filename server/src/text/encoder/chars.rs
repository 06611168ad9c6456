//! What each character is to the word patterns and to NFC.
//!
//! The table is made once, of the answers of the tokenizers crate's own parts: Oniguruma, which it
//! cuts words with, and its normaliser, which knows Unicode 9 only. Other versions of Unicode
//! would give other ids.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

use tokenizers::utils::SysRegex;
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

pub static CHARS: LazyLock<CharTable> = LazyLock::new(CharTable::new);

/// How the word patterns see a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Other,
    Letter,
    Mark,
    Number,
    /// `\s` but for the next two.
    Space,
    /// U+0020.
    Blank,
    /// `[\r\n]`.
    Newline,
}

/// By their numbers.
const KINDS: [Kind; 8] = [
    Kind::Other,
    Kind::Letter,
    Kind::Mark,
    Kind::Number,
    Kind::Space,
    Kind::Blank,
    Kind::Newline,
    Kind::Other,
];
/// The bits of an entry that hold the kind.
const KIND: u8 = 0x07;
/// It is not its own normal form, or may join a character before it.
const UNSTABLE: u8 = 0x08;
/// Its canonical combining class is not 0, so that its place among its like may be wrong.
const COMBINING: u8 = 0x10;
const PAGE_CHARS: usize = 128;
/// Outside of these nothing is assigned but private use.
const ASSIGNED: [Range<u32>; 2] = [0..0x3_4000, 0xe_0000..0xe_1000];
/// The only character of the highest combining class.
const LAST_COMBINING: char = '\u{345}';

pub struct CharTable {
    /// Page i of the code points lies at entries[pages[i] * PAGE_CHARS].
    pages: Vec<u16>,
    entries: Vec<u8>,
}

/// A character of a text, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct Char {
    entry: u8,
    pub len: usize,
}

impl Char {
    pub fn kind(self) -> Kind {
        KINDS[(self.entry & KIND) as usize]
    }

    /// It stays as it is in NFC whatever is before it.
    pub fn is_starter(self) -> bool {
        self.entry & (UNSTABLE | COMBINING) == 0
    }

    pub fn is_unstable(self) -> bool {
        self.entry & UNSTABLE != 0
    }
}

impl CharTable {
    fn new() -> Self {
        let mut table =
            Self { pages: vec![0; 0x11_0000 / PAGE_CHARS], entries: vec![0; PAGE_CHARS] };
        let mut known = HashMap::from([([0; PAGE_CHARS], 0)]);
        for codes in ASSIGNED {
            let entries = entries(codes.clone());
            for (first, page) in codes.step_by(PAGE_CHARS).zip(entries.chunks_exact(PAGE_CHARS)) {
                let page: [u8; PAGE_CHARS] = page.try_into().expect("a whole page");
                let index = *known.entry(page).or_insert_with(|| {
                    table.entries.extend(page);
                    (table.entries.len() / PAGE_CHARS - 1) as u16
                });
                table.pages[first as usize / PAGE_CHARS] = index;
            }
        }
        table
    }

    /// The character that begins at `position`, which must be inside of the text.
    #[inline]
    pub fn at(&self, text: &[u8], position: usize) -> Char {
        let first = text[position];
        if first < 0x80 {
            return Char { entry: self.entry(first.into()), len: 1 };
        }
        let next = |i: usize| u32::from(text.get(position + i).copied().unwrap_or(0) & 0x3f);
        let first = u32::from(first);
        let (code, len) = match first {
            ..0xe0 => ((first & 0x1f) << 6 | next(1), 2),
            0xe0..0xf0 => ((first & 0x0f) << 12 | next(1) << 6 | next(2), 3),
            _ => ((first & 0x07) << 18 | next(1) << 12 | next(2) << 6 | next(3), 4),
        };
        Char { entry: self.entry(code), len }
    }

    fn entry(&self, code: u32) -> u8 {
        let page = self.pages[code as usize / PAGE_CHARS] as usize;
        self.entries[page * PAGE_CHARS + code as usize % PAGE_CHARS]
    }
}

/// Of a range of code points; surrogates, which no text has, stay 0.
fn entries(codes: Range<u32>) -> Vec<u8> {
    let mut entries = vec![0; codes.len()];
    let text: String = codes.clone().filter_map(char::from_u32).collect();
    let index = |c: char| (u32::from(c) - codes.start) as usize;
    let regex = |pattern| SysRegex::new(pattern).expect("a valid pattern");
    let classes = [r"[\r\n]", " ", r"\p{L}", r"\p{M}", r"\p{N}", r"\s"].map(regex);
    let kinds = [Kind::Newline, Kind::Blank, Kind::Letter, Kind::Mark, Kind::Number, Kind::Space];
    let runs = regex(r"[\r\n]+| |\p{L}+|\p{M}+|\p{N}+|\s+?");
    for (start, end) in runs.find_iter(&text) {
        let run = &text[start..end];
        let first = &run[..run.chars().next().map_or(0, char::len_utf8)];
        let class = classes.iter().position(|class| class.find_iter(first).next().is_some());
        let kind = class.map_or(Kind::Other, |class| kinds[class]);
        run.chars().for_each(|c| entries[index(c)] = kind as u8);
    }
    for c in text.chars().filter(|c| !c.is_ascii()) {
        let entry = &mut entries[index(c)];
        if is_nfc_quick(std::iter::once(c)) != IsNormalized::Yes {
            *entry |= UNSTABLE;
        }
        // All combining characters are marks.
        let is_mark = *entry & KIND == Kind::Mark as u8;
        if is_mark && is_nfc_quick([LAST_COMBINING, c].into_iter()) == IsNormalized::No
            || c == LAST_COMBINING
        {
            *entry |= COMBINING;
        }
    }
    entries
}
