//! The file of `--tenants`: who may ask for how much.

use super::{API_KEYS_MAX, ConfigError, read_flag_file};
use crate::http::{TenantLimits, TenantSpec, WEIGHT_MAX};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Longest name of a tenant, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most names of models that one tenant may be given.
const MODELS_MAX: usize = 64;
const DIGEST_PREFIX: &str = "sha256:";

/// Those who may ask for something, beside whoever has one of the API keys.
#[derive(Debug, Clone)]
pub struct TenantsConfig {
    /// Is read again on SIGHUP.
    pub path: PathBuf,
    pub specs: Vec<TenantSpec>,
}

impl TenantsConfig {
    /// Errors: as `read_tenants`.
    pub fn read(path: PathBuf) -> Result<Self, ConfigError> {
        Ok(Self { specs: read_tenants(&path)?, path })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tenant: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    name: String,
    keys: Vec<String>,
    weight: Option<u32>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    max_concurrent: Option<u32>,
    models: Option<Vec<String>>,
    priority_ceiling: Option<i32>,
}

/// Reads and checks the file.
///
/// Errors: `ConfigError::File`, naming the tenant and the key of the entry.
pub fn read_tenants(path: &Path) -> Result<Vec<TenantSpec>, ConfigError> {
    let text = read_flag_file(path)?;
    parse(&text).map_err(|reason| ConfigError::File { path: path.to_path_buf(), reason })
}

fn parse(text: &str) -> Result<Vec<TenantSpec>, String> {
    let file: File = toml::from_str(text).map_err(|e| {
        // The error's own text shows the line, in which a key may stand that is no digest.
        let line = e.span().map(|span| 1 + text[..span.start].matches('\n').count());
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{place}{}", e.message())
    })?;
    if file.tenant.is_empty() {
        return Err("holds no [[tenant]]".into());
    }
    let (mut names, mut digests) = (BTreeSet::new(), BTreeSet::new());
    let mut specs = Vec::with_capacity(file.tenant.len());
    for (index, entry) in file.tenant.into_iter().enumerate() {
        let spec = check(entry, index)?;
        if !names.insert(spec.name.clone()) {
            return Err(format!("tenant {}: there are two of this name", spec.name));
        }
        for digest in &spec.key_digests {
            if !digests.insert(*digest) {
                return Err(format!("tenant {}: a key that stands there twice", spec.name));
            }
        }
        specs.push(spec);
    }
    if digests.len() > API_KEYS_MAX {
        return Err(format!("{} keys, at most {API_KEYS_MAX}", digests.len()));
    }
    Ok(specs)
}

fn check(entry: Entry, index: usize) -> Result<TenantSpec, String> {
    let Entry { name, keys, models, priority_ceiling, .. } = entry;
    let is_good = |c: char| c.is_ascii_graphic();
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_good) {
        return Err(format!(
            "tenant {}: a name has 1 to {NAME_BYTES_MAX} printable ASCII characters, no spaces",
            index + 1
        ));
    }
    let at = |reason: String| format!("tenant {name}: {reason}");
    let weight = entry.weight.unwrap_or(1);
    if !(1..=WEIGHT_MAX).contains(&weight) {
        return Err(at(format!("weight is {weight}, allowed are 1 to {WEIGHT_MAX}")));
    }
    if keys.is_empty() {
        return Err(at("keys is empty".into()));
    }
    let key_digests = keys.iter().map(|key| {
        digest(key).ok_or_else(|| {
            at(format!("a key is given as {DIGEST_PREFIX} and 64 hexadecimal digits"))
        })
    });
    let key_digests = key_digests.collect::<Result<_, _>>()?;
    let limits = [
        ("requests-per-minute", entry.requests_per_minute.map(u64::from)),
        ("tokens-per-minute", entry.tokens_per_minute),
        ("max-concurrent", entry.max_concurrent.map(u64::from)),
    ];
    if let Some((key, _)) = limits.iter().find(|(_, limit)| *limit == Some(0)) {
        return Err(at(format!("{key} is 0, which serves nothing; leave the tenant out")));
    }
    if models.as_ref().is_some_and(|models| models.is_empty() || models.len() > MODELS_MAX) {
        return Err(at(format!("models has 1 to {MODELS_MAX} names, or is left out")));
    }
    let limits = TenantLimits {
        requests_per_minute: entry.requests_per_minute,
        tokens_per_minute: entry.tokens_per_minute,
        concurrent: entry.max_concurrent,
        models,
        priority_ceiling,
    };
    Ok(TenantSpec { name, key_digests, weight, limits })
}

fn digest(key: &str) -> Option<[u8; 32]> {
    let digits = key.strip_prefix(DIGEST_PREFIX)?;
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, digits) in digest.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    fn entry(more: &str) -> String {
        format!("[[tenant]]\nname = \"a\"\nkeys = [\"sha256:{DIGITS}\"]\n{more}\n")
    }

    #[test]
    fn an_entry_is_read_whole() {
        let text = entry(
            "weight = 4\nrequests-per-minute = 60\ntokens-per-minute = 1000\nmax-concurrent = 2\n\
             models = [\"m\"]\npriority-ceiling = -3",
        );
        let specs = parse(&text).expect("a good file");
        let [spec] = &specs[..] else { panic!("one tenant") };
        assert_eq!((spec.name.as_str(), spec.weight), ("a", 4));
        assert_eq!(spec.key_digests[0][..2], [0x2c, 0x26]);
        let limits = TenantLimits {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(1000),
            concurrent: Some(2),
            models: Some(vec!["m".into()]),
            priority_ceiling: Some(-3),
        };
        assert_eq!(spec.limits, limits);
        let plain = parse(&entry("")).expect("a good file");
        assert_eq!((plain[0].weight, &plain[0].limits), (1, &TenantLimits::default()));
    }

    #[test]
    fn what_is_wrong_is_named_and_keys_are_not_shown() {
        let twice = format!("{}{}", entry(""), entry("").replace("\"a\"", "\"b\""));
        let cases = [
            ("".to_owned(), "no [[tenant]]"),
            (entry("wieght = 2"), "wieght"),
            (entry("weight = 0"), "weight is 0"),
            (entry("weight = 1001"), "1001"),
            (entry("tokens-per-minute = 0"), "tokens-per-minute is 0"),
            (entry("requests-per-minute = -1"), "line 4"),
            (entry("models = []"), "models"),
            (entry("").replace("\"a\"", "\"a b\""), "tenant 1"),
            (entry("").replace("sha256:2c", "sk-secret"), "tenant a: a key"),
            (format!("{}{}", entry(""), entry("")), "two of this name"),
            (twice, "tenant b: a key that stands there twice"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).expect_err(expected);
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secret") && !error.contains(DIGITS), "{error}");
        }
    }
}
