//! HTTP to one hub: time limits, few redirects, and a token that never leaves the hub's own host.

use super::{Endpoint, HubError};
use std::io::Read;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri, header};

/// A machine without a network must find out soon.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// From the request to the first byte of the answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence in the middle of a file.
pub const READ_TIMEOUT: Duration = Duration::from_secs(60);
pub const REDIRECTS_MAX: usize = 5;
/// Largest list of files that is read.
pub const LISTING_BYTES_MAX: u64 = 32 << 20;

pub struct HubClient<'a> {
    endpoint: &'a Endpoint,
    agent: ureq::Agent,
}

/// An answer with status 200 or 206; its body is not read yet.
pub struct Answer {
    pub status: u16,
    /// Of the last answer.
    pub headers: HeaderMap,
    /// sha256 that the hub named for the content, in any answer on the way (X-Linked-Etag).
    pub sha256: Option<String>,
    pub body: Box<dyn Read>,
}

/// What went wrong, and whether it may go right next time.
#[derive(Debug)]
pub enum Failure {
    Retry(HubError),
    Final(HubError),
}

impl From<Failure> for HubError {
    fn from(failure: Failure) -> HubError {
        match failure {
            Failure::Retry(error) | Failure::Final(error) => error,
        }
    }
}

impl<'a> HubClient<'a> {
    pub fn new(endpoint: &'a Endpoint) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            // Sizes and ranges are those of the plain bytes.
            .accept_encoding("identity")
            .user_agent(concat!("monsoon/", env!("CARGO_PKG_VERSION")))
            .build();
        HubClient { endpoint, agent: config.into() }
    }

    pub fn base(&self) -> &str {
        &self.endpoint.url
    }

    pub fn get_json(&self, url: &str) -> Result<serde_json::Value, Failure> {
        let answer = self.get(url, 0)?;
        let mut text = Vec::new();
        let read = answer.body.take(LISTING_BYTES_MAX).read_to_end(&mut text);
        read.map_err(|e| Failure::Retry(unreachable(url, e)))?;
        serde_json::from_slice(&text).map_err(|e| {
            Failure::Final(HubError::Answer { url: url.to_string(), reason: e.to_string() })
        })
    }

    /// Asks for the content from byte `start` on, following redirects.
    pub fn get(&self, url: &str, start: u64) -> Result<Answer, Failure> {
        let mut url = url.to_string();
        let mut sha256 = None;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(&url);
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            if let Some(token) = self.endpoint.token.as_ref().filter(|_| self.is_own_host(&url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| Failure::Retry(unreachable(&url, e)))?;
            let (parts, body) = response.into_parts();
            sha256 = sha256.or_else(|| linked_sha256(&parts.headers));
            let status = parts.status.as_u16();
            match status {
                200 | 206 => {
                    let body = Box::new(body.into_reader());
                    return Ok(Answer { status, headers: parts.headers, sha256, body });
                }
                301 | 302 | 303 | 307 | 308 => url = redirect_target(&url, &parts.headers)?,
                408 | 425 | 429 | 500..=599 => {
                    return Err(Failure::Retry(HubError::Status { url, status }));
                }
                _ => return Err(Failure::Final(HubError::Status { url, status })),
            }
        }
        let reason = format!("more than {REDIRECTS_MAX} redirects");
        Err(Failure::Final(HubError::Answer { url, reason }))
    }

    fn is_own_host(&self, url: &str) -> bool {
        let origin = |text: &str| {
            let uri: Uri = text.parse().ok()?;
            Some((uri.scheme_str()?.to_string(), uri.authority()?.as_str().to_ascii_lowercase()))
        };
        let own = origin(&self.endpoint.url);
        own.is_some() && own == origin(url)
    }
}

/// The sha256 of a large file, which the hub gives in quotes; other tags are of no use here.
fn linked_sha256(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("x-linked-etag")?.to_str().ok()?;
    let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    is_sha256(&tag).then_some(tag)
}

pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn redirect_target(from: &str, headers: &HeaderMap) -> Result<String, Failure> {
    let refuse =
        |reason: String| Err(Failure::Final(HubError::Answer { url: from.to_string(), reason }));
    let Some(location) = headers.get(header::LOCATION).and_then(|l| l.to_str().ok()) else {
        return refuse("a redirect without a target".to_string());
    };
    let Some((scheme, rest)) = from.split_once("://") else {
        return refuse("no address".to_string());
    };
    let host = rest.split('/').next().unwrap_or_default();
    let target = match location {
        full if full.starts_with("http://") || full.starts_with("https://") => full.to_string(),
        same_scheme if same_scheme.starts_with("//") => format!("{scheme}:{same_scheme}"),
        same_host if same_host.starts_with('/') => format!("{scheme}://{host}{same_host}"),
        other => return refuse(format!("a redirect to {other:?}")),
    };
    if scheme == "https" && !target.starts_with("https://") {
        return refuse(format!("a redirect away from https to {target}"));
    }
    Ok(target)
}

fn unreachable(url: &str, error: impl std::fmt::Display) -> HubError {
    HubError::Unreachable { url: url.to_string(), reason: error.to_string() }
}
