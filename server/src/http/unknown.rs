//! Fields that nobody knows: accepted and named once in the answer, or refused where the operator
//! wants that (`--strict-fields`).

use super::error::{RequestError, excerpt};
use super::fields::Fields;
use super::limits::{HttpConfig, UnknownFields};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

/// Names the fields of the request that had no effect.
pub const IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-monsoon-ignored-fields");
/// Names in the header; of more only their number is told.
const NAMES_MAX: usize = 16;

/// What the answer's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredFields(Option<HeaderValue>);

impl IgnoredFields {
    /// Of a request whose fields have all been read; `known`: those that pass with a value that
    /// means "not used".
    ///
    /// Errors: an unknown field, where they are refused.
    pub fn of(
        fields: &Fields,
        known: &[&str],
        config: &HttpConfig,
    ) -> Result<IgnoredFields, RequestError> {
        let mut unknown = fields.left().filter(|name| !known.contains(name)).peekable();
        let Some(&first) = unknown.peek() else { return Ok(IgnoredFields(None)) };
        if config.unknown_fields == UnknownFields::Refused {
            return Err(RequestError::UnknownField { field: excerpt(first) });
        }
        let names: Vec<&str> = unknown.collect();
        let mut text = names.iter().take(NAMES_MAX).map(|n| visible(n)).collect::<Vec<_>>();
        if names.len() > NAMES_MAX {
            text.push(format!("and {} more", names.len() - NAMES_MAX));
        }
        Ok(IgnoredFields(HeaderValue::try_from(text.join(", ")).ok()))
    }

    pub fn tell(&self, mut response: Response) -> Response {
        if let Some(value) = &self.0 {
            response.headers_mut().insert(IGNORED_FIELDS, value.clone());
        }
        response
    }
}

/// What a header may hold, of what a client wrote.
fn visible(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() && c != ',';
    excerpt(name).chars().map(|c| if is_plain(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(body: &str) -> Option<String> {
        let fields = Fields::parse(body.as_bytes()).expect("an object");
        let ignored = IgnoredFields::of(&fields, &["store"], &HttpConfig::default());
        let value = ignored.expect("accepted").0?;
        Some(value.to_str().expect("ASCII").to_owned())
    }

    #[test]
    fn unknown_fields_are_named_within_bounds() {
        assert_eq!(header("{}"), None);
        assert_eq!(header(r#"{"store": false}"#), None);
        assert_eq!(header(r#"{"b": 1, "a": null}"#).as_deref(), Some("b"));
        assert_eq!(header(r#"{"x\r\ny: é,": 1}"#).as_deref(), Some("x??y:???"));
        let many: Vec<_> = (0..20).map(|i| format!("\"f{i:02}\": 1")).collect();
        let told = header(&format!("{{{}}}", many.join(","))).expect("told");
        assert!(told.starts_with("f00, f01, ") && told.ends_with("f15, and 4 more"), "{told}");
        let long = header(&format!("{{\"{}\": 1}}", "n".repeat(5000))).expect("told");
        assert!(long.len() < 100, "{long}");
    }

    #[test]
    fn strict_servers_refuse_them() {
        let config = HttpConfig { unknown_fields: UnknownFields::Refused, ..HttpConfig::default() };
        let fields = Fields::parse(br#"{"modle": 1}"#).expect("an object");
        let error = IgnoredFields::of(&fields, &[], &config).expect_err("refused");
        assert!(error.to_string().contains("'modle'"), "{error}");
    }
}
