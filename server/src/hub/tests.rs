//! The hub part against a stand-in hub on a real socket that can misbehave.

use super::*;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a request asked for: the path with its query, and headers in small letters.
#[derive(Debug, Clone)]
struct Asked {
    path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn range_start(&self) -> usize {
        let range = self.header("range").and_then(|r| r.strip_prefix("bytes="));
        range.and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut_after: Option<usize>,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: vec![], body: body.into(), cut_after: None }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_string(), value.into()));
        self
    }

    /// The content from the asked place on, as servers that know Range answer.
    fn content(content: &[u8], asked: &Asked) -> Reply {
        let start = asked.range_start();
        if start == 0 {
            return Reply::new(200, content);
        }
        if start >= content.len() {
            return Reply::new(416, "");
        }
        let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
        Reply::new(206, &content[start..]).with("Content-Range", range)
    }
}

/// Answers with `answer` on a socket of its own, and keeps what it was asked.
struct StandIn {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    /// `answer` gets the request, its number and the stand-in's own address.
    fn start(answer: impl Fn(&Asked, usize, &str) -> Reply + Send + 'static) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, own_url) = (asked.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Some(request) = read_request(&stream) else { continue };
                let number = {
                    let mut kept = kept.lock().expect("not poisoned");
                    kept.push(request.clone());
                    kept.len() - 1
                };
                write_reply(&mut stream, &answer(&request, number, &own_url));
            }
        });
        StandIn { url, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    fn num_asked(&self, path_part: &str) -> usize {
        self.asked().iter().filter(|a| a.path.contains(path_part)).count()
    }
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
    Some(Asked { path, headers })
}

fn write_reply(stream: &mut TcpStream, reply: &Reply) {
    let mut head = format!("HTTP/1.1 {} Whatever\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    let body = &reply.body[..reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len())];
    // The client may have gone away; that is what some tests are about.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// The list of files as Hugging Face gives it.
fn listing(files: &[(&str, &[u8], &str)]) -> String {
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, bytes, hash)| match hash.is_empty() {
            true => serde_json::json!({"rfilename": name, "size": bytes.len()}),
            false => serde_json::json!({
                "rfilename": name, "size": bytes.len(), "lfs": {"sha256": hash, "size": bytes.len()}
            }),
        })
        .collect();
    serde_json::json!({"sha": "abc123", "siblings": siblings}).to_string()
}

/// A hub with one ordinary model; `serve` answers for the weights.
fn model_hub(
    hash: String,
    serve: impl Fn(&Asked, usize, &str) -> Reply + Send + 'static,
) -> StandIn {
    StandIn::start(move |asked, number, url| match asked.path.split('?').next().unwrap_or("") {
        "/api/models/some/model/revision/main" => Reply::new(
            200,
            listing(&[
                (".gitattributes", b"x", ""),
                ("config.json", b"{}", ""),
                ("pytorch_model.bin", b"pickle", ""),
                ("onnx/model.onnx", b"onnx", ""),
                ("model.safetensors", &weights(), &hash),
            ]),
        ),
        "/some/model/resolve/abc123/config.json" => Reply::new(200, "{}"),
        "/some/model/resolve/abc123/model.safetensors" => serve(asked, number, url),
        _ => Reply::new(404, "no such thing"),
    })
}

/// Only the stand-in's address is known, and everything lies below `root`.
fn config(root: &Path, hf: &str, pairs: &[(&str, &str)]) -> HubConfig {
    let nowhere = "http://127.0.0.1:1";
    let env: BTreeMap<String, String> = [
        ("HOME", root.to_str().expect("plain")),
        ("HF_ENDPOINT", hf),
        ("MODELSCOPE_ENDPOINT", nowhere),
    ]
    .iter()
    .chain(pairs)
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .collect();
    let options = HubOptions {
        revision: None,
        cache_dir: None,
        access: Access::Online,
        choice: HubChoice::Auto,
    };
    HubConfig::new(options, &env).expect("valid")
}

fn fetch_model(config: &HubConfig) -> Result<ResolvedModel, HubError> {
    resolve(Some("some/model"), config, &Progress::Quiet)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_fetched_checked_and_then_found_without_the_hub() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(&weights()), |asked, _, _| Reply::content(&weights(), asked));
    let config = config(root.path(), &hub.url, &[]);
    let found = fetch_model(&config).expect("fetched");
    assert_eq!(found.name, "some/model");
    let names = names_in(&found.path);
    // Neither the pickle nor what lies in other folders nor any leftover.
    assert_eq!(names, [".complete", ".lock", "config.json", "model.safetensors"]);
    assert_eq!(std::fs::read(found.path.join("model.safetensors")).expect("there"), weights());
    let num_asked = hub.asked().len();
    assert_eq!(fetch_model(&config).expect("cached"), found);
    assert_eq!(hub.asked().len(), num_asked, "a cached model needs no hub");
    pull(Some("some/model"), &config, &Progress::Quiet).expect("asks again");
    assert_eq!(hub.num_asked("model.safetensors"), 1, "an equal file is not fetched twice");
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(&weights()), |asked, _, _| Reply {
        // Each connection brings 150,000 bytes at most.
        cut_after: Some(150_000),
        ..Reply::content(&weights(), asked)
    });
    let found = fetch_model(&config(root.path(), &hub.url, &[])).expect("fetched in pieces");
    assert_eq!(std::fs::read(found.path.join("model.safetensors")).expect("there"), weights());
    let asked = hub.asked();
    let weights_asked = asked.iter().filter(|a| a.path.contains("safetensors"));
    let starts: Vec<usize> = weights_asked.map(Asked::range_start).collect();
    assert_eq!(starts, [0, 150_000, 300_000]);
}

#[test]
fn a_later_process_resumes_what_an_earlier_one_left() {
    let root = tempfile::tempdir().expect("a folder");
    let hash = sha256(&weights());
    let hub = model_hub(hash.clone(), |asked, _, _| Reply::content(&weights(), asked));
    let config = config(root.path(), &hub.url, &[]);
    let folder = config.models_dir().join("some--model").join("main");
    std::fs::create_dir_all(&folder).expect("made");
    let part = folder.join(format!("model.safetensors.{}.part", &hash[..16]));
    std::fs::write(&part, &weights()[..12_345]).expect("written");
    fetch_model(&config).expect("fetched");
    let asked = hub.asked();
    let first = asked.iter().find(|a| a.path.contains("safetensors")).expect("asked");
    assert_eq!(first.range_start(), 12_345);
    assert!(!part.exists());
}

#[test]
fn a_server_that_ignores_range_still_gives_the_right_file() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(&weights()), |asked, _, _| Reply {
        cut_after: (asked.range_start() == 0).then_some(1000),
        ..Reply::new(200, weights())
    });
    let found = fetch_model(&config(root.path(), &hub.url, &[])).expect("fetched anew");
    assert_eq!(std::fs::read(found.path.join("model.safetensors")).expect("there"), weights());
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_of_the_file_stays() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(b"other"), |asked, _, _| Reply::content(&weights(), asked));
    let config = config(root.path(), &hub.url, &[]);
    let error = fetch_model(&config).expect_err("wrong").to_string();
    assert!(error.contains("model.safetensors") && error.contains(&sha256(b"other")), "{error}");
    let folder = config.models_dir().join("some--model").join("main");
    assert!(!names_in(&folder).iter().any(|n| n.contains("safetensors") || n == ".complete"));
}

#[test]
fn a_hash_named_only_in_a_header_is_checked_too() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(String::new(), |asked, _, _| {
        let tag = format!("\"{}\"", sha256(b"other"));
        Reply::content(&weights(), asked).with("X-Linked-Etag", tag)
    });
    let error = fetch_model(&config(root.path(), &hub.url, &[])).expect_err("wrong");
    assert!(matches!(error, HubError::WrongHash { .. }), "{error}");
}

#[test]
fn a_file_of_another_size_than_listed_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(String::new(), |_, _, _| Reply::new(200, [weights(), weights()].concat()));
    let error = fetch_model(&config(root.path(), &hub.url, &[])).expect_err("too long");
    assert!(matches!(error, HubError::WrongSize { .. }), "{error}");
}

#[test]
fn a_hub_that_only_fails_is_given_up() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(&weights()), |_, _, _| Reply::new(503, "busy"));
    let error = fetch_model(&config(root.path(), &hub.url, &[])).expect_err("down");
    assert!(matches!(error, HubError::GaveUp { attempts: 5, .. }), "{error}");
    assert_eq!(hub.num_asked("safetensors"), 5);
}

#[test]
fn an_unknown_model_names_every_hub_that_was_asked() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = StandIn::start(|_, _, _| Reply::new(404, "no"));
    let config = config(root.path(), &hub.url, &[]);
    let error = fetch_model(&config).expect_err("unknown").to_string();
    assert!(error.contains("404") && error.contains(&config.modelscope.url), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_it_redirects_to() {
    let root = tempfile::tempdir().expect("a folder");
    let store = StandIn::start(|asked, _, _| Reply::content(&weights(), asked));
    let store_url = store.url.clone();
    let hub = model_hub(sha256(&weights()), move |_, _, _| {
        Reply::new(302, "").with("Location", format!("{store_url}/blob"))
    });
    let config = config(root.path(), &hub.url, &[("HF_TOKEN", "secret")]);
    fetch_model(&config).expect("fetched from the store");
    let hub_asked = hub.asked();
    assert!(hub_asked.iter().all(|a| a.header("authorization") == Some("Bearer secret")));
    let store_asked = store.asked();
    assert_eq!(store_asked.len(), 1);
    assert!(store_asked.iter().all(|a| a.header("authorization").is_none()));
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn redirects_end_somewhere() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(&weights()), |asked, _, _| {
        Reply::new(302, "").with("Location", asked.path.clone())
    });
    let error = fetch_model(&config(root.path(), &hub.url, &[])).expect_err("a circle");
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in ["../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\evil.json", "C:evil"] {
        let root = tempfile::tempdir().expect("a folder");
        let hub = StandIn::start(move |_, _, _| {
            Reply::new(200, listing(&[(name, b"x", ""), ("model.safetensors", b"x", "")]))
        });
        let error = fetch_model(&config(root.path(), &hub.url, &[])).expect_err(name);
        assert!(matches!(error, HubError::UnsafeName { .. }), "{name}: {error}");
        assert_eq!(hub.asked().len(), 1, "nothing is fetched after an unsafe name");
    }
}

#[test]
fn offline_asks_nobody() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = model_hub(sha256(&weights()), |asked, _, _| Reply::content(&weights(), asked));
    let config = config(root.path(), &hub.url, &[("HF_HUB_OFFLINE", "1")]);
    let error = fetch_model(&config).expect_err("not here").to_string();
    assert!(error.contains("--offline"), "{error}");
    let error = resolve(None, &config, &Progress::Quiet).expect_err("not here").to_string();
    assert!(error.contains("--offline"), "{error}");
    assert!(hub.asked().is_empty());
}

#[test]
fn modelscope_is_asked_in_its_own_way() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = StandIn::start(|asked, _, _| match asked.path.as_str() {
        "/api/v1/models/some/model/repo/files?Revision=master&Recursive=True" => Reply::new(
            200,
            serde_json::json!({"Code": 200, "Data": {"Files": [
                {"Path": "onnx", "Type": "tree", "Size": 0},
                {"Path": "config.json", "Type": "blob", "Size": 2, "Sha256": sha256(b"{}")},
                {"Path": "model.safetensors", "Type": "blob", "Size": weights().len(),
                 "Sha256": sha256(&weights())},
            ]}})
            .to_string(),
        ),
        "/api/v1/models/some/model/repo?Revision=master&FilePath=config.json" => {
            Reply::new(200, "{}")
        }
        "/api/v1/models/some/model/repo?Revision=master&FilePath=model.safetensors" => {
            Reply::content(&weights(), asked)
        }
        _ => Reply::new(404, ""),
    });
    let variables = [("MODELSCOPE_ENDPOINT", hub.url.as_str())];
    let config = config(root.path(), "http://127.0.0.1:1", &variables);
    let found = fetch_model(&config).expect("from the second hub");
    assert!(found.path.ends_with("some--model/master"));
    assert_eq!(fetch_model(&config).expect("cached"), found);
}

#[test]
fn one_gguf_of_many_is_chosen_by_name_or_usual_quantisation() {
    let root = tempfile::tempdir().expect("a folder");
    let hub = StandIn::start(|asked, _, _| {
        let files: [(&str, &[u8], &str); 4] = [
            ("m-q8_0.gguf", b"8", ""),
            ("m-q4_k_m.gguf", b"4", ""),
            ("m-q2_k-00001-of-00002.gguf", b"2", ""),
            ("config.json", b"{}", ""),
        ];
        match files.iter().find(|(name, ..)| asked.path.ends_with(name)) {
            Some((_, bytes, _)) => Reply::new(200, *bytes),
            None => Reply::new(200, listing(&files)),
        }
    });
    let config = config(root.path(), &hub.url, &[]);
    for (typed, file) in [
        ("some/model:Q8_0", "m-q8_0.gguf"),
        ("some/model:m-q8_0.gguf", "m-q8_0.gguf"),
        ("some/model", "m-q4_k_m.gguf"),
    ] {
        let found = pull(Some(typed), &config, &Progress::Quiet).expect(typed);
        assert!(found.path.ends_with(file), "{typed}: {}", found.path.display());
    }
    let error = pull(Some("some/model:q2_k"), &config, &Progress::Quiet).expect_err("split");
    assert!(error.to_string().contains("m-q8_0.gguf"), "{error}");
}

#[test]
fn caches_of_other_tools_are_found_in_all_their_layouts() {
    for folder in [
        "huggingface/hub/models--some--v1.5/snapshots/c0ffee",
        "modelscope/models/some--v1.5/snapshots/master",
        "modelscope/hub/models/some/v1___5",
        "modelscope/hub/some/v1___5",
        "modelscope/models/some/v1___5",
    ] {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join(".cache").join(folder);
        std::fs::create_dir_all(&folder).expect("made");
        for name in ["config.json", "model.safetensors"] {
            std::fs::write(folder.join(name), "x").expect("written");
        }
        let refs = root.path().join(".cache/huggingface/hub/models--some--v1.5/refs");
        std::fs::create_dir_all(&refs).expect("made");
        std::fs::write(refs.join("main"), "c0ffee\n").expect("written");
        let config = config(root.path(), "http://127.0.0.1:1", &[("HF_HUB_OFFLINE", "1")]);
        let found = resolve(Some("some/v1.5"), &config, &Progress::Quiet).expect("found");
        assert_eq!(found.path, folder);
    }
}

#[test]
fn a_typed_path_wins_and_names_the_model() {
    let root = tempfile::tempdir().expect("a folder");
    let file = root.path().join("My-Model.gguf");
    std::fs::write(&file, "x").expect("written");
    let config = config(root.path(), "http://127.0.0.1:1", &[]);
    let found = resolve(file.to_str(), &config, &Progress::Quiet).expect("there");
    assert_eq!((found.path, found.name), (file, "My-Model".to_string()));
    for text in ["nothing-here", "a/b/c", "../x/y", "a/..", "a/b:c/d"] {
        let error = resolve(Some(text), &config, &Progress::Quiet).expect_err(text);
        assert!(matches!(error, HubError::NotAModel { .. }), "{text}: {error}");
    }
}

#[test]
fn a_default_model_that_is_not_the_real_one_is_never_used() {
    let root = tempfile::tempdir().expect("a folder");
    let config = config(root.path(), "http://127.0.0.1:1", &[("HF_HUB_OFFLINE", "1")]);
    let path = default_model::path(&config);
    std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
    std::fs::write(&path, "not the model").expect("written");
    assert_eq!(default_model::state(&config), default_model::State::Unchecked);
    let error = resolve(None, &config, &Progress::Quiet).expect_err("wrong");
    assert!(matches!(error, HubError::WrongHash { .. }), "{error}");
}
