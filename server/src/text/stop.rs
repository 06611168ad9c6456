//! Stop strings, also across token borders.

use super::error::TextError;

/// Stop strings of one request.
pub const STOPS_MAX: usize = 64;
/// Bytes of one stop string.
pub const STOP_BYTES_MAX: usize = 1024;

/// Ends a text before the earliest place at which any stop string begins, however the text is cut
/// into pieces. Held back is only what may still become a stop string.
///
/// Of stop strings that begin at the same place the shortest is reported.
pub struct StopMatcher {
    /// Shortest first.
    stops: Vec<String>,
    /// Begins with a proper prefix of a stop string, or is empty.
    pending: String,
    ended: bool,
}

/// What a piece of text brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that belongs to no stop string.
    pub emit: String,
    /// The stop string that ended the text; whatever comes later is dropped.
    pub matched: Option<String>,
}

impl StopMatcher {
    /// `stops` have passed `check`; none at all is fine.
    pub fn new(stops: &[String]) -> Self {
        let mut stops: Vec<_> = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        stops.sort_by_key(String::len);
        Self { stops, pending: String::new(), ended: false }
    }

    /// Errors: an empty or too long stop string, or too many.
    pub fn check(stops: &[String]) -> Result<(), TextError> {
        if stops.len() > STOPS_MAX {
            let (stops, stops_max) = (stops.len(), STOPS_MAX);
            return Err(TextError::TooManyStops { stops, stops_max });
        }
        match stops.iter().map(String::len).find(|&bytes| bytes == 0 || bytes > STOP_BYTES_MAX) {
            Some(bytes) => Err(TextError::StopLength { bytes, bytes_max: STOP_BYTES_MAX }),
            None => Ok(()),
        }
    }

    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.ended {
            return StopOutput::default();
        }
        self.pending.push_str(text);
        let (position, matched) = self.first_candidate(AtEnd::MayGoOn);
        let emit = self.pending[..position].to_owned();
        self.ended = matched.is_some();
        self.pending.drain(..if self.ended { self.pending.len() } else { position });
        StopOutput { emit, matched }
    }

    /// The text has ended: what was held back, and a stop string in it that had to wait for a
    /// longer one that began before.
    pub fn finish(&mut self) -> StopOutput {
        if self.ended {
            return StopOutput::default();
        }
        let (position, matched) = self.first_candidate(AtEnd::IsOver);
        let emit = self.pending[..position].to_owned();
        self.ended = true;
        self.pending.clear();
        StopOutput { emit, matched }
    }

    /// The first place where a stop string begins, or, if more text may come, may have begun.
    fn first_candidate(&self, end: AtEnd) -> (usize, Option<String>) {
        for (position, _) in self.pending.char_indices() {
            let rest = &self.pending[position..];
            if let Some(stop) = self.stops.iter().find(|stop| rest.starts_with(stop.as_str())) {
                return (position, Some(stop.clone()));
            }
            if end == AtEnd::MayGoOn && self.stops.iter().any(|stop| stop.starts_with(rest)) {
                return (position, None);
            }
        }
        (self.pending.len(), None)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    MayGoOn,
    IsOver,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<_> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut outputs: Vec<_> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        outputs.push(matcher.finish());
        let matched = outputs.iter().find_map(|output| output.matched.clone());
        (outputs.into_iter().map(|output| output.emit).collect(), matched)
    }

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], emitted: &[&str], matched: Option<&str>) {
        let (got, got_matched) = run(stops, pieces);
        assert_eq!(got, emitted, "{stops:?} {pieces:?}");
        assert_eq!(got_matched.as_deref(), matched, "{stops:?} {pieces:?}");
    }

    #[test]
    fn text_ends_before_a_stop_string_across_pieces() {
        check(
            &["STOP"],
            &["ab", "cS", "TO", "Pde", "f"],
            &["ab", "c", "", "", "", ""],
            Some("STOP"),
        );
    }

    #[test]
    fn a_begun_stop_string_is_released() {
        check(&["STOP"], &["aST", "x", "ST"], &["a", "STx", "", "ST"], None);
        check(&["aab"], &["a", "a", "a", "c"], &["", "", "a", "aac", ""], None);
    }

    #[test]
    fn the_earliest_beginning_wins_even_if_it_ends_later() {
        check(&["bcd", "abcde"], &["xabcd", "e"], &["x", "", ""], Some("abcde"));
        check(&["bcd", "abcde"], &["xabcd", "f"], &["x", "a", ""], Some("bcd"));
        check(&["bcd", "abcde"], &["xabcd"], &["x", "a"], Some("bcd"));
    }

    #[test]
    fn of_a_stop_string_and_its_prefix_the_prefix_ends_the_text() {
        check(&["abc", "ab"], &["xa", "b", "c"], &["x", "", "", ""], Some("ab"));
    }

    #[test]
    fn stop_strings_are_characters_not_bytes() {
        check(&["界。"], &["你好世", "界", "。x"], &["你好世", "", "", ""], Some("界。"));
        check(&["é"], &["e\u{301}", "é"], &["e\u{301}", "", ""], Some("é"));
    }

    #[test]
    fn no_stop_strings_hold_nothing_back() {
        check(&[], &["a", "", "b"], &["a", "", "b", ""], None);
    }

    #[test]
    fn bad_lists_are_refused() {
        let list = |stops: &[&str]| stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(StopMatcher::check(&list(&["a", "b"])), Ok(()));
        assert_eq!(
            StopMatcher::check(&list(&["a", ""])),
            Err(TextError::StopLength { bytes: 0, bytes_max: STOP_BYTES_MAX })
        );
        assert!(StopMatcher::check(&list(&[&"x".repeat(STOP_BYTES_MAX + 1)])).is_err());
        assert!(StopMatcher::check(&list(&["x"; STOPS_MAX + 1])).is_err());
    }

    /// All texts of a small alphabet, all stop lists from it: the emitted text is what precedes the
    /// earliest occurrence in the whole text, whatever the cuts, and nothing is held back in vain.
    #[test]
    fn any_cut_gives_what_the_whole_text_gives() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = move |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        for _ in 0..20_000 {
            let mut string = |len_min: usize, len: usize| -> String {
                let len = len_min + draw(len - len_min + 1);
                (0..len).map(|_| ['a', 'b', '界'][draw(3)]).collect()
            };
            let text = string(0, 14);
            let stops: Vec<String> = (0..3).map(|_| string(1, 5)).collect();
            let expected = stops.iter().filter_map(|stop| text.find(stop)).min();
            let mut matcher = StopMatcher::new(&stops);
            let (mut emitted, mut matched) = (String::new(), None);
            let characters: Vec<char> = text.chars().collect();
            let mut rest = &characters[..];
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(1 + draw(rest.len()));
                let output = matcher.push(&piece.iter().collect::<String>());
                emitted.push_str(&output.emit);
                matched = matched.or(output.matched);
                rest = tail;
                let seen: String = characters[..characters.len() - rest.len()].iter().collect();
                let held = matcher.pending.as_str();
                assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
                assert!(matched.is_some() || format!("{emitted}{held}") == seen);
            }
            let output = matcher.finish();
            emitted.push_str(&output.emit);
            matched = matched.or(output.matched);
            assert_eq!(emitted, text[..expected.unwrap_or(text.len())], "{text:?} {stops:?}");
            let begins = |stop: &String| expected.is_some_and(|at| text[at..].starts_with(stop));
            let shortest = stops.iter().filter(|s| begins(s)).min_by_key(|s| s.len());
            assert_eq!(matched.as_ref(), shortest, "{text:?} {stops:?}");
        }
    }
}
