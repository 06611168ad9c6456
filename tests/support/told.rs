//! What a client of a server is told: tokens and how likely they were.

use crate::http::{Answer, post_bytes};
use crate::program::Program;
use serde_json::{Value, json};
use std::io::Write;

/// A greedy continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f64>,
}

/// Asks for the `num_tokens` likeliest tokens after `prompt`.
pub fn complete(server: &Program, prompt: &[u32], num_tokens: usize) -> Told {
    let body = json!({
        "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": true,
        "logprobs": 1, "return_tokens_as_token_ids": true,
    });
    let mut stream = server.connect();
    let request = post_bytes("/v1/completions", &body.to_string());
    stream.write_all(&request).expect("the request is taken");
    let answer = Answer::read(&mut stream);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    let logprobs = &json["choices"][0]["logprobs"];
    let list = |name: &str| -> Vec<Value> { logprobs[name].as_array().expect("a list").clone() };
    let id = |token: &Value| {
        let text = token.as_str().expect("a token");
        text.strip_prefix("token_id:").expect("an id").parse().expect("a number")
    };
    let logprob = |value: &Value| value.as_f64().expect("a number");
    Told {
        tokens: list("tokens").iter().map(id).collect(),
        logprobs: list("token_logprobs").iter().map(logprob).collect(),
    }
}
