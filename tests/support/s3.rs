//! A stand-in for S3, in memory and on a socket of its own: what a store of files asks of it.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::runtime::Runtime;

pub const BUCKET: &str = "a-bucket";
pub const KEY_ID: &str = "a-key";
pub const REGION: &str = "eu-test-1";
/// All parts of an upload but the last have at least so many bytes, as with S3 itself.
const PART_BYTES_MIN: usize = 5 << 20;
const BODY_BYTES_MAX: usize = 64 << 20;

/// It ends when this is dropped.
pub struct S3 {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    /// Taken when it ends.
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct Shared {
    objects: BTreeMap<String, Vec<u8>>,
    /// Their parts, by the id of the upload.
    uploads: BTreeMap<String, Upload>,
    num_uploads: usize,
    /// So many requests to come are refused for load.
    num_refused: usize,
    /// So many answers to come break off in the middle.
    num_cut: usize,
    /// Requests that S3 would not have understood.
    wrong: Vec<String>,
}

#[derive(Default)]
struct Upload {
    key: String,
    parts: BTreeMap<usize, Vec<u8>>,
}

impl S3 {
    pub fn start() -> S3 {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let listen = tokio::net::TcpListener::bind(("127.0.0.1", 0));
        let listener = runtime.block_on(listen).expect("a free port");
        let address = listener.local_addr().expect("bound");
        runtime.spawn(async move { axum::serve(listener, router).await });
        S3 { address, shared, runtime: Some(runtime) }
    }

    /// The variables by which a client finds it.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", REGION.into()),
            ("AWS_ACCESS_KEY_ID", KEY_ID.into()),
            ("AWS_SECRET_ACCESS_KEY", "a-secret".into()),
        ]
    }

    /// The names of what it keeps.
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.lock().objects.get(key).cloned()
    }

    /// Parts of uploads that have neither been completed nor given up.
    pub fn num_open_parts(&self) -> usize {
        self.lock().uploads.values().map(|upload| upload.parts.len()).sum()
    }

    pub fn num_open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    pub fn refuse_next(&self, num_requests: usize) {
        self.lock().num_refused = num_requests;
    }

    pub fn cut_next(&self, num_answers: usize) {
        self.lock().num_cut = num_answers;
    }

    /// Panics where a request was not as S3 wants it.
    pub fn check(&self) {
        let wrong = &self.lock().wrong;
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no panic")
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// What a request asks for.
struct Asked {
    method: Method,
    key: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Vec<u8>,
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES_MAX).await else {
        return error(StatusCode::BAD_REQUEST, "IncompleteBody");
    };
    let pairs = head.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let shown = format!("{} {}", head.method, head.uri);
    let mut shared = shared.lock().expect("no panic");
    let Some(key) = head.uri.path().strip_prefix(&format!("/{BUCKET}/")) else {
        shared.wrong.push(format!("{shown}: not in the bucket"));
        return error(StatusCode::NOT_FOUND, "NoSuchBucket");
    };
    let (method, headers, body) = (head.method, head.headers, body.to_vec());
    let asked = Asked { method, key: key.to_owned(), query, headers, body };
    if let Err(reason) = check_signature(&asked) {
        shared.wrong.push(format!("{shown}: {reason}"));
        return error(StatusCode::FORBIDDEN, "SignatureDoesNotMatch");
    }
    if shared.num_refused > 0 {
        shared.num_refused -= 1;
        return error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
    }
    let name = |name: &str| asked.query.contains_key(name);
    match asked.method.as_str() {
        "PUT" if name("partNumber") => shared.put_part(asked),
        "PUT" => shared.put(asked),
        "POST" if name("uploads") => shared.create_upload(asked),
        "POST" if name("uploadId") => shared.complete_upload(&asked),
        "DELETE" if name("uploadId") => shared.abort_upload(&asked),
        "DELETE" => {
            shared.objects.remove(&asked.key);
            StatusCode::NO_CONTENT.into_response()
        }
        "GET" => shared.get(&asked),
        _ => {
            shared.wrong.push(format!("{shown}: not known here"));
            error(StatusCode::NOT_IMPLEMENTED, "NotImplemented")
        }
    }
}

/// Errors: it is not signed for our region by the key that we know, or the body is another one.
fn check_signature(asked: &Asked) -> Result<(), String> {
    let value = |name: &str| {
        let value = asked.headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or(format!("no {name}"))
    };
    let signed = value("authorization")?;
    let scope = format!("/{REGION}/s3/aws4_request");
    let by = format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/");
    if !signed.starts_with(&by) || !signed.contains(&scope) {
        return Err(format!("signed as {signed}"));
    }
    let hash: String = Sha256::digest(&asked.body).iter().map(|b| format!("{b:02x}")).collect();
    match value("x-amz-content-sha256")? {
        named if named == hash || named == "UNSIGNED-PAYLOAD" => Ok(()),
        named => Err(format!("the body's hash is {hash}, not {named}")),
    }
}

impl Shared {
    fn put(&mut self, asked: Asked) -> Response {
        let etag = etag(&asked.body);
        self.objects.insert(asked.key, asked.body);
        [(header::ETAG, etag)].into_response()
    }

    fn create_upload(&mut self, asked: Asked) -> Response {
        self.num_uploads += 1;
        let id = format!("upload-{}", self.num_uploads);
        let upload = Upload { key: asked.key.clone(), ..Upload::default() };
        self.uploads.insert(id.clone(), upload);
        let key = &asked.key;
        xml(
            "InitiateMultipartUploadResult",
            &format!("<Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{id}</UploadId>"),
        )
    }

    fn put_part(&mut self, asked: Asked) -> Response {
        let number = asked.query["partNumber"].parse();
        let Some(upload) = self.uploads.get_mut(&asked.query["uploadId"]) else {
            return error(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        let etag = etag(&asked.body);
        upload.parts.insert(number.expect("a number"), asked.body);
        [(header::ETAG, etag)].into_response()
    }

    fn complete_upload(&mut self, asked: &Asked) -> Response {
        let Some(upload) = self.uploads.get(&asked.query["uploadId"]) else {
            return error(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        let text = String::from_utf8_lossy(&asked.body);
        let named: Vec<(String, String)> = text
            .split("<Part>")
            .skip(1)
            .map(|part| (inner(part, "PartNumber"), inner(part, "ETag")))
            .collect();
        let parts = upload.parts.iter();
        let kept: Vec<_> = parts.map(|(number, bytes)| (number.to_string(), etag(bytes))).collect();
        if upload.key != asked.key || named != kept {
            self.wrong.push(format!("parts {named:?}, kept are {kept:?}"));
            return error(StatusCode::BAD_REQUEST, "InvalidPart");
        }
        let sizes: Vec<usize> = upload.parts.values().map(Vec::len).collect();
        if sizes.iter().rev().skip(1).any(|bytes| *bytes < PART_BYTES_MIN) {
            self.wrong.push(format!("parts of {sizes:?} bytes"));
            return error(StatusCode::BAD_REQUEST, "EntityTooSmall");
        }
        let whole = upload.parts.values().flatten().copied().collect();
        self.uploads.remove(&asked.query["uploadId"]);
        let etag = etag(&whole);
        self.objects.insert(asked.key.clone(), whole);
        xml("CompleteMultipartUploadResult", &format!("<ETag>{etag}</ETag>"))
    }

    fn abort_upload(&mut self, asked: &Asked) -> Response {
        match self.uploads.remove(&asked.query["uploadId"]) {
            Some(_) => StatusCode::NO_CONTENT.into_response(),
            None => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
        }
    }

    fn get(&mut self, asked: &Asked) -> Response {
        let Some(bytes) = self.objects.get(&asked.key) else {
            return error(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        let range = asked.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let start = range.and_then(|range| {
            range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok()
        });
        let rest = bytes[start.unwrap_or(0).min(bytes.len())..].to_vec();
        let length = rest.len();
        let mut response = Response::builder()
            .header(header::ETAG, etag(bytes))
            .header(header::LAST_MODIFIED, "Mon, 30 Nov 2026 12:00:00 GMT")
            .header(header::CONTENT_LENGTH, length);
        if let Some(start) = start {
            let (end, all) = (bytes.len() - 1, bytes.len());
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {start}-{end}/{all}"));
        }
        let body = match self.num_cut > 0 {
            true => {
                self.num_cut -= 1;
                let broken = Err(std::io::Error::other("cut"));
                let pieces = [Ok(rest[..length / 2].to_vec()), broken];
                Body::from_stream(futures_util::stream::iter(pieces))
            }
            false => Body::from(rest),
        };
        response.body(body).expect("a response")
    }
}

fn etag(bytes: &Vec<u8>) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The text of the first element of this name.
fn inner(text: &str, name: &str) -> String {
    let after = text.split_once(&format!("<{name}>")).map_or("", |(_, after)| after);
    after.split_once("</").map_or("", |(inner, _)| inner).to_owned()
}

fn xml(name: &str, inner: &str) -> Response {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><{name}>{inner}</{name}>");
    ([(header::CONTENT_TYPE, "application/xml")], text).into_response()
}

fn error(status: StatusCode, code: &str) -> Response {
    let body = xml("Error", &format!("<Code>{code}</Code><Message>{code}</Message>"));
    (status, body).into_response()
}
