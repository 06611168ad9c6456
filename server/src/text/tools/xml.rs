//! `<tool_call><function=NAME><parameter=P>value</parameter></function></tool_call>`, from behind
//! the opening tag, which may be missing.

use super::arguments::escaped;
use super::schema::{ParameterKind, to_json};
use super::{CLOSE, FUNCTION, OPEN, Output, Progress, Tool};
use crate::text::tags::{Scan, scan};
use serde_json::Value;
use std::sync::Arc;

const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";
/// Names of functions and parameters.
const NAME_BYTES_MAX: usize = 256;

/// A call in progress. Its arguments are written as a JSON object, in the order in which they come.
pub(super) struct XmlCall {
    tools: Arc<Vec<Tool>>,
    /// Of `tools`, once its name is known.
    tool: Option<usize>,
    is_bare: bool,
    state: State,
    /// What was read so far, until the name was given.
    raw: String,
    num_parameters: usize,
}

enum State {
    Head,
    FunctionName,
    BetweenParameters,
    ParameterName,
    /// One line feed after the opening tag is none of the value, nor is one before its end.
    ValueStart(ParameterKind),
    Value(ParameterKind),
}

/// A name up to `>`.
enum Name {
    Waits,
    Found(String),
    Broken,
}

impl XmlCall {
    /// `tag`: the one that was found.
    pub fn new(tag: &str, tools: Arc<Vec<Tool>>) -> Self {
        let is_bare = tag == FUNCTION;
        let state = if is_bare { State::FunctionName } else { State::Head };
        let raw = tag.to_owned();
        Self { tools, tool: None, is_bare, state, raw, num_parameters: 0 }
    }

    /// No tag opened it.
    pub fn is_bare(&self) -> bool {
        self.is_bare
    }

    /// Takes text from the front of `pending`.
    pub fn push(&mut self, pending: &mut String, output: &mut Output<'_>) -> Progress {
        loop {
            let state = std::mem::replace(&mut self.state, State::BetweenParameters);
            let progress = match state {
                State::Head => self.read_head(pending),
                State::FunctionName => self.read_function(pending, output),
                State::BetweenParameters => self.find_parameter(pending, output),
                State::ParameterName => self.read_parameter(pending, output),
                State::ValueStart(kind) => self.start_value(pending, kind),
                State::Value(kind) => self.read_value(pending, kind, output),
            };
            if let Some(progress) = progress {
                return progress;
            }
        }
    }

    /// The answer is over with `rest`. The text so far if it is no call.
    pub fn finish(mut self, rest: &str, output: &mut Output<'_>) -> Option<String> {
        match std::mem::replace(&mut self.state, State::BetweenParameters) {
            State::Head | State::FunctionName => return Some(self.raw + rest),
            State::BetweenParameters | State::ParameterName => {}
            State::ValueStart(kind) | State::Value(kind) => end_value(rest, &kind, output),
        }
        self.close(output);
        None
    }

    fn read_head(&mut self, pending: &mut String) -> Option<Progress> {
        let text = pending.trim_start();
        if text.len() < FUNCTION.len() && FUNCTION.starts_with(text) {
            self.state = State::Head;
            return Some(Progress::Waits);
        }
        if !text.starts_with(FUNCTION) {
            return Some(self.no_call());
        }
        let taken = pending.len() - text.len() + FUNCTION.len();
        self.raw.extend(pending.drain(..taken));
        self.state = State::FunctionName;
        None
    }

    fn read_function(&mut self, pending: &mut String, output: &mut Output<'_>) -> Option<Progress> {
        match take_name(pending) {
            Name::Waits => {
                self.state = State::FunctionName;
                Some(Progress::Waits)
            }
            Name::Broken => Some(self.no_call()),
            Name::Found(name) => {
                self.tool = self.tools.iter().position(|tool| tool.name == name);
                output.call(&name);
                None
            }
        }
    }

    /// Text between parameters says nothing.
    fn find_parameter(
        &mut self,
        pending: &mut String,
        output: &mut Output<'_>,
    ) -> Option<Progress> {
        let scan = scan(pending, &[PARAMETER, FUNCTION_END, CLOSE, OPEN]);
        pending.drain(..scan.sure(pending.len()));
        match scan {
            Scan::Found { tag: 0, .. } => {
                pending.drain(..PARAMETER.len());
                self.state = State::ParameterName;
                None
            }
            Scan::Found { tag, .. } => {
                // What ends the call stays, to be found as its end.
                pending.drain(..if tag == 1 { FUNCTION_END.len() } else { 0 });
                self.close(output);
                Some(Progress::Complete)
            }
            Scan::MayBegin(_) | Scan::Absent => Some(Progress::Waits),
        }
    }

    fn read_parameter(
        &mut self,
        pending: &mut String,
        output: &mut Output<'_>,
    ) -> Option<Progress> {
        match take_name(pending) {
            Name::Waits => {
                self.state = State::ParameterName;
                Some(Progress::Waits)
            }
            Name::Broken => None,
            Name::Found(name) => {
                let kind = match self.tool {
                    Some(tool) => self.tools[tool].parameter_kind(&name),
                    None => ParameterKind::Text,
                };
                let before = if self.num_parameters == 0 { "{" } else { ", " };
                let quote = if kind == ParameterKind::Text { "\"" } else { "" };
                let key = Value::from(name);
                output.arguments(&format!("{before}{key}: {quote}"));
                self.num_parameters += 1;
                self.state = State::ValueStart(kind);
                None
            }
        }
    }

    fn start_value(&mut self, pending: &mut String, kind: ParameterKind) -> Option<Progress> {
        if pending.is_empty() {
            self.state = State::ValueStart(kind);
            return Some(Progress::Waits);
        }
        if pending.starts_with('\n') {
            pending.remove(0);
        }
        self.state = State::Value(kind);
        None
    }

    fn read_value(
        &mut self,
        pending: &mut String,
        kind: ParameterKind,
        output: &mut Output<'_>,
    ) -> Option<Progress> {
        let scan = scan(pending, &[PARAMETER_END, CLOSE]);
        if let Scan::Found { start, tag } = scan {
            end_value(&pending[..start], &kind, output);
            pending.drain(..if tag == 0 { start + PARAMETER_END.len() } else { start });
            return None;
        }
        if kind == ParameterKind::Text {
            let sure = &pending[..scan.sure(pending.len())];
            let given = sure.strip_suffix('\n').unwrap_or(sure).len();
            output.arguments(&escaped(&pending[..given]));
            pending.drain(..given);
        }
        self.state = State::Value(kind);
        Some(Progress::Waits)
    }

    fn no_call(&mut self) -> Progress {
        Progress::NoCall { raw: std::mem::take(&mut self.raw) }
    }

    fn close(&mut self, output: &mut Output<'_>) {
        output.arguments(if self.num_parameters == 0 { "{}" } else { "}" });
    }
}

fn end_value(text: &str, kind: &ParameterKind, output: &mut Output<'_>) {
    let text = text.strip_suffix('\n').unwrap_or(text);
    match kind {
        ParameterKind::Text => output.arguments(&format!("{}\"", escaped(text))),
        ParameterKind::Json(types) => output.arguments(&to_json(text, types)),
    }
}

fn take_name(pending: &mut String) -> Name {
    match pending.find(['>', '<', '\n']) {
        Some(end) if pending[end..].starts_with('>') && (1..=NAME_BYTES_MAX).contains(&end) => {
            let name = pending[..end].to_owned();
            pending.drain(..=end);
            Name::Found(name)
        }
        None if pending.len() <= NAME_BYTES_MAX => Name::Waits,
        _ => Name::Broken,
    }
}
