//! A small OpenAI client for bench and chat: one connection, one request at a time, events as they
//! arrive at the socket.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of a server, also before its first token.
pub const READ_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest answer that is not a stream, and largest event of a stream.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What of a server's error message is shown.
const MESSAGE_CHARS_MAX: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url}: only http:// is spoken here; for https put a proxy such as stunnel in between")]
    Https { url: String },
    #[error("{url} is no address of a server")]
    Address { url: String },
    #[error("cannot connect to {url}: {reason}")]
    Connect { url: String, reason: String },
    #[error("the server answered {status}: {message}")]
    Status { status: u16, message: String },
    #[error("the connection broke: {reason}")]
    Broken { reason: String },
    #[error("the server sent nothing for {} s", READ_TIMEOUT.as_secs())]
    Silent,
    #[error("the server's answer cannot be understood: {reason}")]
    Answer { reason: String },
    /// An error event in the middle of a stream.
    #[error("the server broke off: {message}")]
    Event { message: String },
}

impl ClientError {
    /// A short name to count by.
    pub fn kind(&self) -> String {
        match self {
            ClientError::Https { .. } | ClientError::Address { .. } => "address".to_string(),
            ClientError::Connect { .. } => "connect".to_string(),
            ClientError::Status { status, .. } => format!("status {status}"),
            ClientError::Broken { .. } => "connection broke".to_string(),
            ClientError::Silent => "silence".to_string(),
            ClientError::Answer { .. } => "bad answer".to_string(),
            ClientError::Event { .. } => "error event".to_string(),
        }
    }
}

/// Where the server is.
#[derive(Debug, Clone)]
pub struct Target {
    url: String,
    host: String,
    port: u16,
    /// "host:port", for the Host header.
    authority: String,
    /// Without a slash at its end; empty as a rule.
    base_path: String,
    api_key: Option<String>,
}

impl Target {
    /// `url` without /v1.
    pub fn new(url: &str, api_key: Option<String>) -> Result<Target, ClientError> {
        if url.starts_with("https://") {
            return Err(ClientError::Https { url: url.to_string() });
        }
        let address_error = || ClientError::Address { url: url.to_string() };
        let uri: Uri = url.parse().map_err(|_| address_error())?;
        let authority = uri.authority().ok_or_else(address_error)?;
        Ok(Target {
            url: url.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_string(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_string(),
            base_path: uri.path().trim_end_matches('/').to_string(),
            api_key,
        })
    }

    pub async fn connect(&self) -> Result<Connection, ClientError> {
        let connect_error = |reason: String| ClientError::Connect { url: self.url.clone(), reason };
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(connect_error(error.to_string())),
            Err(_) => return Err(connect_error("it took too long".to_string())),
        };
        // A failure only costs some delay.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| connect_error(error.to_string()))?;
        let driver = tokio::spawn(async move {
            // How the connection ended is seen by whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver, target: self.clone() })
    }

    /// The first model the server lists.
    pub async fn first_model(&self) -> Result<String, ClientError> {
        let mut connection = self.connect().await?;
        let response = connection.send(Method::GET, "/v1/models", Bytes::new()).await?;
        let answer = read_json(response.into_body()).await?;
        let id = answer["data"][0]["id"].as_str().map(str::to_string);
        id.ok_or_else(|| ClientError::Answer { reason: "/v1/models lists no model".to_string() })
    }
}

/// An open connection. Dropping it closes the socket, also in the middle of an answer.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    target: Target,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Whether another request may be sent on it.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Errors: `Status` with the server's message for all but 200.
    pub async fn post_stream(&mut self, path: &str, body: &Value) -> Result<Events, ClientError> {
        let response = self.send(Method::POST, path, Bytes::from(body.to_string())).await?;
        Ok(Events { body: response.into_body(), buffer: Vec::new(), searched: 0 })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.target.base_path))
            .header(header::HOST, &self.target.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.target.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|e| ClientError::Answer { reason: format!("bad request: {e}") })?;
        let sent = tokio::time::timeout(READ_TIMEOUT, self.sender.send_request(request)).await;
        let response = sent
            .map_err(|_| ClientError::Silent)?
            .map_err(|e| ClientError::Broken { reason: e.to_string() })?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let message = match read_json(response.into_body()).await {
            Ok(Value::Object(answer)) => {
                let error = answer.get("error").and_then(|e| e.get("message"));
                error.and_then(Value::as_str).unwrap_or("no message").to_string()
            }
            _ => "no message".to_string(),
        };
        Err(ClientError::Status { status, message: shortened(&message) })
    }
}

/// Server-sent events, read as they come.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
    /// The buffer holds no end of an event before this place.
    searched: usize,
}

impl Events {
    /// The next event's JSON; `None` after `[DONE]` or the end of the stream.
    ///
    /// Errors: broken connection or JSON; `Event` when the server reports an error.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            while let Some(event) = self.take_event() {
                let Some(data) = data_of(&event) else {
                    continue;
                };
                if data == "[DONE]" {
                    return Ok(None);
                }
                let value: Value = serde_json::from_str(&data)
                    .map_err(|e| ClientError::Answer { reason: format!("an event: {e}") })?;
                if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
                    let message = error["message"].as_str().unwrap_or("no message");
                    return Err(ClientError::Event { message: shortened(message) });
                }
                return Ok(Some(value));
            }
            if !self.read_more().await? {
                return Ok(None);
            }
        }
    }

    /// Reads what is left, so that the connection can be used again.
    pub async fn finish(mut self) -> Result<(), ClientError> {
        while self.read_more().await? {
            self.buffer.clear();
            self.searched = 0;
        }
        Ok(())
    }

    fn take_event(&mut self) -> Option<Vec<u8>> {
        let start = self.searched.saturating_sub(3);
        let rest = &self.buffer[start..];
        let lf = rest.windows(2).position(|w| w == b"\n\n").map(|at| (start + at, 2));
        let crlf = rest.windows(4).position(|w| w == b"\r\n\r\n").map(|at| (start + at, 4));
        let Some((end, gap)) = [lf, crlf].into_iter().flatten().min() else {
            self.searched = self.buffer.len();
            return None;
        };
        let event = self.buffer[..end].to_vec();
        self.buffer.drain(..end + gap);
        self.searched = 0;
        Some(event)
    }

    async fn read_more(&mut self) -> Result<bool, ClientError> {
        let frame = tokio::time::timeout(READ_TIMEOUT, self.body.frame()).await;
        match frame.map_err(|_| ClientError::Silent)? {
            None => Ok(false),
            Some(Err(error)) => Err(ClientError::Broken { reason: error.to_string() }),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
                if self.buffer.len() > ANSWER_BYTES_MAX {
                    let reason = format!("an event of more than {ANSWER_BYTES_MAX} bytes");
                    return Err(ClientError::Answer { reason });
                }
                Ok(true)
            }
        }
    }
}

/// The data lines of an event, joined; comments and other fields are left out.
fn data_of(event: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(event);
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let data: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    (!data.is_empty()).then(|| data.join("\n"))
}

async fn read_json(mut body: Incoming) -> Result<Value, ClientError> {
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(READ_TIMEOUT, body.frame()).await;
        match frame.map_err(|_| ClientError::Silent)? {
            None => break,
            Some(Err(error)) => return Err(ClientError::Broken { reason: error.to_string() }),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            let reason = format!("more than {ANSWER_BYTES_MAX} bytes");
            return Err(ClientError::Answer { reason });
        }
    }
    serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer { reason: e.to_string() })
}

fn shortened(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}
