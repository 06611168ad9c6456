//! Answers that must be something, over a real socket: grammars, calls that must come, words that
//! must not, budgets. The model says what its prompt tells it to, and where that is not allowed,
//! anything that is.

use serde_json::{Value, json};
use tests::http::{Answer, EOS, Setup, TestServer, tiny_text_stage};

fn start() -> TestServer {
    TestServer::start(Setup { max_model_len: 4096, ..Setup::default() })
}

fn body(text: &str, extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": text}],
        "chat_template_kwargs": {"enable_thinking": false},
        "max_tokens": 1200,
    });
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

fn ask(server: &TestServer, text: &str, extra: &Value) -> Value {
    let answer = server.chat(&body(text, extra).to_string());
    assert_eq!(answer.status, 200, "{extra}: {}", answer.text());
    answer.json()
}

/// The contents of all choices, asked for whole and streamed, which must be the same.
fn contents(server: &TestServer, text: &str, extra: &Value) -> Vec<String> {
    let whole = ask(server, text, extra);
    let choices = whole["choices"].as_array().expect("choices");
    let of = |choice: &Value| choice["message"]["content"].as_str().unwrap_or_default().to_owned();
    let whole: Vec<String> = choices.iter().map(of).collect();
    let mut streaming = body(text, extra);
    streaming["stream"] = true.into();
    let mut streamed = vec![String::new(); whole.len()];
    for chunk in server.chat(&streaming.to_string()).chunks() {
        for choice in chunk["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("an index") as usize;
            streamed[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        }
    }
    assert_eq!(streamed, whole, "{extra}");
    whole
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["unit", "days"],
        "additionalProperties": false,
    })
}

fn check_schema(content: &str) {
    let value: Value = serde_json::from_str(content).unwrap_or_else(|e| panic!("{content}: {e}"));
    let map = value.as_object().unwrap_or_else(|| panic!("{content}"));
    assert_eq!(map.len(), 2, "{content}");
    assert!(map["unit"] == "C" || map["unit"] == "F", "{content}");
    assert!(map["days"].as_u64().is_some_and(|days| days <= 20), "{content}");
}

fn as_schema() -> Value {
    let schema = json!({"name": "weather", "schema": schema(), "strict": true});
    json!({"type": "json_schema", "json_schema": schema})
}

#[test]
fn json_is_what_the_schema_says_whatever_else_is_asked_for() {
    let server = start();
    let said = "{\"unit\": \"F\", \"days\": 7}";
    let base = json!({"response_format": as_schema(), "seed": 3});
    assert_eq!(contents(&server, &format!("#say:{said}#"), &base), [said]);
    for more in [
        json!({}),
        json!({"n": 4, "temperature": 1.5}),
        json!({"logprobs": true, "top_logprobs": 3}),
        json!({"min_tokens": 6}),
        json!({"repetition_penalty": 1.3, "frequency_penalty": 1}),
        json!({"stop": ["never"], "return_token_ids": true}),
        json!({"bad_words": ["\"C"], "n": 3}),
        json!({"tools": [], "parallel_tool_calls": false}),
    ] {
        let mut extra = base.clone();
        for (key, value) in more.as_object().expect("an object") {
            extra[key] = value.clone();
        }
        for content in contents(&server, "Say something else.", &extra) {
            check_schema(&content);
            assert!(extra.get("bad_words").is_none() || !content.contains("\"C"), "{content}");
        }
    }
    for (key, value) in [
        ("structured_outputs", json!({"json": schema()})),
        ("guided_json", schema()),
        ("json_schema", schema()),
        ("guided_json", schema().to_string().into()),
    ] {
        for content in contents(&server, "x", &json!({key: value, "seed": 1})) {
            check_schema(&content);
        }
    }
    let object =
        contents(&server, "#say:{}#", &json!({"response_format": {"type": "json_object"}}));
    assert_eq!(object, ["{}"]);
    // A stop string may cut it; that is what it is for.
    let cut = json!({"response_format": as_schema(), "stop": [","]});
    assert_eq!(contents(&server, &format!("#say:{said}#"), &cut), ["{\"unit\": \"F\""]);
}

#[test]
fn other_grammars_hold_in_chats_and_completions() {
    let server = start();
    let gbnf = "root ::= (\"ab\" | [x-z]{2}) \"!\"\n";
    let is_of_gbnf = |text: &str| {
        let inner = text.strip_suffix('!').unwrap_or_else(|| panic!("{text}"));
        assert!(inner == "ab" || inner.len() == 2 && inner.bytes().all(|b| b >= b'x'), "{text}");
    };
    let one_of = |text: &str| assert!(text == "yes" || text == "no", "{text}");
    let digits = |text: &str| {
        assert!(text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit()), "{text}");
    };
    type Check<'a> = &'a dyn Fn(&str);
    let rows: [(Value, Check); 7] = [
        (json!({"guided_choice": ["yes", "no"]}), &one_of),
        (json!({"structured_outputs": {"choice": ["yes", "no"]}}), &one_of),
        (json!({"guided_regex": "[0-9]{1,4}"}), &digits),
        (json!({"regex": "[0-9]{1,4}"}), &digits),
        (json!({"structured_outputs": {"grammar": gbnf}}), &is_of_gbnf),
        (json!({"ebnf": gbnf}), &is_of_gbnf),
        (json!({"guided_grammar": "start: \"yes\" | \"no\""}), &one_of),
    ];
    for (mut extra, check) in rows {
        extra["seed"] = 11.into();
        contents(&server, "maybe", &extra).iter().for_each(|content| check(content));
        extra["prompt"] = "maybe".into();
        extra["max_tokens"] = 50.into();
        let answer = server.complete(&extra.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        check(answer.json()["choices"][0]["text"].as_str().expect("text"));
    }
}

#[test]
fn calls_that_are_asked_for_come_and_fit() {
    let server = start();
    let tool = |name: &str| {
        let function = json!({"name": name, "parameters": schema()});
        json!({"type": "function", "function": function})
    };
    let call = |arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"g\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let check = |message: &Value, names: &[&str]| {
        let calls = message["tool_calls"].as_array().expect("calls");
        assert_eq!(calls.len(), names.len(), "{message}");
        for (call, name) in calls.iter().zip(names) {
            assert_eq!(call["function"]["name"], *name);
            check_schema(call["function"]["arguments"].as_str().expect("text"));
        }
        assert_eq!(message["content"], Value::Null);
    };
    let named = json!({"type": "function", "function": {"name": "g"}});
    for (choice, names) in [(json!("required"), None), (named, Some("g"))] {
        let extra = json!({
            "tools": [tool("f"), tool("g")], "tool_choice": choice, "seed": 5,
            "parallel_tool_calls": false,
        });
        let answer = ask(&server, "Just talk.", &extra);
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        let message = &answer["choices"][0]["message"];
        let name = message["tool_calls"][0]["function"]["name"].as_str().expect("a name");
        check(message, &[names.unwrap_or(name)]);
    }
    let two = format!("#say:{0}\n{0}#", call("{\"unit\": \"C\", \"days\": 1}"));
    let extra = json!({"tools": [tool("g")], "tool_choice": "required"});
    check(&ask(&server, &two, &extra)["choices"][0]["message"], &["g", "g"]);
    // What a model may do: call, or answer as the format says.
    let either = json!({"tools": [tool("g")], "response_format": as_schema(), "seed": 2});
    let message = |text: &str| ask(&server, text, &either)["choices"][0]["message"].clone();
    check(&message(&format!("#say:{}#", call("{\"unit\": \"C\", \"days\": 1}"))), &["g"]);
    let said = message("#say:{\"unit\": \"C\", \"days\": 2}#");
    assert_eq!(said["content"], "{\"unit\": \"C\", \"days\": 2}");

    let anthropic = json!({
        "max_tokens": 200, "messages": [{"role": "user", "content": "Just talk."}],
        "tools": [{"name": "g", "input_schema": schema()}], "tool_choice": {"type": "any"},
    });
    let answer = server.post("/v1/messages", &anthropic.to_string()).json();
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    check_schema(&answer["content"][0]["input"].to_string());
    let format = json!({"type": "json_schema", "name": "x", "schema": schema()});
    let response = json!({"input": "x", "text": {"format": format}, "max_output_tokens": 300,
        "reasoning": {"effort": "none"}});
    let answer = server.post("/v1/responses", &response.to_string()).json();
    check_schema(answer["output"][0]["content"][0]["text"].as_str().expect("text"));
}

#[test]
fn only_what_follows_the_thinking_is_constrained() {
    let server = start();
    let text = tiny_text_stage();
    let id = |token: &str| text.token_id(token).expect("a token of the vocabulary").0;
    let (open, close) = (id("<think>"), id("</think>"));
    // Thinks in bytes 'h' and 'm', then says what it must not.
    let byte = |byte: u8| (0..1000).find(|id| text.token_bytes(models::TokenId(*id)) == [byte]);
    let (h, m) = (byte(b'h').expect("h"), byte(b'm').expect("m"));
    let think = json!({"chat_template_kwargs": {}, "response_format": as_schema(), "seed": 1});
    let ids = format!("#ids:{open},{h},{m},{close},{h},{m}#");
    let message = ask(&server, &ids, &think)["choices"][0]["message"].clone();
    assert_eq!(message["reasoning_content"], "hm", "{message}");
    check_schema(message["content"].as_str().expect("text"));

    let long: Vec<String> = std::iter::repeat_n(h.to_string(), 400).collect();
    let long = format!("#ids:{open},{}#", long.join(","));
    let budget = json!({"chat_template_kwargs": {}, "thinking_budget": 5, "seed": 1});
    let answer = ask(&server, &long, &budget);
    let message = &answer["choices"][0]["message"];
    let thought = message["reasoning_content"].as_str().expect("text");
    assert!(thought.starts_with("hhhhh\n\nConsidering the limited time"), "{thought}");
    assert!(thought.ends_with("directly now."), "{thought}");
    assert!(message["content"].as_str().is_some_and(|text| text.starts_with('h')), "{message}");
    let both = json!({
        "chat_template_kwargs": {}, "thinking_token_budget": 2, "response_format": as_schema(),
    });
    let message = ask(&server, &long, &both)["choices"][0]["message"].clone();
    check_schema(message["content"].as_str().expect("text"));
    // Efforts are budgets where the template has no word for them; none is no thinking at all.
    let none = ask(&server, &format!("#ids:{h}#"), &json!({"reasoning_effort": "none"}));
    assert_eq!(none["choices"][0]["message"]["content"], "h");
}

#[test]
fn words_and_tokens_are_kept_out() {
    let server = start();
    let extra = json!({"bad_words": ["bad", "wor\u{e4}"], "seed": 9});
    let said = "#say:a bad word, b ad wor\u{e4}x#";
    for content in contents(&server, said, &extra) {
        assert!(content.starts_with("a ba"), "{content}");
        assert!(!content.contains("bad") && !content.contains("wor\u{e4}"), "{content}");
    }
    let text = tiny_text_stage();
    let id = |c: u8| (0..1000).find(|id| text.token_bytes(models::TokenId(*id)) == [c]).expect("c");
    let allowed = [id(b'a'), id(b'b'), EOS.0];
    let extra = json!({"allowed_token_ids": allowed, "max_tokens": 20});
    let content = &contents(&server, "#say:abcab#", &extra)[0];
    assert_eq!(content, "ab", "the end is the only other token");
    let extra = json!({"allowed_token_ids": allowed[..2], "max_tokens": 20, "seed": 4});
    let content = &contents(&server, "#say:abcab#", &extra)[0];
    assert!(content.len() == 20 && content.bytes().all(|b| b == b'a' || b == b'b'), "{content}");
}

#[track_caller]
fn check_error(answer: Answer, pieces: &[&str]) {
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = answer.json()["error"].clone();
    let message = error["message"].as_str().expect("a message");
    assert!(pieces.iter().all(|piece| message.contains(piece)), "{message}");
    assert!(message.len() < 2000, "{message}");
}

#[test]
fn what_cannot_be_held_is_refused_before_anything_is_generated() {
    let server = start();
    let before = server.metric("monsoon_generation_tokens_total");
    let long = "a".repeat(200_000);
    let many: Vec<Value> = (0..1025).map(|i| json!(i.to_string())).collect();
    // Together they would take all memory.
    let patterns: Vec<Value> =
        (0..20).map(|i| json!({"pattern": format!("(.*x){{{i}}}")})).collect();
    let rows = [
        (json!({"guided_json": {"type": "objekt"}}), vec!["guided_json"]),
        (json!({"guided_regex": "("}), vec!["guided_regex"]),
        (json!({"guided_regex": "(".repeat(9000)}), vec!["guided_regex", "200"]),
        (json!({"guided_regex": long}), vec!["guided_regex", "200000", "131072"]),
        (json!({"guided_grammar": "start: nothing"}), vec!["guided_grammar"]),
        (json!({"guided_json": {"type": "string", "allOf": patterns}}), vec!["guided_json", "20"]),
        (json!({"guided_choice": many}), vec!["guided_choice", "1025", "1024"]),
        (json!({"structured_outputs": {"json": {"$ref": "#/x"}}}), vec!["structured_outputs"]),
    ];
    for (extra, pieces) in rows {
        check_error(server.chat(&body("x", &extra).to_string()), &pieces);
        let mut streamed = body("x", &extra);
        streamed["stream"] = true.into();
        check_error(server.chat(&streamed.to_string()), &pieces);
    }
    assert_eq!(server.metric("monsoon_generation_tokens_total"), before);
    // What can be asked for, but not together.
    let text = tiny_text_stage();
    let a = (0..1000).find(|id| text.token_bytes(models::TokenId(*id)) == *b"a").expect("a");
    let extra = json!({"guided_regex": "ba", "allowed_token_ids": [a]});
    check_error(server.chat(&body("x", &extra).to_string()), &["allowed_token_ids"]);
    assert_eq!(server.get("/health").json()["status"], "ok");
    let free = server.metric("monsoon_kv_cache_blocks_free");
    assert_eq!(free, server.metric("monsoon_kv_cache_blocks"));
}
