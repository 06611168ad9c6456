//! The load generator against a tiny server of its own.

use super::*;
use crate::config::Endpoint;
use std::convert::Infallible;
use std::sync::Mutex;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the fake server saw, and how it answers.
#[derive(Default)]
struct Fake {
    bodies: Mutex<Vec<Value>>,
    /// Fewer tokens than asked for.
    tokens_max: usize,
    /// Every such request is refused with 429; 0: none.
    refuse_every: usize,
}

async fn start(fake: Fake) -> (Arc<Fake>, String) {
    let fake = Arc::new(fake);
    let router = Router::new()
        .route("/v1/models", get(|| async { r#"{"data": [{"id": "fake"}]}"# }))
        .route("/v1/chat/completions", post(answer))
        .route("/v1/completions", post(answer))
        .with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (fake, url)
}

async fn answer(State(fake): State<Arc<Fake>>, body: String) -> Response {
    let body: Value = serde_json::from_str(&body).expect("bench sends JSON");
    let number = {
        let mut bodies = fake.bodies.lock().expect("not poisoned");
        bodies.push(body.clone());
        bodies.len()
    };
    if fake.refuse_every > 0 && number.is_multiple_of(fake.refuse_every) {
        let error = json!({"error": {"message": "queue full"}}).to_string();
        return (StatusCode::TOO_MANY_REQUESTS, error).into_response();
    }
    let asked = body["max_tokens"].as_u64().expect("sent") as usize;
    let count = asked.min(fake.tokens_max);
    let mut events: Vec<String> = (0..count)
        .map(|i| match body.get("messages") {
            Some(_) => json!({"choices": [{"index": 0, "delta": {"content": format!("w{i}")}}]}),
            None => json!({"choices": [{"index": 0, "text": format!("w{i}")}]}),
        })
        .map(|event| event.to_string())
        .collect();
    let usage = json!({"prompt_tokens": 7, "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": 3}});
    events.push(json!({"choices": [], "usage": usage}).to_string());
    events.push("[DONE]".to_string());
    // Comments, events split over frames and several in one frame must all be understood.
    let text: String = events.iter().map(|e| format!(": ping\n\ndata: {e}\n\n")).collect();
    let pieces: Vec<_> = text.as_bytes().chunks(37).map(Bytes::copy_from_slice).collect();
    let stream = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
    Body::from_stream(stream).into_response()
}

fn config(url: &str) -> BenchConfig {
    BenchConfig {
        url: url.to_string(),
        model: None,
        endpoint: Endpoint::Chat,
        api_key: None,
        load: Load::Closed { num_clients: 4 },
        stop: StopAfter::Requests(20),
        input_len: 12,
        output_len: 8,
        shared_prefix_len: 5,
        drop_fraction: 0.0,
        seed: 1,
        num_warmup: 1,
        json: None,
    }
}

fn fake() -> Fake {
    Fake { tokens_max: usize::MAX, ..Fake::default() }
}

#[tokio::test]
async fn every_request_is_counted_once_with_its_tokens() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let (fake, url) = start(fake()).await;
        let report = measure(BenchConfig { endpoint, ..config(&url) }).await.expect("measured");
        assert_eq!((report.records.len(), report.num_complete()), (20, 20));
        assert_eq!(report.model, "fake");
        let numbers: Vec<usize> = report.records.iter().map(|r| r.number).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        for record in &report.records {
            assert_eq!((record.prompt_tokens, record.output_tokens), (7, 8));
            assert_eq!((record.cached_tokens, record.pieces.len()), (3, 8));
            assert!(record.pieces.is_sorted() && record.sent <= record.pieces[0]);
        }
        let bodies = fake.bodies.lock().expect("not poisoned");
        assert_eq!(bodies.len(), 21, "one more for the warm-up");
        assert!(bodies.iter().all(|b| b["ignore_eos"] == true && b["max_tokens"] == 8));
    }
}

#[tokio::test]
async fn dropped_and_short_and_refused_requests_are_told_apart() {
    let (_fake, url) = start(fake()).await;
    let report = measure(BenchConfig { drop_fraction: 1.0, ..config(&url) }).await.expect("ran");
    assert!(report.records.iter().all(|r| r.is_dropped && r.pieces.len() <= 4));
    assert_eq!((report.num_complete(), report.num_failed()), (0, 0));

    let (_fake, url) = start(Fake { tokens_max: 3, ..Fake::default() }).await;
    let report = measure(config(&url)).await.expect("ran");
    assert!(report.records.iter().all(|r| r.is_short && r.is_complete()));
    assert!(report.to_string().contains("20 answers were shorter"), "{report}");

    let (_fake, url) = start(Fake { refuse_every: 3, ..fake() }).await;
    let report = measure(config(&url)).await.expect("ran");
    assert_eq!(report.errors_by_kind().get("status 429"), Some(&7));
    assert_eq!(report.num_complete() + report.num_failed(), 20);
    assert!(report.to_string().contains("7 x status 429"), "{report}");
    let error = run(config(&url)).await.expect_err("failures end with an error");
    assert!(matches!(error, CommandError::BenchFailed { sent: 20, .. }), "{error}");
}

/// Answers one request on each connection; at the next one it closes it without a word, as servers
/// do whose limit on idle time passes at that moment.
async fn start_closing() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok_and(|len| len > 0) {
                    let event = r#"{"choices": [{"index": 0, "text": "w"}]}"#;
                    let body = format!("data: {event}\n\ndata: [DONE]\n\n");
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}", body.len());
                    let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
                    let _ = stream.read(&mut request).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closes_costs_no_request() {
    let url = start_closing().await;
    let model = Some("fake".to_string());
    let config =
        BenchConfig { model, endpoint: Endpoint::Completions, output_len: 1, ..config(&url) };
    let report = measure(config).await.expect("ran");
    assert_eq!((report.num_complete(), report.num_failed()), (20, 0), "{report}");
}

#[tokio::test]
async fn an_open_loop_sends_all_requests_and_json_has_a_row_for_each() {
    let (_fake, url) = start(fake()).await;
    let load = Load::Open { requests_per_second: 2000.0 };
    let report = measure(BenchConfig { load, ..config(&url) }).await.expect("ran");
    assert_eq!(report.num_complete(), 20);
    let json = report.to_json();
    assert_eq!(json["records"].as_array().map(Vec::len), Some(20));
    assert_eq!(json["requests"]["complete"], 20);
    assert!(json["latencies"]["ttft_ms"]["p99"].as_f64().is_some_and(|ms| ms > 0.0));
}

#[tokio::test]
async fn nobody_there_is_an_error_and_https_says_so() {
    let error = measure(config("http://127.0.0.1:1")).await.err().expect("nobody there");
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let error = measure(config("https://h")).await.err().expect("not spoken");
    assert!(error.to_string().contains("only http://"), "{error}");
}

#[test]
fn prompts_share_their_prefix_and_nothing_else_and_repeat_with_the_seed() {
    let prompts = Prompts::new(7, 10, 30);
    let (a, b) = (prompts.prompt(0), prompts.prompt(1));
    let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
    assert_eq!((words(&a).len(), words(&b).len()), (30, 30));
    assert_eq!(words(&a)[..10], words(&b)[..10]);
    assert_ne!(words(&a)[10..], words(&b)[10..]);
    assert_eq!(a, Prompts::new(7, 10, 30).prompt(0));
    assert_ne!(a, Prompts::new(8, 10, 30).prompt(0));
    assert_eq!(words(&Prompts::new(7, 0, 1).prompt(3)).len(), 1);
}

#[test]
fn percentiles_are_values_that_occurred() {
    let values = report::Percentiles::of((1..=100).map(f64::from).collect());
    assert_eq!((values.p50, values.p90, values.p99, values.max), (50.0, 90.0, 99.0, 100.0));
    assert_eq!(values.mean, 50.5);
    let one = report::Percentiles::of(vec![3.0]);
    assert_eq!((one.p50, one.p99), (3.0, 3.0));
    assert_eq!(report::Percentiles::of(vec![]), report::Percentiles::default());
}
