//! What a model thinks and what it answers: text in `<think>...</think>` and the text after it.

use super::answer::Part;
use super::tags::{Scan, scan};

pub const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
const TOOL_CALL: &str = "<tool_call>";
/// Begins each turn in the templates of the Qwen family.
const TURN: &str = "<|im_start|>";

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningStart {
    /// The prompt has opened the thinking.
    Inside,
    /// The model opens it itself, if it thinks at all.
    Outside,
}

impl ReasoningStart {
    /// Reads it off the end of the rendered prompt: its last turn may be open within the thinking.
    pub fn of_prompt(rendered: &str) -> ReasoningStart {
        let turn = last_turn(rendered);
        match (turn.rfind(OPEN), turn.rfind(CLOSE)) {
            (Some(open), close) if close.is_none_or(|close| close < open) => ReasoningStart::Inside,
            _ => ReasoningStart::Outside,
        }
    }

    /// Whether the prompt's last turn has closed its thinking already.
    pub fn has_thought(rendered: &str) -> bool {
        last_turn(rendered).contains(CLOSE)
    }
}

fn last_turn(rendered: &str) -> &str {
    rendered.rfind(TURN).map_or(rendered, |start| &rendered[start..])
}

/// Text of a call ends the thinking, where calls are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolCallEnds {
    Yes,
    No,
}

/// Splits an answer, however it is cut into pieces. Line feeds around the reasoning belong to
/// neither part; all other text is given on as it is.
pub struct ReasoningSplitter {
    state: State,
    tool_call_ends: ToolCallEnds,
    /// Not given on yet: may be markup, or line feeds at the end of the reasoning.
    pending: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only white space so far.
    Beginning,
    /// Line feeds after `<think>`.
    Opened,
    Inside,
    /// Line feeds after `</think>`.
    Closed,
    Outside,
}

impl ReasoningSplitter {
    pub fn new(start: ReasoningStart, tool_call_ends: ToolCallEnds) -> Self {
        let state = match start {
            ReasoningStart::Inside => State::Opened,
            ReasoningStart::Outside => State::Beginning,
        };
        Self { state, tool_call_ends, pending: String::new() }
    }

    /// Whether the answer is within the thinking at this point.
    pub fn is_inside(&self) -> bool {
        matches!(self.state, State::Opened | State::Inside)
    }

    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.pending.push_str(text);
        while self.step(parts) {}
    }

    /// The answer is over: what was held back.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        let rest = std::mem::take(&mut self.pending);
        match self.state {
            State::Opened | State::Closed => {}
            State::Inside => give(parts, Part::Reasoning, rest.trim_end_matches('\n')),
            State::Beginning | State::Outside => give(parts, Part::Content, &rest),
        }
        self.state = State::Outside;
    }

    /// Whether there is more to do with what is pending.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Beginning => self.begin(),
            State::Opened => self.skip_line_feeds(State::Inside),
            State::Inside => self.think(parts),
            State::Closed => self.skip_line_feeds(State::Outside),
            State::Outside => {
                give(parts, Part::Content, &std::mem::take(&mut self.pending));
                false
            }
        }
    }

    fn begin(&mut self) -> bool {
        let text = self.pending.trim_start();
        if let Some(rest) = text.strip_prefix(OPEN) {
            self.pending = rest.to_owned();
            self.state = State::Opened;
            return true;
        }
        if OPEN.starts_with(text) {
            return false;
        }
        self.state = State::Outside;
        true
    }

    fn skip_line_feeds(&mut self, next: State) -> bool {
        let skipped = self.pending.len() - self.pending.trim_start_matches('\n').len();
        self.pending.drain(..skipped);
        if self.pending.is_empty() {
            return false;
        }
        self.state = next;
        true
    }

    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let tags: &[&str] = match self.tool_call_ends {
            ToolCallEnds::Yes => &[CLOSE, TOOL_CALL],
            ToolCallEnds::No => &[CLOSE],
        };
        let scan = scan(&self.pending, tags);
        let sure = scan.sure(self.pending.len());
        let text = self.pending[..sure].trim_end_matches('\n');
        give(parts, Part::Reasoning, text);
        match scan {
            Scan::Found { start, tag } => {
                let (taken, next) = match tag {
                    0 => (start + CLOSE.len(), State::Closed),
                    // The call itself is part of the answer.
                    _ => (start, State::Outside),
                };
                self.pending.drain(..taken);
                self.state = next;
                true
            }
            Scan::MayBegin(_) | Scan::Absent => {
                let given = text.len();
                self.pending.drain(..given);
                false
            }
        }
    }
}

fn give(parts: &mut Vec<Part>, part: fn(String) -> Part, text: &str) {
    if !text.is_empty() {
        parts.push(part(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::every_cut;

    fn split(start: ReasoningStart, ends: ToolCallEnds, pieces: &[&str]) -> (String, String) {
        let mut splitter = ReasoningSplitter::new(start, ends);
        let mut parts = Vec::new();
        pieces.iter().for_each(|piece| splitter.push(piece, &mut parts));
        splitter.finish(&mut parts);
        let (mut reasoning, mut content) = (String::new(), String::new());
        for part in parts {
            match part {
                Part::Reasoning(text) => reasoning.push_str(&text),
                Part::Content(text) => content.push_str(&text),
                Part::Call { .. } | Part::Arguments { .. } => unreachable!("no calls here"),
            }
        }
        (reasoning, content)
    }

    #[track_caller]
    fn check(start: ReasoningStart, ends: ToolCallEnds, text: &str, expected: (&str, &str)) {
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        every_cut(text, |pieces| assert_eq!(split(start, ends, pieces), expected, "{pieces:?}"));
    }

    #[test]
    fn reasoning_and_content_are_the_same_however_the_text_is_cut() {
        use ReasoningStart::{Inside, Outside};
        use ToolCallEnds::{No, Yes};
        check(Outside, No, "<think>\nHm, é\n</think>\n\nYes.\n", ("Hm, é", "Yes.\n"));
        check(Outside, No, "\n <think>a\n\nb</think>c", ("a\n\nb", "c"));
        check(Outside, No, "<think>\n\n</think>\n\nYes", ("", "Yes"));
        check(Outside, No, "\n<thin air", ("", "\n<thin air"));
        check(Outside, No, "I <think>so</think>", ("", "I <think>so</think>"));
        check(Outside, No, "<think", ("", "<think"));
        check(Inside, No, "a < b\n</think>\n<think>x", ("a < b", "<think>x"));
        check(Inside, No, "cut within\n\n", ("cut within", ""));
        check(Inside, No, "cut within </thi", ("cut within </thi", ""));
        check(Inside, No, "a<tool_call>b</think>c", ("a<tool_call>b", "c"));
        check(Inside, Yes, "a\n<tool_call>b</think>c", ("a", "<tool_call>b</think>c"));
        check(Inside, No, "", ("", ""));
    }

    #[test]
    fn the_start_is_read_off_the_last_turn() {
        let check = |rendered: &str, start| {
            assert_eq!(ReasoningStart::of_prompt(rendered), start, "{rendered}");
        };
        check("<|im_start|>assistant\n<think>\n", ReasoningStart::Inside);
        check("<|im_start|>assistant\n<think>\nso far", ReasoningStart::Inside);
        check("<|im_start|>assistant\n<think>\n\n</think>\n\n", ReasoningStart::Outside);
        check("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n", {
            ReasoningStart::Outside
        });
        check("", ReasoningStart::Outside);
    }
}
