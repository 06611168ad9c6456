//! Turns MODEL into files on this machine: a path as typed, the caches of other tools, our own
//! cache, or a hub.

pub mod local;
pub mod remote;
pub mod client;
pub mod download;
pub mod default_model;
pub mod progress;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use progress::Progress;

pub const HF_ENDPOINT_DEFAULT: &str = "https://huggingface.co";
pub const MODELSCOPE_ENDPOINT_DEFAULT: &str = "https://modelscope.cn";

/// Where models may come from, and with which right.
#[derive(Clone)]
pub struct HubConfig {
    /// Our own downloads: models/OWNER--NAME/REVISION/, and models/FILE.gguf for the default model.
    pub cache_dir: PathBuf,
    pub revision: Option<String>,
    pub access: Access,
    pub choice: HubChoice,
    pub hf: Endpoint,
    pub modelscope: Endpoint,
    /// Folder with models--OWNER--NAME.
    pub hf_cache: PathBuf,
    pub modelscope_cache: PathBuf,
}

/// What the operator said about it.
#[derive(Debug, Clone)]
pub struct HubOptions {
    pub revision: Option<String>,
    /// `None`: monsoon in the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    pub access: Access,
    pub choice: HubChoice,
}

/// Which hub has OWNER/NAME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HubChoice {
    /// Hugging Face, then ModelScope.
    Auto,
    Huggingface,
    Modelscope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Online,
    Offline,
}

#[derive(Clone)]
pub struct Endpoint {
    /// Without a slash at its end.
    pub url: String,
    /// Sent to this endpoint's own host only.
    pub token: Option<String>,
}

/// A variable of the environment that cannot be used.
#[derive(Debug)]
pub struct HubConfigError {
    pub variable: &'static str,
    pub reason: String,
}

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// A folder with config.json, or a .gguf file.
    pub path: PathBuf,
    /// The name to serve it by when the operator gives none.
    pub name: String,
}

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("model {model} is no file or folder here, and no OWNER/NAME of a hub either")]
    NotAModel { model: String },
    #[error(
        "model {model} is in no cache of this machine ({places}), and --offline forbids to fetch it"
    )]
    Offline { model: String, places: String },
    #[error("model {model} was not found on {hubs}")]
    NotFound { model: String, hubs: String },
    #[error("{url} answered {status}{}", hint(*.status))]
    Status { url: String, status: u16 },
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} sent an answer that cannot be used: {reason}")]
    Answer { url: String, reason: String },
    #[error("{model} holds no file that can be served; {found}")]
    NothingToServe { model: String, found: String },
    #[error("{file} has sha256 {got}, expected {expected}; what was downloaded has been removed")]
    WrongHash { file: String, got: String, expected: String },
    #[error("{file} has {got} bytes, expected {expected}")]
    WrongSize { file: String, got: u64, expected: u64 },
    #[error("{file}: gave up after {attempts} attempts without progress: {last}")]
    GaveUp { file: String, attempts: u32, last: String },
    #[error("the hub lists a file named {name:?}, which is no plain path inside the model")]
    UnsafeName { name: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cannot fetch the default model: {hub}; and {wheels}")]
    DefaultModel { hub: String, wheels: String },
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "; the model may need a token (HF_TOKEN or MODELSCOPE_API_TOKEN) and accepted terms"
        }
        _ => "",
    }
}

impl HubConfig {
    /// Reads the hubs' own variables from `env`; flags win over them.
    pub fn new(
        options: HubOptions,
        env: &BTreeMap<String, String>,
    ) -> Result<HubConfig, HubConfigError> {
        let set = |name: &str| env.get(name).filter(|v| !v.is_empty()).cloned();
        let home = PathBuf::from(set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_default());
        let user_cache = set("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        let hf_home = set("HF_HOME").map_or_else(|| user_cache.join("huggingface"), PathBuf::from);
        let offline_variable = set("HF_HUB_OFFLINE").is_some_and(|v| v != "0" && v != "false");
        Ok(HubConfig {
            cache_dir: options.cache_dir.unwrap_or_else(|| user_cache.join("monsoon")),
            revision: options.revision,
            access: if offline_variable { Access::Offline } else { options.access },
            choice: options.choice,
            hf: Endpoint {
                url: endpoint("HF_ENDPOINT", set("HF_ENDPOINT"), HF_ENDPOINT_DEFAULT)?,
                token: token("HF_TOKEN", set("HF_TOKEN"))?,
            },
            modelscope: Endpoint {
                url: endpoint(
                    "MODELSCOPE_ENDPOINT",
                    set("MODELSCOPE_ENDPOINT"),
                    MODELSCOPE_ENDPOINT_DEFAULT,
                )?,
                token: token("MODELSCOPE_API_TOKEN", set("MODELSCOPE_API_TOKEN"))?,
            },
            hf_cache: set("HF_HUB_CACHE").map_or_else(|| hf_home.join("hub"), PathBuf::from),
            modelscope_cache: set("MODELSCOPE_CACHE")
                .map_or_else(|| user_cache.join("modelscope"), PathBuf::from),
        })
    }

    pub fn models_dir(&self) -> PathBuf {
        self.cache_dir.join("models")
    }
}

fn endpoint(
    variable: &'static str,
    value: Option<String>,
    default: &str,
) -> Result<String, HubConfigError> {
    let url = value.unwrap_or_else(|| default.to_string());
    let url = url.trim_end_matches('/').to_string();
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => Ok(url),
        _ => Err(HubConfigError {
            variable,
            reason: format!("{url} is no http:// or https:// address"),
        }),
    }
}

fn token(variable: &'static str, value: Option<String>) -> Result<Option<String>, HubConfigError> {
    // The token itself stays out of the message: messages end up in logs.
    match value {
        Some(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => Err(HubConfigError {
            variable,
            reason: "holds something that is no printable ASCII character".to_string(),
        }),
        token => Ok(token),
    }
}

/// Finds the model on this machine, else fetches it. `None` is the default model.
pub fn resolve(
    model: Option<&str>,
    config: &HubConfig,
    progress: &Progress,
) -> Result<ResolvedModel, HubError> {
    let Some(model) = model else {
        return default_model::resolve(config, progress);
    };
    if let Some(found) = local::find(model, config)? {
        return Ok(found);
    }
    fetch(model, config, progress)
}

/// Asks the hub for the model even when it is here, and downloads what is missing or has changed.
pub fn pull(
    model: Option<&str>,
    config: &HubConfig,
    progress: &Progress,
) -> Result<ResolvedModel, HubError> {
    match model {
        None => default_model::resolve(config, progress),
        Some(model) if config.access == Access::Offline => resolve(Some(model), config, progress),
        Some(model) => fetch(model, config, progress),
    }
}

fn fetch(model: &str, config: &HubConfig, progress: &Progress) -> Result<ResolvedModel, HubError> {
    let name = local::RepoName::parse(model)
        .ok_or_else(|| HubError::NotAModel { model: model.to_string() })?;
    if config.access == Access::Offline {
        let places = [&config.models_dir(), &config.hf_cache, &config.modelscope_cache];
        let places = places.map(|p| p.display().to_string()).join(", ");
        return Err(HubError::Offline { model: model.to_string(), places });
    }
    remote::fetch(&name, config, progress)
}

/// An `HubError::Io` with its path.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    move |source| HubError::Io { path, source }
}

// Tokens stay out of anything printed with {:?}.
impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "HubConfig({}, {:?}, {}, {})",
            self.cache_dir.display(),
            self.access,
            self.hf.url,
            self.modelscope.url
        )
    }
}
