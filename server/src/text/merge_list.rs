//! The merges of a tokenizer.json, which the tokenizers crate reads but does not show.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// Left and right token of each merge, in the order of their ranks. `None`: not a file of byte
/// pairs.
pub fn merges_of_json(json: &[u8]) -> Option<Vec<(String, String)>> {
    let file: File = serde_json::from_slice(json).ok()?;
    Some(file.model.merges.into_iter().map(|Pair(left, right)| (left, right)).collect())
}

#[derive(Deserialize)]
struct File {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    merges: Vec<Pair>,
}

/// `["left", "right"]`, or, in older files, `"left right"`.
struct Pair(String, String);

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PairVisitor)
    }
}

struct PairVisitor;

impl<'de> Visitor<'de> for PairVisitor {
    type Value = Pair;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("two tokens")
    }

    fn visit_str<E: Error>(self, pair: &str) -> Result<Pair, E> {
        let (left, right) = pair.split_once(' ').ok_or_else(|| E::custom("one token"))?;
        Ok(Pair(left.to_owned(), right.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Pair, A::Error> {
        let mut next = || pair.next_element()?.ok_or_else(|| A::Error::custom("one token"));
        Ok(Pair(next()?, next()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_read_in_both_spellings() {
        let read = |merges: &str| {
            let json = format!(r#"{{"version":"1.0","model":{{"type":"BPE","merges":{merges}}}}}"#);
            merges_of_json(json.as_bytes())
        };
        let expected =
            Some(vec![("a".to_owned(), "b".to_owned()), ("ab".to_owned(), "é".to_owned())]);
        assert_eq!(read(r#"["a b", "ab \u00e9"]"#), expected);
        assert_eq!(read(r#"[["a", "b"], ["ab", "é"]]"#), expected);
        assert_eq!(read("[]"), Some(Vec::new()));
        for broken in [r#"["ab"]"#, r#"[["a"]]"#, r#"[["a", "b", "c"]]"#, "[1]"] {
            assert_eq!(read(broken), None, "{broken}");
        }
        assert_eq!(merges_of_json(br#"{"model":{"vocab":{}}}"#), None);
    }
}
