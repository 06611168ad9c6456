//! How much a model thinks before it answers: `thinking_budget`, `reasoning_effort`.

use super::chat_completions::ENABLE_THINKING;
use super::error::RequestError;
use super::fields::{Field, Fields, Kind, out_of_range};
use super::state::{ServedModel, ThinkingModel};
use serde_json::{Value, json};

pub const THINKING_BUDGET: Field = Field {
    name: "thinking_budget",
    kind: Kind::Integer { min: 0, max: i64::MAX },
    doc: "After so many tokens of thinking it is closed and the answer begins. Default: no limit.",
};
pub const THINKING_TOKEN_BUDGET: Field = Field {
    name: "thinking_token_budget",
    kind: Kind::Integer { min: 0, max: i64::MAX },
    doc: "The same as thinking_budget, which goes before it.",
};
pub const REASONING_EFFORT: Field = Field {
    name: "reasoning_effort",
    kind: Kind::Shape(effort_schema),
    doc: "none switches thinking off. Else given to a template that knows it; with others minimal, \
          low and medium are budgets of 256, 1024 and 8192 tokens.",
};

/// Values of `reasoning_effort`.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// How much the model is to think.
#[derive(Debug, Default)]
pub struct WantedThinking {
    /// Tokens of thinking; None: any number.
    pub budget: Option<usize>,
    /// The effort that the template tells the model.
    pub told: Option<String>,
}

/// Errors: a value that is wrong; a model that does not think. An effort of `none` switches the
/// thinking off, as if the client had said so.
pub fn read_thinking(
    fields: &mut Fields,
    model: &ServedModel,
) -> Result<WantedThinking, RequestError> {
    let effort = read_effort(fields, model)?;
    let newer = fields.count(&THINKING_BUDGET)?;
    let older = fields.count(&THINKING_TOKEN_BUDGET)?;
    match (newer.or(older), effort) {
        (Some(_), _) if model.thinking == ThinkingModel::No => {
            Err(no_thinking(THINKING_BUDGET.name))
        }
        // The client's own number goes before that of the effort.
        (budget @ Some(_), Effort::Told(effort)) => {
            Ok(WantedThinking { budget, told: Some(effort) })
        }
        (budget @ Some(_), _) => Ok(WantedThinking { budget, told: None }),
        (None, Effort::Budget(tokens)) => Ok(WantedThinking { budget: Some(tokens), told: None }),
        (None, Effort::Told(effort)) => Ok(WantedThinking { budget: None, told: Some(effort) }),
        (None, Effort::Default) => Ok(WantedThinking::default()),
    }
}

enum Effort {
    Default,
    /// The template tells the model.
    Told(String),
    Budget(usize),
}

fn read_effort(fields: &mut Fields, model: &ServedModel) -> Result<Effort, RequestError> {
    let value = match fields.take(&REASONING_EFFORT) {
        None => return Ok(Effort::Default),
        Some(value) => value,
    };
    let effort = value.as_str().filter(|effort| EFFORTS.contains(effort));
    let Some(effort) = effort.map(str::to_owned) else {
        return Err(out_of_range(REASONING_EFFORT.name, &value, EFFORTS.join(", ")));
    };
    if effort == "none" {
        if fields.value(ENABLE_THINKING.name).is_none() {
            fields.set(&ENABLE_THINKING, false.into());
        }
        return Ok(Effort::Default);
    }
    match model.thinking {
        ThinkingModel::No => Err(no_thinking(REASONING_EFFORT.name)),
        ThinkingModel::TakesEffort => Ok(Effort::Told(effort)),
        ThinkingModel::Yes => match effort.as_str() {
            "minimal" => Ok(Effort::Budget(256)),
            "low" => Ok(Effort::Budget(1024)),
            "medium" => Ok(Effort::Budget(8192)),
            _ => Ok(Effort::Default),
        },
    }
}

fn no_thinking(field: &str) -> RequestError {
    let reason = "this model does not think before it answers".to_string();
    RequestError::Invalid { field: field.into(), reason }
}

fn effort_schema() -> Value {
    json!({"anyOf": [{"enum": EFFORTS}, {"type": "null"}]})
}
