//! The program with a device that is only described (`--timing`).

use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tests::data_dir;
use tests::http::Answer;
use tests::http::post_bytes;
use tests::program::{Program, binary};

const EXIT_STARTUP: i32 = 2;

fn serve(model: &str, timing: &str) -> Command {
    let model: PathBuf = data_dir().join("models").join(model);
    let mut command = Command::new(binary());
    command
        .args(["serve", "--log-level", "error", "--offline", "--timing", timing])
        .arg(model)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn answer(program: &Program, path: &str, body: &Value) -> Answer {
    let mut stream = program.connect();
    stream.write_all(&post_bytes(path, &body.to_string())).expect("it listens");
    Answer::read(&mut stream)
}

#[test]
fn answers_are_noise_of_the_length_asked_for_the_same_for_a_seed() {
    let program = Program::start(&mut serve("qwen2-tied", "0"));
    let chat = |seed: u64| {
        let message = json!({"role": "user", "content": "Hi"});
        let body = json!({"messages": [message], "max_tokens": 20, "seed": seed, "logprobs": true});
        let answer = answer(&program, "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body = answer.json();
        assert_eq!(body["usage"]["completion_tokens"], 20);
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        let logprobs = &body["choices"][0]["logprobs"]["content"];
        assert_eq!(logprobs.as_array().map(Vec::len), Some(20));
        body["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
    };
    let first = chat(1);
    assert!(!first.is_empty() && !first.contains(char::REPLACEMENT_CHARACTER));
    assert_eq!(first, chat(1));
    assert_ne!(first, chat(2));
}

#[test]
fn answers_keep_to_a_grammar() {
    let program = Program::start(&mut serve("qwen2-tied", "0"));
    let body = json!({
        "prompt": "x", "max_tokens": 40, "structured_outputs": {"choice": ["yes", "no"]},
    });
    let answer = answer(&program, "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let text = body["choices"][0]["text"].as_str().expect("text");
    assert!(["yes", "no"].contains(&text), "{text:?}");
}

#[test]
fn steps_take_the_time_that_the_table_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("gpu.toml");
    std::fs::write(&table, "name = 'slow'\ndecode = [[1, 20000]]").expect("room");
    let program = Program::start(&mut serve("qwen2-tied", table.to_str().expect("text")));
    let started = std::time::Instant::now();
    let answer = answer(&program, "/v1/completions", &json!({"prompt": "x y", "max_tokens": 11}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(started.elapsed().as_millis() >= 10 * 20, "{:?}", started.elapsed());
}

#[test]
fn a_model_that_pools_is_refused() {
    let output = serve("qwen3-embedding", "0").output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(EXIT_STARTUP), "{text}");
    assert!(text.contains("--timing: qwen3-embedding generates nothing"), "{text}");
}
