//! Monsoon's server: HTTP in, tokens out. The binary is `main.rs`; this library holds its rooms so
//! that tests can enter them.

pub mod commands;
pub mod config;
pub mod metrics;
pub mod hub;
pub mod machine;
pub mod units;
pub mod http;
pub mod text;
pub mod engine;
pub mod jobs;
pub mod ranks;
