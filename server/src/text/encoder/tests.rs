use std::borrow::Cow;
use std::sync::LazyLock;

use tokenizers::utils::SysRegex;
use unicode_normalization_alignments::UnicodeNormalization;

use super::chars::{CHARS, Kind};
use super::*;

/// Characters of every kind that the patterns or NFC tell apart, and of many scripts.
const ALPHABET: &str = concat!(
    "aAzZ sStTrReEvVmMlLdDſ''''    \t\n\r\r\u{85}\u{a0}\u{1680}\u{2028}\u{3000}0179٣५๙②Ⅷ𝟘",
    "!.,;-_()<>|#/\"\\«»。，、！？€$§\u{0}\u{7f}\u{ad}\u{200b}\u{200d}\u{feff}\u{fffd}\u{ffff}",
    "éèüñçøßÅÅΩΩάώйёїאבّبَתשׁשּׁเก้ำกไคึ่देवनागरीক্ষোગુதமிழ்ొකොမြန်ခ្មែรླྀབོད",
    "한국어가각힣각ᆩᄒ好世界漢字日本かガか\u{3099}ﾊﾟ豈\u{fa0e}\u{2f800}𠀀😀👩🏽\u{fe0f}🇩🇪ℌⅫ",
    "\u{300}\u{301}\u{302}\u{307}\u{308}\u{30a}\u{315}\u{316}\u{31b}\u{323}\u{327}\u{328}\u{338}",
    "\u{340}\u{344}\u{345}\u{35c}\u{360}\u{5b0}\u{5bc}\u{64b}\u{651}\u{93c}\u{9be}\u{bbe}\u{c56}",
    "\u{dcf}\u{e38}\u{e48}\u{f71}\u{f72}\u{1039}\u{1b35}\u{1dc0}\u{20d0}\u{302a}\u{1d165}\u{1d16d}",
    "\u{378}\u{e000}\u{f8ff}\u{e0001}\u{e0100}\u{10ffff}\u{1e8d0}\u{11127}\u{16ff0}\u{b}\u{c}",
);

/// Pseudo-random numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    /// Mostly of the alphabet; some characters are any at all, and some come many times.
    fn text(&mut self, chars_max: usize) -> String {
        static CHARACTERS: LazyLock<Vec<char>> = LazyLock::new(|| ALPHABET.chars().collect());
        let mut text = String::new();
        for _ in 0..self.below(chars_max) + 1 {
            let any = char::from_u32(self.below(0x11_0000) as u32);
            let low = char::from_u32(self.below(0x3000) as u32);
            let c = match self.below(16) {
                0 => any.unwrap_or('x'),
                1 | 2 => low.unwrap_or('y'),
                _ => CHARACTERS[self.below(CHARACTERS.len())],
            };
            let count = if self.below(12) == 0 { self.below(6) } else { 1 };
            text.extend(std::iter::repeat_n(c, count));
        }
        text
    }
}

#[test]
fn every_character_is_of_the_kind_that_the_patterns_see() {
    let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
    let mut kinds = vec![Kind::Other; 0x11_0000];
    let classes = [
        (r"\p{L}", Kind::Letter),
        (r"\p{M}", Kind::Mark),
        (r"\p{N}", Kind::Number),
        (r"\s", Kind::Space),
        (" ", Kind::Blank),
        (r"[\r\n]", Kind::Newline),
    ];
    for (class, kind) in classes {
        for (start, end) in SysRegex::new(class).unwrap().find_iter(&all) {
            all[start..end].chars().for_each(|c| kinds[c as usize] = kind);
        }
    }
    let mut position = 0;
    for c in all.chars() {
        let seen = CHARS.at(all.as_bytes(), position);
        assert_eq!((seen.kind(), seen.len), (kinds[c as usize], c.len_utf8()), "{c:?}");
        position += seen.len;
    }
    for kind in classes.map(|(_, kind)| kind) {
        assert!(kinds.contains(&kind), "{kind:?}");
    }
}

fn check_nfc(text: &str) {
    let expected: String = text.nfc().map(|(c, _)| c).collect();
    assert_eq!(nfc(text), expected, "{text:?}");
}

#[test]
fn every_character_gets_its_normal_form_alone_and_beside_others() {
    for c in (0..=0x10_ffff).filter_map(char::from_u32) {
        check_nfc(&format!("{c}"));
        // Before and behind it what may join or change places with it.
        check_nfc(&format!("a{c}\u{323}\u{301}{c}\u{345}{c}\u{5b0}e"));
    }
}

#[test]
fn random_texts_get_their_normal_form() {
    let mut random = Random(1);
    (0..100_000).for_each(|_| check_nfc(&random.text(24)));
}

#[test]
fn text_in_normal_form_is_not_copied() {
    let normal = "plain, é, 한국어, देवनागरी, ไทย ที่, עִבְרִית, 日本語 が\n";
    assert!(matches!(nfc(normal), Cow::Borrowed(text) if text == normal));
    let changed = [normal, "e\u{301}", normal].concat();
    assert_eq!(nfc(&changed), [normal, "é", normal].concat());
}

fn words(pattern: WordPattern, text: &str) -> Vec<&str> {
    let mut start = 0;
    let next = || {
        let first = start;
        (first < text.len()).then(|| {
            start = pattern.word_end(text.as_bytes(), first);
            &text[first..start]
        })
    };
    std::iter::from_fn(next).collect()
}

/// Holds the words of both patterns to what their regular expressions find.
struct Regexes([(WordPattern, SysRegex); 2]);

impl Regexes {
    fn new() -> Self {
        Self(WordPattern::ALL.map(|words| (words, SysRegex::new(words.regex()).unwrap())))
    }

    fn check(&self, text: &str) {
        for (pattern, regex) in &self.0 {
            let expected: Vec<_> = regex.find_iter(text).map(|(a, b)| &text[a..b]).collect();
            assert_eq!(expected.concat(), text);
            assert_eq!(words(*pattern, text), expected, "{pattern:?} {text:?}");
        }
    }
}

#[test]
fn every_character_is_cut_as_the_patterns_say() {
    let regexes = Regexes::new();
    // Far behind these nothing is assigned, as the kinds above have shown.
    for c in (0..0x3_4000).chain((0..=0x10_ffff).step_by(499)).filter_map(char::from_u32) {
        regexes.check(&format!("'{c}e'{c}l b{c} {c}{c}\n{c}'l{c}'r{c}\t{c}"));
    }
}

#[test]
fn random_texts_are_cut_as_the_patterns_say() {
    let (regexes, mut random) = (Regexes::new(), Random(2));
    (0..200_000).for_each(|_| regexes.check(&random.text(24)));
}

/// Every byte, and merges at random: also of the same rank's neighbours, and long ones.
fn random_merges(random: &mut Random) -> ([TokenId; 256], Vec<Merge>) {
    let mut byte_ids = [TokenId(0); 256];
    byte_ids.iter_mut().zip(0..).for_each(|(id, byte)| *id = TokenId(byte));
    let mut tokens: Vec<TokenId> = b"abc".iter().map(|&byte| TokenId(byte.into())).collect();
    let mut merges: Vec<Merge> = Vec::new();
    for merged in 256..300 {
        let [left, right] = [(); 2].map(|()| tokens[random.below(tokens.len())]);
        if merges.iter().any(|merge| (merge.left, merge.right) == (left, right)) {
            continue;
        }
        merges.push(Merge { left, right, merged: TokenId(merged) });
        tokens.push(TokenId(merged));
    }
    (byte_ids, merges)
}

/// The definition: of all pairs in the word the one of the lowest rank, the leftmost first.
fn merge_plainly(word: &[u8], merges: &[Merge]) -> Vec<TokenId> {
    let mut ids: Vec<_> = word.iter().map(|&byte| TokenId(byte.into())).collect();
    let rank = |pair: &[TokenId]| {
        merges.iter().position(|merge| (merge.left, merge.right) == (pair[0], pair[1]))
    };
    loop {
        let ranked = ids.windows(2).enumerate();
        let ranked = ranked.filter_map(|(at, pair)| Some((rank(pair)?, at)));
        let Some((best, at)) = ranked.min() else { return ids };
        ids.splice(at..at + 2, [merges[best].merged]);
    }
}

#[test]
fn words_of_every_length_are_merged_as_defined() {
    let mut random = Random(3);
    for _ in 0..40 {
        let (byte_ids, merges) = random_merges(&mut random);
        let table = Merges::new(byte_ids, &merges).unwrap();
        let mut buffers = MergeBuffers::default();
        for len in (1..140).step_by(3).chain([63, 64, 65]) {
            let word: Vec<u8> = (0..len).map(|_| b"aaabbcx"[random.below(7)]).collect();
            let mut ids = vec![TokenId(1)];
            table.encode_word(&word, &mut buffers, &mut ids);
            assert_eq!(ids[1..], merge_plainly(&word, &merges), "{word:?}");
        }
    }
}

#[test]
fn tables_too_small_for_an_id_are_not_made() {
    let merge = |id| Merge { left: TokenId(1), right: TokenId(2), merged: TokenId(id) };
    let byte_ids = [TokenId(0); 256];
    assert!(Merges::new(byte_ids, &[merge((1 << 21) - 1)]).is_some());
    assert!(Merges::new(byte_ids, &[merge(1 << 21)]).is_none());
    assert!(Merges::new([TokenId(1 << 21); 256], &[]).is_none());
}

/// Words that come again are found in the cache; those that take its places do no harm.
#[test]
fn words_that_come_again_have_the_same_tokens() {
    let mut random = Random(4);
    let (byte_ids, merges) = random_merges(&mut random);
    let encoder = Encoder::new(WordPattern::Qwen2, byte_ids, &merges).unwrap();
    let mut ids = Vec::new();
    for _ in 0..60_000 {
        let len = random.below(70) + 1;
        let word: String = (0..len).map(|_| ['a', 'b', 'c'][random.below(3)]).collect();
        let word = if random.below(2) == 0 { &word[..len.min(8)] } else { &word };
        let expected = merge_plainly(word.as_bytes(), &merges);
        for _ in 0..2 {
            ids.clear();
            encoder.encode(word, &mut ids);
            assert_eq!(ids, expected, "{word}");
        }
    }
}
