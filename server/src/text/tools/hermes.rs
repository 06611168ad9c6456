//! `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`, from behind the opening tag.

use super::arguments::{Place, ValueScanner, escaped, unescaped};
use super::{OPEN, Output, Progress};

/// The JSON object of a call in progress.
pub(super) struct HermesCall {
    state: State,
    /// What was read so far, until the name was given.
    raw: String,
    is_named: bool,
    has_arguments: bool,
    /// The key, or the value, that is being read.
    buffer: String,
    /// Arguments that came before the name.
    early: String,
}

enum State {
    Open,
    BeforeKey,
    Key(ValueScanner),
    Colon(Key),
    BeforeValue(Key),
    Name(ValueScanner),
    /// Given on as it comes.
    Arguments(ValueScanner),
    /// Given on at its end: a string that holds the JSON, or what is no object.
    OtherArguments(ValueScanner),
    Ignored(ValueScanner),
}

#[derive(Clone, Copy)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// What a character leads to.
enum Next {
    GoesOn(State),
    /// The character was not taken.
    Again(State),
    Complete,
    Broken,
}

impl HermesCall {
    pub fn new() -> Self {
        Self {
            state: State::Open,
            raw: OPEN.to_owned(),
            is_named: false,
            has_arguments: false,
            buffer: String::new(),
            early: String::new(),
        }
    }

    /// Takes characters from the front of `pending`.
    pub fn push(&mut self, pending: &mut String, output: &mut Output<'_>) -> Progress {
        let text = std::mem::take(pending);
        // Arguments of this piece of text.
        let mut flow = String::new();
        let mut rest = text.as_str();
        let progress = loop {
            let Some(character) = rest.chars().next() else { break Progress::Waits };
            let state = std::mem::replace(&mut self.state, State::Open);
            match self.take(state, character, &mut flow, output) {
                Next::Again(state) => self.state = state,
                Next::Broken if self.is_named => break Progress::Complete,
                Next::Broken => break Progress::NoCall { raw: std::mem::take(&mut self.raw) },
                Next::GoesOn(state) => {
                    self.state = state;
                    rest = self.taken(rest, character);
                }
                Next::Complete => {
                    rest = self.taken(rest, character);
                    break Progress::Complete;
                }
            }
        };
        self.give_arguments(&flow, output);
        *pending = rest.to_owned();
        progress
    }

    /// The answer is over. The text so far if it is no call.
    pub fn finish(mut self, output: &mut Output<'_>) -> Option<String> {
        if !self.is_named {
            return Some(self.raw);
        }
        if matches!(self.state, State::OtherArguments(_)) {
            self.give_other_arguments(output);
        }
        self.close(output);
        None
    }

    fn taken<'a>(&mut self, rest: &'a str, character: char) -> &'a str {
        if !self.is_named {
            self.raw.push(character);
        }
        &rest[character.len_utf8()..]
    }

    fn take(
        &mut self,
        state: State,
        character: char,
        flow: &mut String,
        output: &mut Output<'_>,
    ) -> Next {
        let is_space = character.is_whitespace();
        match state {
            State::Open | State::BeforeKey | State::Colon(_) | State::BeforeValue(_)
                if is_space =>
            {
                Next::GoesOn(state)
            }
            State::Open if character == '{' => Next::GoesOn(State::BeforeKey),
            State::Open => Next::Broken,
            State::BeforeKey => self.begin_key(character, output),
            State::Key(scanner) => match self.collect(scanner, character) {
                Ok(scanner) => Next::GoesOn(State::Key(scanner)),
                Err(_) => self.end_key(),
            },
            State::Colon(key) if character == ':' => Next::GoesOn(State::BeforeValue(key)),
            State::Colon(_) => Next::Broken,
            State::BeforeValue(key) => self.begin_value(key, character),
            State::Name(scanner) => match self.collect(scanner, character) {
                Ok(scanner) => Next::GoesOn(State::Name(scanner)),
                Err(_) => self.end_name(output),
            },
            State::Arguments(scanner) => flow_on(scanner, character, flow),
            State::OtherArguments(scanner) => match self.collect(scanner, character) {
                Ok(scanner) => Next::GoesOn(State::OtherArguments(scanner)),
                Err(place) => {
                    self.give_other_arguments(output);
                    behind(place)
                }
            },
            State::Ignored(mut scanner) => match scanner.push(character) {
                Place::Within => Next::GoesOn(State::Ignored(scanner)),
                place => behind(place),
            },
        }
    }

    fn begin_key(&mut self, character: char, output: &mut Output<'_>) -> Next {
        match character {
            ',' => Next::GoesOn(State::BeforeKey),
            '"' => Next::GoesOn(State::Key(self.begin_string())),
            '}' if self.is_named => {
                self.close(output);
                Next::Complete
            }
            _ => {
                if self.is_named {
                    self.close(output);
                }
                Next::Broken
            }
        }
    }

    fn end_key(&mut self) -> Next {
        Next::GoesOn(State::Colon(match self.buffer.as_str() {
            "\"name\"" if !self.is_named => Key::Name,
            "\"arguments\"" if !self.has_arguments => Key::Arguments,
            _ => Key::Other,
        }))
    }

    fn begin_value(&mut self, key: Key, character: char) -> Next {
        match key {
            Key::Name if character == '"' => Next::GoesOn(State::Name(self.begin_string())),
            Key::Name => Next::Broken,
            Key::Arguments => {
                self.has_arguments = true;
                self.buffer.clear();
                let scanner = ValueScanner::default();
                Next::Again(match character {
                    '{' => State::Arguments(scanner),
                    _ => State::OtherArguments(scanner),
                })
            }
            Key::Other => Next::Again(State::Ignored(ValueScanner::default())),
        }
    }

    fn end_name(&mut self, output: &mut Output<'_>) -> Next {
        let inner = &self.buffer[1..self.buffer.len() - 1];
        match unescaped(inner).filter(|name| !name.is_empty()) {
            Some(name) => {
                output.call(&name);
                self.is_named = true;
                let early = std::mem::take(&mut self.early);
                output.arguments(&early);
                Next::GoesOn(State::BeforeKey)
            }
            None => Next::Broken,
        }
    }

    /// Behind the opening quote of a string.
    fn begin_string(&mut self) -> ValueScanner {
        let mut scanner = ValueScanner::default();
        scanner.push('"');
        self.buffer.clear();
        self.buffer.push('"');
        scanner
    }

    /// Reads the value into the buffer; `Err`: it has ended.
    fn collect(&mut self, mut scanner: ValueScanner, c: char) -> Result<ValueScanner, Place> {
        let place = scanner.push(c);
        if place != Place::Behind {
            self.buffer.push(c);
        }
        if place == Place::Within { Ok(scanner) } else { Err(place) }
    }

    fn give_other_arguments(&mut self, output: &mut Output<'_>) {
        let text = std::mem::take(&mut self.buffer);
        let text = match text.strip_prefix('"') {
            Some(inner) => unescaped(inner.strip_suffix('"').unwrap_or(inner)).unwrap_or(text),
            None if text == "null" => "{}".to_owned(),
            None => text,
        };
        self.give_arguments(&text, output);
    }

    fn give_arguments(&mut self, text: &str, output: &mut Output<'_>) {
        match self.is_named {
            true => output.arguments(text),
            false => self.early.push_str(text),
        }
    }

    /// A call without arguments has none, which is an empty object.
    fn close(&mut self, output: &mut Output<'_>) {
        if !std::mem::replace(&mut self.has_arguments, true) {
            output.arguments("{}");
        }
    }
}

fn flow_on(mut scanner: ValueScanner, character: char, flow: &mut String) -> Next {
    if scanner.needs_escape(character) {
        flow.push_str(&escaped(character.encode_utf8(&mut [0; 4])));
        return Next::GoesOn(State::Arguments(scanner));
    }
    let place = scanner.push(character);
    if place != Place::Behind {
        flow.push(character);
    }
    match place {
        Place::Within => Next::GoesOn(State::Arguments(scanner)),
        place => behind(place),
    }
}

fn behind(place: Place) -> Next {
    match place {
        Place::Behind => Next::Again(State::BeforeKey),
        Place::Within | Place::Last => Next::GoesOn(State::BeforeKey),
    }
}
