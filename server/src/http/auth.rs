//! API keys: several, compared in constant time, and who they belong to.

use super::error::{ApiError, RequestError};
use super::page::{self, WebPage};
use super::state::Context;
use super::tenants::{TenantLimits, TenantSpec, Usage};
use super::{anthropic, dashscope};
use crate::engine::{CacheSalt, Tenant, TenantId};
use crate::jobs::Owner;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// Routes that ask for no key: load balancers watch the server by them, and the page, which holds
/// nothing, asks for the key.
pub const PUBLIC_ROUTES: &[&str] = &["/health", "/ping", page::PATH];

/// Those of them that there are.
pub fn public_routes(page: WebPage) -> impl Iterator<Item = &'static str> {
    let is_there = move |route: &&str| *route != page::PATH || page == WebPage::Served;
    PUBLIC_ROUTES.iter().copied().filter(is_there)
}

/// Who may ask for something, by their keys; replaced as a whole while requests go on. A clone is
/// the same ring.
#[derive(Clone, Default)]
pub struct KeyRing {
    current: Arc<RwLock<Arc<Ring>>>,
}

/// Digests of the keys; the keys themselves are not kept.
#[derive(Default)]
struct Ring {
    keys: Vec<([u8; 32], Arc<Member>)>,
    /// Everybody's, where there are no keys.
    anyone: Arc<Member>,
    /// Of everyone who was ever in the ring.
    known: HashMap<Identity, Known>,
}

/// What stays when the ring is replaced.
#[derive(Clone)]
struct Known {
    id: TenantId,
    usage: Arc<Usage>,
}

struct Member {
    identity: Identity,
    tenant: Tenant,
    limits: TenantLimits,
    usage: Arc<Usage>,
}

impl Default for Member {
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            tenant: Tenant::default(),
            limits: TenantLimits::default(),
            usage: Arc::new(Usage::new(Instant::now())),
        }
    }
}

/// Who somebody is: a digest of their key or of their tenant's name, nothing where no keys are set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Identity(Option<[u8; 32]>);

/// Who sent a request.
#[derive(Clone)]
pub struct Client {
    member: Arc<Member>,
}

impl KeyRing {
    /// Whoever has one of the keys is a tenant of weight 1 without limits. Without keys and
    /// tenants everyone may ask.
    pub fn new(keys: &[String], tenants: &[TenantSpec]) -> Self {
        let ring = Self::default();
        ring.replace(keys, tenants);
        ring
    }

    /// From now on these keys are known and no others. Who stays keeps what they have used of
    /// their limits.
    pub fn replace(&self, keys: &[String], tenants: &[TenantSpec]) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let ring = Ring::new(keys, tenants, current.known.clone());
        *current = Arc::new(ring);
    }

    /// Whether nobody needs a key.
    pub fn is_open(&self) -> bool {
        self.current().keys.is_empty()
    }

    pub fn num_keys(&self) -> usize {
        self.current().keys.len()
    }

    /// Takes the same time whichever key matches, and whether one does: the digests have one
    /// length and all of them are compared.
    ///
    /// Errors: keys are set and none, or an unknown one, was given.
    pub fn check(&self, headers: &HeaderMap) -> Result<Client, RequestError> {
        let ring = self.current();
        if ring.keys.is_empty() {
            return Ok(Client { member: Arc::clone(&ring.anyone) });
        }
        // The second is how Anthropic's clients send it.
        let key = match (headers.get(header::AUTHORIZATION), headers.get("x-api-key")) {
            (Some(value), _) => bearer(value.as_bytes()).ok_or(RequestError::KeyMissing)?,
            (None, Some(value)) => value.as_bytes().trim_ascii(),
            (None, None) => return Err(RequestError::KeyMissing),
        };
        let digest: [u8; 32] = Sha256::digest(key).into();
        let mut found = u64::MAX;
        for (index, (known, _)) in ring.keys.iter().enumerate() {
            found.conditional_assign(&(index as u64), known.ct_eq(&digest));
        }
        match ring.keys.get(usize::try_from(found).unwrap_or(usize::MAX)) {
            Some((_, member)) => Ok(Client { member: Arc::clone(member) }),
            None => Err(RequestError::KeyUnknown),
        }
    }

    /// Whoever owns files and jobs, as long as a key of theirs is known.
    pub fn client_of(&self, owner: &Owner) -> Option<Client> {
        let ring = self.current();
        let anyone = ring.keys.is_empty().then_some(&ring.anyone);
        let mut members = ring.keys.iter().map(|(_, member)| member).chain(anyone);
        let member = members.find(|member| member.identity.owner() == *owner)?;
        Some(Client { member: Arc::clone(member) })
    }

    fn current(&self) -> Arc<Ring> {
        // Readers hold the lock for this one line.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.num_keys())
    }
}

impl Ring {
    fn new(keys: &[String], tenants: &[TenantSpec], known: HashMap<Identity, Known>) -> Self {
        let mut ring = Self { known, ..Self::default() };
        let all = tenants.iter().map(|spec| u64::from(spec.weight)).sum::<u64>();
        let weights = u32::try_from(all + keys.len() as u64).unwrap_or(u32::MAX);
        for key in keys {
            let digest: [u8; 32] = Sha256::digest(key).into();
            let member = ring.member(Identity(Some(digest)), 1, weights, TenantLimits::default());
            ring.keys.push((digest, member));
        }
        for spec in tenants {
            let identity = Identity::of_tenant(&spec.name);
            let member = ring.member(identity, spec.weight, weights, spec.limits.clone());
            ring.keys.extend(spec.key_digests.iter().map(|digest| (*digest, Arc::clone(&member))));
        }
        ring
    }

    fn member(
        &mut self,
        identity: Identity,
        weight: u32,
        weights: u32,
        limits: TenantLimits,
    ) -> Arc<Member> {
        // The default tenant is whoever asks where there are no keys.
        let next_id = TenantId(self.known.len() as u32 + 1);
        let new = || Known { id: next_id, usage: Arc::new(Usage::new(Instant::now())) };
        let Known { id, usage } = self.known.entry(identity).or_insert_with(new).clone();
        Arc::new(Member { identity, tenant: Tenant { id, weight, weights }, limits, usage })
    }
}

impl Identity {
    fn of_tenant(name: &str) -> Identity {
        let mut hasher = Sha256::new();
        hasher.update(b"monsoon tenant");
        hasher.update(name);
        Identity(Some(hasher.finalize().into()))
    }

    /// In whose name files and jobs are kept. The digest itself is not written to any disk.
    fn owner(self) -> Owner {
        let Some(digest) = self.0 else { return Owner(String::new()) };
        let mut hasher = Sha256::new();
        hasher.update(b"monsoon job owner");
        hasher.update(digest);
        Owner(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Client {
    pub fn identity(&self) -> Identity {
        self.member.identity
    }

    pub fn owner(&self) -> Owner {
        self.member.identity.owner()
    }

    pub fn tenant(&self) -> Tenant {
        self.member.tenant
    }

    pub fn limits(&self) -> &TenantLimits {
        &self.member.limits
    }

    pub fn usage(&self) -> &Arc<Usage> {
        &self.member.usage
    }

    /// Keeps the cached prefixes of different tenants, and of different salts of one, apart.
    pub fn cache_salt(&self, salt: Option<&str>) -> CacheSalt {
        let Identity(digest) = self.member.identity;
        if digest.is_none() && salt.is_none() {
            return CacheSalt::default();
        }
        let mut hasher = Sha256::new();
        hasher.update(b"monsoon cache salt");
        // A fixed length for the first part, so that no two pairs give the same bytes.
        hasher.update(digest.unwrap_or_default());
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
        match context.config.keys.check(request.headers()) {
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
