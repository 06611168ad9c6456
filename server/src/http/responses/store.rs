//! Responses kept for later: to be read again, or to be gone on from.

use crate::http::auth::Identity;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::task::AbortHandle;

/// The oldest are forgotten beyond these.
pub const RESPONSES_MAX: usize = 1024;
pub const RESPONSES_BYTES_MAX: usize = 64 << 20;

/// A response and the conversation up to its end.
#[derive(Debug, Clone)]
pub struct Kept {
    /// As the API shows it.
    pub response: Value,
    /// As in the chat API, without the instructions.
    pub messages: Vec<Value>,
}

/// The responses of all clients; each sees its own.
#[derive(Debug, Default)]
pub struct ResponseStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    bytes: usize,
    /// Counts what was ever kept, to find the oldest.
    next_age: u64,
}

#[derive(Debug)]
struct Entry {
    client: Identity,
    kept: Kept,
    bytes: usize,
    age: u64,
    /// Ends the work of a response in the background.
    work: Option<AbortHandle>,
}

impl ResponseStore {
    pub fn keep(&self, id: &str, client: Identity, kept: Kept) {
        self.change(|inner| {
            let bytes = num_bytes(&kept);
            if bytes > RESPONSES_BYTES_MAX {
                return inner.remove(id);
            }
            // What is in the background keeps its handle until it has ended.
            let work = inner.entries.get(id).and_then(|entry| entry.work.clone());
            inner.remove(id);
            let age = inner.next_age;
            inner.next_age += 1;
            inner.bytes += bytes;
            inner.entries.insert(id.to_owned(), Entry { client, kept, bytes, age, work });
            inner.forget_the_oldest();
        });
    }

    /// As `keep`, but only while the response is there: one that was deleted stays so.
    pub fn update(&self, id: &str, client: Identity, kept: Kept) {
        if self.change(|inner| inner.own(id, client).is_some()) {
            self.keep(id, client, kept);
        }
    }

    /// The work that will keep the response once more when it is done.
    pub fn set_work(&self, id: &str, work: AbortHandle) {
        self.change(|inner| {
            if let Some(entry) = inner.entries.get_mut(id) {
                entry.work = Some(work);
            }
        });
    }

    pub fn get(&self, id: &str, client: Identity) -> Option<Kept> {
        self.change(|inner| Some(inner.own(id, client)?.kept.clone()))
    }

    /// Whether it was there. Work in the background ends.
    pub fn delete(&self, id: &str, client: Identity) -> bool {
        self.change(|inner| {
            let Some(entry) = inner.own(id, client) else { return false };
            if let Some(work) = entry.work.take() {
                work.abort();
            }
            inner.remove(id);
            true
        })
    }

    /// Ends the work of a response in the background and changes what is kept of it. The response,
    /// if it is there.
    pub fn cancel(
        &self,
        id: &str,
        client: Identity,
        change: impl FnOnce(&mut Value),
    ) -> Option<Value> {
        self.change(|inner| {
            let entry = inner.own(id, client)?;
            if let Some(work) = entry.work.take() {
                work.abort();
            }
            change(&mut entry.kept.response);
            Some(entry.kept.response.clone())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        // No work under the lock can panic half-way through a change.
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn own(&mut self, id: &str, client: Identity) -> Option<&mut Entry> {
        self.entries.get_mut(id).filter(|entry| entry.client == client)
    }

    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes -= entry.bytes;
        }
    }

    fn forget_the_oldest(&mut self) {
        while self.entries.len() > RESPONSES_MAX || self.bytes > RESPONSES_BYTES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.age);
            let Some(id) = oldest.map(|(id, _)| id.clone()) else { return };
            self.remove(&id);
        }
    }
}

fn num_bytes(kept: &Kept) -> usize {
    let messages: usize = kept.messages.iter().map(|message| message.to_string().len()).sum();
    kept.response.to_string().len() + messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::auth::KeyRing;
    use axum::http::HeaderMap;
    use serde_json::json;

    fn client(key: &str) -> Identity {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", key.parse().expect("a header"));
        KeyRing::new(&["a".to_owned(), "b".to_owned()], &[])
            .check(&headers)
            .expect("a known key")
            .identity()
    }

    fn kept(bytes: usize) -> Kept {
        Kept {
            response: json!({"status": "in_progress"}),
            messages: vec!["x".repeat(bytes).into()],
        }
    }

    #[test]
    fn each_client_sees_and_deletes_its_own() {
        let store = ResponseStore::default();
        store.keep("r", client("a"), kept(1));
        assert!(store.get("r", client("a")).is_some() && store.get("r", client("b")).is_none());
        assert!(!store.delete("r", client("b")));
        assert!(store.cancel("r", client("b"), |_| panic!("not theirs")).is_none());
        let cancelled = store.cancel("r", client("a"), |r| r["status"] = "cancelled".into());
        assert_eq!(cancelled, Some(json!({"status": "cancelled"})));
        assert!(store.delete("r", client("a")) && !store.delete("r", client("a")));
        assert_eq!(store.inner.lock().expect("whole").bytes, 0);
    }

    #[test]
    fn the_oldest_are_forgotten_by_number_and_by_size() {
        let store = ResponseStore::default();
        for i in 0..RESPONSES_MAX + 2 {
            store.keep(&i.to_string(), client("a"), kept(1));
        }
        // Kept again, it is as new.
        store.keep("2", client("a"), kept(1));
        store.keep("new", client("a"), kept(1));
        let is_there = |id: &str| store.get(id, client("a")).is_some();
        assert!(!is_there("0") && !is_there("1") && is_there("2") && !is_there("3"));
        store.keep("large", client("a"), kept(RESPONSES_BYTES_MAX - 200));
        assert!(is_there("large") && !is_there("4"));
        store.keep("too large", client("a"), kept(RESPONSES_BYTES_MAX + 1));
        assert!(!is_there("too large") && is_there("large"));
        assert!(store.inner.lock().expect("whole").bytes <= RESPONSES_BYTES_MAX);
    }
}
