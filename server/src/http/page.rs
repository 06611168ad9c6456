//! GET /: one static page to try the model and watch the server. It holds nothing itself; what it
//! asks of the API needs a key where keys are set.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

pub const PATH: &str = "/";

/// Whether there is the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebPage {
    Served,
    Absent,
}

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = concat!(
    include_str!("page/text.js"),
    include_str!("page/chat.js"),
    include_str!("page/live.js"),
);

struct Page {
    html: String,
    /// Changes with the page.
    etag: HeaderValue,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let html = include_str!("page/page.html");
    let html = html.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT);
    let header = |text: String| HeaderValue::try_from(text).expect("ASCII");
    // Nothing runs but this script, nothing is asked of another host, and nobody may frame it.
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE),
    );
    let etag = header(format!("\"{}\"", hash(&(html.clone() + &policy))));
    Page { html, etag, policy: header(policy) }
});

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

/// The page, or 304 where the client has this very one.
pub async fn page(headers: HeaderMap) -> Response {
    let page = &*PAGE;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let etag = page.etag.to_str().expect("ASCII");
    let is_known = |known: &str| {
        known
            .split(',')
            .any(|k| matches!(k.trim(), "*") || k.trim().trim_start_matches("W/") == etag)
    };
    let mut response = match known.is_some_and(is_known) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            let kind = (header::CONTENT_TYPE, "text/html; charset=utf-8");
            ([kind], page.html.as_str()).into_response()
        }
    };
    let named = HeaderName::from_static;
    let value = HeaderValue::from_static;
    response.headers_mut().extend([
        (header::ETAG, page.etag.clone()),
        // Kept, and asked for again each time: a new server has a new page.
        (header::CACHE_CONTROL, value("no-cache")),
        (header::CONTENT_SECURITY_POLICY, page.policy.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, value("nosniff")),
        (header::X_FRAME_OPTIONS, value("DENY")),
        (header::REFERRER_POLICY, value("no-referrer")),
        (named("cross-origin-opener-policy"), value("same-origin")),
        (named("cross-origin-resource-policy"), value("same-origin")),
        (
            named("permissions-policy"),
            value("camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ),
    ]);
    response
}
