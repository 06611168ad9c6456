//! An answer taken apart: reasoning, content and calls of tools.

use super::reasoning::{self, ReasoningSplitter, ReasoningStart, ToolCallEnds};
use super::tools::{Tool, ToolFormat, ToolParser};
use std::sync::Arc;

/// A piece of an answer. Pieces of one kind join to the whole; calls are numbered from 0, and the
/// pieces of one call follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Reasoning(String),
    Content(String),
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments' JSON text.
    Arguments {
        index: usize,
        text: String,
    },
}

/// How the served model writes calls of tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ToolMarkup {
    /// As its chat template teaches it; none if that knows no tools.
    #[default]
    Template,
    Format(ToolFormat),
    None,
}

impl ToolMarkup {
    pub fn format(self, template: &str) -> Option<ToolFormat> {
        match self {
            ToolMarkup::Template => ToolFormat::of_template(template),
            ToolMarkup::Format(format) => Some(format),
            ToolMarkup::None => None,
        }
    }
}

/// How the served model writes its reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReasoningMarkup {
    /// In `<think>` if its chat template knows that, else not at all.
    #[default]
    Template,
    Think,
    None,
}

impl ReasoningMarkup {
    pub fn is_used(self, template: &str) -> bool {
        match self {
            ReasoningMarkup::Template => template.contains(reasoning::OPEN),
            ReasoningMarkup::Think => true,
            ReasoningMarkup::None => false,
        }
    }
}

/// What to look for in an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerFormat {
    /// `None`: text of thinking is content like any other.
    pub reasoning: Option<ReasoningStart>,
    pub tools: Option<AnswerTools>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AnswerTools {
    pub format: ToolFormat,
    pub tools: Arc<Vec<Tool>>,
    /// Calls after so many are dropped.
    pub calls_max: usize,
}

/// Takes one answer apart. The parts do not depend on how its text is cut into pieces.
pub struct AnswerParser {
    reasoning: Option<ReasoningSplitter>,
    tools: Option<ToolParser>,
}

impl AnswerParser {
    pub fn new(format: &AnswerFormat) -> Self {
        let ends = if format.tools.is_some() { ToolCallEnds::Yes } else { ToolCallEnds::No };
        Self {
            reasoning: format.reasoning.map(|start| ReasoningSplitter::new(start, ends)),
            tools: format
                .tools
                .as_ref()
                .map(|asked| ToolParser::new(asked.format, asked.tools.clone(), asked.calls_max)),
        }
    }

    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.reasoning {
            Some(reasoning) => reasoning.push(text, &mut parts),
            None if text.is_empty() => {}
            None => parts.push(Part::Content(text.to_owned())),
        }
        self.find_calls(parts)
    }

    /// The answer is over: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.finish(&mut parts);
        }
        let mut parts = self.find_calls(parts);
        if let Some(tools) = &mut self.tools {
            tools.finish(&mut parts);
        }
        parts
    }

    /// Whether the answer is within its reasoning at this point.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningSplitter::is_inside)
    }

    /// Calls given on so far.
    pub fn num_calls(&self) -> usize {
        self.tools.as_ref().map_or(0, ToolParser::num_calls)
    }

    /// Calls are made in the content.
    fn find_calls(&mut self, parts: Vec<Part>) -> Vec<Part> {
        let Some(tools) = &mut self.tools else { return parts };
        let mut found = Vec::new();
        for part in parts {
            match part {
                Part::Content(text) => tools.push(&text, &mut found),
                other => found.push(other),
            }
        }
        found
    }
}
