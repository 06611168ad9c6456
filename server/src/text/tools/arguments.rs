//! JSON as a model writes it, character by character.

/// Follows one JSON value to its end. Takes what is no JSON too, as long as brackets and quotes
/// close.
#[derive(Debug, Default)]
pub struct ValueScanner {
    depth: usize,
    text: Text,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Outside,
    Inside,
    /// Behind a backslash.
    Escape,
}

/// What a character is to the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Within,
    /// The value's last character.
    Last,
    /// No part of it: a number or word has ended before.
    Behind,
}

impl ValueScanner {
    pub fn push(&mut self, character: char) -> Place {
        match (&self.text, character) {
            (Text::Escape, _) => self.text = Text::Inside,
            (Text::Inside, '\\') => self.text = Text::Escape,
            (Text::Inside, '"') => {
                self.text = Text::Outside;
                return self.closed();
            }
            (Text::Inside, _) => {}
            (Text::Outside, '"') => self.text = Text::Inside,
            (Text::Outside, '{' | '[') => self.depth += 1,
            (Text::Outside, '}' | ']') if self.depth > 0 => {
                self.depth -= 1;
                return self.closed();
            }
            (Text::Outside, '}' | ']' | ',') if self.depth == 0 => return Place::Behind,
            (Text::Outside, c) if self.depth == 0 && c.is_whitespace() => return Place::Behind,
            (Text::Outside, _) => {}
        }
        Place::Within
    }

    /// JSON allows no bare control characters in strings; models write line feeds there.
    pub fn needs_escape(&self, character: char) -> bool {
        self.text != Text::Outside && character < ' '
    }

    fn closed(&self) -> Place {
        if self.depth == 0 { Place::Last } else { Place::Within }
    }
}

/// The characters between the quotes of a JSON string.
pub fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// The string that `inner` between quotes stands for; bare control characters stand for themselves.
pub fn unescaped(inner: &str) -> Option<String> {
    let mut quoted = String::with_capacity(inner.len() + 2);
    quoted.push('"');
    for character in inner.chars() {
        match character < ' ' {
            true => quoted.push_str(&escaped(character.encode_utf8(&mut [0; 4]))),
            false => quoted.push(character),
        }
    }
    quoted.push('"');
    serde_json::from_str(&quoted).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(text: &str) -> Option<usize> {
        let mut scanner = ValueScanner::default();
        for (at, character) in text.char_indices() {
            match scanner.push(character) {
                Place::Within => {}
                Place::Last => return Some(at + character.len_utf8()),
                Place::Behind => return Some(at),
            }
        }
        None
    }

    #[test]
    fn values_end_where_json_ends_them() {
        for value in [r#"{"a": "}\"]", "b": [1, {}]}"#, "[]", r#""a\\""#, r#""é\"""#] {
            assert_eq!(length(&format!("{value}, 1")), Some(value.len()), "{value}");
        }
        for value in ["12", "true", "-1e5"] {
            for end in [",", "}", "]", " ", "\n"] {
                assert_eq!(length(&format!("{value}{end}")), Some(value.len()), "{value}{end}");
            }
            assert_eq!(length(value), None);
        }
        assert_eq!(length(r#"{"a": ["#), None);
    }

    #[test]
    fn strings_are_escaped_and_back() {
        for text in ["", "a\"b\\c\n\t\u{1}é🙂"] {
            assert_eq!(unescaped(&escaped(text)).as_deref(), Some(text));
        }
        assert_eq!(unescaped("a\nb").as_deref(), Some("a\nb"));
        assert_eq!(unescaped("\\q"), None);
        assert_eq!(unescaped("\\ud83d\\ude42").as_deref(), Some("🙂"));
    }
}
