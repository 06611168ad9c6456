//! DashScope's native protocol over a real socket: the same server as in http_contract.rs.

use serde_json::{Value, json};
use server::http::{Embedder, HttpConfig, KeyRing, Reranker, Task};
use tests::http::{Answer, HIDDEN_SIZE, NO, Setup, TestServer, YES, tiny_text_stage};

const GENERATION: &str = "/api/v1/services/aigc/text-generation/generation";
const MULTIMODAL: &str = "/api/v1/services/aigc/multimodal-generation/generation";
const EMBEDDING: &str = "/api/v1/services/embeddings/text-embedding/text-embedding";
const RERANK: &str = "/api/v1/services/rerank/text-rerank/text-rerank";
const TOKENIZER: &str = "/api/v1/tokenizer";

fn start() -> TestServer {
    TestServer::start(Setup::default())
}

/// A message of the user, with parameters.
fn body(text: &str, parameters: Value) -> Value {
    json!({
        "model": "tiny",
        "input": {"messages": [{"role": "user", "content": text}]},
        "parameters": parameters,
    })
}

fn post(server: &TestServer, path: &str, headers: &str, body: &Value) -> Answer {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\
         content-length: {}\r\n\r\n",
        body.len()
    );
    server.send(format!("{head}{body}").as_bytes())
}

fn generate(server: &TestServer, body: &Value) -> Value {
    let answer = post(server, GENERATION, "", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn stream(server: &TestServer, path: &str, body: &Value) -> Answer {
    post(server, path, "x-dashscope-sse: enable\r\n", body)
}

/// The data of a stream's events, whose framing is checked to the byte.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text = answer.text();
    let events = text.strip_suffix("\n\n").expect("whole events").split("\n\n");
    let data = events.enumerate().map(|(index, event)| {
        let head = format!("id:{}\nevent:result\n:HTTP_STATUS/200\ndata:{{", index + 1);
        assert!(event.starts_with(&head), "{event:?}");
        serde_json::from_str(&event[head.len() - 1..]).expect("JSON")
    });
    data.collect()
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: &str, pieces: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let json = answer.json();
    let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "message", "request_id"]);
    assert_eq!(json["code"], code, "{json}");
    assert_eq!(json["request_id"].as_str(), answer.header("x-request-id"));
    let message = json["message"].as_str().expect("a message");
    for piece in pieces {
        assert!(message.contains(piece), "no {piece:?} in {message:?}");
    }
}

#[test]
fn a_whole_answer_is_a_message_or_text() {
    let server = start();
    let answer = post(&server, GENERATION, "", &body("#say:Hi!#", json!({})));
    let id = answer.header("x-request-id").expect("an id").to_owned();
    assert_eq!(id.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    let expected = format!(
        "{{\"request_id\":\"{id}\",\"output\":{{\"choices\":[{{\"index\":0,\
         \"finish_reason\":\"stop\",\"message\":{{\"role\":\"assistant\",\"content\":\"Hi!\"}}}}]}}\
         ,\"usage\":{{\"input_tokens\":17,\"output_tokens\":4,\"total_tokens\":21,\
         \"prompt_tokens_details\":{{\"cached_tokens\":0}},\
         \"output_tokens_details\":{{\"reasoning_tokens\":0}}}}}}"
    );
    assert_eq!(answer.text(), expected);
    let text = generate(&server, &body("#say:Hi!#", json!({"result_format": "text"})));
    assert_eq!(text["output"], json!({"text": "Hi!", "finish_reason": "stop"}));
    let prompt = json!({"input": {"prompt": "#say:Hi!#"}, "parameters": {"max_tokens": 2}});
    let cut = &generate(&server, &prompt)["output"]["choices"][0];
    assert_eq!(
        (&cut["message"]["content"], &cut["finish_reason"]),
        (&json!("Hi"), &json!("length"))
    );
}

#[test]
fn streams_are_framed_to_the_byte() {
    let server = start();
    let parameters = json!({"incremental_output": true});
    let answer = stream(&server, GENERATION, &body("#say:ab#", parameters));
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let event = |number: u32, finish: &str, content: &str, tokens: u32| {
        format!(
            "id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{{\"request_id\":\"{id}\",\
             \"output\":{{\"choices\":[{{\"index\":0,\"finish_reason\":\"{finish}\",\
             \"message\":{{\"role\":\"assistant\",\"content\":\"{content}\"}}}}]}},\
             \"usage\":{{\"input_tokens\":15,\"output_tokens\":{tokens},\
             \"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":0}},\
             \"output_tokens_details\":{{\"reasoning_tokens\":0}}}}}}\n\n",
            15 + tokens
        )
    };
    let expected =
        [event(1, "null", "a", 1), event(2, "null", "b", 2), event(3, "stop", "", 3)].concat();
    assert_eq!(answer.text(), expected);
    // Either header asks for a stream.
    let accepts = "accept: text/event-stream\r\n";
    let other = post(&server, GENERATION, accepts, &body("#say:ab#", json!({})));
    let contents: Vec<Value> = events(&other)
        .iter()
        .map(|event| event["output"]["choices"][0]["message"]["content"].clone())
        .collect();
    assert_eq!(contents, ["a", "ab", "ab"], "without incremental_output all so far is repeated");
    let text = json!({"result_format": "text", "incremental_output": true});
    let text = events(&stream(&server, GENERATION, &body("#say:ab#", text)));
    assert_eq!(text[0]["output"], json!({"text": "a", "finish_reason": "null"}));
    assert_eq!(text[2]["output"], json!({"text": "", "finish_reason": "stop"}));
}

#[test]
fn content_may_be_parts() {
    let server = start();
    let parts = json!({"input": {"messages": [
        {"role": "system", "content": [{"text": "Be brief."}]},
        {"role": "user", "content": [{"text": "#say:Hi"}, {"type": "text", "text": "!#"}]},
    ]}});
    let answer = post(&server, MULTIMODAL, "", &parts).json();
    let message = &answer["output"]["choices"][0]["message"];
    assert_eq!(*message, json!({"role": "assistant", "content": [{"text": "Hi\n!"}]}));
    // Any model answers on both paths.
    let same = generate(&server, &parts);
    assert_eq!(same["output"]["choices"][0]["message"]["content"], "Hi\n!");
    let incremental = json!({"input": parts["input"], "parameters": {"incremental_output": true}});
    let events = events(&stream(&server, MULTIMODAL, &incremental));
    assert_eq!(events[0]["output"]["choices"][0]["message"]["content"], json!([{"text": "H"}]));
    let image = json!({"input": {"messages": [
        {"role": "user", "content": [{"image": "http://x/y.png"}, {"text": "what?"}]},
    ]}});
    let refused = post(&server, MULTIMODAL, "", &image);
    check_error(&refused, 400, "InvalidParameter", &["input.messages[0].content[0]", "image"]);
}

fn tools() -> Value {
    let function = json!({
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    });
    json!([{"type": "function", "function": function}])
}

const CALL: &str = "#say:<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \
                    \"Xi'an\"}}\n</tool_call>#";

#[test]
fn tools_are_called() {
    let server = start();
    let whole = generate(&server, &body(CALL, json!({"tools": tools()})));
    let choice = &whole["output"]["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["index"]), (&json!("function"), &json!(0)));
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments = call["function"]["arguments"].as_str().expect("JSON text").to_owned();
    let read: Value = serde_json::from_str(&arguments).expect("JSON");
    assert_eq!(read, json!({"city": "Xi'an"}));
    for incremental in [true, false] {
        let parameters = json!({"tools": tools(), "incremental_output": incremental});
        let events = events(&stream(&server, GENERATION, &body(CALL, parameters)));
        let calls = |event: &Value| {
            let calls = event["output"]["choices"][0]["message"]["tool_calls"].as_array().cloned();
            calls.unwrap_or_default()
        };
        let last = events.last().expect("an event");
        assert_eq!(last["output"]["choices"][0]["finish_reason"], "tool_calls");
        let joined: String = match incremental {
            true => events.iter().flat_map(calls).filter_map(arguments_of).collect(),
            false => calls(last).iter().cloned().filter_map(arguments_of).collect(),
        };
        assert_eq!(joined, arguments, "incremental {incremental}");
        let ids: Vec<String> = events
            .iter()
            .flat_map(calls)
            .filter_map(|call| call["id"].as_str().map(str::to_owned))
            .filter(|id| !id.is_empty())
            .collect();
        assert!(!ids.is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
    let text = json!({"tools": tools(), "result_format": "text"});
    let refused = post(&server, GENERATION, "", &body(CALL, text));
    check_error(&refused, 400, "InvalidParameter", &["result_format", "message"]);
    let result = json!({"input": {"messages": [
        {"role": "user", "content": "#say:#"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "#say:sunny#", "tool_call_id": call["id"]},
    ]}, "parameters": {"tools": tools()}});
    let after = generate(&server, &result);
    assert_eq!(after["output"]["choices"][0]["message"]["content"], "sunny");
}

fn arguments_of(call: Value) -> Option<String> {
    call["function"]["arguments"].as_str().map(str::to_owned)
}

#[test]
fn reasoning_is_apart() {
    let server = start();
    let text = "#say:<think>\nhm\n</think>\n\nyes#";
    let whole = generate(&server, &body(text, json!({"enable_thinking": true})));
    let message = &whole["output"]["choices"][0]["message"];
    assert_eq!((&message["content"], &message["reasoning_content"]), (&json!("yes"), &json!("hm")));
    let reasoning = whole["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64();
    assert!(reasoning > Some(0), "{}", whole["usage"]);
    let parameters = json!({"enable_thinking": true, "incremental_output": true});
    let events = events(&stream(&server, GENERATION, &body(text, parameters)));
    let joined = |name: &str| -> String {
        let messages = events.iter().map(|event| &event["output"]["choices"][0]["message"][name]);
        messages.filter_map(Value::as_str).collect()
    };
    assert_eq!((joined("content").as_str(), joined("reasoning_content").as_str()), ("yes", "hm"));
}

#[test]
fn parameters_are_those_of_a_chat() {
    let server = start();
    let two = generate(&server, &body("#seed#", json!({"n": 2, "seed": 1, "temperature": 0.5})));
    let choices = two["output"]["choices"].as_array().expect("choices");
    assert_eq!((choices.len(), &choices[1]["index"]), (2, &json!(1)));
    let stop = generate(&server, &body("#say:abc#", json!({"stop": "c"})));
    assert_eq!(stop["output"]["choices"][0]["message"]["content"], "ab");
    let logprobs = json!({"logprobs": true, "top_logprobs": 2});
    let logprobs = generate(&server, &body("#say:a#", logprobs));
    let first = &logprobs["output"]["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["top_logprobs"].as_array().map(Vec::len), Some(2));
    let partial = json!({"input": {"messages": [
        {"role": "user", "content": "#say:x#"},
        {"role": "assistant", "content": "so", "partial": true},
    ]}});
    assert_eq!(generate(&server, &partial)["output"]["choices"][0]["finish_reason"], "stop");
    let harmless = json!({"enable_search": false, "search_options": {"a": 1}, "colour": 1});
    let answer = post(&server, GENERATION, "", &body("#say:a#", harmless));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-monsoon-ignored-fields"), Some("colour"));
    for (parameters, pieces) in [
        (json!({"temperature": -1}), ["temperature", "-1"]),
        (json!({"enable_search": true}), ["enable_search", "true"]),
        (json!({"result_format": "xml"}), ["result_format", "xml"]),
        (json!({"incremental_output": 1}), ["incremental_output", "boolean"]),
        (json!({"result_format": "text", "n": 2}), ["result_format", "message"]),
        (json!({"prompt_logprobs": 1}), ["prompt_logprobs", "not supported"]),
    ] {
        let answer = post(&server, GENERATION, "", &body("x", parameters));
        check_error(&answer, 400, "InvalidParameter", &pieces);
    }
}

#[test]
fn errors_have_dashscopes_shape_and_codes() {
    let server = start();
    let answer = server.post(GENERATION, "{");
    check_error(&answer, 400, "InvalidParameter", &["JSON"]);
    let answer = post(&server, GENERATION, "", &json!({"model": "tiny"}));
    check_error(&answer, 400, "InvalidParameter", &["input"]);
    let answer = post(&server, GENERATION, "", &json!({"input": {}}));
    check_error(&answer, 400, "InvalidParameter", &["input.messages"]);
    let answer = post(&server, GENERATION, "", &json!({"input": {"prompt": "a", "history": []}}));
    check_error(&answer, 400, "InvalidParameter", &["input.history"]);
    let mut other = body("x", json!({}));
    other["model"] = "qwen-max".into();
    check_error(&post(&server, GENERATION, "", &other), 404, "ModelNotFound", &["qwen-max"]);
    check_error(&stream(&server, GENERATION, &other), 404, "ModelNotFound", &["qwen-max"]);
    check_error(&server.post("/api/v1/nothing", "{}"), 404, "NotFound", &["/api/v1/nothing"]);
    check_error(&server.get(GENERATION), 405, "MethodNotAllowed", &["GET"]);
    let long = body(&"a ".repeat(900), json!({}));
    check_error(&post(&server, GENERATION, "", &long), 400, "InvalidParameter", &["512"]);
    let wrong = json!({"input": {"texts": ["a"]}});
    check_error(&post(&server, EMBEDDING, "", &wrong), 400, "InvalidParameter", &["--task"]);
    let http = HttpConfig { keys: KeyRing::new(&["k".into()], &[]), ..HttpConfig::default() };
    let locked = TestServer::start(Setup { http, ..Setup::default() });
    for path in [GENERATION, MULTIMODAL, EMBEDDING, RERANK, TOKENIZER] {
        check_error(&post(&locked, path, "", &json!({})), 401, "InvalidApiKey", &["key"]);
    }
    let with_key = "authorization: Bearer k\r\n";
    let answer = post(&locked, GENERATION, with_key, &body("#say:a#", json!({})));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let setup = Setup { waiting_requests_max: 1, ..Setup::default() };
    let full = post(&TestServer::start(setup), GENERATION, "", &body("x", json!({"n": 2})));
    check_error(&full, 429, "Throttling.RateQuota", &["waiting"]);
    assert!(full.header("retry-after").is_some());
}

/// A stream of two pieces and an error, checked to the byte.
#[track_caller]
fn check_broken_off(answer: &Answer, pieces: [&str; 2], status: u16, code: &str, message: &str) {
    assert_eq!(answer.status, 200, "it had begun: {}", answer.text());
    let id = answer.header("x-request-id").expect("an id");
    let text = answer.text();
    let events: Vec<&str> = text.split_inclusive("\n\n").collect();
    assert_eq!(events.len(), 3, "{text}");
    for (index, piece) in pieces.iter().enumerate() {
        let head = format!("id:{}\nevent:result\n:HTTP_STATUS/200\ndata:{{", index + 1);
        let rest = events[index].strip_prefix(&head).unwrap_or_else(|| panic!("{text}"));
        assert!(rest.contains(&format!("\"content\":\"{piece}\"")), "{text}");
    }
    let data = format!("{{\"code\":\"{code}\",\"message\":\"{message}\",\"request_id\":\"{id}\"}}");
    assert_eq!(events[2], format!("id:3\nevent:error\nstatus:{status}\ndata:{data}\n\n"));
}

#[test]
fn an_answer_that_cannot_go_on_ends_with_an_error() {
    let server = start();
    let text = tiny_text_stage();
    let a = (0..1000).find(|id| text.token_bytes(models::TokenId(*id)) == *b"a").expect("a");
    // After two tokens nothing is left that both allow.
    let parameters = json!({
        "guided_regex": "aab", "allowed_token_ids": [a], "incremental_output": true,
        "enable_thinking": false,
    });
    let asked = body("#say:aab#", parameters);
    let streamed = stream(&server, GENERATION, &asked);
    let whole = post(&server, GENERATION, "", &asked);
    check_error(&whole, 400, "InvalidParameter", &["cannot be constrained further"]);
    let message = whole.json()["message"].as_str().expect("text").to_owned();
    check_broken_off(&streamed, ["a", "a"], 400, "InvalidParameter", &message);
    // The others go on.
    assert_eq!(post(&server, GENERATION, "", &body("#say:b#", json!({}))).status, 200);
}

#[test]
fn a_lost_device_ends_streams_and_answers_with_an_error() {
    let asked = body("#say:abc#", json!({"incremental_output": true}));
    let message = "the compute device was lost: rank 0 failed: unplugged";
    let server = start();
    server.gate.lose_after(2);
    let streamed = stream(&server, GENERATION, &asked);
    check_broken_off(&streamed, ["a", "b"], 503, "ServiceUnavailable", message);
    let late = stream(&server, GENERATION, &asked);
    check_error(&late, 503, "ServiceUnavailable", &["stopped"]);
    let server = start();
    server.gate.lose_after(2);
    let whole = post(&server, GENERATION, "", &asked);
    check_error(&whole, 503, "ServiceUnavailable", &[message]);
}

#[test]
fn texts_are_embedded() {
    let task = Task::Embed(Embedder { size: HIDDEN_SIZE, shortens: true });
    let server = TestServer::start(Setup { task, ..Setup::default() });
    let embed = |parameters: Value| {
        let texts = json!(["a", "the sea"]);
        let body = json!({"model": "tiny", "input": {"texts": texts}, "parameters": parameters});
        post(&server, EMBEDDING, "", &body)
    };
    let answer = embed(json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["request_id"].as_str(), answer.header("x-request-id"));
    let own = json!({"input": ["a", "the sea"]}).to_string();
    let openai = server.post("/v1/embeddings", &own).json();
    let list = json["output"]["embeddings"].as_array().expect("a list");
    assert_eq!(list.len(), 2);
    for (index, entry) in list.iter().enumerate() {
        assert_eq!(entry["text_index"], index);
        assert_eq!(entry["embedding"], openai["data"][index]["embedding"]);
    }
    assert_eq!(json["usage"]["total_tokens"], openai["usage"]["total_tokens"]);
    let short = embed(json!({"dimension": 2})).json();
    let vector = &short["output"]["embeddings"][0]["embedding"];
    assert_eq!(vector.as_array().map(Vec::len), Some(2));
    let query = embed(json!({"text_type": "query", "instruct": "Find it"})).json();
    let own = json!({"input": ["a"], "input_type": "query", "instruction": "Find it"}).to_string();
    let openai = server.post("/v1/embeddings", &own).json();
    assert_eq!(query["output"]["embeddings"][0]["embedding"], openai["data"][0]["embedding"]);
    assert_eq!(embed(json!({"output_type": "dense"})).status, 200);
    let sparse = embed(json!({"output_type": "sparse"}));
    check_error(&sparse, 400, "InvalidParameter", &["output_type", "sparse", "dense"]);
    check_error(&embed(json!({"dimension": 9})), 400, "InvalidParameter", &["dimension", "4"]);
    let none = post(&server, EMBEDDING, "", &json!({"input": {"texts": []}}));
    check_error(&none, 400, "InvalidParameter", &["input.texts"]);
    let empty = post(&server, EMBEDDING, "", &json!({"input": {"texts": ["a", ""]}}));
    check_error(&empty, 400, "InvalidParameter", &["input.texts[1]"]);
}

#[test]
fn documents_are_ranked() {
    let task = Task::Rerank(Reranker { no: NO, yes: YES });
    let server = TestServer::start(Setup { task, ..Setup::default() });
    let input = json!({"query": "q", "documents": ["a much longer document", "short"]});
    let rank = |parameters: Value| {
        post(&server, RERANK, "", &json!({"input": input, "parameters": parameters})).json()
    };
    let reply = rank(json!({}));
    let own = server.post("/v1/rerank", &input.to_string()).json();
    let results = reply["output"]["results"].as_array().expect("results");
    assert_eq!((results.len(), &results[0]["index"]), (2, &json!(1)));
    for (result, own) in results.iter().zip(own["results"].as_array().expect("results")) {
        assert_eq!(result["relevance_score"], own["relevance_score"]);
        assert!(result.get("document").is_none());
    }
    assert_eq!(reply["usage"]["total_tokens"], own["usage"]["total_tokens"]);
    let top = rank(json!({"top_n": 1, "return_documents": true, "instruct": "x"}));
    let results = top["output"]["results"].as_array().expect("results");
    assert_eq!((results.len(), &results[0]["document"]), (1, &json!({"text": "short"})));
    let missing = post(&server, RERANK, "", &json!({"input": {"query": "q"}}));
    check_error(&missing, 400, "InvalidParameter", &["input.documents"]);
}

#[test]
fn tokens_are_those_of_the_other_tokenizer_route() {
    let server = start();
    let prompt = json!({"model": "tiny", "input": {"prompt": "the sea"}});
    let reply = post(&server, TOKENIZER, "", &prompt).json();
    let own = server.post("/tokenize", &json!({"prompt": "the sea"}).to_string()).json();
    assert_eq!(reply["output"]["token_ids"], own["tokens"]);
    assert_eq!(reply["usage"]["input_tokens"], own["count"]);
    let tokens = reply["output"]["tokens"].as_array().expect("a list");
    let text: String = tokens.iter().filter_map(Value::as_str).collect();
    assert_eq!(text, "the sea");
    let messages = json!([{"role": "user", "content": "the sea"}]);
    let chat = post(&server, TOKENIZER, "", &json!({"input": {"messages": messages}})).json();
    let own = server.post("/tokenize", &json!({"messages": messages}).to_string()).json();
    assert_eq!(chat["output"]["token_ids"], own["tokens"]);
    let neither = post(&server, TOKENIZER, "", &json!({"input": {}}));
    check_error(&neither, 400, "InvalidParameter", &["input.prompt"]);
}

#[test]
fn model_studios_prefixes_lead_to_the_same_routes() {
    let server = start();
    let chat = json!({"messages": [{"role": "user", "content": "#say:Hi#"}], "max_tokens": 20});
    let chat = chat.to_string();
    let answer = server.post("/compatible-mode/v1/chat/completions", &chat).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "Hi");
    assert_eq!(server.get("/compatible-mode/v1/models").json()["object"], "list");
    assert_eq!(server.get("/compatible-mode/v1/models/org/tiny?x=1").json()["id"], "org/tiny");
    let message = server.post("/apps/anthropic/v1/messages", &chat).json();
    assert_eq!(message["content"][0]["text"], "Hi");
    let error = server.post("/apps/anthropic/v1/messages", "{").json();
    assert_eq!(error["type"], "error");
    // The prefix is one, and it stands before the version.
    for path in [
        "/compatible-mode/health",
        "/compatible-mode",
        "/compatible-mode/compatible-mode/v1/models",
    ] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    let http = HttpConfig { keys: KeyRing::new(&["k".into()], &[]), ..HttpConfig::default() };
    let locked = TestServer::start(Setup { http, ..Setup::default() });
    assert_eq!(locked.get("/compatible-mode/v1/models").status, 401);
    assert_eq!(locked.post("/apps/anthropic/v1/messages", "{}").status, 401);
}
