//! Events that differ in their text alone are written by putting it into the rest.

use crate::http::choice::{PlainText, TextKind};
use crate::http::wire::random_hex;
use std::sync::OnceLock;

/// By choice, then by kind of text.
pub struct Templates(Vec<[Option<Template>; 2]>);

impl Templates {
    pub fn new(num_choices: usize) -> Templates {
        Templates((0..num_choices).map(|_| [None, None]).collect())
    }

    pub fn get(&self, of: PlainText) -> Option<&Template> {
        self.0[of.index][place(of.kind)].as_ref()
    }

    pub fn set(&mut self, of: PlainText, template: Template) {
        self.0[of.index][place(of.kind)] = Some(template);
    }
}

fn place(kind: TextKind) -> usize {
    match kind {
        TextKind::Content => 0,
        TextKind::Reasoning => 1,
    }
}

/// The events of one output but for its text, which stands between each two pieces as JSON.
pub struct Template {
    pieces: Vec<String>,
}

impl Template {
    /// A text that nothing else holds: nobody outside this process knows it.
    pub fn marker() -> &'static str {
        static MARKER: OnceLock<String> = OnceLock::new();
        MARKER.get_or_init(random_hex)
    }

    /// `example`: the events of an output whose text is the marker.
    pub fn of(example: &[u8]) -> Template {
        let quoted = format!("\"{}\"", Template::marker());
        let example = std::str::from_utf8(example).expect("events are text");
        Template { pieces: example.split(&quoted).map(str::to_owned).collect() }
    }

    /// Adds the events of an output with this text.
    pub fn fill(&self, text: &str, out: &mut Vec<u8>) {
        const ESCAPES: usize = 16;
        let bytes = self.pieces.iter().map(String::len).sum::<usize>();
        out.reserve(bytes + self.pieces.len() * (text.len() + ESCAPES));
        for (number, piece) in self.pieces.iter().enumerate() {
            if number > 0 {
                serde_json::to_writer(&mut *out, text).expect("a text is JSON");
            }
            out.extend_from_slice(piece.as_bytes());
        }
    }
}
