//! API keys: several, compared in constant time.

use super::error::{ApiError, RequestError};
use super::page::{self, WebPage};
use super::state::Context;
use super::{anthropic, dashscope};
use crate::engine::CacheSalt;
use crate::jobs::Owner;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Routes that ask for no key: load balancers watch the server by them, and the page, which holds
/// nothing, asks for the key.
pub const PUBLIC_ROUTES: &[&str] = &["/health", "/ping", page::PATH];

/// Those of them that there are.
pub fn public_routes(page: WebPage) -> impl Iterator<Item = &'static str> {
    let is_there = move |route: &&str| *route != page::PATH || page == WebPage::Served;
    PUBLIC_ROUTES.iter().copied().filter(is_there)
}

/// Digests of the keys; the keys themselves are not kept.
pub struct KeyRing {
    digests: Vec<[u8; 32]>,
}

/// Who sent a request: the digest of its key, or nothing where no keys are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    key_digest: Option<[u8; 32]>,
}

impl KeyRing {
    pub fn new(keys: &[String]) -> Self {
        Self { digests: keys.iter().map(|key| Sha256::digest(key).into()).collect() }
    }

    /// Takes the same time whichever key matches, and whether one does: the digests have one
    /// length and all of them are compared.
    ///
    /// Errors: keys are set and none, or an unknown one, was given.
    pub fn check(&self, headers: &HeaderMap) -> Result<Client, RequestError> {
        if self.digests.is_empty() {
            return Ok(Client { key_digest: None });
        }
        // The second is how Anthropic's clients send it.
        let key = match (headers.get(header::AUTHORIZATION), headers.get("x-api-key")) {
            (Some(value), _) => bearer(value.as_bytes()).ok_or(RequestError::KeyMissing)?,
            (None, Some(value)) => value.as_bytes().trim_ascii(),
            (None, None) => return Err(RequestError::KeyMissing),
        };
        let digest: [u8; 32] = Sha256::digest(key).into();
        let found = self.digests.iter().fold(Choice::from(0), |found, d| found | d.ct_eq(&digest));
        if found.into() {
            Ok(Client { key_digest: Some(digest) })
        } else {
            Err(RequestError::KeyUnknown)
        }
    }
}

impl KeyRing {
    /// Whoever owns files and jobs, as long as their key is known.
    pub fn client_of(&self, owner: &Owner) -> Option<Client> {
        let none = Client { key_digest: None };
        if self.digests.is_empty() {
            return (none.owner() == *owner).then_some(none);
        }
        let mut clients = self.digests.iter().map(|digest| Client { key_digest: Some(*digest) });
        clients.find(|client| client.owner() == *owner)
    }
}

impl Client {
    /// In whose name files and jobs are kept. The digest itself is not written to any disk.
    pub fn owner(&self) -> Owner {
        let Some(digest) = self.key_digest else { return Owner(String::new()) };
        let mut hasher = Sha256::new();
        hasher.update(b"monsoon job owner");
        hasher.update(digest);
        Owner(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Keeps the cached prefixes of different keys, and of different salts under a key, apart.
    pub fn cache_salt(&self, salt: Option<&str>) -> CacheSalt {
        if self.key_digest.is_none() && salt.is_none() {
            return CacheSalt::default();
        }
        let mut hasher = Sha256::new();
        hasher.update(b"monsoon cache salt");
        // A fixed length for the first part, so that no two pairs give the same bytes.
        hasher.update(self.key_digest.unwrap_or_default());
        hasher.update(salt.unwrap_or_default());
        CacheSalt(hasher.finalize().into())
    }
}

/// Lets a request pass, or answers 401. What passes carries its `Client`.
pub async fn authenticate(
    State(context): State<Context>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if public_routes(context.config.web_page).all(|route| route != path) {
        match context.keys.check(request.headers()) {
            Ok(client) => request.extensions_mut().insert(client),
            Err(error) => return refuse(request.uri().path(), error.into()),
        };
    }
    next.run(request).await
}

/// An error outside of any endpoint, in the shape of the API that the path belongs to.
pub fn refuse(path: &str, error: ApiError) -> Response {
    match path {
        path if path.starts_with(anthropic::PATH) => error.respond(anthropic::error_body(&error)),
        path if path.starts_with(dashscope::PATH) => dashscope::respond_error(&error),
        _ => error.into_response(),
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}
