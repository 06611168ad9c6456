//! Files and batch jobs over a real socket: the same server as in http_contract.rs, with a folder.

use serde_json::{Value, json};
use server::http::{Embedder, HttpConfig, KeyRing, Task};
use server::jobs::{Clock, JobsConfig, JobsLimits};
use tempfile::TempDir;
use tests::http::{Answer, HIDDEN_SIZE, Setup, TestServer, post_bytes};
use tests::jobs::{JobsClient, by_custom_id, row};

struct Bench {
    folder: TempDir,
    clock: Clock,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().expect("a folder"), clock: Clock::default() }
    }

    fn start(&self) -> TestServer {
        self.start_with(JobsLimits::default(), Setup::default())
    }

    /// Some of a job's 2000 rows are answered, and no more will be.
    fn start_in_the_middle(&self) -> (TestServer, JobsClient, String) {
        let limits = JobsLimits { rows_in_flight_max: 4, ..JobsLimits::default() };
        let server = self.start_with(limits, Setup::default());
        let client = client(&server);
        let id = client.start(&says(2000));
        client.wait_for(&id, |batch| batch["request_counts"]["completed"].as_u64() > Some(10));
        server.gate.close();
        (server, client, id)
    }

    fn start_with(&self, limits: JobsLimits, setup: Setup) -> TestServer {
        let folder = self.folder.path().join("jobs");
        let (store, clock) = (None, self.clock.clone());
        TestServer::start(Setup {
            jobs: Some(JobsConfig { folder, store, limits, clock }),
            ..setup
        })
    }
}

fn client(server: &TestServer) -> JobsClient {
    JobsClient { address: server.address, key: None }
}

fn say(text: &str) -> Value {
    json!({"prompt": format!("#say:{text}#"), "max_tokens": 40})
}

fn says(count: usize) -> Vec<String> {
    (0..count).map(|i| row(&format!("row-{i}"), say(&format!("answer {i}")))).collect()
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: &str, pieces: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], code, "{error}");
    let message = error["message"].as_str().expect("a message");
    for piece in pieces {
        assert!(message.contains(piece), "{message:?} lacks {piece:?}");
    }
}

#[test]
fn a_job_goes_from_its_file_to_its_results() {
    let bench = Bench::new();
    let server = bench.start();
    let client = client(&server);
    let mut lines = says(20);
    lines.insert(3, String::new());
    lines.push(row("wrong", json!({"prompt": "x", "temperature": -1})));
    lines.push(row("unknown model", json!({"prompt": "x", "model": "nobody"})));
    lines.push(row("streamed", json!({"prompt": "x", "stream": true})));
    let file = client.upload(lines.join("\n").as_bytes());
    let created = client.create(&file, "/v1/completions").json();
    let id = created["id"].as_str().expect("an id");
    assert!(id.starts_with("batch_"));
    let known = json!({
        "id": id, "object": "batch", "endpoint": "/v1/completions", "model": "tiny",
        "errors": null, "input_file_id": file, "completion_window": "24h",
        "status": "validating", "output_file_id": null, "error_file_id": null,
        "created_at": created["created_at"], "in_progress_at": null,
        "expires_at": created["created_at"].as_u64().expect("a time") + 86_400,
        "finalizing_at": null, "completed_at": null, "failed_at": null, "expired_at": null,
        "cancelling_at": null, "cancelled_at": null,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": {"run": "1"},
    });
    assert_eq!(created, known);
    let done = client.wait_for_status(id, "completed");
    assert_eq!(done["request_counts"], json!({"total": 23, "completed": 20, "failed": 3}));
    for time in ["in_progress_at", "finalizing_at", "completed_at"] {
        assert!(done[time].is_u64(), "{time}");
    }
    let output = client.results(&done["output_file_id"]);
    assert_eq!(output.len(), 20);
    for i in 0..20 {
        let response = &output[&format!("row-{i}")]["response"];
        assert_eq!(response["status_code"], 200);
        assert_eq!(response["body"]["choices"][0]["text"], format!("answer {i}"));
        assert!(response["request_id"].as_str().expect("an id").starts_with("req-"));
    }
    let errors = client.results(&done["error_file_id"]);
    let code = |name: &str| {
        let response = &errors[name]["response"];
        assert!(errors[name]["error"].is_null());
        (response["status_code"].as_u64(), response["body"]["error"]["code"].as_str())
    };
    assert_eq!(code("wrong"), (Some(400), Some("invalid_value")));
    assert_eq!(code("unknown model"), (Some(404), Some("model_not_found")));
    assert_eq!(code("streamed"), (Some(400), Some("unsupported_field")));
    let info = client.get(&format!("/v1/files/{}", done["output_file_id"].as_str().expect("id")));
    assert_eq!(info.json()["purpose"], "batch_output");
    assert_eq!(server.metric("monsoon_jobs{status=\"completed\"}"), 1.0);
    assert_eq!(server.metric("monsoon_job_rows_total{result=\"answered\"}"), 20.0);
    assert_eq!(server.metric("monsoon_job_rows_total{result=\"failed\"}"), 3.0);
    // Its times are nobody's.
    assert_eq!(server.metric("monsoon_time_to_first_token_seconds_count"), 0.0);
    assert_eq!(server.metric("monsoon_request_success_total{finished_reason=\"stop\"}"), 20.0);
}

/// The job that answers these bodies, numbered from 0, when it is done.
fn done_with(client: &JobsClient, endpoint: &str, bodies: &[Value]) -> Value {
    let line = |(number, body): (usize, &Value)| {
        let custom_id = number.to_string();
        json!({"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}).to_string()
    };
    let lines: Vec<String> = bodies.iter().enumerate().map(line).collect();
    let file = client.upload(lines.join("\n").as_bytes());
    let batch = client.create(&file, endpoint);
    assert_eq!(batch.status, 200, "{}", batch.text());
    let id = batch.json()["id"].as_str().expect("an id").to_owned();
    let done = client.wait_for_status(&id, "completed");
    assert_eq!(done["endpoint"], endpoint);
    assert_eq!(done["request_counts"]["total"], bodies.len());
    done
}

/// What is new in each answer, so that two of them can be compared.
fn without_ids(mut body: Value) -> Value {
    fn clear(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for name in ["id", "created", "created_at", "completed_at"] {
                    if let Some(value) = map.get_mut(name) {
                        *value = Value::Null;
                    }
                }
                map.values_mut().for_each(clear);
            }
            Value::Array(list) => list.iter_mut().for_each(clear),
            _ => {}
        }
    }
    clear(&mut body);
    body
}

#[test]
fn rows_get_what_their_endpoint_answers() {
    let bench = Bench::new();
    let server = bench.start();
    let client = client(&server);
    let chat = |text: &str| json!({"messages": [{"role": "user", "content": text}], "seed": 1});
    let prompts = json!({"prompt": ["#say:hi#", "#say:you#"], "max_tokens": 9, "logprobs": 1});
    let response = json!({"input": "#say:hi#", "store": false});
    for (endpoint, good, bad, pointer) in [
        ("/v1/chat/completions", chat("#say:hi#"), json!({}), "/choices/0/message/content"),
        ("/v1/completions", prompts, json!({"prompt": 1.5}), "/choices/0/text"),
        (
            "/v1/responses",
            response,
            json!({"input": "x", "store": true}),
            "/output/0/content/0/text",
        ),
    ] {
        let done = done_with(&client, endpoint, &[good.clone(), bad]);
        let output = client.results(&done["output_file_id"]);
        let row = &output["0"]["response"];
        let answer = &row["body"];
        assert_eq!(answer.pointer(pointer), Some(&json!("hi")), "{answer}");
        assert_eq!((&row["status_code"], &output["0"]["error"]), (&json!(200), &Value::Null));
        let direct = client.post(endpoint, &good);
        assert_eq!(without_ids(answer.clone()), without_ids(direct.json()), "{endpoint}");
        if endpoint == "/v1/responses" {
            let id = answer["id"].as_str().expect("an id");
            assert_eq!(client.get(&format!("/v1/responses/{id}")).status, 404, "it is not kept");
        }
        let errors = client.results(&done["error_file_id"]);
        assert_eq!(errors["1"]["response"]["status_code"], 400, "{errors:?}");
        assert!(errors["1"]["response"]["body"]["error"]["message"].is_string(), "{errors:?}");
        assert_eq!((output.len(), errors.len()), (1, 1));
    }
    let file = client.upload(b"x");
    let unknown = client.create(&file, "/v1/images");
    check_error(&unknown, 400, "invalid_value", &["endpoint", "/v1/images", "/v1/completions"]);
}

#[test]
fn texts_of_rows_are_embedded() {
    let bench = Bench::new();
    let task = Task::Embed(Embedder { size: HIDDEN_SIZE, shortens: true });
    let server = bench.start_with(JobsLimits::default(), Setup { task, ..Setup::default() });
    let client = client(&server);
    let good = [
        json!({"input": "the sea"}),
        json!({"input": ["a", "the sea"], "dimensions": 2}),
        json!({"input": [[3, 4], [5]], "encoding_format": "base64", "model": "tiny"}),
    ];
    let bad = [json!({"input": "a", "dimensions": 99}), json!({"input": []})];
    let done = done_with(&client, "/v1/embeddings", &[&good[..], &bad].concat());
    assert_eq!(done["request_counts"], json!({"total": 5, "completed": 3, "failed": 2}));
    let output = client.results(&done["output_file_id"]);
    for (number, body) in good.iter().enumerate() {
        let response = &output[&number.to_string()]["response"];
        assert_eq!(response["status_code"], 200);
        assert_eq!(response["body"], client.post("/v1/embeddings", body).json(), "{body}");
    }
    let errors = client.results(&done["error_file_id"]);
    for (name, param) in [("3", "dimensions"), ("4", "input")] {
        let response = &errors[name]["response"];
        assert_eq!(response["status_code"], 400);
        assert_eq!(response["body"]["error"]["param"], param, "{response}");
    }
    // A model that embeds does not chat: each row is told.
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    let done = done_with(&client, "/v1/chat/completions", &[chat]);
    let errors = client.results(&done["error_file_id"]);
    assert_eq!(errors["0"]["response"]["body"]["error"]["code"], "unsupported_task");
    assert!(done["output_file_id"].is_null());
}

#[test]
fn a_row_that_never_fits_fails_and_holds_up_no_other() {
    let bench = Bench::new();
    let setup = Setup { waiting_requests_max: 2, ..Setup::default() };
    let limits = JobsLimits { rows_in_flight_max: 1, ..JobsLimits::default() };
    let server = bench.start_with(limits, setup);
    let three = json!({"prompt": ["#say:a#", "#say:b#", "#say:c#"], "max_tokens": 4});
    let done = done_with(&client(&server), "/v1/completions", &[three, say("d")]);
    let output = client(&server).results(&done["output_file_id"]);
    assert_eq!(output["1"]["response"]["body"]["choices"][0]["text"], "d");
    let errors = client(&server).results(&done["error_file_id"]);
    let response = &errors["0"]["response"];
    assert_eq!(response["status_code"], 429);
    assert_eq!(response["body"]["error"]["code"], "queue_full");
}

#[test]
fn a_file_with_faults_fails_its_job_and_names_the_lines() {
    let bench = Bench::new();
    let limits = JobsLimits { rows_max: 9, line_bytes_max: 500, ..JobsLimits::default() };
    let server = bench.start_with(limits, Setup::default());
    let client = client(&server);
    let good = says(2);
    let with = |name: &str, value: Value| {
        let mut line: Value = serde_json::from_str(&good[1]).expect("JSON");
        line[name] = value;
        line.to_string()
    };
    let rows = [
        (vec!["{".to_owned()], "invalid_json_line", 1, None),
        (vec!["[]".into()], "invalid_json_line", 1, None),
        (
            vec![good[0].clone(), String::new(), good[0].clone()],
            "duplicate_custom_id",
            3,
            Some("custom_id"),
        ),
        (
            vec![good[0].clone(), with("custom_id", Value::Null)],
            "missing_required_parameter",
            2,
            Some("custom_id"),
        ),
        (vec![with("custom_id", 1.into())], "invalid_type", 1, Some("custom_id")),
        (vec![with("custom_id", "".into())], "invalid_custom_id", 1, Some("custom_id")),
        (vec![with("method", "GET".into())], "invalid_method", 1, Some("method")),
        (vec![with("url", "/v1/chat/completions".into())], "mismatched_url", 1, Some("url")),
        (vec![with("body", 1.into())], "invalid_body", 1, Some("body")),
        (vec![with("body", Value::Null)], "missing_required_parameter", 1, Some("body")),
        (vec![with("x", "y".repeat(500).into())], "line_too_long", 1, None),
        (says(10), "too_many_requests", 10, None),
    ];
    for (lines, code, line, param) in rows {
        let id = client.start(&lines);
        let failed = client.wait_for_status(&id, "failed");
        let errors = failed["errors"]["data"].as_array().expect("a list");
        assert_eq!(errors.len(), 1, "{failed}");
        assert_eq!(errors[0]["code"], code, "{failed}");
        assert_eq!(errors[0]["line"], line, "{failed}");
        assert_eq!(errors[0]["param"].as_str(), param, "{failed}");
        assert!(failed["failed_at"].is_u64() && failed["output_file_id"].is_null());
    }
    let empty = client.wait_for_status(&client.start(&[" \n ".into()]), "failed");
    let fault = &empty["errors"]["data"][0];
    assert_eq!((&fault["code"], &fault["line"]), (&json!("empty_file"), &Value::Null));
    let many = client.start(&vec!["?".to_owned(); 9]);
    assert_eq!(client.wait_for_status(&many, "failed")["errors"]["data"][8]["line"], 9);
}

#[test]
fn files_are_kept_byte_for_byte_listed_and_deleted() {
    let bench = Bench::new();
    let server = bench.start();
    let client = client(&server);
    // Every byte, almost the form's own boundary, and more than one part of an upload.
    let mut bytes: Vec<u8> =
        (0..12_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bytes.extend(b"\r\n--a-boundax\r\n--a-boundar");
    let answer = client.send_form(&[("purpose", b"batch"), ("file", &bytes), ("odd", b"1")]);
    assert_eq!(answer.header("x-monsoon-ignored-fields"), Some("odd"));
    let file = answer.json();
    let id = file["id"].as_str().expect("an id");
    let known = json!({
        "id": id, "object": "file", "bytes": bytes.len(), "created_at": file["created_at"],
        "expires_at": null, "filename": "in.jsonl", "purpose": "batch", "status": "processed",
        "status_details": null,
    });
    assert_eq!(file, known);
    assert_eq!(client.get(&format!("/v1/files/{id}")).json(), known);
    let content = client.get(&format!("/v1/files/{id}/content"));
    assert_eq!(content.header("content-type"), Some("application/octet-stream"));
    assert!(content.body == bytes, "not the bytes that were sent");
    let ids: Vec<String> = std::iter::once(id.to_owned())
        .chain((0..4).map(|i| client.upload(format!("{i}").as_bytes())))
        .collect();
    let page = |query: &str| {
        let list = client.get(&format!("/v1/files{query}")).json();
        let data = list["data"].as_array().expect("a list");
        let found: Vec<String> =
            data.iter().map(|f| f["id"].as_str().expect("an id").to_owned()).collect();
        assert_eq!(list["first_id"].as_str(), found.first().map(String::as_str));
        assert_eq!(list["last_id"].as_str(), found.last().map(String::as_str));
        (found, list["has_more"] == true)
    };
    let newest: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(page(""), (newest.clone(), false));
    assert_eq!(page("?limit=2"), (newest[..2].to_vec(), true));
    let after = |id: &str| format!("?limit=3&after={id}");
    assert_eq!(page(&after(&newest[1])), (newest[2..].to_vec(), false));
    assert_eq!(page("?order=asc&limit=4"), (ids[..4].to_vec(), true));
    assert_eq!(page("?purpose=batch_output"), (Vec::new(), false));
    let deleted = client.delete(&format!("/v1/files/{id}"));
    assert_eq!(deleted.json(), json!({"id": id, "object": "file", "deleted": true}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        check_error(&client.get(&path), 404, "file_not_found", &[id]);
    }
    check_error(&client.delete(&format!("/v1/files/{id}")), 404, "file_not_found", &[]);
    let on_disk = std::fs::read_dir(bench.folder.path().join("jobs/files")).expect("the folder");
    assert_eq!(on_disk.count(), 4);
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let bench = Bench::new();
    let limits = JobsLimits { file_bytes_max: 100, files_max: 2, ..JobsLimits::default() };
    let server = bench.start_with(limits, Setup::default());
    let client = client(&server);
    let form = |parts: &[(&str, &[u8])]| client.send_form(parts);
    let batch: (&str, &[u8]) = ("purpose", b"batch");
    let file: (&str, &[u8]) = ("file", b"{}");
    check_error(&form(&[batch]), 400, "missing_field", &["file"]);
    check_error(&form(&[file]), 400, "missing_field", &["purpose"]);
    check_error(&form(&[("purpose", b"vision"), file]), 400, "invalid_value", &["vision", "batch"]);
    check_error(&form(&[batch, file, file]), 400, "invalid_value", &["file", "twice"]);
    let seconds: (&str, &[u8]) = ("expires_after[seconds]", b"5");
    check_error(&form(&[batch, file, seconds]), 400, "missing_field", &["anchor"]);
    let anchor: (&str, &[u8]) = ("expires_after[anchor]", b"created_at");
    check_error(&form(&[batch, file, anchor, seconds]), 400, "invalid_value", &["3600", "5"]);
    check_error(&form(&[("purpose", &[b'x'; 2000]), file]), 400, "invalid_body", &["1024"]);
    let long = form(&[batch, ("file", &[b'x'; 101])]);
    check_error(&long, 413, "file_too_large", &["100"]);
    let json = client.post("/v1/files", &json!({"purpose": "batch"}));
    check_error(&json, 415, "unsupported_media_type", &["multipart/form-data"]);
    let broken = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\
                  content-type: multipart/form-data; boundary=b\r\n\r\nxxx";
    check_error(&client.send(broken.as_bytes()), 400, "invalid_body", &["form"]);
    // Nothing of all this was kept.
    server.wait_for_metric("monsoon_job_files", 0.0);
    client.upload(b"");
    client.upload(b"");
    check_error(&form(&[batch, file]), 429, "too_many_files", &["2"]);
}

#[test]
fn what_a_batch_cannot_be_is_refused_by_name() {
    let bench = Bench::new();
    let limits = JobsLimits { batches_max: 2, ..JobsLimits::default() };
    let server = bench.start_with(limits, Setup::default());
    let client = client(&server);
    let id = client.upload(b"");
    for query in ["limit=0", "limit=x", "limit=10001", "order=up"] {
        let answer = client.get(&format!("/v1/files?{query}"));
        check_error(&answer, 400, "invalid_value", &[&query[..5]]);
    }
    check_error(&client.get("/v1/batches?limit=101"), 400, "invalid_value", &["100"]);
    let create = |extra: Value| {
        let mut body = json!({
            "input_file_id": id, "endpoint": "/v1/completions", "completion_window": "24h",
        });
        for (key, value) in extra.as_object().expect("an object") {
            body[key] = value.clone();
        }
        client.post("/v1/batches", &body)
    };
    for (extra, code, piece) in [
        (json!({"endpoint": null}), "missing_field", "endpoint"),
        (json!({"input_file_id": null}), "missing_field", "input_file_id"),
        (json!({"completion_window": null}), "missing_field", "completion_window"),
        (json!({"completion_window": "24"}), "invalid_value", "24h"),
        (json!({"completion_window": "0h"}), "invalid_value", "0h"),
        (json!({"completion_window": "31d"}), "invalid_value", "30d"),
        (json!({"completion_window": "+1h"}), "invalid_value", "+1h"),
        (json!({"metadata": 1}), "invalid_type", "metadata"),
        (json!({"metadata": {"a": 1}}), "invalid_type", "metadata.a"),
        (json!({"metadata": {"a": "x".repeat(513)}}), "invalid_value", "512"),
        (json!({"metadata": {"x".repeat(65): "a"}}), "invalid_value", "64"),
        (json!({"output_expires_after": {"seconds": 5}}), "missing_field", "anchor"),
        (
            json!({"output_expires_after": {"anchor": "created_at", "seconds": 5}}),
            "invalid_value",
            "3600",
        ),
    ] {
        check_error(&create(extra), 400, code, &[piece]);
    }
    check_error(&create(json!({"input_file_id": "file-x"})), 404, "file_not_found", &["file-x"]);
    check_error(&client.get("/v1/batches/b"), 404, "batch_not_found", &["'b'"]);
    check_error(&client.post("/v1/batches/b/cancel", &json!({})), 404, "batch_not_found", &["'b'"]);
    let odd = create(json!({"completion_window": "7d", "odd": 1}));
    assert_eq!(odd.header("x-monsoon-ignored-fields"), Some("odd"));
    let window = odd.json()["expires_at"].as_u64().zip(odd.json()["created_at"].as_u64());
    assert_eq!(window.map(|(end, start)| end - start), Some(7 * 86_400));
    // The oldest ended ones are forgotten.
    let first = odd.json()["id"].as_str().expect("an id").to_owned();
    client.wait_for_status(&first, "failed");
    for _ in 0..2 {
        let id = create(json!({})).json()["id"].as_str().expect("an id").to_owned();
        client.wait_for_status(&id, "failed");
    }
    check_error(&client.get(&format!("/v1/batches/{first}")), 404, "batch_not_found", &[]);
}

#[test]
fn without_a_folder_there_are_no_jobs() {
    let server = TestServer::start(Setup::default());
    let client = client(&server);
    for path in ["/v1/files", "/v1/batches", "/v1/files/x", "/v1/batches/x", "/v1/files/x/content"]
    {
        check_error(&client.get(path), 501, "jobs_off", &["--jobs-dir"]);
    }
    check_error(&client.post("/v1/batches", &json!({})), 501, "jobs_off", &[]);
    check_error(&client.send_form(&[("purpose", b"batch")]), 501, "jobs_off", &[]);
}

#[test]
fn each_key_sees_and_runs_its_own() {
    let bench = Bench::new();
    let keys = |keys: &[&str]| Setup {
        http: HttpConfig {
            keys: KeyRing::new(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(), &[]),
            ..HttpConfig::default()
        },
        ..Setup::default()
    };
    let server = bench.start_with(JobsLimits::default(), keys(&["ann", "bob"]));
    let of = |key: &'static str| JobsClient { address: server.address, key: Some(key) };
    let (ann, bob) = (of("ann"), of("bob"));
    let id = ann.start(&says(3));
    let done = ann.wait_for_status(&id, "completed");
    let output = done["output_file_id"].as_str().expect("an id");
    let input = done["input_file_id"].as_str().expect("an id");
    for file in [input, output] {
        for path in [format!("/v1/files/{file}"), format!("/v1/files/{file}/content")] {
            assert_eq!(ann.get(&path).status, 200);
            check_error(&bob.get(&path), 404, "file_not_found", &[]);
        }
        check_error(&bob.delete(&format!("/v1/files/{file}")), 404, "file_not_found", &[]);
    }
    check_error(&bob.get(&format!("/v1/batches/{id}")), 404, "batch_not_found", &[]);
    let cancel = bob.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
    check_error(&cancel, 404, "batch_not_found", &[]);
    check_error(&bob.create(input, "/v1/completions"), 404, "file_not_found", &[]);
    for path in ["/v1/files", "/v1/batches"] {
        assert_eq!(bob.get(path).json()["data"], json!([]));
        assert_ne!(ann.get(path).json()["data"], json!([]));
        assert_eq!(bob.get(&format!("{path}?after={input}")).json()["data"], json!([]));
        let nobody = JobsClient { address: server.address, key: None };
        assert_eq!(nobody.get(path).status, 401);
    }
    // A key that is not known any more has nothing done in its name.
    server.gate.close();
    let id = ann.start(&says(3));
    ann.wait_for_status(&id, "in_progress");
    drop(server);
    let server = bench.start_with(JobsLimits::default(), keys(&["bob"]));
    let bob = JobsClient { address: server.address, key: Some("bob") };
    let own = bob.start(&says(1));
    bob.wait_for_status(&own, "completed");
    let with_key = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    let metrics = bob.send(with_key.as_bytes()).text();
    assert!(metrics.contains("monsoon_jobs{status=\"in_progress\"} 1\n"), "{metrics}");
    drop(server);
    let server = bench.start_with(JobsLimits::default(), keys(&["bob", "ann"]));
    let ann = JobsClient { address: server.address, key: Some("ann") };
    let done = ann.wait_for_status(&id, "completed");
    assert_eq!(ann.results(&done["output_file_id"]).len(), 3);
}

/// The rows of the output and of the errors; each custom_id is in one of them.
fn check_each_once(client: &JobsClient, batch: &Value, num_rows: usize) -> (usize, Vec<Value>) {
    let output = client.results(&batch["output_file_id"]);
    let errors = client.results(&batch["error_file_id"]);
    for i in 0..num_rows {
        let name = format!("row-{i}");
        assert!(output.contains_key(&name) != errors.contains_key(&name), "{name}");
    }
    assert_eq!(output.len() + errors.len(), num_rows);
    let counts = &batch["request_counts"];
    assert_eq!(
        (&counts["completed"], &counts["failed"]),
        (&output.len().into(), &errors.len().into())
    );
    (output.len(), errors.into_values().collect())
}

#[test]
fn a_cancelled_job_keeps_what_it_has() {
    let bench = Bench::new();
    let (server, client, id) = bench.start_in_the_middle();
    let input = client.batch(&id)["input_file_id"].as_str().expect("an id").to_owned();
    let in_use = client.delete(&format!("/v1/files/{input}"));
    check_error(&in_use, 409, "file_in_use", &[&input, &id]);
    let cancel = || client.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
    let cancelling = cancel().json();
    assert!(
        ["cancelling", "cancelled"].contains(&cancelling["status"].as_str().expect("a status"))
    );
    let cancelled = client.wait_for_status(&id, "cancelled");
    server.gate.open();
    assert!(cancelled["cancelled_at"].is_u64() && cancelled["completed_at"].is_null());
    let (num_answered, errors) = check_each_once(&client, &cancelled, 2000);
    assert!(num_answered > 10 && !errors.is_empty());
    assert!(errors.iter().all(|row| row["error"]["code"] == "batch_cancelled"));
    assert_eq!(cancel().json()["status"], "cancelled");
    server.wait_for_metric("monsoon_num_requests_running", 0.0);
    assert_eq!(client.delete(&format!("/v1/files/{input}")).status, 200);
    let done = client.start(&says(1));
    client.wait_for_status(&done, "completed");
    let late = client.post(&format!("/v1/batches/{done}/cancel"), &json!({}));
    check_error(&late, 409, "batch_has_ended", &[&done, "completed"]);
}

#[test]
fn a_job_whose_time_is_over_keeps_what_it_has() {
    let bench = Bench::new();
    let (_server, client, id) = bench.start_in_the_middle();
    bench.clock.turn_forward(86_400);
    let expired = client.wait_for_status(&id, "expired");
    assert!(expired["expired_at"].is_u64() && expired["completed_at"].is_null());
    let (num_answered, errors) = check_each_once(&client, &expired, 2000);
    assert!(num_answered > 10 && !errors.is_empty());
    for row in errors {
        assert_eq!(row["error"]["code"], "batch_expired");
        assert!(row["response"].is_null());
    }
}

#[test]
fn a_job_goes_on_after_a_restart() {
    let bench = Bench::new();
    let limits = JobsLimits { rows_in_flight_max: 4, ..JobsLimits::default() };
    let mut server = bench.start_with(limits.clone(), Setup::default());
    let id = client(&server).start(&says(300));
    let mut num_before = 0;
    for _ in 0..4 {
        let client = client(&server);
        let more = |batch: &Value| batch["request_counts"]["completed"].as_u64() > Some(num_before);
        num_before = client.wait_for(&id, more)["request_counts"]["completed"].as_u64().expect("n");
        drop(server);
        server = bench.start_with(limits.clone(), Setup::default());
        let after = self::client(&server).batch(&id);
        assert!(after["request_counts"]["completed"].as_u64() >= Some(num_before), "{after}");
    }
    let client = client(&server);
    let done = client.wait_for_status(&id, "completed");
    let (num_answered, _) = check_each_once(&client, &done, 300);
    assert_eq!(num_answered, 300);
}

#[test]
fn files_and_results_go_when_their_time_is_over() {
    let bench = Bench::new();
    let server = bench.start();
    let client = client(&server);
    let parts: [(&str, &[u8]); 4] = [
        ("purpose", b"batch"),
        ("file", b"x"),
        ("expires_after[anchor]", b"created_at"),
        ("expires_after[seconds]", b"3600"),
    ];
    let file = client.send_form(&parts).json();
    let id = file["id"].as_str().expect("an id");
    let times = file["expires_at"].as_u64().zip(file["created_at"].as_u64());
    assert_eq!(times.map(|(end, start)| end - start), Some(3600));
    let kept = client.upload(b"x");
    bench.clock.turn_forward(3600);
    drop(server);
    // A start sweeps.
    let server = bench.start();
    let client = self::client(&server);
    server.wait_for_metric("monsoon_job_files", 1.0);
    assert_eq!(client.get(&format!("/v1/files/{id}")).status, 404);
    assert_eq!(client.get(&format!("/v1/files/{kept}")).status, 200);
}

#[test]
fn clients_that_wait_pass_a_job_and_are_not_refused_for_it() {
    let bench = Bench::new();
    // The job alone has more rows under way than there are places.
    let limits = JobsLimits { rows_in_flight_max: 40, ..JobsLimits::default() };
    let setup = Setup { max_num_seqs: 2, waiting_requests_max: 4, ..Setup::default() };
    let server = bench.start_with(limits, setup);
    server.gate.close();
    let client = client(&server);
    let endless = json!({"prompt": "#loop#", "ignore_eos": true, "max_tokens": 400});
    let lines: Vec<_> = (0..40).map(|i| row(&format!("row-{i}"), endless.clone())).collect();
    let id = client.start(&lines);
    server.wait_for_metric("monsoon_num_requests_waiting", 4.0);
    let body = say("at once").to_string();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = server.connect();
            let bytes = post_bytes("/v1/completions", &body);
            std::io::Write::write_all(&mut stream, &bytes).expect("the server reads");
            stream
        })
        .collect();
    server.wait_for_metric("monsoon_num_requests_waiting", 8.0);
    server.gate.open();
    for mut stream in clients {
        let answer = Answer::read(&mut stream);
        assert_eq!(answer.json()["choices"][0]["text"], "at once", "{}", answer.text());
    }
    assert!(client.batch(&id)["request_counts"]["completed"].as_u64() < Some(40));
    let done = client.wait_for_status(&id, "completed");
    check_each_once(&client, &done, 40);
}

#[test]
fn results_are_read_as_they_are_written() {
    let line = r#"{"id": "x", "custom_id": "a", "response": null, "error": null}"#;
    assert_eq!(by_custom_id(line).len(), 1);
    assert_eq!(server::http::name_of_result(line.as_bytes()).as_deref(), Some("a"));
    assert_eq!(server::http::name_of_result(b"{\"id\": 1}"), None);
}
