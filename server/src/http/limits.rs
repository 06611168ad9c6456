//! The limits of the HTTP side. Each has a stated behaviour when it is reached.

use super::auth::KeyRing;
use super::page::WebPage;
use std::time::Duration;

/// What the operator sets; the defaults suit one machine.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Without keys every route is open. Else all but `auth::PUBLIC_ROUTES` ask for one of them.
    pub keys: KeyRing,
    /// Open connections; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// Longer bodies get 413.
    pub body_bytes_max: usize,
    /// Bytes of all bodies being read or parsed at a time; beyond it 429.
    pub bodies_bytes_max: usize,
    /// Sum of the lengths of header names and values; beyond it 431.
    pub header_bytes_max: usize,
    /// Number of headers; beyond it 431.
    pub headers_max: usize,
    /// A connection that has not sent a whole head for so long is closed, idle ones included.
    pub header_timeout: Duration,
    /// A body that has not arrived for so long gets 408.
    pub body_timeout: Duration,
    /// A client that takes no byte for so long is cut off, which aborts its request.
    pub write_timeout: Duration,
    /// Running answers get so long to end after the signal to stop.
    pub drain_timeout: Duration,
    /// A stream that has nothing to send for so long sends a comment.
    pub ping_interval: Duration,
    /// What `Retry-After` says when the queue is full.
    pub retry_after: Duration,
    /// Largest `n`; beyond it 400.
    pub choices_max: usize,
    /// Longest list of prompts; beyond it 400.
    pub prompts_max: usize,
    /// Largest prompts x n; beyond it 400.
    pub sequences_max: usize,
    /// Longest list of messages; beyond it 400.
    pub messages_max: usize,
    pub unknown_fields: UnknownFields,
    pub web_page: WebPage,
}

/// What is done with fields of a request that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownFields {
    /// The answer names them in a header.
    Ignored,
    /// 400.
    Refused,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            keys: KeyRing::default(),
            connections_max: 4096,
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 256 << 20,
            header_bytes_max: 16 << 10,
            headers_max: 100,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(15),
            retry_after: Duration::from_secs(1),
            choices_max: 128,
            prompts_max: 1024,
            sequences_max: 1024,
            messages_max: 4096,
            unknown_fields: UnknownFields::Ignored,
            web_page: WebPage::Served,
        }
    }
}

/// Levels of arrays and objects in a body; beyond it 400.
pub const JSON_DEPTH_MAX: usize = 64;
/// JSON values in a body, which bounds the memory its tree takes; beyond it 400.
pub const JSON_VALUES_MAX: usize = 1 << 20;
/// Stop strings of a request; beyond it 400.
pub const STOP_STRINGS_MAX: usize = 16;
/// Bytes of a stop string; beyond it 400.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
/// Stop tokens of a request; beyond it 400.
pub const STOP_TOKEN_IDS_MAX: usize = 256;
/// Ids in `allowed_token_ids`; beyond it 400.
pub const ALLOWED_TOKEN_IDS_MAX: usize = 65_536;
/// Entries of `logit_bias`; beyond it 400.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Bytes of a client's own `x-request-id`; a longer one is not repeated: the answer has one of
/// ours.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Tools of a request; beyond it 400.
pub const TOOLS_MAX: usize = 512;
/// Bytes of a tool's name; beyond it 400.
pub const TOOL_NAME_BYTES_MAX: usize = 128;
/// Bytes of an instruction for queries; beyond it 400.
pub const INSTRUCTION_BYTES_MAX: usize = 16 << 10;
/// Text parts of one message; beyond it 400.
pub const CONTENT_PARTS_MAX: usize = 1024;
/// Bytes of a row's `custom_id`; beyond it the job fails.
pub const CUSTOM_ID_BYTES_MAX: usize = 512;
/// Bytes of the answer to a row; beyond it the row fails.
pub const ROW_ANSWER_BYTES_MAX: usize = 256 << 20;
/// Parts of a form; beyond it 400.
pub const FORM_PARTS_MAX: usize = 16;
/// Bytes of a form that are in memory at a time; beyond it 400.
pub const FORM_BYTES_MAX: usize = 32 << 20;
/// Bytes of one name-like field (model, user, cache_salt); beyond it 400.
pub const NAME_BYTES_MAX: usize = 1024;
/// Connections that wait to be accepted; the system may allow fewer. Further ones are not answered
/// until their clients try again.
pub const BACKLOG: u32 = 4096;
/// What is read and thrown away of a body that is too long, so that a client that is still sending
/// it sees the answer.
pub const DISCARD_BYTES_MAX: usize = 1 << 20;
/// How long is waited for each piece of what is thrown away.
pub const DISCARD_TIMEOUT: Duration = Duration::from_millis(200);
