//! Who may ask for something: read at the start, and again on SIGHUP.

use crate::config::{ListenConfig, tenants::read_tenants};
use crate::http::KeyRing;
use std::io;
use tokio::task::JoinSet;

pub fn ring(config: &ListenConfig) -> KeyRing {
    let tenants = config.tenants.as_ref().map(|tenants| tenants.specs.as_slice());
    KeyRing::new(&config.api_keys, tenants.unwrap_or_default())
}

/// Reads the file of tenants again whenever the process gets SIGHUP, as long as the result lives.
/// A file that is wrong changes nothing. Without such a file the signal means what it always does.
///
/// Errors: the system takes no handler.
#[cfg(unix)]
pub fn reload_on_hangup(config: &ListenConfig, keys: KeyRing) -> io::Result<JoinSet<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut tasks = JoinSet::new();
    let Some(tenants) = &config.tenants else { return Ok(tasks) };
    let (path, api_keys) = (tenants.path.clone(), config.api_keys.clone());
    let mut hangup = signal(SignalKind::hangup())?;
    tasks.spawn(async move {
        while hangup.recv().await.is_some() {
            match read_tenants(&path) {
                Ok(specs) => {
                    keys.replace(&api_keys, &specs);
                    tracing::info!(tenants = specs.len(), keys = keys.num_keys(), "tenants read");
                }
                Err(error) => tracing::error!(%error, "the tenants stay as they were"),
            }
        }
    });
    Ok(tasks)
}

#[cfg(not(unix))]
pub fn reload_on_hangup(_: &ListenConfig, _: KeyRing) -> io::Result<JoinSet<()>> {
    Ok(JoinSet::new())
}
