//! llama.cpp's form of grammars (GBNF), which xgrammar's users write too, as Lark.

use super::grammar::{GrammarError, lark_literal};
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Rules of one grammar.
const RULES_MAX: usize = 4096;
/// Groups within each other.
const DEPTH_MAX: usize = 100;

/// Translates `name ::= alternatives` rule by rule; `root` becomes `start`.
///
/// Errors: text that is no such grammar, with the rule's name.
pub fn gbnf_to_lark(text: &str) -> Result<String, GrammarError> {
    let mut rules = BTreeMap::new();
    let mut names = Names::default();
    let mut reader = Reader { chars: text.chars().peekable(), names: &mut names };
    reader.skip_space(Lines::Cross);
    while reader.chars.peek().is_some() {
        let name = reader.name()?;
        reader.skip_space(Lines::Stay);
        if !reader.takes("::=") {
            return Err(invalid(format!("'::=' is missing after '{name}'")));
        }
        let body = reader
            .alternatives(0, Lines::Stay)
            .map_err(|reason| invalid(format!("rule '{name}': {reason}")))?;
        let rule = reader.names.of(&name);
        if rules.insert(rule, body).is_some() {
            return Err(invalid(format!("rule '{name}' is there twice")));
        }
        if rules.len() > RULES_MAX {
            return Err(invalid(format!("more than {RULES_MAX} rules")));
        }
        reader.skip_space(Lines::Cross);
    }
    if let Some((name, _)) = names.0.iter().find(|(_, rule)| !rules.contains_key(*rule)) {
        return Err(invalid(format!("rule '{name}' is not there")));
    }
    if !rules.contains_key("start") {
        return Err(invalid("rule 'root' is not there".into()));
    }
    Ok(rules.iter().map(|(rule, body)| format!("{rule}: {body}\n")).collect())
}

fn invalid(reason: String) -> GrammarError {
    GrammarError::Invalid { reason }
}

/// Names as Lark allows them.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn of(&mut self, name: &str) -> String {
        let next = format!("rule_{}", self.0.len());
        let rule = if name == "root" { "start".into() } else { next };
        self.0.entry(name.to_owned()).or_insert(rule).clone()
    }
}

/// Whether a line's end is white space like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    Cross,
    Stay,
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    names: &'a mut Names,
}

impl Reader<'_> {
    /// Comments are space too.
    fn skip_space(&mut self, lines: Lines) {
        while let Some(&c) = self.chars.peek() {
            match c {
                '#' => while self.chars.next_if(|&c| c != '\n').is_some() {},
                '\n' | '\r' if lines == Lines::Stay => return,
                c if c.is_whitespace() => {
                    self.chars.next();
                }
                _ => return,
            }
        }
    }

    fn takes(&mut self, word: &str) -> bool {
        word.chars().all(|c| self.chars.next_if_eq(&c).is_some())
    }

    fn name(&mut self) -> Result<String, GrammarError> {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|&c| is_name(c)) {
            name.push(c);
        }
        match (name.is_empty(), self.chars.peek()) {
            (false, _) => Ok(name),
            (true, c) => Err(invalid(format!("a rule's name is missing before {c:?}"))),
        }
    }

    /// Sequences with bars between them. Ends before what it cannot read.
    fn alternatives(&mut self, depth: usize, lines: Lines) -> Result<String, String> {
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} groups within each other"));
        }
        let mut out = String::new();
        loop {
            self.skip_space(lines);
            // An alternative may go on in the next line behind the bar, and begin with it.
            let mut items = Vec::new();
            while let Some(item) = self.item(depth)? {
                items.push(item + &self.repetition()?);
                self.skip_space(lines);
            }
            match items.is_empty() {
                true => out.push_str("\"\""),
                false => out.push_str(&items.join(" ")),
            }
            if !self.continues(lines) {
                return Ok(out);
            }
            out.push_str(" | ");
            self.skip_space(Lines::Cross);
        }
    }

    /// Takes the bar before another alternative, also from the beginning of the next line.
    fn continues(&mut self, lines: Lines) -> bool {
        if lines == Lines::Stay {
            let mut ahead = self.chars.clone();
            while ahead.next_if(|c| c.is_whitespace()).is_some() {}
            if ahead.peek() == Some(&'|') {
                self.chars = ahead;
            }
        }
        self.chars.next_if_eq(&'|').is_some()
    }

    fn item(&mut self, depth: usize) -> Result<Option<String>, String> {
        let Some(&c) = self.chars.peek() else { return Ok(None) };
        match c {
            '"' => self.literal().map(Some),
            '[' => self.class().map(Some),
            '(' => {
                self.chars.next();
                let inner = self.alternatives(depth + 1, Lines::Cross)?;
                self.skip_space(Lines::Cross);
                match self.chars.next() {
                    Some(')') => Ok(Some(format!("({inner})"))),
                    other => Err(format!("')' is missing before {other:?}")),
                }
            }
            '.' => {
                self.chars.next();
                Ok(Some("/(?s:.)/".into()))
            }
            c if is_name(c) => {
                let name = self.name().map_err(|error| error.to_string())?;
                Ok(Some(self.names.of(&name)))
            }
            '|' | ')' | '\n' | '\r' => Ok(None),
            c => Err(format!("{c:?} has no meaning here")),
        }
    }

    fn repetition(&mut self) -> Result<String, String> {
        let Some(c) = self.chars.next_if(|c| "*+?{".contains(*c)) else {
            return Ok(String::new());
        };
        if c != '{' {
            return Ok(c.into());
        }
        let mut counts = String::new();
        while let Some(c) = self.chars.next_if(|&c| c != '}') {
            counts.push(c);
        }
        self.chars.next();
        let is_number = |text: &str| text.trim().parse::<u32>().is_ok();
        let is_good = match counts.split_once(',') {
            None => is_number(&counts),
            Some((min, max)) => is_number(min) && (max.trim().is_empty() || is_number(max)),
        };
        match is_good {
            true => Ok(format!("{{{counts}}}")),
            false => Err(format!("'{{{counts}}}' is no repetition")),
        }
    }

    fn literal(&mut self) -> Result<String, String> {
        self.chars.next();
        let mut text = String::new();
        loop {
            match self.chars.next() {
                None => return Err("a string has no end".into()),
                Some('"') => return Ok(lark_literal(&text)),
                Some('\\') => text.push(self.escape()?),
                Some(c) => text.push(c),
            }
        }
    }

    /// As a regular expression.
    fn class(&mut self) -> Result<String, String> {
        self.chars.next();
        let mut out = String::from("/[");
        if self.chars.next_if_eq(&'^').is_some() {
            out.push('^');
        }
        loop {
            match self.chars.next() {
                None => return Err("a class of characters has no end".into()),
                Some(']') => break,
                Some('-') => out.push('-'),
                Some('\\') => push_in_class(&mut out, self.escape()?),
                Some(c) => push_in_class(&mut out, c),
            }
        }
        out.push_str("]/");
        Ok(out)
    }

    /// What stands for itself, or for a control character, or a number.
    fn escape(&mut self) -> Result<char, String> {
        let digits = match self.chars.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) if !c.is_alphanumeric() => return Ok(c),
            other => return Err(format!("'\\' before {other:?} has no meaning")),
        };
        let hex: String = (0..digits).filter_map(|_| self.chars.next()).collect();
        let code = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits);
        code.and_then(char::from_u32).ok_or_else(|| format!("'{hex}' is no character"))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// By its number, since half of the signs have a meaning in a class.
fn push_in_class(out: &mut String, c: char) {
    match c.is_ascii_alphanumeric() {
        true => out.push(c),
        false => out.push_str(&format!("\\u{{{:X}}}", u32::from(c))),
    }
}
