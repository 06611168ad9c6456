//! Anthropic's API over a real socket: the same server as in http_contract.rs.

use serde_json::{Value, json};
use server::http::{HttpConfig, KeyRing};
use tests::http::{Answer, Setup, TestServer, post_bytes};

fn start() -> TestServer {
    TestServer::start(Setup::default())
}

fn body(text: &str, extra: Value) -> Value {
    let mut body = json!({"max_tokens": 300, "messages": [{"role": "user", "content": text}]});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

fn send(server: &TestServer, body: &Value) -> Answer {
    server.post("/v1/messages", &body.to_string())
}

/// The events of a stream, whose names are those in their data.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text = answer.text();
    let events = text.strip_suffix("\n\n").expect("whole events").split("\n\n");
    let read = |event: &str| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    events.map(read).collect()
}

/// The message that a stream adds up to.
fn put_together(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let mut open = None;
    let mut json_text = String::new();
    for event in events {
        let index = || event["index"].as_u64().expect("an index") as usize;
        match event["type"].as_str().expect("a type") {
            "message_start" => {
                assert!(message.is_null(), "one start");
                message = event["message"].clone();
                assert_eq!(message["usage"]["output_tokens"], 0);
            }
            "content_block_start" => {
                assert_eq!(open, None, "one block at a time");
                open = Some(index());
                let content = message["content"].as_array_mut().expect("a list");
                assert_eq!(content.len(), index());
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                assert_eq!(open, Some(index()));
                let (delta, block) = (&event["delta"], &mut message["content"][index()]);
                let kind = delta["type"].as_str().expect("a type");
                let key = kind.strip_suffix("_delta").expect("a delta");
                if key == "input_json" {
                    json_text.push_str(delta["partial_json"].as_str().expect("text"));
                    block["input"] = serde_json::from_str(&json_text).unwrap_or_default();
                } else {
                    let so_far = block[key].as_str().expect("text").to_owned();
                    block[key] = (so_far + delta[key].as_str().expect("text")).into();
                }
            }
            "content_block_stop" => {
                assert_eq!(open.take(), Some(index()));
                json_text.clear();
            }
            "message_delta" => {
                assert_eq!(open, None);
                for key in ["stop_reason", "stop_sequence"] {
                    message[key] = event["delta"][key].clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => assert_eq!(event, events.last().expect("events")),
            other => panic!("event {other}"),
        }
    }
    message
}

fn without_ids(mut message: Value) -> Value {
    for value in message["content"].as_array_mut().expect("a list") {
        if let Some(id) = value.get_mut("id") {
            assert!(id.as_str().is_some_and(|id| id.starts_with("toolu_")));
            *id = "*".into();
        }
    }
    assert!(message["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
    message["id"] = "*".into();
    // Of two equal prompts the second one comes out of the cache.
    let usage = &mut message["usage"];
    let tokens = |key: &str| usage[key].as_u64().expect("a count");
    usage["input_tokens"] = (tokens("input_tokens") + tokens("cache_read_input_tokens")).into();
    usage["cache_read_input_tokens"] = 0.into();
    message
}

#[test]
fn answers_whole_and_streamed() {
    let server = start();
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1]}}</tool_call>";
    let tool_use = json!({"type": "tool_use", "id": "*", "name": "f", "input": {"a": [1]}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let thinking = json!({"type": "thinking", "thinking": "hm", "signature": ""});
    let rows = [
        ("Hi!".to_owned(), json!({}), json!([text("Hi!")]), "end_turn", Value::Null),
        (
            "one two".to_owned(),
            json!({"stop_sequences": ["tw"]}),
            json!([text("one ")]),
            "stop_sequence",
            json!("tw"),
        ),
        (
            "long".to_owned(),
            json!({"max_tokens": 2}),
            json!([text("lo")]),
            "max_tokens",
            json!(null),
        ),
        (
            format!("Yes.\n{call}{call}"),
            json!({"tools": tools, "max_tokens": 140}),
            json!([text("Yes."), tool_use, tool_use]),
            "tool_use",
            Value::Null,
        ),
        (
            "<think>hm</think>So.".to_owned(),
            json!({"thinking": {"type": "enabled"}}),
            json!([thinking, text("So.")]),
            "end_turn",
            Value::Null,
        ),
        (String::new(), json!({}), json!([]), "end_turn", Value::Null),
    ];
    for (say, extra, content, reason, sequence) in rows {
        let mut asked = body(&format!("#say:{say}#"), extra);
        let whole = send(&server, &asked).json();
        assert_eq!(whole["stop_reason"], reason, "{say}");
        assert_eq!(whole["stop_sequence"], sequence, "{say}");
        assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
        let whole = without_ids(whole);
        assert_eq!(whole["content"], content, "{say}");
        asked["stream"] = true.into();
        let streamed = put_together(&events(&send(&server, &asked)));
        assert_eq!(without_ids(streamed), whole, "{say}");
    }
}

#[test]
fn conversations_are_those_of_the_chat_api() {
    let server = start();
    let tool = json!({"name": "f", "description": "d", "input_schema": {"type": "object"}});
    let theirs = json!({
        "max_tokens": 1,
        "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
                {"type": "tool_result", "tool_use_id": "t2",
                 "content": [{"type": "text", "text": "43"}]},
            ]},
            {"role": "user", "content": "And?"},
        ],
        "tools": [tool],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "metadata": {"user_id": "u"},
    });
    let call = json!({
        "id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"},
    });
    let ours = json!({
        "messages": [
            {"role": "system", "content": "Be\nkind"},
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "content": "42"},
            {"role": "tool", "tool_call_id": "t2", "content": "43"},
            {"role": "user", "content": "And?"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "f", "description": "d", "parameters": {"type": "object"},
        }}],
        "enable_thinking": false,
    });
    let count = server.post("/tokenize", &ours.to_string()).json()["count"].clone();
    let counted = server.post("/v1/messages/count_tokens", &theirs.to_string());
    assert_eq!(counted.json(), json!({"input_tokens": count}));
    assert_eq!(counted.header("x-monsoon-ignored-fields"), Some("max_tokens"));
    let usage = send(&server, &theirs).json()["usage"].clone();
    assert_eq!(usage["input_tokens"], count);
}

#[test]
fn errors_have_anthropics_shape() {
    let keys = vec!["secret".to_owned()];
    let server = TestServer::start(Setup {
        http: HttpConfig { keys: KeyRing::new(&keys, &[]), ..HttpConfig::default() },
        ..Setup::default()
    });
    let with_key = |path: &str, key: &str, body: &Value| {
        let bytes = String::from_utf8(post_bytes(path, &body.to_string())).expect("text");
        server.send(bytes.replacen("host: x", &format!("host: x\r\n{key}"), 1).as_bytes())
    };
    let good = body("#say:a#", json!({}));
    let check = |answer: Answer, status: u16, kind: &str, piece: &str| {
        let error = answer.json();
        assert_eq!((answer.status, &error["type"]), (status, &json!("error")), "{error}");
        assert_eq!(error["error"]["type"], kind, "{error}");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(piece), "{message}");
    };
    let own = "x-api-key: secret";
    assert_eq!(with_key("/v1/messages", own, &good).status, 200);
    assert_eq!(with_key("/v1/messages", "authorization: Bearer secret", &good).status, 200);
    let wrong = with_key("/v1/messages", "x-api-key: nope", &good);
    check(wrong, 401, "authentication_error", "key");
    check(with_key("/v1/messages/none", own, &good), 404, "not_found_error", "/v1/messages/none");
    let rows = [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "image"),
        (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "[0].text"),
        (json!({"messages": [{"role": "user", "content": [{"type": "x"}]}]}), "tool_result"),
        (json!({"system": [{"type": "image"}]}), "system[0].type"),
        (json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "bash_20250124"),
        (json!({"tools": [{"name": "f", "input_schema": 1}]}), "parameters"),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"tool_choice": {"type": "some"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "any"}}), "tools"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": -1}}), "thinking_budget"),
        (json!({"thinking": {"type": "maybe"}}), "thinking.type"),
        (json!({"n": 2}), "'n'"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"temperature": -1}), "temperature"),
    ];
    for (extra, piece) in rows {
        let answer = with_key("/v1/messages", own, &body("#say:a#", extra));
        check(answer, 400, "invalid_request_error", piece);
    }
    let unknown = with_key("/v1/messages", own, &body("x", json!({"model": "claude"})));
    check(unknown, 404, "not_found_error", "claude");
}
