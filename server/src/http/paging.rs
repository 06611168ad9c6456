//! Which part of a list a client wants: `after`, `limit`, `order`.

use super::error::{RequestError, excerpt};
use super::fields::out_of_range;
use crate::jobs::Page;
use crate::jobs::store::Order;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The parameters of a URL; of those with one name the last.
pub fn parameters(query: Option<&str>) -> BTreeMap<String, String> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// Errors: a limit that is none, or not from 1 to `limit_max`; an unknown order.
pub fn page(
    parameters: &BTreeMap<String, String>,
    limit_default: usize,
    limit_max: usize,
) -> Result<Page, RequestError> {
    let limit = match parameters.get("limit") {
        None => limit_default,
        Some(text) => match text.parse() {
            Ok(limit) if (1..=limit_max).contains(&limit) => limit,
            _ => {
                let range = format!("an integer from 1 to {limit_max}");
                return Err(out_of_range("limit", &json!(excerpt(text)), range));
            }
        },
    };
    let order = match parameters.get("order").map(String::as_str) {
        None | Some("desc") => Order::NewestFirst,
        Some("asc") => Order::OldestFirst,
        Some(other) => {
            let range = "asc or desc".into();
            return Err(out_of_range("order", &json!(excerpt(other)), range));
        }
    };
    Ok(Page { after: parameters.get("after").cloned(), limit, order })
}

/// The part as OpenAI's API shows it.
pub fn list(entries: Vec<Value>, has_more: MorePages) -> Value {
    let id = |entry: Option<&Value>| entry.map_or(Value::Null, |entry| entry["id"].clone());
    json!({
        "object": "list",
        "first_id": id(entries.first()),
        "last_id": id(entries.last()),
        "has_more": has_more == MorePages::Yes,
        "data": entries,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MorePages {
    Yes,
    No,
}

impl From<bool> for MorePages {
    fn from(has_more: bool) -> Self {
        if has_more { MorePages::Yes } else { MorePages::No }
    }
}
