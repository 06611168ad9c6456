//! Embeddings, rerank and score over a real socket: the same server as in http_contract.rs, whose
//! hidden state is [number of tokens, first, last, sum].

use serde_json::{Value, json};
use server::http::{Embedder, HttpConfig, Reranker, Task};
use tests::http::{Answer, HIDDEN_SIZE, MAX_MODEL_LEN, NO, Setup, TestServer, YES};

/// The tokenizer of the embedding model puts it behind every text.
const END: f64 = 1091.0;

fn embedder() -> TestServer {
    let task = Task::Embed(Embedder { size: HIDDEN_SIZE, shortens: true });
    TestServer::start(Setup { task, ..Setup::default() })
}

fn reranker() -> TestServer {
    let task = Task::Rerank(Reranker { no: NO, yes: YES });
    TestServer::start(Setup { task, ..Setup::default() })
}

fn embed(server: &TestServer, body: Value) -> Answer {
    server.post("/v1/embeddings", &body.to_string())
}

fn rerank(server: &TestServer, body: Value) -> Answer {
    server.post("/v1/rerank", &body.to_string())
}

#[track_caller]
fn check_error(answer: &Answer, code: &str, param: &str, pieces: &[&str]) {
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{error}");
    let message = error["message"].as_str().expect("a message");
    for piece in pieces {
        assert!(message.contains(piece), "no {piece:?} in {message:?}");
    }
}

/// Of the script runner's hidden state.
fn unit(values: &[f64]) -> Vec<f64> {
    let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    values.iter().map(|x| x / norm).collect()
}

#[track_caller]
fn check_vector(vector: &Value, expected: &[f64]) {
    let got: Vec<f64> =
        vector.as_array().expect("a list").iter().map(|x| x.as_f64().expect("number")).collect();
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {expected:?}");
}

#[test]
fn token_ids_are_embedded_as_they_are() {
    let server = embedder();
    let answer = embed(&server, json!({"model": "org/tiny", "input": [3, 4]}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let expected = concat!(
        r#"{"object":"list","data":[{"object":"embedding","index":0,"#,
        r#""embedding":[0.2264554,0.33968312,0.4529108,0.7925939]}],"model":"org/tiny","#,
        r#""usage":{"prompt_tokens":2,"total_tokens":2,"#,
        r#""prompt_tokens_details":{"cached_tokens":0}}}"#,
    );
    assert_eq!(answer.text(), expected);
    check_vector(&answer.json()["data"][0]["embedding"], &unit(&[2.0, 3.0, 4.0, 7.0]));
}

#[test]
fn texts_get_the_models_end_token() {
    let server = embedder();
    let text = |extra: Value| {
        let mut body = json!({"input": "a", "dimensions": 3});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("one").clone());
        let json = embed(&server, body).json();
        (json["usage"]["prompt_tokens"].as_u64(), json["data"][0]["embedding"].clone())
    };
    let (tokens, vector) = text(json!({}));
    let first = 64.0;
    assert_eq!(tokens, Some(2));
    check_vector(&vector, &unit(&[2.0, first, END]));
    let (tokens, vector) = text(json!({"add_special_tokens": false}));
    assert_eq!(tokens, Some(1));
    check_vector(&vector, &unit(&[1.0, first, first]));
    // A client's own string is text, whatever it says.
    let (tokens, _) = text(json!({"input": "<|endoftext|>"}));
    assert!(tokens > Some(4), "{tokens:?}");
}

#[test]
fn lists_are_answered_in_order() {
    let server = embedder();
    let answer = embed(&server, json!({"input": [[9], [1, 2, 3], [5, 5]]})).json();
    let data = answer["data"].as_array().expect("a list");
    assert_eq!(data.len(), 3);
    let states = [[1.0, 9.0, 9.0, 9.0], [3.0, 1.0, 3.0, 6.0], [2.0, 5.0, 5.0, 10.0]];
    for (i, (entry, state)) in data.iter().zip(states).enumerate() {
        assert_eq!(entry["index"], i);
        check_vector(&entry["embedding"], &unit(&state));
    }
    assert_eq!(answer["usage"]["total_tokens"], 6);
    let texts = embed(&server, json!({"input": ["a", "b"]})).json();
    assert_eq!(texts["data"].as_array().map(Vec::len), Some(2));
    // More than fit in the engine at once.
    let many: Vec<Value> = (0..40).map(|i| json!([i, 7])).collect();
    let answer = embed(&server, json!({"input": many})).json();
    for (i, entry) in answer["data"].as_array().expect("a list").iter().enumerate() {
        check_vector(&entry["embedding"], &unit(&[2.0, i as f64, 7.0, i as f64 + 7.0]));
    }
}

#[test]
fn base64_holds_little_endian_floats() {
    let server = embedder();
    let answer = embed(&server, json!({"input": [3, 4], "encoding_format": "base64"})).json();
    let text = answer["data"][0]["embedding"].as_str().expect("a string").to_owned();
    let floats = embed(&server, json!({"input": [3, 4], "encoding_format": "float"})).json();
    let bytes = floats["data"][0]["embedding"].as_array().expect("a list").iter().flat_map(|x| {
        let float: f32 = x.to_string().parse().expect("a float");
        float.to_le_bytes()
    });
    assert_eq!(text, base64(&bytes.collect::<Vec<u8>>()));
}

/// By the definition, to have it from somewhere else than the server.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[test]
fn dimensions_cut_and_normalise_again() {
    let server = embedder();
    let answer = embed(&server, json!({"input": [3, 4], "dimensions": 2})).json();
    check_vector(&answer["data"][0]["embedding"], &unit(&[2.0, 3.0]));
    for (dimensions, range) in [(5, "from 1 to 4"), (0, "at least 1")] {
        let answer = embed(&server, json!({"input": [3], "dimensions": dimensions}));
        check_error(&answer, "invalid_value", "dimensions", &[&dimensions.to_string(), range]);
    }
    let task = Task::Embed(Embedder { size: HIDDEN_SIZE, shortens: false });
    let server = TestServer::start(Setup { task, ..Setup::default() });
    let answer = embed(&server, json!({"input": [3], "dimensions": 2}));
    check_error(&answer, "invalid_value", "dimensions", &["2", "4"]);
    assert_eq!(embed(&server, json!({"input": [3], "dimensions": 4})).status, 200);
}

#[test]
fn queries_are_put_after_their_instruction() {
    let server = embedder();
    let tokens = |body: Value| embed(&server, body).json()["usage"]["prompt_tokens"].clone();
    let whole = "Instruct: Find it\nQuery:the sea";
    let asked = json!({"input": "the sea", "input_type": "query", "instruction": "Find it"});
    assert_eq!(tokens(asked.clone()), tokens(json!({"input": whole})));
    let vector = |body: Value| embed(&server, body).json()["data"][0]["embedding"].clone();
    assert_eq!(vector(asked), vector(json!({"input": whole})));
    let default = "Instruct: Given a web search query, retrieve relevant passages that answer the \
                   query\nQuery:the sea";
    let asked = json!({"input": "the sea", "input_type": "query"});
    assert_eq!(vector(asked), vector(json!({"input": default})));
    let plain = json!({"input": "the sea", "input_type": "document"});
    assert_eq!(vector(plain), vector(json!({"input": "the sea"})));
    let ids = embed(&server, json!({"input": [1], "input_type": "query"}));
    check_error(&ids, "invalid_value", "input_type", &["token ids"]);
    let lone = embed(&server, json!({"input": "a", "instruction": "x"}));
    check_error(&lone, "invalid_value", "instruction", &["query"]);
}

#[test]
fn long_inputs_are_refused_unless_they_may_be_cut() {
    let server = embedder();
    let long: Vec<u32> = (0..MAX_MODEL_LEN as u32 + 1).collect();
    let answer = embed(&server, json!({"input": long}));
    check_error(&answer, "context_length_exceeded", "input", &["513", "512"]);
    let answer = embed(&server, json!({"input": [[1], long]}));
    check_error(&answer, "context_length_exceeded", "input[1]", &["513", "512"]);
    // The whole context may be used: nothing is generated.
    let full = embed(&server, json!({"input": long[1..]})).json();
    assert_eq!(full["usage"]["prompt_tokens"], MAX_MODEL_LEN);
    let cut = embed(&server, json!({"input": long, "truncate_prompt_tokens": -1})).json();
    assert_eq!(cut["usage"]["prompt_tokens"], MAX_MODEL_LEN);
    let text = json!({"input": "a ".repeat(600), "truncate_prompt_tokens": 5, "dimensions": 3});
    let cut = embed(&server, text).json();
    assert_eq!(cut["usage"]["prompt_tokens"], 5);
    check_vector(&cut["data"][0]["embedding"], &unit(&[5.0, 64.0, END]));
    let none = embed(&server, json!({"input": "abc", "truncate_prompt_tokens": 1}));
    check_error(&none, "invalid_value", "truncate_prompt_tokens", &["1", "no room"]);
    for wrong in [0, 513, -2] {
        let answer = embed(&server, json!({"input": "a", "truncate_prompt_tokens": wrong}));
        let value = wrong.to_string();
        check_error(&answer, "invalid_value", "truncate_prompt_tokens", &[&value]);
    }
}

#[test]
fn bad_inputs_are_refused_by_name() {
    let server = embedder();
    for (input, code, param) in [
        (json!(""), "invalid_value", "input"),
        (json!([]), "invalid_value", "input"),
        (json!(["a", ""]), "invalid_value", "input[1]"),
        (json!([[]]), "invalid_value", "input[0]"),
        (json!([1, "a"]), "invalid_type", "input"),
        (json!(["a", {}]), "invalid_type", "input[1]"),
        (json!({}), "invalid_type", "input"),
        (json!([1100]), "invalid_value", "input"),
        (json!([-1]), "invalid_value", "input"),
        (Value::Null, "missing_field", "input"),
    ] {
        check_error(&embed(&server, json!({"input": input})), code, param, &[]);
    }
    let unsupported = [
        ("messages", json!([{"role": "user", "content": "x"}])),
        ("normalize", json!(false)),
        ("embed_dtype", json!("float16")),
    ];
    for (field, value) in unsupported {
        let answer = embed(&server, json!({"input": "a", field: value}));
        check_error(&answer, "unsupported_field", field, &[]);
    }
    let wrong = embed(&server, json!({"input": "a", "encoding_format": "hex"}));
    check_error(&wrong, "invalid_value", "encoding_format", &["hex", "base64"]);
    let model = embed(&server, json!({"input": "a", "model": "other"}));
    assert_eq!((model.status, &model.json()["error"]["code"]), (404, &json!("model_not_found")));
    let unknown = embed(&server, json!({"input": "a", "colour": 1, "user": "me"}));
    assert_eq!(unknown.header("x-monsoon-ignored-fields"), Some("colour"));
}

#[test]
fn lists_have_a_limit() {
    let http = HttpConfig { prompts_max: 3, ..HttpConfig::default() };
    let task = Task::Embed(Embedder { size: HIDDEN_SIZE, shortens: true });
    let server = TestServer::start(Setup { http, task, ..Setup::default() });
    assert_eq!(embed(&server, json!({"input": [[1], [2], [3]]})).status, 200);
    let answer = embed(&server, json!({"input": [[1], [2], [3], [4]]}));
    check_error(&answer, "invalid_value", "input", &["4", "1 to 3"]);
}

#[test]
fn a_full_queue_is_told_as_everywhere() {
    let task = Task::Embed(Embedder { size: HIDDEN_SIZE, shortens: true });
    let setup = Setup { task, waiting_requests_max: 2, ..Setup::default() };
    let server = TestServer::start(setup);
    let answer = embed(&server, json!({"input": [[1], [2], [3]]}));
    assert_eq!(answer.status, 429);
    assert_eq!(answer.json()["error"]["code"], "queue_full");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(server.metric("monsoon_num_requests_waiting"), 0.0);
}

#[test]
fn embeddings_are_counted() {
    let server = embedder();
    assert_eq!(embed(&server, json!({"input": [[1, 2], [3, 4, 5]]})).status, 200);
    let route = r#"monsoon_http_requests_total{route="/v1/embeddings",code="200"}"#;
    assert_eq!(server.metric(route), 1.0);
    assert_eq!(server.metric("monsoon_prompt_tokens_total"), 5.0);
    assert_eq!(server.metric("monsoon_generation_tokens_total"), 0.0);
    assert_eq!(server.metric(r#"monsoon_request_success_total{finished_reason="stop"}"#), 2.0);
    assert_eq!(server.metric("monsoon_request_prompt_tokens_sum"), 5.0);
    assert_eq!(server.metric("monsoon_num_requests_running"), 0.0);
}

#[test]
fn a_client_that_leaves_frees_what_it_held() {
    let server = embedder();
    server.gate.close();
    let mut stream = server.connect();
    let many: Vec<Value> = (0..20).map(|i| json!([i])).collect();
    let body = json!({"input": many}).to_string();
    let bytes = tests::http::post_bytes("/v1/embeddings", &body);
    std::io::Write::write_all(&mut stream, &bytes).expect("the server reads");
    // Some compute; how many of the others came in time for the same plan is a matter of luck.
    while server.metric("monsoon_requests_started_total") < 1.0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(stream);
    server.wait_for_metric(r#"monsoon_request_success_total{finished_reason="abort"}"#, 20.0);
    server.gate.open();
    server.wait_for_metric("monsoon_num_requests_running", 0.0);
    server.wait_for_metric("monsoon_num_requests_waiting", 0.0);
}

#[test]
fn each_model_answers_what_it_is_for() {
    let ask = |server: &TestServer, path: &str| {
        let body = match path {
            "/v1/embeddings" => json!({"input": "a"}),
            "/v1/completions" => json!({"prompt": "a", "max_tokens": 1}),
            "/v1/responses" => json!({"input": "a"}),
            "/v1/score" | "/score" => json!({"text_1": "a", "text_2": "b"}),
            path if path.ends_with("rerank") => json!({"query": "a", "documents": ["b"]}),
            _ => json!({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}),
        };
        server.post(path, &body.to_string())
    };
    let generate = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];
    let judge = ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score"];
    let kinds = [
        (TestServer::start(Setup::default()), "generates text"),
        (embedder(), "makes embeddings"),
        (reranker(), "scores documents"),
    ];
    let all = generate.iter().chain(&["/v1/embeddings"]).chain(&judge);
    for path in all {
        for (kind, (server, does)) in kinds.iter().enumerate() {
            let own = match kind {
                0 => generate.contains(path),
                1 => *path == "/v1/embeddings",
                _ => judge.contains(path),
            };
            let answer = ask(server, path);
            if own {
                assert_eq!(answer.status, 200, "{path} {does}: {}", answer.text());
                continue;
            }
            assert_eq!(answer.status, 400, "{path} {does}: {}", answer.text());
            let message = answer.json()["error"]["message"].as_str().expect("text").to_owned();
            assert!(message.contains(does) && message.contains("'tiny'"), "{message}");
            assert!(message.contains("--task"), "{message}");
        }
    }
}

/// The runner says that "yes" has -0.25, and "no" -1 / the number of tokens.
fn score_of(num_tokens: f64) -> f64 {
    let (yes, no) = (-0.25, f64::from((-1.0 / num_tokens) as f32));
    1.0 / (1.0 + (no - f64::from(yes as f32)).exp())
}

#[test]
fn documents_are_ranked_by_yes_against_no() {
    let server = reranker();
    let documents = json!(["short", "a much longer document", {"text": "middle one"}]);
    let answer = rerank(&server, json!({"query": "q", "documents": documents}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let reply = answer.json();
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("rerank-")));
    assert_eq!(reply["model"], "tiny");
    let results = reply["results"].as_array().expect("a list");
    let order: Vec<u64> = results.iter().filter_map(|r| r["index"].as_u64()).collect();
    // The longer the prompt, the likelier is "no".
    assert_eq!(order, [0, 2, 1]);
    assert_eq!(results[0]["document"], json!({"text": "short"}));
    assert_eq!(results[1]["document"], json!({"text": "middle one"}));
    let one = json!({"query": "q", "documents": ["short"]});
    let alone = rerank(&server, one).json();
    let tokens = alone["usage"]["prompt_tokens"].as_f64().expect("a number");
    let score = alone["results"][0]["relevance_score"].as_f64().expect("a score");
    assert!((score - score_of(tokens)).abs() < 1e-9, "{score} {}", score_of(tokens));
    assert_eq!(results[0]["relevance_score"], score);
    let total = reply["usage"]["total_tokens"].as_f64().expect("a number");
    assert!(total > 3.0 * tokens);
}

#[test]
fn ranking_takes_a_limit_an_instruction_and_no_documents() {
    let server = reranker();
    let documents = json!(["bbbb bbbb", "a", "cc cc"]);
    let body = json!({"query": "q", "documents": documents, "top_n": 2, "return_documents": false});
    let reply = server.post("/v2/rerank", &body.to_string()).json();
    let results = reply["results"].as_array().expect("a list");
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result.get("document").is_none()));
    for top_n in [0, 3, 9] {
        let body = json!({"query": "q", "documents": documents, "top_n": top_n});
        assert_eq!(rerank(&server, body).json()["results"].as_array().map(Vec::len), Some(3));
    }
    let tokens = |body: Value| rerank(&server, body).json()["usage"]["prompt_tokens"].clone();
    let default = tokens(json!({"query": "q", "documents": ["a"]}));
    let shorter = tokens(json!({"query": "q", "documents": ["a"], "instruction": "x"}));
    assert!(shorter.as_u64() < default.as_u64());
    // The query's part of the prompt and the frame around it are never cut.
    let cut = json!({"query": "q", "documents": ["a ".repeat(900)], "truncate_prompt_tokens": 300});
    assert_eq!(tokens(cut), 300);
    let frame = json!({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 9});
    check_error(&rerank(&server, frame), "invalid_value", "truncate_prompt_tokens", &["no room"]);
    let long = json!({"query": "q", "documents": ["b", "a ".repeat(900)]});
    check_error(&rerank(&server, long), "context_length_exceeded", "documents[1]", &["512"]);
}

#[test]
fn bad_rankings_are_refused_by_name() {
    let server = reranker();
    for (body, code, param) in [
        (json!({"documents": ["a"]}), "missing_field", "query"),
        (json!({"query": "q"}), "missing_field", "documents"),
        (json!({"query": 1, "documents": ["a"]}), "invalid_type", "query"),
        (json!({"query": "q", "documents": "a"}), "invalid_type", "documents"),
        (json!({"query": "q", "documents": []}), "invalid_value", "documents"),
        (json!({"query": "q", "documents": ["a", 1]}), "invalid_type", "documents[1]"),
        (json!({"query": "q", "documents": [{}]}), "missing_field", "documents[0].text"),
        (json!({"query": "q", "documents": ["a"], "top_n": -1}), "invalid_value", "top_n"),
        (
            json!({"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}),
            "unsupported_field",
            "max_tokens_per_doc",
        ),
    ] {
        check_error(&rerank(&server, body), code, param, &[]);
    }
}

#[test]
fn scores_are_of_pairs() {
    let server = reranker();
    let score = |body: Value| server.post("/v1/score", &body.to_string());
    let scores = |body: Value| -> Vec<f64> {
        let json = score(body).json();
        let data = json["data"].as_array().expect("a list");
        assert!(data.iter().enumerate().all(|(i, s)| s["index"] == i && s["object"] == "score"));
        data.iter().filter_map(|s| s["score"].as_f64()).collect()
    };
    let pair = |a: &str, b: &str| scores(json!({"text_1": a, "text_2": b}))[0];
    let (one, two) = (pair("q", "a long document"), pair("q", "b"));
    assert_eq!(scores(json!({"text_1": "q", "text_2": ["a long document", "b"]})), [one, two]);
    let lists = json!({"queries": ["q", "long query here"], "documents": ["b", "b"]});
    assert_eq!(scores(lists), [two, pair("long query here", "b")]);
    let reply = score(json!({"text_1": "q", "text_2": "b"})).json();
    assert_eq!(reply["object"], "list");
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("score-")));
    let uneven = score(json!({"text_1": ["a", "b"], "text_2": ["c"]}));
    check_error(&uneven, "invalid_value", "text_1", &["2", "1"]);
    check_error(&score(json!({"text_1": "a"})), "missing_field", "text_2", &[]);
    check_error(&score(json!({"text_1": "a", "text_2": [1]})), "invalid_type", "text_2[0]", &[]);
}

#[test]
fn cached_prefixes_count_in_usage() {
    let task = Task::Rerank(Reranker { no: NO, yes: YES });
    let prefix_caching = server::engine::PrefixCaching::Enabled;
    let server = TestServer::start(Setup { task, prefix_caching, ..Setup::default() });
    let body = json!({"query": "q", "documents": ["the same document"]});
    let first = rerank(&server, body.clone()).json();
    let again = rerank(&server, body).json();
    assert_eq!(first["results"], again["results"]);
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let total = again["usage"]["prompt_tokens"].as_u64();
    assert!(cached > Some(0) && cached < total, "{cached:?} of {total:?}");
}
