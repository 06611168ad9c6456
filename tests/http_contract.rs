//! The HTTP contract over a real socket, byte for byte where that can be said: a real router,
//! tokenizer and engine, and a runner that answers what its prompt tells it to.

use models::TokenId;
use serde_json::{Value, json};
use server::engine::PrefixCaching;
use server::http::{
    Drained, HttpConfig, KeyRing, ROUTES, UnknownFields, WebPage, listen, public_routes,
};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tests::http::{
    Answer, Body, Loaded, MAX_MODEL_LEN, Setup, TestServer, check_error, logprobs_of, post_bytes,
    tiny_text_stage,
};

fn start() -> TestServer {
    TestServer::start(Setup::default())
}

fn with_http(http: HttpConfig) -> TestServer {
    TestServer::start(Setup { http, ..Setup::default() })
}

/// A chat whose one message is `text`, with more fields.
fn chat(text: &str, extra: Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": text}]});
    merge(&mut body, extra);
    body.to_string()
}

fn prompt(prompt: impl Into<Value>, extra: Value) -> String {
    let mut body = json!({"prompt": prompt.into()});
    merge(&mut body, extra);
    body.to_string()
}

fn merge(body: &mut Value, extra: Value) {
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
}

/// The pieces of one choice of a streamed chat, joined.
fn streamed_text(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    let own = choices.filter(|choice| choice["index"] == index);
    own.map(|choice| match &choice["text"] {
        Value::String(text) => text.clone(),
        _ => choice["delta"]["content"].as_str().unwrap_or_default().to_owned(),
    })
    .collect()
}

// Answers, byte for byte.

#[test]
fn whole_chat_answer() {
    let answer = start().chat(&chat("#say:Hi, \u{fc}!#", json!({"model": "org/tiny"})));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let expected = concat!(
        r#"{"id":"chatcmpl-*","object":"chat.completion","created":*,"model":"org/tiny","#,
        r#""system_fingerprint":"build-0.1.0","choices":[{"index":0,"message":{"#,
        r#""role":"assistant","content":"Hi, ü!","refusal":null},"logprobs":null,"#,
        r#""finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":20,"#,
        r#""completion_tokens":8,"total_tokens":28,"#,
        r#""prompt_tokens_details":{"cached_tokens":0},"#,
        r#""completion_tokens_details":{"reasoning_tokens":0}}}"#,
    );
    assert_eq!(answer.masked(), expected);
}

#[test]
fn streamed_chat_answer() {
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = start().chat(&chat("#say:\u{fc}!#", options));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    let head = concat!(
        r#"data: {"id":"chatcmpl-*","object":"chat.completion.chunk","created":*,"#,
        r#""model":"tiny","system_fingerprint":"build-0.1.0","choices":["#,
    );
    let choice = |delta: &str, finish: &str| {
        format!(
            "{head}{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish},\
             \"stop_reason\":null}}],\"usage\":null}}\n\n"
        )
    };
    let expected = [
        choice(r#"{"role":"assistant","content":""}"#, "null"),
        choice(r#"{"content":"ü"}"#, "null"),
        choice(r#"{"content":"!"}"#, "null"),
        choice("{}", "\"stop\""),
        format!(
            "{head}],\"usage\":{{\"prompt_tokens\":16,\"completion_tokens\":4,\"total_tokens\":20,\
             \"prompt_tokens_details\":{{\"cached_tokens\":0}},\
             \"completion_tokens_details\":{{\"reasoning_tokens\":0}}}}}}\n\n"
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(answer.masked(), expected.concat());
}

/// A request with the tools `f` and `get_weather`.
fn with_tools(extra: Value) -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let mut body = json!({"tools": [tool("f"), tool("get_weather")]});
    merge(&mut body, extra);
    body
}

/// The message of a streamed choice put together again, with its finish reason.
fn streamed_message(chunks: &[Value], index: u64) -> (Value, Value) {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    let mut finish = Value::Null;
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    for choice in choices.filter(|choice| choice["index"] == index) {
        assert!(finish.is_null(), "nothing follows the finish reason");
        finish = choice["finish_reason"].clone();
        let delta = &choice["delta"];
        assert!(delta["content"].is_null() || delta["reasoning"].is_null(), "one in a delta");
        assert_eq!(delta["reasoning"], delta["reasoning_content"]);
        for key in ["content", "reasoning_content"] {
            let more = delta[key].as_str().unwrap_or_default();
            message[key] = (message[key].as_str().expect("text").to_owned() + more).into();
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().expect("a list");
            let at = call["index"].as_u64().expect("an index") as usize;
            if at == calls.len() {
                assert_eq!(call["type"], "function");
                assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")));
                calls.push(json!({"function": call["function"]}));
                continue;
            }
            assert!(call["id"].is_null() && call["function"]["name"].is_null(), "{call}");
            let arguments = &mut calls[at]["function"]["arguments"];
            let more = call["function"]["arguments"].as_str().expect("text");
            *arguments = (arguments.as_str().expect("text").to_owned() + more).into();
        }
    }
    (message, finish)
}

/// The same of a whole answer.
fn whole_message(answer: &Value, index: usize) -> (Value, Value) {
    let choice = &answer["choices"][index];
    let message = &choice["message"];
    let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(message["reasoning"], message["reasoning_content"]);
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let calls: Vec<Value> = calls.map(|call| json!({"function": call["function"]})).collect();
    let message = json!({
        "content": text("content"),
        "reasoning_content": text("reasoning_content"),
        "tool_calls": calls,
    });
    (message, choice["finish_reason"].clone())
}

#[test]
fn calls_and_reasoning_are_told_apart_streamed_and_whole() {
    let server = start();
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"\u{fc}\"}}\n</tool_call>";
    let function = json!({"function": {"name": "f", "arguments": "{\"a\": \"\u{fc}\"}"}});
    let rows = [
        (format!("Yes.\n{call}"), "", "Yes.", vec![function.clone()], "tool_calls"),
        (format!("{call}\n{call}"), "", "", vec![function.clone(), function], "tool_calls"),
        ("<think>\nhm\n</think>\n\nSo.".to_owned(), "hm", "So.", vec![], "stop"),
        ("<tool_call>none".to_owned(), "", "<tool_call>none", vec![], "stop"),
    ];
    for (say, reasoning, content, calls, finish) in rows {
        let text = format!("#say:{say}#");
        let whole = server.chat(&chat(&text, with_tools(json!({"n": 2})))).json();
        let streaming = json!({
            "n": 2, "stream": true, "stream_options": {"include_usage": true}, "logprobs": true,
        });
        let chunks = server.chat(&chat(&text, with_tools(streaming))).chunks();
        let expected = json!({
            "content": content, "reasoning_content": reasoning, "tool_calls": calls,
        });
        for index in 0..2 {
            let expected = (expected.clone(), json!(finish));
            assert_eq!(whole_message(&whole, index), expected, "{say}");
            assert_eq!(streamed_message(&chunks, index as u64), expected, "{say}");
        }
        let usage = &chunks.last().expect("chunks")["usage"];
        // One byte, one token, and the end of the sequence.
        assert_eq!(usage["completion_tokens"], 2 * (say.len() + 1), "{say}");
        let thought = say.find("</think>").map_or(0, |at| at + "</think>".len());
        let details = &usage["completion_tokens_details"];
        assert_eq!(details["reasoning_tokens"], 2 * thought, "{say}");
        let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("some"));
        let logprobs = choices.filter_map(|choice| choice["logprobs"]["content"].as_array());
        assert_eq!(logprobs.flatten().count(), 2 * (say.len() + 1), "{say}");
    }
}

#[test]
fn answers_stay_text_where_no_calls_are_wanted() {
    let server = start();
    let say = "<tool_call>{\"name\": \"f\"}</tool_call>";
    let text = format!("#say:{say}#");
    let content = |extra: Value| {
        let answer = server.chat(&chat(&text, extra)).json();
        let choice = &answer["choices"][0];
        (choice["message"].clone(), choice["finish_reason"].clone())
    };
    let plain = json!({"role": "assistant", "content": say, "refusal": null});
    assert_eq!(content(json!({})), (plain.clone(), json!("stop")));
    let none = with_tools(json!({"tool_choice": "none"}));
    assert_eq!(content(none), (plain, json!("stop")));
    // Two calls of which one is wanted, and a call that the limit cuts off.
    let twice = format!("#say:{say}{say}#");
    let one = server.chat(&chat(&twice, with_tools(json!({"parallel_tool_calls": false})))).json();
    assert_eq!(one["choices"][0]["message"]["tool_calls"].as_array().map(Vec::len), Some(1));
    let cut = with_tools(json!({"max_tokens": say.len() - 13}));
    let (message, finish) = content(cut);
    assert_eq!((message["content"].clone(), finish), (Value::Null, json!("length")));
    assert_eq!(message["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{}"}));
}

#[test]
fn reasoning_can_be_left_out_and_can_be_open_in_the_prompt() {
    let server = start();
    let text = "#say:<think>hm</think>So.#";
    let message = |text: &str, extra: Value| {
        server.chat(&chat(text, extra)).json()["choices"][0]["message"].clone()
    };
    let left_out = json!({"role": "assistant", "content": "So.", "refusal": null});
    assert_eq!(message(text, json!({"include_reasoning": false})), left_out);
    let chunks = server
        .chat(&chat(text, json!({"include_reasoning": false, "stream": true, "logprobs": true})))
        .chunks();
    assert_eq!(streamed_message(&chunks, 0).0["reasoning_content"], "");
    assert_eq!(streamed_text(&chunks, 0), "So.");
    // An answer that goes on within the thinking that the prompt holds.
    let open = json!({
        "messages": [
            {"role": "user", "content": "#say: more</think>\nSo.#"},
            {"role": "assistant", "content": "<think>\nhm"},
        ],
        "continue_final_message": true,
    });
    let answer = server.chat(&open.to_string()).json();
    let expected = json!({"content": "So.", "reasoning_content": " more", "tool_calls": []});
    assert_eq!(whole_message(&answer, 0).0, expected);
}

#[test]
fn whole_completion_with_echo_and_logprobs() {
    let extra = json!({"echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = start().complete(&prompt(json!([2, 3]), extra));
    // Tokens 2 and 3 are '#' and '$', 13 is '.'; the runner's logprobs are in its description.
    let expected = concat!(
        r##"{"id":"cmpl-*","object":"text_completion","created":*,"model":"tiny","##,
        r##""system_fingerprint":"build-0.1.0","choices":[{"index":0,"text":"#$<|im_end|>","##,
        r##""logprobs":null,"finish_reason":"stop","stop_reason":null}],"##,
        r##""usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,"##,
        r##""prompt_tokens_details":{"cached_tokens":0}}}"##,
    );
    let body = answer.json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["#", "$", "<|im_end|>"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.75]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(logprobs["top_logprobs"], json!([null, {"$": -0.5}, {"<|im_end|>": -0.75}]));
    // The end-of-sequence token counts and is reported, but is not in the text.
    let mut rest = body.clone();
    rest["choices"][0]["logprobs"] = Value::Null;
    rest["id"] = "cmpl-*".into();
    let expected = expected.replace("<|im_end|>", "").replace("\"created\":*", "\"created\":0");
    rest["created"] = 0.into();
    assert_eq!(rest.to_string(), expected);
}

#[test]
fn streamed_completion_says_what_the_whole_one_says() {
    let server = start();
    for mut extra in [
        json!({"max_tokens": 100}),
        json!({"max_tokens": 3}),
        json!({"max_tokens": 100, "echo": true}),
        json!({"max_tokens": 100, "n": 3}),
        json!({"max_tokens": 100, "stop": ["w", "lo wor"]}),
        json!({"max_tokens": 100, "echo": true, "logprobs": 2, "stop": "o w"}),
        json!({"max_tokens": 0, "echo": true, "logprobs": 2}),
        json!({"max_tokens": 100, "logprobs": 0, "return_tokens_as_token_ids": true}),
    ] {
        merge(&mut extra, json!({"seed": 5}));
        let texts = json!(["#say:hello w\u{f6}rld \u{1f600}#", "#seed#"]);
        let whole = server.complete(&prompt(texts.clone(), extra.clone())).json();
        let mut streaming = extra.clone();
        merge(&mut streaming, json!({"stream": true, "stream_options": {"include_usage": true}}));
        let chunks = server.complete(&prompt(texts, streaming)).chunks();
        let usage = &chunks.last().expect("chunks")["usage"];
        assert_eq!(usage, &whole["usage"], "{extra}");
        for choice in whole["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("an index");
            assert_eq!(streamed_text(&chunks, index), choice["text"], "{extra}");
            let own: Vec<&Value> = chunks
                .iter()
                .flat_map(|chunk| chunk["choices"].as_array().expect("choices"))
                .filter(|c| c["index"] == index)
                .collect();
            let finishes: Vec<_> = own.iter().filter(|c| !c["finish_reason"].is_null()).collect();
            assert_eq!(finishes.len(), 1, "{extra}");
            assert_eq!(finishes[0]["finish_reason"], choice["finish_reason"], "{extra}");
            assert_eq!(finishes[0]["stop_reason"], choice["stop_reason"], "{extra}");
            for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let lists = own.iter().filter_map(|c| c["logprobs"][key].as_array());
                let joined: Vec<Value> = lists.flatten().cloned().collect();
                let expected = choice["logprobs"][key].as_array().cloned().unwrap_or_default();
                assert_eq!(joined, expected, "{key} of {extra}");
            }
        }
    }
}

// Sampling fields as the engine gets them, seen in what it answers.

#[test]
fn finish_reasons_and_limits() {
    let server = start();
    let finish = |body: String| {
        let answer = server.chat(&body).json();
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().expect("text").to_owned();
        (text, choice["finish_reason"].clone(), choice["stop_reason"].clone())
    };
    let say = "#say:one two three#";
    let rows = [
        (json!({}), "one two three", json!("stop"), Value::Null),
        (json!({"max_tokens": 3}), "one", json!("length"), Value::Null),
        (json!({"max_tokens": 9, "max_completion_tokens": 3}), "one", json!("length"), Value::Null),
        (json!({"stop": "two"}), "one ", json!("stop"), json!("two")),
        (json!({"stop": ["three", " t"]}), "one", json!("stop"), json!(" t")),
        (json!({"stop": "e t"}), "on", json!("stop"), json!("e t")),
        (json!({"stop": "threee"}), "one two three", json!("stop"), Value::Null),
        (json!({"stop": "say"}), "one two three", json!("stop"), Value::Null),
        (json!({"stop_token_ids": [220]}), "one", json!("stop"), json!(220)),
        (json!({"min_tokens": 15}), "one two three..", json!("stop"), Value::Null),
        (json!({"ignore_eos": true, "max_tokens": 16}), "one two three...", json!("length"), {
            Value::Null
        }),
    ];
    for (extra, text, reason, cause) in rows {
        let expected = (text.to_owned(), reason, cause);
        assert_eq!(finish(chat(say, extra.clone())), expected, "{extra}");
    }
    let kept = json!({"skip_special_tokens": false});
    assert_eq!(finish(chat("#say:a#", kept)).0, "a<|im_end|>");
    // Without a limit an answer goes on to the end of the context.
    let endless = server.chat(&chat("#loop#", json!({}))).json();
    assert_eq!(endless["usage"]["total_tokens"], MAX_MODEL_LEN);
    assert_eq!(endless["choices"][0]["finish_reason"], "length");
}

#[test]
fn chat_logprobs_go_with_their_text() {
    let server = start();
    let extra = json!({"logprobs": true, "top_logprobs": 2, "stop": "d"});
    let whole = server.chat(&chat("#say:ab\u{e9}cdef#", extra.clone())).json();
    let entries = whole["choices"][0]["logprobs"]["content"].as_array().expect("entries");
    let text = tiny_text_stage();
    // One entry for each byte of "abéc", since the runner answers byte by byte.
    let bytes: Vec<Value> = entries.iter().map(|entry| entry["bytes"].clone()).collect();
    assert_eq!(bytes, [json!([97]), json!([98]), json!([195]), json!([169]), json!([99])]);
    assert_eq!(entries[0]["token"], "a");
    assert_eq!(entries[2]["token"], "\u{fffd}");
    let a = text.token_id("a").expect("a token");
    let expected = logprobs_of(a, 2);
    assert_eq!(entries[0]["logprob"], json!(f64::from(expected.logprob)));
    let top = entries[0]["top_logprobs"].as_array().expect("alternatives");
    assert_eq!(top.len(), 2);
    assert_eq!(top[0]["token"], "a");
    assert_eq!(top[1]["token"], text.token_text(TokenId(a.0 + 1)));
    let mut streaming = extra;
    merge(&mut streaming, json!({"stream": true}));
    let chunks = server.chat(&chat("#say:ab\u{e9}cdef#", streaming)).chunks();
    let mut joined = Vec::new();
    for choice in chunks.iter().map(|chunk| &chunk["choices"][0]) {
        let entries = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        let bytes = entries.iter().flat_map(|entry| entry["bytes"].as_array().expect("bytes"));
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().expect("a byte") as u8).collect();
        let content = choice["delta"]["content"].as_str().unwrap_or_default();
        assert_eq!(String::from_utf8(bytes).expect("whole characters"), content);
        joined.extend(entries);
    }
    assert_eq!(&joined, entries);
    let none = server.chat(&chat("#say:a#", json!({"logprobs": true}))).json();
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let ids = json!({"logprobs": true, "return_tokens_as_token_ids": true});
    let ids = server.chat(&chat("#say:a#", ids)).json();
    let name = &ids["choices"][0]["logprobs"]["content"][0]["token"];
    assert_eq!(name, &json!(format!("token_id:{a}")));
}

#[test]
fn seeds_and_choices() {
    let server = start();
    let texts = |extra: Value| -> Vec<Value> {
        let answer = server.chat(&chat("#seed#", extra)).json();
        let choices = answer["choices"].as_array().expect("choices").iter();
        choices.map(|choice| choice["message"]["content"].clone()).collect()
    };
    assert_eq!(texts(json!({"seed": 3})), ["d"]);
    let five = texts(json!({"seed": 3, "n": 5}));
    assert_eq!(five, texts(json!({"seed": 3, "n": 5})));
    assert_eq!(five[0], "d", "the first choice has the seed itself");
    assert!(five.iter().any(|text| text != "d"), "{five:?}");
    let answer = server.chat(&chat("#say:ab#", json!({"n": 4}))).json();
    let prompt_tokens = server.chat(&chat("#say:ab#", json!({}))).json();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens["usage"]["prompt_tokens"]);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let indices: Vec<_> = answer["choices"].as_array().expect("choices").iter().collect();
    assert_eq!(
        indices.iter().map(|c| c["index"].as_u64()).collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2), Some(3)]
    );
}

#[test]
fn prompts_in_lists_are_answered_in_order() {
    let server = start();
    let answer = server.complete(&prompt(json!(["#say:a#", "#say:b#"]), json!({"n": 2}))).json();
    let texts: Vec<_> = answer["choices"].as_array().expect("choices").iter().collect();
    let texts: Vec<_> = texts.iter().map(|c| (c["index"].as_u64(), c["text"].as_str())).collect();
    let expected = [(0, "a"), (1, "a"), (2, "b"), (3, "b")];
    assert_eq!(texts, expected.map(|(index, text)| (Some(index), Some(text))));
    let one =
        server.complete(&prompt("#say:a#", json!({}))).json()["usage"]["prompt_tokens"].clone();
    let two = answer["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(two, 2 * one.as_u64().expect("a count"));
    let endless = server.complete(&prompt("#loop#", json!({}))).json();
    assert_eq!(endless["usage"]["completion_tokens"], 16, "the default of max_tokens");
}

#[test]
fn a_prompt_only_scored_gives_itself() {
    let server = start();
    let extra = json!({"max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = server.complete(&prompt("caf\u{e9}", extra)).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "caf\u{e9}");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let tokens = choice["logprobs"]["tokens"].as_array().expect("tokens").len();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens);
    assert!(choice["logprobs"]["token_logprobs"][0].is_null());
    assert!(choice["logprobs"]["token_logprobs"][1].is_number());
    let plain = server.complete(&prompt("caf\u{e9}", json!({"max_tokens": 0, "echo": true})));
    assert_eq!(plain.json()["choices"][0]["text"], "caf\u{e9}");
    assert!(plain.json()["choices"][0]["logprobs"].is_null());
}

#[test]
fn cached_tokens_are_counted() {
    let server =
        TestServer::start(Setup { prefix_caching: PrefixCaching::Enabled, ..Setup::default() });
    let cached = |extra: Value| {
        let answer = server.chat(&chat("#say:ab#", extra)).json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
    };
    assert_eq!(cached(json!({})), 0);
    let hit = cached(json!({}));
    assert!(hit > 0 && hit % 4 == 0, "{hit}: whole blocks of 4");
    assert_eq!(cached(json!({"n": 3})), hit, "counted once, as the prompt");
    assert_eq!(cached(json!({"cache_salt": "other"})), 0);
    assert!(server.metric("monsoon_prefix_cache_hits_total") >= hit as f64);
}

#[test]
fn unicode_arrives_whole() {
    let server = start();
    let text = "h\u{e9}llo \u{4f60}\u{597d} \u{645}\u{631}\u{62d}\u{628}\u{627} \u{939}\u{93f} \
                \u{e2a}\u{e27}\u{e31} \u{1f468}\u{200d}\u{1f469}";
    let say = format!("#say:{text}#");
    let whole = server.chat(&chat(&say, json!({}))).json();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let chunks = server.chat(&chat(&say, json!({"stream": true}))).chunks();
    assert_eq!(streamed_text(&chunks, 0), text);
    let pieces = chunks.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].to_string());
    assert!(pieces.into_iter().all(|piece| !piece.contains('\u{fffd}')));
    // Escaped and literal JSON are the same prompt.
    let escaped: String = say.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    let body = format!(r#"{{"messages": [{{"role": "user", "content": "{escaped}"}}]}}"#);
    assert_eq!(server.chat(&body).json()["choices"], whole["choices"]);
    // Stop strings are text, not tokens: the first byte of the stop has already come alone.
    let stopped = server.chat(&chat(&say, json!({"stop": "\u{597d}"}))).json();
    assert_eq!(stopped["choices"][0]["message"]["content"], "h\u{e9}llo \u{4f60}");
    // Bytes that are no character at all become U+FFFD, and the JSON stays JSON.
    let lead = tiny_text_stage();
    let broken = (0..1091).map(TokenId).find(|id| lead.token_bytes(*id) == [0xe4]);
    let broken = format!("#ids:{0},{0}#", broken.expect("a byte token"));
    let answer = server.chat(&chat(&broken, json!({}))).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "\u{fffd}\u{fffd}");
    let nul = server.chat(&chat("#say:a\u{0}b#", json!({}))).json();
    assert_eq!(nul["choices"][0]["message"]["content"], "a\u{0}b");
}

// Errors.

#[test]
fn errors_have_one_shape() {
    let server = start();
    let chat_path = "/v1/chat/completions";
    check_error(&server.get("/nope"), 404, "unknown_route", &["GET", "/nope"]);
    check_error(&server.get("/v1/models/nope"), 404, "model_not_found", &["nope"]);
    let wrong_method = server.get(chat_path);
    check_error(&wrong_method, 405, "method_not_allowed", &["GET", chat_path]);
    assert_eq!(wrong_method.header("allow"), Some("POST"));
    check_error(&server.post("/v1/models", "{}"), 405, "method_not_allowed", &["POST"]);
    let unknown = server.chat(&chat("x", json!({"model": "gpt-9"})));
    check_error(&unknown, 404, "model_not_found", &["gpt-9"]);
    check_error(&server.chat("{\"a\": }"), 400, "malformed_json", &["line 1 column 7"]);
    check_error(&server.chat("[1]"), 400, "invalid_body", &["a list"]);
    check_error(&server.chat("{}"), 400, "missing_field", &["messages"]);
    let hot = server.chat(&chat("x", json!({"temperature": -1})));
    check_error(&hot, 400, "invalid_value", &["temperature", "-1", "0 to 1000"]);
    let tools = server.chat(&chat("x", json!({"tools": [{}]})));
    check_error(&tools, 400, "missing_field", &["tools[0].type"]);
    let suffix = server.complete(&prompt("x", json!({"suffix": "y"})));
    check_error(&suffix, 400, "invalid_value", &["suffix", "<|fim_prefix|>"]);
    // Also where a stream was asked for: nothing has been sent yet.
    let stream = server.chat(&chat("x", json!({"stream": true, "n": 0})));
    check_error(&stream, 400, "invalid_value", &["n"]);
    let long = "a ".repeat(600);
    let too_long = server.complete(&prompt(long.as_str(), json!({"stream": true})));
    check_error(&too_long, 400, "context_length_exceeded", &["512"]);
    let too_many = server.complete(&prompt(json!([5, 6]), json!({"max_tokens": 511})));
    check_error(&too_many, 400, "context_length_exceeded", &["511", "2 tokens", "512", "510"]);
    let least = server.complete(&prompt("a", json!({"max_tokens": 3, "min_tokens": 4})));
    check_error(&least, 400, "invalid_value", &["min_tokens", "4", "3"]);
    let kept = server.chat(
        r#"{"messages": [{"role": "user", "content": "a"}], "continue_final_message": true}"#,
    );
    check_error(&kept, 400, "invalid_value", &["continue_final_message"]);
    // None of it has left anything behind.
    assert_eq!(server.metric("monsoon_num_requests_waiting"), 0.0);
    assert_eq!(server.metric("monsoon_num_requests_running"), 0.0);
}

#[test]
fn bodies_that_are_not_plain_json_are_415() {
    let server = start();
    let send = |headers: &str| {
        let body = chat("#say:a#", json!({}));
        let length = body.len();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}");
        server.send(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes())
    };
    check_error(
        &send("content-type: text/plain\r\n"),
        415,
        "unsupported_media_type",
        &["text/plain", "application/json"],
    );
    let gzip = "content-type: application/json\r\ncontent-encoding: gzip\r\n";
    check_error(&send(gzip), 415, "unsupported_media_type", &["gzip"]);
    assert_eq!(send("content-type: application/json; charset=utf-8\r\n").status, 200);
    assert_eq!(send("").status, 200);
}

#[test]
fn long_bodies_are_cut_at_the_limit() {
    let server = with_http(HttpConfig { body_bytes_max: 1000, ..HttpConfig::default() });
    let announced = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n\
                     content-type: application/json\r\ncontent-length: 10000000000\r\n\r\n{";
    check_error(&server.send(announced.as_bytes()), 413, "body_too_large", &["1000 bytes"]);
    let sent = prompt("a".repeat(100_000), json!({}));
    check_error(&server.complete(&sent), 413, "body_too_large", &["1000 bytes"]);
    let mut chunked = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n\
                       transfer-encoding: chunked\r\n\r\n"
        .to_owned();
    for _ in 0..20 {
        chunked.push_str(&format!("64\r\n{}\r\n", "x".repeat(100)));
    }
    chunked.push_str("0\r\n\r\n");
    check_error(&server.send(chunked.as_bytes()), 413, "body_too_large", &["1000 bytes"]);
    assert_eq!(server.complete(&prompt("#say:a#", json!({}))).status, 200);
}

#[test]
fn slow_bodies_are_408() {
    let body_timeout = Duration::from_millis(100);
    let server = with_http(HttpConfig { body_timeout, ..HttpConfig::default() });
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{";
    check_error(&server.send(head.as_bytes()), 408, "body_timeout", &["did not arrive"]);
}

#[test]
fn bodies_in_flight_are_bounded_together() {
    let http = HttpConfig { bodies_bytes_max: 100, ..HttpConfig::default() };
    let server = with_http(http);
    let answer = server.complete(&prompt("a".repeat(100), json!({})));
    check_error(&answer, 429, "too_many_bytes_in_flight", &["100"]);
    assert!(answer.header("retry-after").is_some());
    // What a refused body took is given back.
    assert_eq!(server.complete(r##"{"prompt": "#say:a#"}"##).status, 200);
}

#[test]
fn heads_have_limits() {
    let server = start();
    let many: String = (0..150).map(|i| format!("x-{i}: 1\r\n")).collect();
    let head = format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    check_error(&server.send(head.as_bytes()), 431, "headers_too_large", &["151", "100"]);
    let long = "y".repeat(20_000);
    let head = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n");
    check_error(&server.send(head.as_bytes()), 431, "headers_too_large", &["16384"]);
    // Beyond that nothing is kept in memory: the connection itself refuses.
    let mut stream = server.connect();
    let endless = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(1 << 20));
    // The server may close before all is written; what it answered counts.
    let _ = stream.write_all(endless.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn nothing_a_client_sends_is_a_server_error() {
    let server = start();
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "[]",
        "null",
        "1",
        "\"\"",
        "{\"messages\"",
        "{\"messages\":}",
        "{\"messages\": [{}]}",
        "{\"messages\": [[]]}",
        "{\"messages\": {\"role\": \"user\"}}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"\\udc00\\ud800\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"\\u0000\"}]}",
        "{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"x\"}]}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}], \"n\": 1e400}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"seed\": -0.0}",
        "{\"prompt\": [1e99]}",
        "{\"prompt\": [[[1]]]}",
        "{\"prompt\": \"\\ud83d\"}",
        "{\"prompt\": [18446744073709551616]}",
        "{\"prompt\": \"x\", \"logit_bias\": {\"\": 1}}",
        "{\"prompt\": \"x\", \"logit_bias\": {\"99999999999999999999\": 1}}",
        "{\"prompt\": \"x\", \"top_p\": 1e-400}",
        "{\"prompt\": \"x\", \"temperature\": 1e-320}",
        "{\"prompt\": \"<|im_start|><|im_end|><|endoftext|>\"}",
        "{\"prompt\": [1091, 1099]}",
    ]
    .map(|body| body.as_bytes().to_vec())
    .to_vec();
    bodies.push(b"{\"prompt\": \"\xff\xfe\"}".to_vec());
    bodies.push("[".repeat(100_000).into_bytes());
    bodies.push("{\"a\":".repeat(100_000).into_bytes());
    // A good body, cut at every byte and with every byte broken once.
    let good = chat("#say:a#", json!({"stop": ["b"], "logit_bias": {"5": 1.5}})).into_bytes();
    bodies.extend((0..good.len()).map(|end| good[..end].to_vec()));
    for (i, byte) in (0..good.len()).zip([0u8, b'"', b'{', b']', b'9', 0xc3].iter().cycle()) {
        let mut broken = good.clone();
        broken[i] = *byte;
        bodies.push(broken);
    }
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize"] {
        let mut stream = server.connect();
        for body in &bodies {
            let mut bytes = post_bytes(path, "");
            let head = String::from_utf8(bytes).expect("text");
            bytes = head.replace("length: 0", &format!("length: {}", body.len())).into_bytes();
            bytes.extend_from_slice(body);
            stream.write_all(&bytes).expect("the server reads");
            let answer = Answer::read(&mut stream);
            let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
            assert!(answer.status < 500, "{}: {shown}", answer.status);
            if answer.status != 200 {
                assert!(answer.json()["error"]["message"].is_string(), "{shown}");
            }
        }
    }
    assert_eq!(server.metric("monsoon_num_requests_waiting"), 0.0);
}

#[test]
fn stop_strings_and_tokens_can_be_kept() {
    let server = start();
    let text = |extra: Value| {
        let whole = server.chat(&chat("#say:one two three#", extra.clone())).json();
        let mut streaming = extra;
        merge(&mut streaming, json!({"stream": true}));
        let chunks = server.chat(&chat("#say:one two three#", streaming)).chunks();
        let content = whole["choices"][0]["message"]["content"].clone();
        assert_eq!(streamed_text(&chunks, 0), content);
        (content, whole["choices"][0]["stop_reason"].clone())
    };
    let keep = |extra: Value| {
        let mut body = json!({"include_stop_str_in_output": true});
        merge(&mut body, extra);
        body
    };
    assert_eq!(text(keep(json!({"stop": "two"}))), (json!("one two"), json!("two")));
    assert_eq!(text(json!({"stop": "two"})), (json!("one "), json!("two")));
    let id = server.post("/tokenize", r#"{"prompt": "w"}"#).json()["tokens"][0].clone();
    assert_eq!(text(keep(json!({"stop_token_ids": [id]}))), (json!("one tw"), id.clone()));
    assert_eq!(text(json!({"stop_token_ids": [id]})), (json!("one t"), id));
    assert_eq!(text(keep(json!({}))), (json!("one two three"), Value::Null));
}

#[test]
fn token_ids_come_when_asked_for() {
    let server = start();
    let asked = json!({"return_token_ids": true, "n": 2, "max_tokens": 100});
    let whole = server.chat(&chat("#say:h\u{fc}h#", asked.clone())).json();
    let prompt_ids = whole["prompt_token_ids"].as_array().expect("ids");
    assert_eq!(whole["usage"]["prompt_tokens"], prompt_ids.len());
    let mut streaming = asked.clone();
    merge(&mut streaming, json!({"stream": true}));
    let chunks = server.chat(&chat("#say:h\u{fc}h#", streaming.clone())).chunks();
    for index in 0..2 {
        let ids = &whole["choices"][index]["token_ids"];
        // Four bytes, and the end of the sequence, which is no text.
        assert_eq!(ids.as_array().map(Vec::len), Some(5));
        assert_eq!(ids[4], 1093);
        let body = json!({"tokens": ids}).to_string();
        assert_eq!(server.post("/detokenize", &body).json()["prompt"], "h\u{fc}h<|im_end|>");
        let own = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
        let streamed: Vec<Value> = own
            .clone()
            .filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(&Value::from(streamed), ids);
        let told: Vec<_> = own.filter(|chunk| !chunk["prompt_token_ids"].is_null()).collect();
        assert_eq!(told.len(), 1);
        assert_eq!(&told[0]["prompt_token_ids"], &whole["prompt_token_ids"]);
    }
    let texts = json!(["#say:a#", "#say:bc#"]);
    let whole = server.complete(&prompt(texts.clone(), asked)).json();
    let chunks = server.complete(&prompt(texts, streaming)).chunks();
    for index in 0..4usize {
        let choice = &whole["choices"][index];
        assert_eq!(choice["token_ids"].as_array().map(Vec::len), Some(2 + index / 2));
        let own: Vec<_> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["prompt_token_ids"], choice["prompt_token_ids"]);
        let ids = own.iter().filter_map(|choice| choice["token_ids"].as_array()).flatten();
        assert_eq!(&Value::from(ids.cloned().collect::<Vec<_>>()), &choice["token_ids"]);
    }
    let plain = server.chat(&chat("#say:a#", json!({}))).json();
    assert!(plain["prompt_token_ids"].is_null() && plain["choices"][0]["token_ids"].is_null());
}

#[test]
fn prompt_logprobs_have_vllms_shape() {
    let server = start();
    let answer = server.complete(&prompt(json!([2, 3]), json!({"prompt_logprobs": 2}))).json();
    let expected = json!([null, {
        "3": {"logprob": -0.5, "rank": 1, "decoded_token": "$"},
        "4": {"logprob": -1.5, "rank": 2, "decoded_token": "%"},
    }]);
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expected);
    assert!(answer["choices"][0]["logprobs"].is_null());
    // More of the prompt's than of the echo's.
    let both = json!({"prompt_logprobs": 2, "echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = server.complete(&prompt(json!([2, 3]), both)).json();
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expected);
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"][1], json!({"$": -0.5}));
    let answer = server.chat(&chat("x", json!({"prompt_logprobs": 0}))).json();
    let of_chat = answer["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(answer["usage"]["prompt_tokens"], of_chat.len());
    assert!(of_chat[0].is_null() && of_chat[1].as_object().is_some_and(|one| one.len() == 1));
    let streamed = server.chat(&chat("x", json!({"prompt_logprobs": 0, "stream": true})));
    check_error(&streamed, 400, "invalid_value", &["prompt_logprobs", "stream"]);
}

#[test]
fn texts_and_chats_are_tokenized_and_back() {
    let server = start();
    let tokenize = |body: Value| server.post("/tokenize", &body.to_string());
    let text = "caf\u{e9} <|im_end|>";
    let answer = tokenize(json!({"prompt": text, "return_token_strs": true})).json();
    let tokens = answer["tokens"].as_array().expect("tokens");
    assert_eq!(answer["count"], tokens.len());
    assert_eq!(answer["max_model_len"], MAX_MODEL_LEN);
    assert_eq!(answer["token_strs"].as_array().map(Vec::len), Some(tokens.len()));
    let back = server.post("/detokenize", &json!({"tokens": tokens}).to_string()).json();
    assert_eq!((&back["prompt"], &back["content"]), (&json!(text), &json!(text)));
    assert_eq!(tokenize(json!({"content": text})).json()["tokens"], answer["tokens"]);
    assert_eq!(tokenize(json!({"prompt": ""})).json()["count"], 0);
    // A chat has as many as its usage says.
    let messages = json!([{"role": "user", "content": text}]);
    for extra in [json!({}), json!({"enable_thinking": false}), with_tools(json!({}))] {
        let mut body = json!({"messages": messages});
        merge(&mut body, extra);
        let usage = server.chat(&body.to_string()).json()["usage"]["prompt_tokens"].clone();
        assert_eq!(tokenize(body).json()["count"], usage);
    }
    check_error(&tokenize(json!({})), 400, "missing_field", &["prompt"]);
    let both = tokenize(json!({"prompt": "x", "messages": messages}));
    check_error(&both, 400, "invalid_value", &["prompt", "messages"]);
    let unknown = server.post("/detokenize", r#"{"tokens": [1100]}"#);
    check_error(&unknown, 400, "invalid_value", &["1100", "vocabulary size 1100"]);
    check_error(&server.post("/detokenize", "{}"), 400, "missing_field", &["tokens"]);
}

#[test]
fn requests_have_ids_and_unknown_fields_are_told() {
    let server = start();
    let request = |id: &str| {
        let body = chat("#say:a#", json!({"nobody_knows": 1, "store": false}));
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nx-request-id: {id}");
        let bytes = String::from_utf8(post_bytes("/v1/chat/completions", &body)).expect("text");
        let bytes = bytes.replace("POST /v1/chat/completions HTTP/1.1", &head);
        server.send(bytes.as_bytes())
    };
    let answer = request("my-id.7");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-request-id"), Some("my-id.7"));
    assert_eq!(answer.header("x-monsoon-ignored-fields"), Some("nobody_knows"));
    let too_long = request(&"i".repeat(200));
    assert!(too_long.header("x-request-id").is_some_and(|id| id.starts_with("req-")));
    let (a, b) = (server.get("/health"), server.get("/nowhere"));
    assert!(a.header("x-request-id").is_some() && b.header("x-request-id").is_some());
    assert_ne!(a.header("x-request-id"), b.header("x-request-id"));
    assert_eq!(server.chat(&chat("#say:a#", json!({}))).header("x-monsoon-ignored-fields"), None);
    let strict = HttpConfig { unknown_fields: UnknownFields::Refused, ..HttpConfig::default() };
    let server = with_http(strict);
    let refused = server.chat(&chat("#say:a#", json!({"nobody_knows": 1})));
    check_error(&refused, 400, "unknown_field", &["nobody_knows"]);
    assert_eq!(server.chat(&chat("#say:a#", json!({"store": false}))).status, 200);
}

/// Walks the route table: what is not on the list that the server prints at start answers 401.
#[test]
fn every_route_but_the_public_ones_wants_a_key() {
    for web_page in [WebPage::Served, WebPage::Absent] {
        let api_keys = vec!["first-key".to_owned()];
        let server = with_http(HttpConfig {
            keys: KeyRing::new(&api_keys, &[]),
            web_page,
            ..HttpConfig::default()
        });
        let public: Vec<&str> = public_routes(web_page).collect();
        let mut num_public = 0;
        for (method, path) in ROUTES {
            let (method, target) = (method.to_uppercase(), path.replace("{id}", "x"));
            let wrong = "authorization: Bearer wrong\r\n";
            for key in ["", wrong] {
                let head = format!("{method} {target} HTTP/1.1\r\nhost: x\r\n{key}");
                let answer = server.send(format!("{head}content-length: 0\r\n\r\n").as_bytes());
                let is_open = answer.status != 401;
                assert_eq!(is_open, public.contains(path), "{method} {target} {}", answer.status);
                num_public += usize::from(is_open);
            }
        }
        assert_eq!(num_public, 2 * public.len(), "every public route is a route");
    }
}

/// The page is one file that needs nothing else, and is sent once.
#[test]
fn web_page() {
    let server = start();
    let answer = server.get("/");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let policy = answer.header("content-security-policy").expect("a policy");
    for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "sha256-"] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let html = answer.text();
    assert!(html.contains("<title>Monsoon</title>") && !html.contains("{{"), "{html}");
    for outside in ["http://", "https://", "src=", "@import", "url(", "innerHTML", "eval("] {
        assert!(!html.contains(outside), "the page has {outside}");
    }
    let etag = answer.header("etag").expect("a tag");
    let ask = |known: &str| {
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\nif-none-match: {known}\r\n\r\n");
        server.send(head.as_bytes()).status
    };
    assert_eq!(ask(etag), 304);
    assert_eq!(ask(&format!("\"other\", W/{etag}")), 304);
    assert_eq!(ask("\"other\""), 200);
    let without = with_http(HttpConfig { web_page: WebPage::Absent, ..HttpConfig::default() });
    check_error(&without.get("/"), 404, "unknown_route", &[]);
    assert!(without.get("/openapi.json").json()["paths"]["/"].is_null());
}

#[test]
fn keys_are_compared_whole() {
    let api_keys = vec!["first-key".to_owned(), "second-key".to_owned()];
    let server =
        with_http(HttpConfig { keys: KeyRing::new(&api_keys, &[]), ..HttpConfig::default() });
    let get = |path: &str, authorization: &str| {
        server.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{authorization}\r\n").as_bytes())
    };
    for path in ["/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/version", "/nope"]
    {
        let answer = get(path, "");
        check_error(&answer, 401, "invalid_api_key", &["Bearer"]);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        for wrong in ["Bearer nope", "Bearer ", "Bearer first-key2", "Basic first-key", "first-key"]
        {
            let answer = get(path, &format!("authorization: {wrong}\r\n"));
            check_error(&answer, 401, "invalid_api_key", &[]);
        }
    }
    check_error(&server.chat("{}"), 401, "invalid_api_key", &[]);
    assert_eq!(get("/health", "").status, 200);
    assert_eq!(get("/ping", "").status, 200);
    for key in ["Bearer first-key", "bearer second-key", "BEARER  first-key"] {
        assert_eq!(get("/v1/models", &format!("authorization: {key}\r\n")).status, 200, "{key}");
    }
}

#[test]
fn caches_of_different_keys_are_apart() {
    let http =
        HttpConfig { keys: KeyRing::new(&["a".into(), "b".into()], &[]), ..HttpConfig::default() };
    let prefix_caching = PrefixCaching::Enabled;
    let server = TestServer::start(Setup { http, prefix_caching, ..Setup::default() });
    let cached = |key: &str| {
        let request = post_bytes("/v1/completions", &prompt("#say:ab# and a tail", json!({})));
        let request = String::from_utf8(request).expect("text");
        let request =
            request.replace("host: x", &format!("host: x\r\nauthorization: Bearer {key}"));
        let usage = server.send(request.as_bytes()).json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
    };
    assert_eq!(cached("a"), 0);
    assert!(cached("a") > 0);
    assert_eq!(cached("b"), 0);
}

// Models, health, metrics.

#[test]
fn models_are_listed_and_found() {
    let server = start();
    let list = server.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let model = json!({
        "id": "tiny", "object": "model", "created": 1, "owned_by": "monsoon", "root": "tiny",
        "parent": null, "max_model_len": MAX_MODEL_LEN,
    });
    assert_eq!(list["data"][0], model);
    assert_eq!(server.get("/v1/models/tiny").json(), model);
    assert_eq!(server.get("/v1/models/org/tiny").json()["id"], "org/tiny");
    assert_eq!(server.get("/v1/models/org%2Ftiny").json()["id"], "org/tiny");
}

#[test]
fn until_the_model_is_loaded_everything_is_503() {
    let server = TestServer::start(Setup { loaded: Loaded::No, ..Setup::default() });
    let health = server.get("/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("loading")));
    for answer in [server.chat("{}"), server.complete("{}"), server.get("/v1/models")] {
        check_error(&answer, 503, "loading", &["loading"]);
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(server.get("/openapi.json").status, 200);
    assert!(server.get("/metrics").text().contains("monsoon_http_requests_total"));
}

#[test]
fn described_routes_exist() {
    let server = start();
    assert_eq!(server.get("/health").json()["status"], "ok");
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().expect("paths");
    let described: usize = paths.values().map(|m| m.as_object().expect("methods").len()).sum();
    assert_eq!(described, ROUTES.len());
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            let has_tests_of_its_own = ["/v1/responses/", "/v1/files", "/v1/batches"];
            if has_tests_of_its_own.iter().any(|prefix| path.starts_with(prefix)) {
                continue;
            }
            let path = path.replace("{id}", "tiny");
            let answer = match method.as_str() {
                "get" => server.get(&path),
                _ => server.post(&path, "{}"),
            };
            assert!(answer.status == 200 || answer.status == 400, "{method} {path}");
        }
    }
}

#[test]
fn counters_are_exact() {
    let server = start();
    let mut prompt_tokens = 0;
    for _ in 0..10 {
        let answer = server.complete(&prompt("#loop#", json!({"max_tokens": 10}))).json();
        prompt_tokens += answer["usage"]["prompt_tokens"].as_u64().expect("a count");
    }
    server.wait_for_metric("monsoon_num_requests_running", 0.0);
    assert_eq!(server.metric("monsoon_prompt_tokens_total"), prompt_tokens as f64);
    assert_eq!(server.metric("monsoon_generation_tokens_total"), 100.0);
    assert_eq!(server.metric("monsoon_request_generation_tokens_sum"), 100.0);
    let finished = "monsoon_request_success_total{finished_reason=\"length\"}";
    assert_eq!(server.metric(finished), 10.0);
    for histogram in [
        "monsoon_time_to_first_token_seconds",
        "monsoon_e2e_request_latency_seconds",
        "monsoon_request_queue_time_seconds",
        "monsoon_request_inference_time_seconds",
        "monsoon_request_prefill_time_seconds",
        "monsoon_request_decode_time_seconds",
        "monsoon_request_params_max_tokens",
    ] {
        assert_eq!(server.metric(&format!("{histogram}_count")), 10.0, "{histogram}");
    }
    assert_eq!(server.metric("monsoon_inter_token_latency_seconds_count"), 90.0);
    let route = "monsoon_http_requests_total{route=\"/v1/completions\",code=\"200\"}";
    assert_eq!(server.metric(route), 10.0);
    server.complete("{");
    assert_eq!(server.metric(&route.replace("200", "400")), 1.0);
}

#[test]
fn every_metric_has_help_and_type() {
    let server = start();
    server.complete(&prompt("#say:a#", json!({})));
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    let mut kinds = std::collections::HashMap::new();
    let mut helped = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            assert!(help.len() > 5 && helped.insert(name.to_owned()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(helped.contains(name), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert!(name.starts_with("monsoon_"), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            let histogram = family.is_some_and(|f| kinds.get(f).is_some_and(|k| k == "histogram"));
            assert!(histogram || kinds.contains_key(name), "{line}");
        }
    }
    assert!(kinds.len() > 30, "{}", kinds.len());
    let open = server
        .send(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\n\r\n");
    assert!(open.header("content-type").is_some_and(|t| t.starts_with("application/openmetrics")));
    assert!(open.text().ends_with("# EOF\n"));
    assert!(open.text().contains("# UNIT monsoon_time_to_first_token_seconds seconds\n"));
}

// Streams, load, leaving.

#[test]
fn tokens_are_sent_as_they_are_made_and_pings_while_none_are() {
    let ping_interval = Duration::from_millis(20);
    let server = with_http(HttpConfig { ping_interval, ..HttpConfig::default() });
    server.gate.close();
    let mut stream = server.connect();
    let body = chat("#say:ab#", json!({"stream": true}));
    stream.write_all(&post_bytes("/v1/chat/completions", &body)).expect("the server reads");
    // The first token is far away, so the head and comments come alone.
    let answer = Answer::read_head(&mut stream);
    assert_eq!(answer.status, 200);
    let mut body = Body::new(&mut stream);
    assert_eq!(body.chunk().expect("a piece"), b": ping\n\n");
    assert_eq!(body.chunk().expect("a piece"), b": ping\n\n");
    server.gate.open();
    let mut text = String::new();
    while let Some(piece) = body.chunk() {
        text.push_str(&String::from_utf8(piece).expect("UTF-8"));
    }
    assert!(text.contains("\"content\":\"a\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[test]
fn running_usage_is_in_every_chunk_when_asked_for() {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = chat("#say:abc#", json!({"stream": true, "stream_options": options}));
    let chunks = start().chat(&body).chunks();
    for chunk in &chunks {
        let count = |name: &str| chunk["usage"][name].as_u64().expect("a count");
        assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    }
    let last = chunks.last().expect("chunks");
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(4)));
    let plain = start().chat(&chat("#say:abc#", json!({"stream": true}))).chunks();
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
    let heads = plain.iter().map(|chunk| (&chunk["id"], &chunk["created"], &chunk["model"]));
    assert_eq!(heads.collect::<std::collections::HashSet<_>>().len(), 1);
}

#[test]
fn a_burst_of_connections_finds_room_before_any_is_accepted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("one");
    let _context = runtime.enter();
    let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = listener.local_addr().expect("bound");
    // What the system allows at most, where it says so.
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    let most = most.and_then(|text| text.trim().parse().ok()).unwrap_or(128).min(500);
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(900));
    let connections: Vec<_> = (0..most).map(connect).collect();
    assert!(connections.iter().all(Result::is_ok));
}

#[test]
fn a_full_queue_is_429_and_nothing_is_lost() {
    let server = TestServer::start(Setup { max_num_seqs: 8, ..Setup::default() });
    let threads: Vec<_> = (0..500)
        .map(|i| {
            let address = server.address;
            std::thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || {
                    let mut stream = std::net::TcpStream::connect(address).expect("accepted");
                    let body = prompt(format!("#say:number {i}.#"), json!({"max_tokens": 50}));
                    stream.write_all(&post_bytes("/v1/completions", &body)).expect("read");
                    (i, Answer::read(&mut stream))
                })
                .expect("a thread")
        })
        .collect();
    let (mut answered, mut refused) = (0.0, 0.0);
    for thread in threads {
        let (i, answer) = thread.join().expect("an answer");
        if answer.status == 200 {
            assert_eq!(answer.json()["choices"][0]["text"], format!("number {i}."));
            answered += 1.0;
        } else {
            check_error(&answer, 429, "queue_full", &["64"]);
            assert_eq!(answer.header("retry-after"), Some("1"));
            refused += 1.0;
        }
    }
    assert_eq!(answered + refused, 500.0);
    assert!(answered >= 64.0, "{answered}");
    server.wait_for_metric("monsoon_request_success_total{finished_reason=\"stop\"}", answered);
    if refused > 0.0 {
        let reason = "monsoon_requests_rejected_total{reason=\"queue_full\"}";
        assert_eq!(server.metric(reason), refused);
    }
    assert_eq!(server.metric("monsoon_num_requests_waiting"), 0.0);
    let total = server.metric("monsoon_kv_cache_blocks");
    assert_eq!(server.metric("monsoon_kv_cache_blocks_free"), total);
}

#[test]
fn the_queue_is_full_by_requests_and_by_tokens() {
    let server = TestServer::start(Setup {
        max_num_seqs: 1,
        waiting_requests_max: 2,
        waiting_tokens_max: 40,
        ..Setup::default()
    });
    server.gate.close();
    let mut busy = server.connect();
    let say = post_bytes("/v1/completions", &prompt("#say:a#", json!({})));
    busy.write_all(&say).expect("the server reads");
    server.wait_for_metric("monsoon_num_requests_running", 1.0);
    let three = server.complete(&prompt("#say:a#", json!({"n": 3})));
    check_error(&three, 429, "queue_full", &["2"]);
    let ids: Vec<u32> = vec![5; 41];
    let long = server.complete(&prompt(json!(ids), json!({})));
    check_error(&long, 429, "too_many_tokens_waiting", &["40"]);
    let streamed = server.complete(&prompt("#say:a#", json!({"n": 3, "stream": true})));
    check_error(&streamed, 429, "queue_full", &[]);
    server.gate.open();
    assert_eq!(Answer::read(&mut busy).json()["choices"][0]["text"], "a");
}

#[test]
fn leaving_clients_free_their_places() {
    let server = TestServer::start(Setup { max_num_seqs: 2, ..Setup::default() });
    let endless = |stream: bool| {
        let extra = json!({"ignore_eos": true, "stream": stream, "max_tokens": 450});
        post_bytes("/v1/completions", &prompt("#loop#", extra))
    };
    // The gate keeps the two running ones from ending by themselves.
    server.gate.close();
    let clients: Vec<_> = (0..6)
        .map(|i| {
            let mut client = server.connect();
            client.write_all(&endless(i % 2 == 0)).expect("the server reads");
            client
        })
        .collect();
    // The two gauges are read one after the other, so a request that passes from one to the other
    // may count twice: only a sum that stays says that all have come.
    let mut num_seen = 0;
    for _ in 0..6000 {
        let waiting = server.metric("monsoon_num_requests_waiting");
        let is_all = waiting + server.metric("monsoon_num_requests_running") == 6.0;
        num_seen = if is_all { num_seen + 1 } else { 0 };
        if num_seen == 10 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(clients);
    server.wait_for_metric("monsoon_request_success_total{finished_reason=\"abort\"}", 6.0);
    server.gate.open();
    server.wait_for_metric("monsoon_num_requests_waiting", 0.0);
    server.wait_for_metric("monsoon_num_requests_running", 0.0);
    server
        .wait_for_metric("monsoon_kv_cache_blocks_free", server.metric("monsoon_kv_cache_blocks"));
    assert_eq!(server.complete(&prompt("#say:a#", json!({}))).status, 200);
}

#[test]
fn a_stop_string_ends_the_work_too() {
    let server = start();
    let extra = json!({"stop": "aaa", "ignore_eos": true, "max_tokens": 450});
    let answer = server.complete(&prompt("#loop#", extra)).json();
    assert_eq!(answer["choices"][0]["text"], "");
    assert_eq!(answer["choices"][0]["stop_reason"], "aaa");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    server.wait_for_metric("monsoon_num_requests_running", 0.0);
    assert_eq!(server.metric("monsoon_kv_cache_blocks_free"), 4096.0);
}

#[test]
fn draining_ends_running_answers_and_takes_no_new_ones() {
    let mut server = start();
    server.gate.close();
    let mut running = server.connect();
    let body = chat("#say:the end#", json!({"stream": true}));
    running.write_all(&post_bytes("/v1/chat/completions", &body)).expect("the server reads");
    server.wait_for_metric("monsoon_num_requests_running", 1.0);
    // A second connection that is kept alive, with one request behind it.
    let mut idle = server.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("the server reads");
    assert_eq!(Answer::read(&mut idle).status, 200);
    server.begin_drain();
    assert_eq!(idle.read(&mut [0; 16]).expect("closed, not reset"), 0);
    assert!(std::net::TcpStream::connect(server.address).is_err());
    server.gate.open();
    let chunks = Answer::read(&mut running).chunks();
    assert_eq!(streamed_text(&chunks, 0), "the end");
    assert_eq!(server.drained(), Drained::All);
}

#[test]
fn draining_does_not_wait_for_ever() {
    let drain_timeout = Duration::from_millis(50);
    let server = with_http(HttpConfig { drain_timeout, ..HttpConfig::default() });
    server.gate.close();
    let mut running = server.connect();
    let body = prompt("#say:a#", json!({}));
    running.write_all(&post_bytes("/v1/completions", &body)).expect("the server reads");
    server.wait_for_metric("monsoon_num_requests_running", 1.0);
    let gate = std::sync::Arc::clone(&server.gate);
    assert_eq!(server.drained(), Drained::Cut { connections: 1 });
    gate.open();
}

#[test]
fn connections_are_kept_and_pipelined() {
    let server = start();
    let mut stream = server.connect();
    let request = post_bytes("/v1/completions", &prompt("#say:a#", json!({})));
    stream.write_all(&[request.clone(), request].concat()).expect("the server reads");
    for _ in 0..2 {
        assert_eq!(Answer::read(&mut stream).json()["choices"][0]["text"], "a");
    }
}
