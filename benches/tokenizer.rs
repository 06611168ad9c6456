//! Text -> ids with the published Qwen3 tokenizer, ours beside the tokenizers crate on one thread,
//! and back: `cargo bench -p benches --bench tokenizer`. With `-- compare` both encode the
//! reference's texts in turns, and a table of the medians is printed instead.

use benches::text::{Case, Reference, cases, chats, qwen3_stage, qwen3_tokenizer};
use criterion::{Criterion, Throughput, criterion_group};
use server::text::SpecialTokens;
use std::hint::black_box;
use std::time::Instant;
