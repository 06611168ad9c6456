//! Calls of tools in an answer, in the formats of the Qwen family.

pub mod arguments;
pub mod hermes;
pub mod schema;
pub mod xml;
#[cfg(test)]
mod tests;

use super::answer::Part;
use super::tags::{Scan, scan};
use hermes::HermesCall;
use schema::ParameterKind;
use serde_json::Value;
use std::sync::Arc;
use xml::XmlCall;

pub const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FUNCTION: &str = "<function=";

/// How the served model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Qwen2.5, Qwen3.
    Hermes,
    /// `<tool_call><function=NAME><parameter=P>value</parameter></function></tool_call>`:
    /// Qwen3-Coder, Qwen3.5 and later.
    Xml,
}

impl ToolFormat {
    /// The format that a chat template teaches the model; `None`: it knows no tools.
    pub fn of_template(template: &str) -> Option<ToolFormat> {
        match (template.contains(FUNCTION), template.contains(OPEN)) {
            (true, _) => Some(ToolFormat::Xml),
            (false, true) => Some(ToolFormat::Hermes),
            (false, false) => None,
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of its arguments; null: none was given.
    pub parameters: Value,
}

impl Tool {
    fn parameter_kind(&self, parameter: &str) -> ParameterKind {
        ParameterKind::of(&self.parameters, parameter)
    }
}

/// Finds the calls in an answer, however it is cut into pieces. What is no well-formed call stays
/// content, markup included. Line feeds before a call and white space between calls are dropped.
pub struct ToolParser {
    format: ToolFormat,
    tools: Arc<Vec<Tool>>,
    /// Later calls are dropped.
    calls_max: usize,
    num_calls: usize,
    state: State,
    /// Not given on yet.
    pending: String,
    /// A call came last: white space after it is dropped.
    skips_space: bool,
}

enum State {
    Content,
    Hermes(HermesCall),
    Xml(XmlCall),
    /// Behind a call's end: up to its closing tag, or to the next call if that is missing.
    Behind,
    /// The same where no tag opened the call, so that the closing one may be missing too.
    BehindBare,
}

/// What a call in progress makes of the text it is given.
pub(super) enum Progress {
    /// Needs more text.
    Waits,
    Complete,
    /// Is none: the text so far is content after all. Only before the call's name was given.
    NoCall {
        raw: String,
    },
}

/// Where a call in progress puts what it finds.
pub(super) struct Output<'a> {
    parts: &'a mut Vec<Part>,
    index: usize,
    is_wanted: bool,
}

impl Output<'_> {
    pub fn call(&mut self, name: &str) {
        if self.is_wanted {
            self.parts.push(Part::Call { index: self.index, name: name.to_owned() });
        }
    }

    pub fn arguments(&mut self, text: &str) {
        if self.is_wanted && !text.is_empty() {
            self.parts.push(Part::Arguments { index: self.index, text: text.to_owned() });
        }
    }
}

impl ToolParser {
    pub fn new(format: ToolFormat, tools: Arc<Vec<Tool>>, calls_max: usize) -> Self {
        Self {
            format,
            tools,
            calls_max,
            num_calls: 0,
            state: State::Content,
            pending: String::new(),
            skips_space: false,
        }
    }

    /// Calls given on so far.
    pub fn num_calls(&self) -> usize {
        self.num_calls.min(self.calls_max)
    }

    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.pending.push_str(text);
        while self.step(parts) {}
    }

    /// The answer is over: what was held back. A call whose end is missing is as it is.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        let rest = std::mem::take(&mut self.pending);
        let mut output = self.output(parts);
        let content = match std::mem::replace(&mut self.state, State::Content) {
            State::Content | State::BehindBare => Some(rest),
            State::Behind => Some(String::new()),
            State::Hermes(call) => call.finish(&mut output),
            State::Xml(call) => call.finish(&rest, &mut output),
        };
        match content {
            Some(text) => self.give_content(parts, &text),
            None => self.num_calls += 1,
        }
    }

    /// Whether there is more to do with what is pending.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.find_call(parts),
            State::Behind => self.find_end(),
            State::BehindBare => self.find_bare_end(),
            State::Hermes(mut call) => {
                let mut output = self.output(parts);
                let progress = call.push(&mut self.pending, &mut output);
                self.go_on(progress, State::Hermes(call), State::Behind, parts)
            }
            State::Xml(mut call) => {
                let mut output = self.output(parts);
                let progress = call.push(&mut self.pending, &mut output);
                let behind = if call.is_bare() { State::BehindBare } else { State::Behind };
                self.go_on(progress, State::Xml(call), behind, parts)
            }
        }
    }

    fn go_on(
        &mut self,
        progress: Progress,
        call: State,
        behind: State,
        parts: &mut Vec<Part>,
    ) -> bool {
        match progress {
            Progress::Waits => {
                self.state = call;
                false
            }
            Progress::Complete => {
                self.num_calls += 1;
                self.skips_space = true;
                self.state = behind;
                true
            }
            Progress::NoCall { raw } => {
                self.give_content(parts, &raw);
                true
            }
        }
    }

    fn output<'a>(&self, parts: &'a mut Vec<Part>) -> Output<'a> {
        Output { parts, index: self.num_calls, is_wanted: self.num_calls < self.calls_max }
    }

    fn call_tags(&self) -> &'static [&'static str] {
        match self.format {
            ToolFormat::Hermes => &[OPEN],
            // Qwen3-Coder sometimes leaves the opening tag out.
            ToolFormat::Xml => &[OPEN, FUNCTION],
        }
    }

    fn find_call(&mut self, parts: &mut Vec<Part>) -> bool {
        let scan = scan(&self.pending, self.call_tags());
        let sure = scan.sure(self.pending.len());
        // Line feeds are held back: they are dropped if a call comes.
        let given = self.pending[..sure].trim_end_matches('\n').len();
        let content: String = self.pending.drain(..given).collect();
        self.give_content(parts, &content);
        let Scan::Found { start, tag } = scan else { return false };
        let tag = self.call_tags()[tag];
        // Only line feeds are left before it.
        self.pending.drain(..start - given + tag.len());
        self.state = match self.format {
            ToolFormat::Hermes => State::Hermes(HermesCall::new()),
            ToolFormat::Xml => State::Xml(XmlCall::new(tag, self.tools.clone())),
        };
        true
    }

    fn find_end(&mut self) -> bool {
        let mut tags = vec![CLOSE];
        tags.extend(self.call_tags());
        let scan = scan(&self.pending, &tags);
        self.pending.drain(..scan.sure(self.pending.len()));
        match scan {
            Scan::Found { tag: 0, .. } => {
                self.pending.drain(..CLOSE.len());
                true
            }
            // The next call, as content finds it.
            Scan::Found { .. } => true,
            Scan::MayBegin(_) | Scan::Absent => {
                self.state = State::Behind;
                false
            }
        }
    }

    fn find_bare_end(&mut self) -> bool {
        let text = self.pending.trim_start();
        if text.len() < CLOSE.len() && CLOSE.starts_with(text) {
            self.state = State::BehindBare;
            return false;
        }
        if let Some(rest) = text.strip_prefix(CLOSE) {
            self.pending = rest.to_owned();
        }
        true
    }

    fn give_content(&mut self, parts: &mut Vec<Part>, text: &str) {
        let text = if self.skips_space { text.trim_start() } else { text };
        if !text.is_empty() {
            self.skips_space = false;
            parts.push(Part::Content(text.to_owned()));
        }
    }
}
