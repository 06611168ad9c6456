//! The Responses API over a real socket: the same server as in http_contract.rs.

use serde_json::{Value, json};
use server::http::{HttpConfig, KeyRing};
use std::time::Duration;
use tests::http::{Answer, Setup, TestServer, post_bytes};

const PATH: &str = "/v1/responses";

fn start() -> TestServer {
    TestServer::start(Setup::default())
}

fn create(server: &TestServer, body: &Value) -> Answer {
    server.post(PATH, &body.to_string())
}

fn say(text: &str, extra: Value) -> Value {
    let mut body = json!({"input": format!("#say:{text}#")});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let events = text.strip_suffix("\n\n").expect("whole events").split("\n\n");
    let read = |(number, event): (usize, &str)| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], number);
        data
    };
    events.enumerate().map(read).collect()
}

/// The output that the events tell of, checked against the response at their end.
fn put_together(events: &[Value]) -> Value {
    let mut items: Vec<Value> = Vec::new();
    let mut text = String::new();
    assert_eq!(events[0]["type"], "response.created");
    assert_eq!(events[1]["type"], "response.in_progress");
    for event in &events[2..events.len() - 1] {
        let kind = event["type"].as_str().expect("a type").strip_prefix("response.").expect("ours");
        let at_end = event["output_index"] == items.len();
        match kind {
            "output_item.added" => {
                assert!(at_end && event["item"]["status"] == "in_progress", "{event}");
                text.clear();
            }
            "content_part.added" => assert_eq!(event["part"]["text"], ""),
            "content_part.done" => assert_eq!(event["part"]["text"], text.as_str()),
            "output_text.done" | "reasoning_text.done" => assert_eq!(event["text"], text.as_str()),
            "function_call_arguments.done" => assert_eq!(event["arguments"], text.as_str()),
            "output_item.done" => {
                assert!(at_end, "{event}");
                items.push(event["item"].clone());
            }
            delta => {
                assert!(delta.ends_with(".delta") && at_end, "{event}");
                text.push_str(event["delta"].as_str().expect("text"));
            }
        }
    }
    let last = events.last().expect("events");
    assert_eq!(
        last["type"],
        format!("response.{}", last["response"]["status"].as_str().expect("s"))
    );
    assert_eq!(last["response"]["output"], Value::from(items));
    last["response"].clone()
}

/// Output without what is random.
fn plain(response: &Value) -> Vec<Value> {
    let strip = |item: &Value| match item["type"].as_str() {
        Some("reasoning") => json!({"reasoning": item["content"][0]["text"]}),
        Some("message") => json!({"text": item["content"][0]["text"]}),
        _ => json!({"call": item["name"], "arguments": item["arguments"]}),
    };
    response["output"].as_array().expect("a list").iter().map(strip).collect()
}

#[test]
fn responses_whole_and_streamed() {
    let server = start();
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let called = json!({"call": "f", "arguments": "{\"a\": 1}"});
    let tools = json!({"tools": [{"type": "function", "name": "f", "parameters": {}}]});
    let rows = [
        ("Hi!".to_owned(), json!({}), vec![json!({"text": "Hi!"})], "completed"),
        ("long".into(), json!({"max_output_tokens": 2}), vec![json!({"text": "lo"})], "incomplete"),
        (
            "<think>hm</think>So.".into(),
            json!({}),
            vec![json!({"reasoning": "hm"}), json!({"text": "So."})],
            "completed",
        ),
        (
            format!("Yes.{call}{call}"),
            tools,
            vec![json!({"text": "Yes."}), called.clone(), called],
            "completed",
        ),
        (String::new(), json!({}), vec![], "completed"),
    ];
    for (text, extra, output, status) in rows {
        let mut body = say(&text, extra);
        let whole = create(&server, &body).json();
        assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!(status)));
        assert_eq!(plain(&whole), output, "{text}");
        let details = whole["incomplete_details"]["reason"].as_str();
        assert_eq!(details, (status == "incomplete").then_some("max_output_tokens"));
        let usage = &whole["usage"];
        let tokens = |key: &str| usage[key].as_u64().expect("a count");
        assert_eq!(tokens("input_tokens") + tokens("output_tokens"), tokens("total_tokens"));
        body["stream"] = true.into();
        let streamed = put_together(&events(&create(&server, &body)));
        assert_eq!(plain(&streamed), output, "{text}");
        assert_eq!(streamed["status"], status);
        assert_eq!(streamed["usage"]["total_tokens"], usage["total_tokens"]);
        assert_eq!(streamed["tools"], whole["tools"]);
        for response in [&whole, &streamed] {
            let id = response["id"].as_str().expect("an id");
            assert_eq!(&server.get(&format!("{PATH}/{id}")).json(), response);
        }
    }
}

#[test]
fn conversations_go_on_from_kept_responses() {
    let server = start();
    let tools = json!([{"type": "function", "name": "f", "parameters": {}}]);
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let first = say(call, json!({"tools": tools, "instructions": "Be kind."}));
    let first = create(&server, &first).json();
    let call_id = first["output"][0]["call_id"].clone();
    let result = json!({"type": "function_call_output", "call_id": call_id, "output": "42"});
    let next = json!({
        "previous_response_id": first["id"],
        "input": [result, {"role": "user", "content": [{"type": "input_text", "text": "#say:b#"}]}],
        "tools": tools,
    });
    let second = create(&server, &next).json();
    assert_eq!(plain(&second), [json!({"text": "b"})]);
    // The same conversation, told at once: instructions are not carried over.
    let history = json!([
        {"role": "user", "content": format!("#say:{call}#")},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"role": "user", "content": "#say:b#"},
    ]);
    let whole = create(&server, &json!({"input": history, "tools": tools, "store": false})).json();
    assert_eq!(whole["usage"]["input_tokens"], second["usage"]["input_tokens"]);
    assert_eq!(server.get(&format!("{PATH}/{}", whole["id"].as_str().expect("id"))).status, 404);
    let path = format!("{PATH}/{}", first["id"].as_str().expect("an id"));
    let delete =
        |path: &str| server.send(format!("DELETE {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    assert_eq!(delete(&path).json()["deleted"], true);
    assert_eq!((delete(&path).status, server.get(&path).status), (404, 404));
    let gone = create(&server, &next);
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (404, &json!("response_not_found")));
}

#[test]
fn work_in_the_background_ends_or_is_cancelled() {
    let server = start();
    let get = |id: &str| server.get(&format!("{PATH}/{id}")).json();
    let begun = create(&server, &say("done", json!({"background": true}))).json();
    assert_eq!((&begun["status"], &begun["output"]), (&json!("in_progress"), &json!([])));
    let id = begun["id"].as_str().expect("an id").to_owned();
    let mut response = get(&id);
    for _ in 0..6000 {
        if response["status"] != "in_progress" {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        response = get(&id);
    }
    assert_eq!(response["status"], "completed");
    assert_eq!(plain(&response), [json!({"text": "done"})]);
    let cancel = |id: &str| server.post(&format!("{PATH}/{id}/cancel"), "").json();
    assert_eq!(cancel(&id)["status"], "completed");
    // One that would go on for ever, while the runner's steps are held back.
    server.gate.close();
    let endless = create(&server, &json!({"input": "#loop#", "background": true})).json();
    let id = endless["id"].as_str().expect("an id");
    assert_eq!(cancel(id)["status"], "cancelled");
    server.gate.open();
    server.wait_for_metric("monsoon_num_requests_running", 0.0);
    assert_eq!(get(id)["status"], "cancelled");
    let foreground = create(&server, &say("x", json!({}))).json();
    let refused = cancel(foreground["id"].as_str().expect("an id"));
    assert!(refused["error"]["message"].as_str().is_some_and(|m| m.contains("background")));
}

#[test]
fn what_is_wrong_or_not_served_is_refused_by_name() {
    let server = start();
    let rows = [
        (json!({"input": null}), "input"),
        (json!({"input": 1}), "input"),
        (json!({"input": []}), "messages"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input_image"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "item_reference"),
        (json!({"input": [{"type": "function_call", "call_id": "c"}]}), "input[0].name"),
        (json!({"instructions": 1}), "instructions"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"text": {"format": {"type": "xml"}}}), "response_format.type"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning_effort"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"include": ["x"]}), "include"),
        (json!({"metadata": 1}), "metadata"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"background": true, "stream": true}), "background"),
        (json!({"n": 2}), "'n'"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"include_reasoning": false}), "include_reasoning"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
    ];
    for (extra, piece) in rows {
        let answer = create(&server, &say("x", extra.clone()));
        assert_eq!(answer.status, 400, "{extra}: {}", answer.text());
        let error = answer.json();
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(piece), "{extra}: {message}");
    }
}

#[test]
fn each_key_sees_its_own_responses() {
    let api_keys = vec!["a".to_owned(), "b".to_owned()];
    let http = HttpConfig { keys: KeyRing::new(&api_keys, &[]), ..HttpConfig::default() };
    let server = TestServer::start(Setup { http, ..Setup::default() });
    let send = |bytes: Vec<u8>, key: &str| {
        let text = String::from_utf8(bytes).expect("text");
        let with_key = format!("host: x\r\nauthorization: Bearer {key}");
        server.send(text.replacen("host: x", &with_key, 1).as_bytes())
    };
    let made = send(post_bytes(PATH, &say("x", json!({})).to_string()), "a").json();
    let id = made["id"].as_str().expect("an id");
    let get = |key: &str| {
        send(format!("GET {PATH}/{id} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes(), key).status
    };
    assert_eq!((get("a"), get("b")), (200, 404));
}
