//! Why text cannot become tokens.

use std::path::PathBuf;
use std::time::Duration;

/// One request cannot be encoded. `Busy` asks for a retry; `Crashed` and `Stopped` are ours; the
/// rest is for the client to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("the text has {bytes} bytes, the limit is {bytes_max}")]
    InputTooLong { bytes: usize, bytes_max: usize },
    #[error("the text has {bytes} bytes without a word's end, the limit is {bytes_max}")]
    UnbrokenTooLong { bytes: usize, bytes_max: usize },
    #[error("{jobs} texts of {bytes} bytes wait, the limits are {jobs_max} and {bytes_max}")]
    Busy { jobs: usize, jobs_max: usize, bytes: usize, bytes_max: usize },
    #[error("this model has no chat template")]
    NoTemplate,
    /// The template raised an exception or cannot make sense of the messages.
    #[error("the chat template refuses the messages: {message}")]
    Template { message: String },
    #[error("the rendered chat is longer than {bytes_max} bytes")]
    RenderedTooLong { bytes_max: usize },
    #[error("rendering the chat takes more than {steps_max} steps of the template")]
    TooManySteps { steps_max: u64 },
    #[error("rendering the chat takes longer than {time_max:?}")]
    TooSlow { time_max: Duration },
    #[error("the messages nest deeper than {depth_max} levels")]
    TooDeep { depth_max: usize },
    #[error("{stops} stop strings, the limit is {stops_max}")]
    TooManyStops { stops: usize, stops_max: usize },
    #[error("a stop string has {bytes} bytes, allowed are 1 to {bytes_max}")]
    StopLength { bytes: usize, bytes_max: usize },
    #[error("{tokens_max} tokens leave no room for a text: {frame} are around it")]
    NoRoom { tokens_max: usize, frame: usize },
    #[error("continue_final_message needs a last message of role assistant with text content")]
    NothingToContinue,
    #[error("the tokenizer failed on this text: {reason}")]
    Crashed { reason: String },
    #[error("the text stage has stopped")]
    Stopped,
}

/// The text stage cannot start: always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TextStartError {
    #[error("cannot read the tokenizer {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("the tokenizer is not valid: {reason}")]
    Invalid { reason: String },
    #[error("unsupported tokenizer: {key} is {value}; supported: {supported}")]
    Unsupported { key: String, value: String, supported: String },
    #[error("the tokenizer has {vocab_size} ids, but the model has only {embedding_rows}")]
    TooManyIds { vocab_size: usize, embedding_rows: usize },
    #[error("the chat template is not valid: {reason}")]
    Template { reason: String },
    #[error("cannot start a tokenizer thread: {source}")]
    Thread { source: std::io::Error },
}
