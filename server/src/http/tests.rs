//! What requests may hold, without a socket: one row per field and bad value.

use super::auth::KeyRing;
use super::chat_completions::{self, ChatRequest};
use super::completions::{self, CompletionRequest, Prompt};
use super::error::{ApiError, MESSAGE_CHARS_MAX, RequestError};
use super::fields::{Field, Fields};
use super::limits::{HttpConfig, JSON_DEPTH_MAX, JSON_VALUES_MAX};
use super::openapi::document;
use super::responses::store::ResponseStore;
use super::router::ROUTES;
use super::sampling::StreamOptions;
use super::state::{ServedModel, ThinkingModel};
use super::task::Task;
use super::{anthropic, responses};
use crate::text::ToolFormat;
use axum::http::HeaderMap;
use models::{GenerationDefaults, TokenId};
use serde_json::{Value, json};

const EOS: TokenId = TokenId(90);

fn model() -> ServedModel {
    ServedModel {
        names: vec!["m".into(), "org/m".into()],
        created: 1,
        max_model_len: 64,
        vocab_size: 100,
        eos_token_ids: vec![EOS],
        generation: GenerationDefaults {
            temperature: Some(0.5),
            top_k: Some(7),
            ..GenerationDefaults::default()
        },
        tool_format: Some(ToolFormat::Hermes),
        thinking: ThinkingModel::Yes,
        task: Task::Generate,
    }
}

fn parse(body: &Value) -> Fields {
    Fields::parse(body.to_string().as_bytes()).expect("a JSON object")
}

fn chat(extra: Value) -> Result<ChatRequest, RequestError> {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    ChatRequest::into_request(&mut parse(&body), &model(), &HttpConfig::default())
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// A request with one tool.
fn tool(function: Value) -> Value {
    json!({"tools": [{"type": "function", "function": function}]})
}

fn completion(extra: Value) -> Result<CompletionRequest, RequestError> {
    let mut body = json!({"prompt": "x"});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    CompletionRequest::into_request(&mut parse(&body), &model(), &HttpConfig::default())
}

/// The error's status, param and message hold what the row says.
#[track_caller]
fn check(row: &Value, error: RequestError, param: &str, pieces: &[&str]) {
    let error = ApiError::from(error);
    let body = error.body();
    let message = body["error"]["message"].as_str().expect("a message").to_owned();
    assert_eq!(error.status().as_u16(), 400, "{row}: {message}");
    assert_eq!(body["error"]["param"], param, "{row}: {message}");
    assert_eq!(body["error"]["type"], "invalid_request_error", "{row}: {message}");
    for piece in pieces {
        assert!(message.contains(piece), "{row}: no {piece:?} in {message:?}");
    }
}

/// Fields that both endpoints read.
fn bad_common_fields() -> Vec<(Value, &'static str, &'static [&'static str])> {
    vec![
        (json!({"model": 1}), "model", &["a string", "1"]),
        (json!({"model": "m".repeat(2000)}), "model", &["2000", "1024"]),
        (json!({"temperature": -0.1}), "temperature", &["-0.1", "0 to 1000"]),
        (json!({"temperature": 1001}), "temperature", &["1001"]),
        (json!({"temperature": "1"}), "temperature", &["a string", "a number"]),
        (json!({"temperature": true}), "temperature", &["a boolean"]),
        (json!({"top_p": 0}), "top_p", &["0", "above 0"]),
        (json!({"top_p": 1.01}), "top_p", &["1.01", "up to 1"]),
        (json!({"top_p": 1e-60}), "top_p", &["above 0"]),
        (json!({"top_p": []}), "top_p", &["a list"]),
        (json!({"top_k": -2}), "top_k", &["-2", "-1"]),
        (json!({"top_k": 1.5}), "top_k", &["1.5", "an integer"]),
        (json!({"top_k": "5"}), "top_k", &["a string"]),
        (json!({"min_p": -0.1}), "min_p", &["-0.1"]),
        (json!({"min_p": 1.1}), "min_p", &["1.1"]),
        (json!({"repetition_penalty": 0}), "repetition_penalty", &["0.01"]),
        (json!({"repetition_penalty": -1}), "repetition_penalty", &["-1"]),
        (json!({"presence_penalty": 2.1}), "presence_penalty", &["2.1", "-2 to 2"]),
        (json!({"presence_penalty": -2.1}), "presence_penalty", &["-2.1"]),
        (json!({"frequency_penalty": 3}), "frequency_penalty", &["3"]),
        (json!({"frequency_penalty": {}}), "frequency_penalty", &["an object"]),
        (json!({"logit_bias": [1]}), "logit_bias", &["a list", "an object"]),
        (json!({"logit_bias": {"abc": 1}}), "logit_bias", &["abc"]),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias", &["-1"]),
        (json!({"logit_bias": {"100": 1}}), "logit_bias", &["100", "vocabulary size 100"]),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5", &["101", "-100 to 100"]),
        (json!({"logit_bias": {"5": "1"}}), "logit_bias.5", &["a string"]),
        (json!({"seed": 0.5}), "seed", &["0.5"]),
        (json!({"seed": "a"}), "seed", &["a string"]),
        (json!({"seed": u64::MAX}), "seed", &["18446744073709551615"]),
        (json!({"stop": ""}), "stop", &["empty"]),
        (json!({"stop": ["a", ""]}), "stop", &["empty"]),
        (json!({"stop": 1}), "stop", &["1"]),
        (json!({"stop": [1]}), "stop", &["1"]),
        (json!({"stop": vec!["a"; 17]}), "stop", &["17", "16"]),
        (json!({"stop": "a".repeat(1025)}), "stop", &["1025", "1024"]),
        (json!({"stop_token_ids": 1}), "stop_token_ids", &["a list"]),
        (json!({"stop_token_ids": [100]}), "stop_token_ids", &["100", "vocabulary size 100"]),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids", &["-1"]),
        (json!({"stop_token_ids": vec![1; 257]}), "stop_token_ids", &["257", "256"]),
        (json!({"min_tokens": -1}), "min_tokens", &["-1"]),
        (json!({"min_tokens": "a"}), "min_tokens", &["a string"]),
        (json!({"ignore_eos": 1}), "ignore_eos", &["a boolean"]),
        (json!({"n": 0}), "n", &["0", "1"]),
        (json!({"n": -1}), "n", &["-1"]),
        (json!({"n": 129}), "n", &["129", "128"]),
        (json!({"n": 1.5}), "n", &["1.5"]),
        (json!({"stream": "yes"}), "stream", &["a string"]),
        (json!({"stream_options": {}}), "stream_options", &["stream"]),
        (json!({"stream": true, "stream_options": 1}), "stream_options", &["an object"]),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            &["a boolean"],
        ),
        (json!({"skip_special_tokens": 0}), "skip_special_tokens", &["a boolean"]),
        (json!({"return_tokens_as_token_ids": 0}), "return_tokens_as_token_ids", &["a boolean"]),
        (json!({"priority": 1u64 << 40}), "priority", &["1099511627776"]),
        (json!({"cache_salt": 5}), "cache_salt", &["a string"]),
        (json!({"user": {}}), "user", &["an object"]),
    ]
}

/// Answers that cannot be held to what the fields say.
fn bad_constraints() -> Vec<(Value, &'static str, &'static [&'static str])> {
    vec![
        (json!({"response_format": "text"}), "response_format", &["a string", "an object"]),
        (json!({"response_format": {}}), "response_format.type", &["required"]),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", &["xml"]),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            &["required"],
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
            &["required"],
        ),
        (
            json!({"response_format": {"type": "structural_tag"}}),
            "response_format.type",
            &["supported"],
        ),
        (
            json!({"structured_outputs": {"json": {}, "regex": "a"}}),
            "structured_outputs",
            &["exactly one"],
        ),
        (
            json!({"structured_outputs": {"structural_tag": "x"}}),
            "structured_outputs.structural_tag",
            &["supported"],
        ),
        (json!({"guided_json": "x", "seed": 1}), "guided_json", &["no JSON object"]),
        (json!({"guided_json": 1}), "guided_json", &["1", "a JSON schema"]),
        (json!({"guided_regex": ""}), "guided_regex", &["empty"]),
        (json!({"guided_choice": []}), "guided_choice", &["a list of 0", "1 to 1024"]),
        (json!({"guided_choice": ["a", 1]}), "guided_choice", &["1", "strings"]),
        (json!({"guided_grammar": "root ::= x"}), "guided_grammar", &["'x' is not there"]),
        (
            json!({"guided_regex": "a", "response_format": {"type": "json_object"}}),
            "guided_regex",
            &["response_format"],
        ),
        (json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos", &["guided_regex"]),
        (json!({"bad_words": "a"}), "bad_words", &["a string"]),
        (json!({"bad_words": [""]}), "bad_words", &["1 to 128 bytes"]),
        (json!({"allowed_token_ids": []}), "allowed_token_ids", &["a list of 0"]),
        (json!({"allowed_token_ids": [1_000_000_000]}), "allowed_token_ids", &["1000000000"]),
    ]
}

/// Fields that neither endpoint can serve.
fn unsupported_fields() -> Vec<(Value, &'static str, &'static [&'static str])> {
    vec![
        (json!({"prompt_logprobs": 21}), "prompt_logprobs", &["21", "0 to 20"]),
        (json!({"use_beam_search": true}), "use_beam_search", &["true"]),
        (json!({"include_stop_str_in_output": 1}), "include_stop_str_in_output", &["1"]),
    ]
}

#[test]
fn both_endpoints_refuse_bad_values_by_name() {
    let rows = bad_common_fields().into_iter().chain(bad_constraints());
    for (row, param, pieces) in rows.chain(unsupported_fields()) {
        check(&row, chat(row.clone()).expect_err("chat"), param, pieces);
        check(&row, completion(row.clone()).expect_err("completions"), param, pieces);
    }
}

#[test]
fn chat_refuses_bad_values_by_name() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let message = |message: Value| json!({"messages": [message]});
    let rows: Vec<(Value, &str, &[&str])> = vec![
        (json!({"messages": null}), "messages", &["required"]),
        (json!({"messages": []}), "messages", &["a list of 0"]),
        (json!({"messages": "x"}), "messages", &["a string"]),
        (json!({"messages": ["x"]}), "messages[0]", &["a string", "an object"]),
        (message(json!({"content": "x"})), "messages[0].role", &["required"]),
        (message(json!({"role": "bot", "content": "x"})), "messages[0].role", &["bot", "tool"]),
        (message(json!({"role": 1, "content": "x"})), "messages[0].role", &["1"]),
        (message(json!({"role": "user"})), "messages[0].content", &["required"]),
        (message(json!({"role": "assistant"})), "messages[0].content", &["required"]),
        (
            message(json!({"role": "user", "content": "x", "tool_calls": [{}]})),
            "messages[0].tool_calls",
            &["user"],
        ),
        (
            message(json!({"role": "assistant", "tool_calls": [{"function": {}}]})),
            "messages[0].tool_calls[0].function.name",
            &["required"],
        ),
        (user(json!(5)), "messages[0].content", &["5"]),
        (user(json!([])), "messages[0].content", &["a list of 0"]),
        (user(json!(["x"])), "messages[0].content[0]", &["a string"]),
        (user(json!([{"text": "x"}])), "messages[0].content[0].type", &["required"]),
        (user(json!([{"type": "text"}])), "messages[0].content[0].text", &["required"]),
        (
            user(json!([{"type": "image_url", "image_url": {"url": "http://x"}}])),
            "messages[0].content[0].type",
            &["image_url", "not supported"],
        ),
        (user(json!([{"type": "x"}])), "messages[0].content[0].type", &["x", "text"]),
        (json!({"max_tokens": 0}), "max_tokens", &["0", "at least 1"]),
        (json!({"max_tokens": -1}), "max_tokens", &["-1"]),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", &["0"]),
        (json!({"max_completion_tokens": "5"}), "max_completion_tokens", &["a string"]),
        (json!({"logprobs": 1}), "logprobs", &["a boolean"]),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", &["21", "0 to 20"]),
        (json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs", &["-1"]),
        (json!({"top_logprobs": 1}), "top_logprobs", &["logprobs"]),
        (json!({"add_generation_prompt": 1}), "add_generation_prompt", &["a boolean"]),
        (
            json!({"add_generation_prompt": true, "continue_final_message": true}),
            "continue_final_message",
            &["add_generation_prompt"],
        ),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs", &["a list"]),
        (json!({"enable_thinking": "no"}), "enable_thinking", &["a string"]),
        (json!({"include_reasoning": 0}), "include_reasoning", &["0"]),
        (json!({"functions": [{}]}), "functions", &["supported"]),
        (json!({"modalities": ["text", "audio"]}), "modalities", &["supported"]),
        (json!({"audio": {"voice": "x"}}), "audio", &["supported"]),
        (json!({"chat_template": "{{ x }}"}), "chat_template", &["supported"]),
        (json!({"best_of": 2}), "best_of", &["2"]),
    ];
    for (row, param, pieces) in rows {
        check(&row, chat(row.clone()).expect_err("refused"), param, pieces);
    }
}

#[test]
fn bad_tools_are_refused_by_name() {
    let rows: Vec<(Value, &str, &[&str])> = vec![
        (json!({"parallel_tool_calls": "yes"}), "parallel_tool_calls", &["a string"]),
        (json!({"tools": {}}), "tools", &["an object"]),
        (json!({"tools": vec![json!({}); 513]}), "tools", &["513", "512"]),
        (json!({"tools": [1]}), "tools[0]", &["1"]),
        (json!({"tools": [{}]}), "tools[0].type", &["required"]),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type", &["web_search", "function"]),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", &["required"]),
        (tool(json!({})), "tools[0].function.name", &["required"]),
        (tool(json!({"name": ""})), "tools[0].function.name", &["128 bytes"]),
        (tool(json!({"name": "a b"})), "tools[0].function.name", &["a b", "white space"]),
        (tool(json!({"name": "f".repeat(129)})), "tools[0].function.name", &["128 bytes"]),
        (tool(json!({"name": "f", "parameters": []})), "tools[0].function.parameters", &["a list"]),
        (tool(json!({"name": "f", "description": 1})), "tools[0].function.description", &["1"]),
        (json!({"tools": [function("f"), function("f")]}), "tools[1].function.name", &["twice"]),
        (json!({"tool_choice": "required"}), "tool_choice", &["tools"]),
        (json!({"tool_choice": "any"}), "tool_choice", &["any", "auto, none"]),
        (json!({"tool_choice": 1}), "tool_choice", &["1"]),
        (json!({"tool_choice": {}}), "tool_choice.function.name", &["required"]),
        (json!({"tool_choice": function("f")}), "tool_choice", &["tools"]),
        (
            json!({"tools": [function("f")], "tool_choice": function("g")}),
            "tool_choice",
            &["'g'", "none of the tools"],
        ),
        (json!({"reasoning_effort": "huge"}), "reasoning_effort", &["huge", "low"]),
        (json!({"thinking_budget": -1}), "thinking_budget", &["-1", "at least 0"]),
        (json!({"thinking_token_budget": "x"}), "thinking_token_budget", &["a string"]),
    ];
    for (row, param, pieces) in rows {
        check(&row, chat(row.clone()).expect_err("refused"), param, pieces);
    }
}

#[test]
fn completions_refuse_bad_values_by_name() {
    let rows: Vec<(Value, &str, &[&str])> = vec![
        (json!({"prompt": null}), "prompt", &["required"]),
        (json!({"prompt": ""}), "prompt", &["at least one token"]),
        (json!({"prompt": []}), "prompt", &["a list of 0"]),
        (json!({"prompt": [""]}), "prompt", &["at least one token"]),
        (json!({"prompt": [[]]}), "prompt", &["at least one token"]),
        (json!({"prompt": 1}), "prompt", &["1"]),
        (json!({"prompt": {}}), "prompt", &["an object"]),
        (json!({"prompt": [100]}), "prompt", &["100", "vocabulary size 100"]),
        (json!({"prompt": [1, -1]}), "prompt", &["-1"]),
        (json!({"prompt": [1, "a"]}), "prompt", &["a string"]),
        (json!({"prompt": ["a", 1]}), "prompt[1]", &["1"]),
        (json!({"prompt": [[1], [100]]}), "prompt[1]", &["100"]),
        (json!({"prompt": vec!["a"; 1025]}), "prompt", &["1025", "1024"]),
        (json!({"prompt": vec!["a"; 9], "n": 128}), "prompt", &["9 prompts", "1024"]),
        (json!({"max_tokens": 0}), "max_tokens", &["echo"]),
        (json!({"max_tokens": -1}), "max_tokens", &["-1"]),
        (json!({"logprobs": 21}), "logprobs", &["21", "0 to 20"]),
        (json!({"logprobs": true}), "logprobs", &["a boolean"]),
        (json!({"echo": "x"}), "echo", &["a string"]),
        (json!({"best_of": 2}), "best_of", &["2", "n = 1"]),
        (json!({"suffix": 1}), "suffix", &["1"]),
        (json!({"suffix": "x", "echo": true}), "suffix", &["echo"]),
        (json!({"suffix": "x", "prompt": [1]}), "suffix", &["text"]),
    ];
    for (row, param, pieces) in rows {
        check(&row, completion(row.clone()).expect_err("refused"), param, pieces);
    }
}

#[test]
fn nulls_and_unused_fields_mean_the_default() {
    let nulls = chat_completions::fields().filter(|field| field.name != "messages");
    let nulls: Value = nulls.map(|field| (field.name.to_owned(), Value::Null)).collect();
    let from_nulls = chat(nulls).expect("nulls are defaults");
    assert_eq!(format!("{from_nulls:?}"), format!("{:?}", chat(json!({})).expect("defaults")));
    let unused = json!({
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
        "modalities": ["text"], "functions": [], "audio": null, "bad_words": [],
        "use_beam_search": false, "best_of": 1, "nobody_knows_this": {"a": 1},
    });
    chat(unused).expect("unused fields pass");
    completion(json!({"suffix": "", "best_of": 1, "whatever": 1})).expect("unused fields pass");
}

#[test]
fn defaults_come_from_the_model_and_requests_override_them() {
    let request = chat(json!({})).expect("defaults");
    assert_eq!(request.common.model, "m");
    assert_eq!(request.common.params.temperature, 0.5);
    assert_eq!(request.common.params.top_k, 7);
    assert_eq!(request.common.params.top_p, 1.0);
    assert_eq!(request.common.params.eos_token_ids, [EOS]);
    assert_eq!((request.max_tokens, request.logprobs), (None, None));
    assert!(request.chat.add_generation_prompt);
    let request = chat(json!({
        "model": "org/m", "temperature": 0, "top_k": -1, "ignore_eos": true, "seed": -1,
        "max_tokens": 5, "max_completion_tokens": 3, "logprobs": true, "top_logprobs": 2,
        "continue_final_message": true, "enable_thinking": false, "top_p": 1e-9,
        "chat_template_kwargs": {"other": 1}, "stream": true, "min_p": 1.0,
        "stream_options": {"include_usage": true}, "stop": "end", "n": 2.0,
    }));
    let request = request.expect("in range");
    assert_eq!(request.common.model, "org/m");
    assert_eq!((request.common.params.temperature, request.common.params.top_k), (0.0, 0));
    assert!(request.common.params.eos_token_ids.is_empty());
    assert_eq!(request.common.seed, Some(u64::MAX));
    assert_eq!((request.max_tokens, request.max_tokens_field), (Some(3), "max_completion_tokens"));
    assert_eq!((request.logprobs, request.common.n), (Some(2), 2));
    assert!(request.chat.continue_final_message && !request.chat.add_generation_prompt);
    assert_eq!(
        Value::Object(request.chat.template_kwargs),
        json!({
            "other": 1, "enable_thinking": false,
        })
    );
    let options = StreamOptions { include_usage: true, continuous_usage: false };
    assert_eq!(request.common.stream, Some(options));
    assert_eq!(request.common.stop, ["end"]);
}

#[test]
fn logit_bias_is_sorted_and_each_id_counts_once() {
    let request = chat(json!({"logit_bias": {"9": 1, "2": -100, "09": 2.5}})).expect("in range");
    assert_eq!(request.common.params.logit_bias, [(TokenId(2), -100.0), (TokenId(9), 2.5)]);
}

#[test]
fn prompts_come_in_four_shapes() {
    let ids = |ids: &[u32]| Prompt::Tokens(ids.iter().map(|id| TokenId(*id)).collect());
    let rows = [
        (json!("a"), vec![Prompt::Text("a".into())]),
        (json!(["a", "b"]), vec![Prompt::Text("a".into()), Prompt::Text("b".into())]),
        (json!([1, 99]), vec![ids(&[1, 99])]),
        (json!([[1], [2, 3]]), vec![ids(&[1]), ids(&[2, 3])]),
        (json!(["a", [5]]), vec![Prompt::Text("a".into()), ids(&[5])]),
    ];
    for (prompt, expected) in rows {
        assert_eq!(completion(json!({"prompt": prompt})).expect("a prompt").prompts, expected);
    }
}

#[test]
fn content_parts_are_joined_and_tool_turns_pass() {
    let request = chat(json!({"messages": [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "name": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
    ]}));
    let messages = request.expect("fine").chat.messages;
    assert_eq!(messages[1], json!({"role": "user", "content": "a\nb"}));
    assert!(messages[2].get("content").is_none() && messages[2].get("name").is_none());
    assert_eq!(messages[3]["content"], "r");
}

#[test]
fn bodies_that_are_no_objects_are_refused_with_the_place() {
    let deep = "[".repeat(JSON_DEPTH_MAX + 1);
    let many = format!("[{}0]", "0,".repeat(JSON_VALUES_MAX));
    let rows = [
        ("", "EOF"),
        ("{", "line 1 column 1"),
        ("{\"a\": }", "line 1 column 7"),
        ("{\"a\": 1,}", "column 9"),
        ("nope", "line 1"),
        ("[]", "a list"),
        ("\"x\"", "a string"),
        ("null", "null"),
        ("{\"a\": 1e999}", "number out of range"),
        ("{\"a\": NaN}", "line 1"),
        ("{\"a\": \"\\ud800\"}", "line 1"),
        ("{} {}", "trailing"),
        (&deep, "64 levels"),
        (&many, "1048576"),
    ];
    for (body, piece) in rows {
        let error = ApiError::from(Fields::parse(body.as_bytes()).expect_err(body));
        assert_eq!(error.status().as_u16(), 400);
        assert!(error.to_string().contains(piece), "{piece:?} not in {error}");
    }
    assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
    assert!(Fields::parse(b"\xef\xbb\xbf{}").is_err());
}

#[test]
fn of_duplicate_keys_the_last_counts() {
    let body = br#"{"messages": 1, "messages": [{"role": "user", "content": "x"}]}"#;
    let mut fields = Fields::parse(body).expect("an object");
    let request = ChatRequest::into_request(&mut fields, &model(), &HttpConfig::default());
    assert_eq!(request.expect("the last").chat.messages.len(), 1);
}

#[test]
fn messages_stay_short_whatever_a_client_sends() {
    let long = "x".repeat(100_000);
    let rows = [json!({"model": &long[..1000]}), json!({"stop": long}), json!({"user": long})];
    for row in rows {
        let message = ApiError::from(chat(row).expect_err("refused")).body().to_string();
        assert!(message.len() < MESSAGE_CHARS_MAX + 200, "{message}");
    }
    let error = chat(json!({"messages": [{"role": long, "content": ""}]})).expect_err("refused");
    assert!(error.to_string().len() < MESSAGE_CHARS_MAX);
}

#[test]
fn unknown_models_are_404_by_name() {
    let error = ApiError::from(chat(json!({"model": "gpt"})).expect_err("unknown"));
    assert_eq!(error.status().as_u16(), 404);
    assert_eq!(
        error.body(),
        json!({"error": {
            "message": "the model 'gpt' does not exist", "type": "invalid_request_error",
            "param": "model", "code": "model_not_found",
        }})
    );
}

#[test]
fn every_field_read_is_described_and_every_described_field_is_read() {
    let names = |fields: &mut dyn Iterator<Item = &'static Field>| {
        let mut names: Vec<&str> = fields.map(|field| field.name).collect();
        names.sort_unstable();
        names
    };
    let read = |fields: &Fields| {
        let mut names = fields.read().to_vec();
        names.sort_unstable();
        names
    };
    let config = HttpConfig::default();
    let mut fields = parse(&json!({"messages": [{"role": "user", "content": "x"}]}));
    ChatRequest::into_request(&mut fields, &model(), &config).expect("fine");
    assert_eq!(read(&fields), names(&mut chat_completions::fields()));
    let mut fields = parse(&json!({"prompt": "x"}));
    CompletionRequest::into_request(&mut fields, &model(), &config).expect("fine");
    assert_eq!(read(&fields), names(&mut completions::fields()));
}

#[test]
fn openapi_document_is_whole() {
    let config = HttpConfig { keys: KeyRing::new(&["k".into()], &[]), ..HttpConfig::default() };
    let document = document(&config);
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    for (method, path) in ROUTES {
        let operation = &document["paths"][path][method];
        assert!(operation["operationId"].is_string(), "{method} {path}");
        let responses = operation["responses"].as_object().expect("responses");
        assert!(responses.contains_key("200"), "{method} {path}");
        for response in responses.values() {
            assert!(response["description"].is_string(), "{method} {path}");
        }
        let is_public = super::auth::PUBLIC_ROUTES.contains(path);
        assert_eq!(operation["security"] == json!([]), is_public, "{method} {path}");
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let num_in_path = parameters.filter(|parameter| parameter["in"] == "path").count();
        assert_eq!(path.matches('{').count(), num_in_path, "{method} {path}");
    }
    let schemas = &document["components"]["schemas"];
    let endpoints: [(&str, Vec<&Field>); 2] = [
        ("ChatCompletionRequest", chat_completions::fields().collect()),
        ("CompletionRequest", completions::fields().collect()),
    ];
    for (name, fields) in endpoints {
        for field in fields {
            let schema = &schemas[name]["properties"][field.name];
            assert!(schema["description"].is_string(), "{name}.{}", field.name);
            let shaped = ["type", "anyOf", "enum"].iter().any(|key| schema.get(key).is_some());
            assert!(shaped, "{name}.{}", field.name);
        }
    }
    assert_eq!(schemas["ChatCompletionRequest"]["properties"]["temperature"]["maximum"], 1000.0);
    assert_eq!(schemas["CompletionRequest"]["properties"]["n"]["maximum"], 128);
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        let target = reference.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(target).is_some(), "{reference} leads nowhere");
    }
}

/// What is described of the APIs that become chats is what is read of them.
#[test]
fn fields_of_other_apis_are_described() {
    let chat: Vec<&str> = chat_completions::fields().map(|field| field.name).collect();
    let mut message = parse(&json!({"messages": [], "max_tokens": 1}));
    anthropic::into_chat::into_chat(&mut message).expect("fine");
    let mut response = parse(&json!({"input": "x"}));
    let client = KeyRing::default().check(&HeaderMap::new()).expect("no keys are set");
    let store = ResponseStore::default();
    assert!(responses::into_chat::into_chat(&mut response, &store, client.identity()).is_ok());
    for (fields, described) in
        [(message, anthropic::into_chat::FIELDS), (response, responses::into_chat::FIELDS)]
    {
        for name in fields.read() {
            let is_described = described.iter().any(|field| field.name == *name);
            assert!(is_described || chat.contains(name), "{name} is not described");
        }
    }
}

fn collect_references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| collect_references(value, out));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_references(value, out)),
        _ => {}
    }
}
