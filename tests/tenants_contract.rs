//! What tenants may ask for, over HTTP, and the file they stand in, read again by the program
//! itself.

use serde_json::{Value, json};
use server::http::{HttpConfig, KeyRing, TenantLimits, TenantSpec};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tests::data_dir;
use tests::http::{Answer, Setup, TestServer, check_error, post_bytes};
use tests::program::{Program, binary};

fn tenant(name: &str, limits: TenantLimits) -> TenantSpec {
    let key_digests = vec![Sha256::digest(name).into()];
    TenantSpec { name: name.into(), key_digests, weight: 1, limits }
}

/// A server whose tenants' keys are their names.
fn start(tenants: &[TenantSpec]) -> TestServer {
    let keys = KeyRing::new(&[], tenants);
    let http = HttpConfig { keys, ..HttpConfig::default() };
    TestServer::start(Setup { http, ..Setup::default() })
}

fn as_client(key: &str, request: Vec<u8>) -> Vec<u8> {
    let request = String::from_utf8(request).expect("text");
    let with_key = format!("host: x\r\nauthorization: Bearer {key}");
    request.replacen("host: x", &with_key, 1).into_bytes()
}

fn get_bytes(key: &str, path: &str) -> Vec<u8> {
    as_client(key, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes())
}

fn chat_bytes(key: &str, more: &Value) -> Vec<u8> {
    let mut body = json!({
        "messages": [{"role": "user", "content": "#say:yes#"}], "temperature": 0, "max_tokens": 8,
    });
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    as_client(key, post_bytes("/v1/chat/completions", &body.to_string()))
}

fn chat(server: &TestServer, key: &str, more: Value) -> Answer {
    server.send(&chat_bytes(key, &more))
}

#[test]
fn requests_a_minute_are_counted_for_each_tenant_alone() {
    let limits = TenantLimits { requests_per_minute: Some(2), ..TenantLimits::default() };
    let server = start(&[tenant("few", limits), tenant("many", TenantLimits::default())]);
    for _ in 0..2 {
        assert_eq!(chat(&server, "few", json!({})).status, 200);
    }
    let refused = chat(&server, "few", json!({}));
    check_error(&refused, 429, "rate_limit_exceeded", &["2 requests a minute"]);
    let seconds: u64 = refused.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=30).contains(&seconds), "{seconds}");
    for _ in 0..5 {
        assert_eq!(chat(&server, "many", json!({})).status, 200);
    }
    let rejected = "monsoon_requests_rejected_total{reason=\"rate_limit_exceeded\"}";
    let metrics = server.send(&get_bytes("many", "/metrics"));
    assert!(metrics.text().contains(&format!("{rejected} 1\n")), "{}", metrics.text());
}

#[test]
fn tokens_of_prompts_and_answers_are_counted() {
    let limits = TenantLimits { tokens_per_minute: Some(60), ..TenantLimits::default() };
    let server = start(&[tenant("a", limits)]);
    let usage = |answer: &Answer| answer.json()["usage"]["total_tokens"].as_u64().expect("tokens");
    let mut used = 0;
    // It comes back at one a second, so that a slow machine sends a few more.
    let refused = loop {
        assert!(used < 2000, "nothing was refused");
        let answer = chat(&server, "a", json!({}));
        if answer.status != 200 {
            break answer;
        }
        used += usage(&answer);
    };
    check_error(&refused, 429, "rate_limit_exceeded", &["60 tokens a minute"]);
    assert!(used >= 60, "{used} tokens are less than a minute's worth");
}

#[test]
fn places_of_a_tenant_are_free_again_when_answers_end_or_are_left() {
    let limits = TenantLimits { concurrent: Some(1), ..TenantLimits::default() };
    let server = start(&[tenant("a", limits)]);
    server.gate.close();
    let endless = json!({"stream": true, "max_tokens": 200, "messages": [
        {"role": "user", "content": "#loop#"},
    ]});
    let mut stream = server.connect();
    stream.write_all(&chat_bytes("a", &endless)).expect("the server reads");
    // Until it is there the other one may be let in first, and is held by the gate then.
    let running = "monsoon_num_requests_running";
    let metric = |name: &str| {
        let text = server.send(&get_bytes("a", "/metrics")).text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("the metric").parse::<f64>().expect("a number")
    };
    while metric(running) != 1.0 {
        std::thread::yield_now();
    }
    let refused = chat(&server, "a", json!({}));
    check_error(&refused, 429, "too_many_concurrent_requests", &["1 requests of this key"]);
    drop(stream);
    server.gate.open();
    let mut tries = 0;
    while chat(&server, "a", json!({})).status != 200 {
        tries += 1;
        assert!(tries < 10_000, "the place never came back");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn models_and_priorities_are_refused_by_name() {
    let limits = TenantLimits {
        models: Some(vec!["org/tiny".into()]),
        priority_ceiling: Some(0),
        ..TenantLimits::default()
    };
    let server = start(&[tenant("a", limits), tenant("b", TenantLimits::default())]);
    let named = json!({"model": "org/tiny"});
    assert_eq!(chat(&server, "a", named.clone()).status, 200);
    let refused = chat(&server, "a", json!({"model": "tiny"}));
    check_error(&refused, 403, "model_not_allowed", &["'tiny'", "org/tiny"]);
    assert_eq!(refused.json()["error"]["param"], "model");
    let urgent = json!({"model": "org/tiny", "priority": -1});
    check_error(&chat(&server, "a", urgent.clone()), 400, "invalid_value", &["-1", "at least 0"]);
    assert_eq!(chat(&server, "b", urgent).status, 200);
    let get = |key: &str, path: &str| server.send(&get_bytes(key, path));
    let names = |key: &str| get(key, "/v1/models").json()["data"].as_array().map(Vec::len);
    assert_eq!((names("a"), names("b")), (Some(1), Some(2)));
    let statuses = ["a", "b"].map(|key| get(key, "/v1/models/tiny").status);
    assert_eq!(statuses, [404, 200]);
    // The same in the words of the other protocols.
    let body = json!({"model": "tiny", "max_tokens": 4, "messages": [
        {"role": "user", "content": "x"},
    ]});
    let anthropic = as_client("a", post_bytes("/v1/messages", &body.to_string()));
    let answer = server.send(&anthropic);
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (403, &json!("permission_error")));
    let body = json!({"model": "tiny", "input": {"prompt": "x"}});
    let path = "/api/v1/services/aigc/text-generation/generation";
    let answer = server.send(&as_client("a", post_bytes(path, &body.to_string())));
    assert_eq!((answer.status, &answer.json()["code"]), (403, &json!("Model.AccessDenied")));
}

#[test]
fn every_key_of_a_tenant_is_the_same_tenant() {
    let limits = TenantLimits { requests_per_minute: Some(2), ..TenantLimits::default() };
    let mut spec = tenant("old", limits);
    spec.key_digests.push(Sha256::digest("new").into());
    let server = start(&[spec]);
    assert_eq!(chat(&server, "old", json!({})).status, 200);
    assert_eq!(chat(&server, "new", json!({})).status, 200);
    check_error(&chat(&server, "old", json!({})), 429, "rate_limit_exceeded", &[]);
    check_error(&chat(&server, "other", json!({})), 401, "invalid_api_key", &[]);
}

#[test]
fn whoever_stays_in_the_ring_keeps_what_they_used() {
    let limits =
        |count| TenantLimits { requests_per_minute: Some(count), ..TenantLimits::default() };
    let keys = KeyRing::new(&[], &[tenant("a", limits(1)), tenant("b", limits(1))]);
    let http = HttpConfig { keys: keys.clone(), ..HttpConfig::default() };
    let server = TestServer::start(Setup { http, ..Setup::default() });
    assert_eq!(chat(&server, "a", json!({})).status, 200);
    check_error(&chat(&server, "a", json!({})), 429, "rate_limit_exceeded", &[]);
    keys.replace(&[], &[tenant("a", limits(1)), tenant("c", limits(1))]);
    check_error(&chat(&server, "a", json!({})), 429, "rate_limit_exceeded", &[]);
    check_error(&chat(&server, "b", json!({})), 401, "invalid_api_key", &[]);
    assert_eq!(chat(&server, "c", json!({})).status, 200);
    keys.replace(&[], &[tenant("a", TenantLimits::default())]);
    assert_eq!(chat(&server, "a", json!({})).status, 200, "no limit holds any more");
}

fn write_file(path: &Path, names: &[&str]) {
    let mut text = String::new();
    for name in names {
        let digest = Sha256::digest(name);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("[[tenant]]\nname = \"{name}\"\nkeys = [\"sha256:{digest}\"]\n");
    }
    std::fs::write(path, text).expect("a file");
}

#[test]
fn the_program_reads_its_tenants_again_on_hangup() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenants.toml");
    write_file(&file, &["ann", "bob"]);
    let mut command = Command::new(binary());
    command
        .args(["serve", "--device", "cpu", "--threads", "1", "--kv-cache-memory", "16MiB"])
        .args(["--offline", "--jobs-dir", "off", "--tenants"])
        .arg(&file)
        .arg(data_dir().join("models/qwen2-tied"))
        .stdout(Stdio::null());
    let program = Program::start(&mut command);
    let status = |key: &str| {
        let mut stream = program.connect();
        stream.write_all(&get_bytes(key, "/v1/models")).expect("it reads");
        Answer::read(&mut stream).status
    };
    let eventually = |key: &str, expected: u16| {
        for _ in 0..6000 {
            if status(key) == expected {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{key} never got {expected}");
    };
    assert_eq!(["ann", "bob", "cid"].map(status), [200, 200, 401]);
    write_file(&file, &["ann", "cid"]);
    program.signal("-HUP");
    eventually("cid", 200);
    assert_eq!(["ann", "bob"].map(status), [200, 401]);
    // What cannot be read changes nothing; that it was read shows when the next one is.
    std::fs::write(&file, "[[tenant]]\nname = 3\n").expect("a file");
    program.signal("-HUP");
    assert_eq!(["ann", "bob", "cid"].map(status), [200, 401, 200]);
    write_file(&file, &["bob"]);
    program.signal("-HUP");
    eventually("bob", 200);
    assert_eq!(["ann", "cid"].map(status), [401, 401]);
}
