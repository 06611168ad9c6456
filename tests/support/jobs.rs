//! A client of /v1/files and /v1/batches.

use crate::http::{Answer, post_bytes};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Looks for a state so often before it gives up.
const LOOKS_MAX: usize = 6000;
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// A read that takes longer has hung.
const READ_TIME_MAX: Duration = Duration::from_secs(60);
const BOUNDARY: &str = "a-boundary";

/// Talks to a server on this machine, with a key or without.
#[derive(Debug, Clone, Copy)]
pub struct JobsClient {
    pub address: SocketAddr,
    pub key: Option<&'static str>,
}

impl JobsClient {
    pub fn send(&self, bytes: &[u8]) -> Answer {
        let head = match self.key {
            Some(key) => format!("host: x\r\nauthorization: Bearer {key}"),
            None => "host: x".to_owned(),
        };
        let start = bytes.windows(7).position(|w| w == b"host: x").expect("our own head");
        let mut stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(READ_TIME_MAX)).expect("a timeout");
        let whole = [&bytes[..start], head.as_bytes(), &bytes[start + 7..]].concat();
        stream.write_all(&whole).expect("the server reads");
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send(format!("DELETE {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&post_bytes(path, &body.to_string()))
    }

    /// A form of these parts; the value of `file` is a file's content.
    pub fn send_form(&self, parts: &[(&str, &[u8])]) -> Answer {
        let mut body = Vec::new();
        for (name, value) in parts {
            let filename = if *name == "file" { "; filename=\"in.jsonl\"" } else { "" };
            let head = format!(
                "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n"
            );
            body.extend([head.as_bytes(), value, b"\r\n"].concat());
        }
        body.extend(format!("--{BOUNDARY}--\r\n").as_bytes());
        let head = format!(
            "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\
             content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), &body].concat())
    }

    /// The id of a file of these bytes.
    pub fn upload(&self, bytes: &[u8]) -> String {
        let answer = self.send_form(&[("purpose", b"batch"), ("file", bytes)]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    pub fn create(&self, file: &str, endpoint: &str) -> Answer {
        self.post(
            "/v1/batches",
            &json!({
                "input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
                "metadata": {"run": "1"},
            }),
        )
    }

    /// The id of a job that answers these lines.
    pub fn start(&self, lines: &[String]) -> String {
        let file = self.upload(lines.join("\n").as_bytes());
        let batch = self.create(&file, "/v1/completions");
        assert_eq!(batch.status, 200, "{}", batch.text());
        batch.json()["id"].as_str().expect("an id").to_owned()
    }

    pub fn batch(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/batches/{id}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Waits until the job is so. Only that it comes is asserted, not how fast.
    pub fn wait_for(&self, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..LOOKS_MAX {
            let batch = self.batch(id);
            if is_so(&batch) {
                return batch;
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        panic!("it never became so: {}", self.batch(id));
    }

    pub fn wait_for_status(&self, id: &str, status: &str) -> Value {
        self.wait_for(id, |batch| batch["status"] == status)
    }

    /// The lines of a file, under their custom_id. Panics where one is there twice.
    pub fn results(&self, file: &Value) -> BTreeMap<String, Value> {
        let Some(id) = file.as_str() else { return BTreeMap::new() };
        let content = self.get(&format!("/v1/files/{id}/content"));
        assert_eq!(content.status, 200, "{}", content.text());
        by_custom_id(&content.text())
    }
}

/// Results under their custom_id. Panics where one is there twice.
pub fn by_custom_id(text: &str) -> BTreeMap<String, Value> {
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let keys: Vec<&String> = row.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["id", "custom_id", "response", "error"]);
        let name = row["custom_id"].as_str().expect("a name").to_owned();
        assert!(results.insert(name, row).is_none(), "twice: {line}");
    }
    results
}

/// A row for /v1/completions.
pub fn row(custom_id: &str, body: Value) -> String {
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body})
        .to_string()
}
