//! The only folder that knows JSON and status codes: an OpenAI-compatible API over HTTP/1.1.

pub mod router;
pub mod server;
pub mod stall;
pub mod limits;
pub mod state;
pub mod auth;
pub mod body;
pub mod fields;
pub mod sampling;
pub mod unsupported;
pub mod unknown;
pub mod messages;
pub mod tools;
pub mod chat_completions;
pub mod completions;
pub mod fill_in;
pub mod anthropic;
pub mod responses;
pub mod tokenize;
pub mod generation;
pub mod choice;
pub mod wire;
pub mod sse;
pub mod models;
pub mod health;
pub mod page;
pub mod metrics_endpoint;
pub mod openapi;
pub mod error;
#[cfg(test)]
mod tests;

pub use auth::public_routes;
pub use limits::{HttpConfig, UnknownFields};
pub use page::WebPage;
pub use router::ROUTES;
pub use server::{Drained, listen, serve};
pub use state::{AppState, ServedModel, Serving};
