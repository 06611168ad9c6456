//! Finds models without a network: paths as typed, our own cache, and those of the Hugging Face and
//! ModelScope tools.

use super::{HubConfig, HubError, ResolvedModel, io_error};
use std::path::{Path, PathBuf};

/// Written last into a folder of ours: all files of the selection are there and were checked.
pub const COMPLETE_MARK: &str = ".complete";
/// Most files looked at in one folder.
const FOLDER_FILES_MAX: usize = 10_000;

/// "owner/name", or "owner/name:which" for one GGUF file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoName {
    pub owner: String,
    pub name: String,
    /// A file name or a part of one, such as "Q4_K_M".
    pub which: Option<String>,
}

impl RepoName {
    /// `None` when `text` is no such name. Each part has the characters that hubs allow, so it is
    /// safe in a path or an address.
    pub fn parse(text: &str) -> Option<RepoName> {
        let (id, which) = match text.split_once(':') {
            Some((id, which)) => (id, Some(which)),
            None => (text, None),
        };
        let (owner, name) = id.split_once('/')?;
        let plain = |part: &str| {
            const PART_BYTES_MAX: usize = 128;
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            (1..=PART_BYTES_MAX).contains(&part.len())
                && part.bytes().all(allowed)
                && !part.starts_with('.')
                && !part.contains("..")
        };
        let which_plain = which.is_none_or(plain);
        (plain(owner) && plain(name) && which_plain).then(|| RepoName {
            owner: owner.to_string(),
            name: name.to_string(),
            which: which.map(str::to_string),
        })
    }

    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Folder of this repository in our own cache.
    pub fn folder(&self, config: &HubConfig) -> PathBuf {
        config.models_dir().join(format!("{}--{}", self.owner, self.name))
    }
}

/// Looks for `model` on this machine. Errors only where something is there but cannot be read or
/// chosen from.
pub fn find(model: &str, config: &HubConfig) -> Result<Option<ResolvedModel>, HubError> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(Some(ResolvedModel { path: path.to_path_buf(), name: name_of_path(path) }));
    }
    let Some(repo) = RepoName::parse(model) else {
        return Ok(None);
    };
    for folder in candidate_folders(&repo, config) {
        if let Some(path) = servable_path(&folder, repo.which.as_deref())? {
            return Ok(Some(ResolvedModel { path, name: repo.id() }));
        }
    }
    Ok(None)
}

/// Files of a GGUF repository fit `which` when they are it, or hold it between other letters,
/// whatever the case.
pub fn fits(file_name: &str, which: &str) -> bool {
    let (file_name, which) = (file_name.to_ascii_lowercase(), which.to_ascii_lowercase());
    file_name == which || file_name.strip_suffix(".gguf").is_some_and(|stem| stem.contains(&which))
}

/// The last part of the path without .gguf.
fn name_of_path(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let last = full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    last.strip_suffix(".gguf").map(str::to_string).unwrap_or(last)
}

fn candidate_folders(repo: &RepoName, config: &HubConfig) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let own = repo.folder(config);
    let revisions = match &config.revision {
        Some(revision) => vec![revision.clone()],
        None => vec!["main".to_string(), "master".to_string()],
    };
    for revision in &revisions {
        let folder = own.join(super::remote::folder_name(revision));
        if folder.join(COMPLETE_MARK).exists() {
            folders.push(folder);
        }
    }
    let joined = format!("{}--{}", repo.owner, repo.name);
    let hf = config.hf_cache.join(format!("models--{joined}"));
    for revision in &revisions {
        // A ref file holds the commit that a branch or tag stood for when it was fetched.
        let commit = std::fs::read_to_string(hf.join("refs").join(revision)).ok();
        let commit = commit.as_deref().map(str::trim).unwrap_or(revision);
        if !commit.contains("..") && !commit.is_empty() {
            folders.push(hf.join("snapshots").join(commit));
        }
    }
    let root = &config.modelscope_cache;
    for revision in &revisions {
        folders.push(root.join("models").join(&joined).join("snapshots").join(revision));
    }
    // The older layout keeps no revision, and writes a dot in a name as three underscores.
    if config.revision.is_none() {
        let older_name = repo.name.replace('.', "___");
        for base in
            [root.join("hub").join("models"), root.join("models"), root.join("hub"), root.clone()]
        {
            folders.push(base.join(&repo.owner).join(&older_name));
            folders.push(base.join(&repo.owner).join(&repo.name));
        }
    }
    folders
}

/// The folder itself when it holds safetensors and config.json, else its one fitting GGUF file.
fn servable_path(folder: &Path, which: Option<&str>) -> Result<Option<PathBuf>, HubError> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_error(folder))?.take(FOLDER_FILES_MAX) {
        let name = entry.map_err(io_error(folder))?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    let has_weights = names.iter().any(|n| n.ends_with(".safetensors"));
    if which.is_none() && has_weights && names.iter().any(|n| n == "config.json") {
        return Ok(Some(folder.to_path_buf()));
    }
    let chosen = super::remote::choose_gguf(&names, which);
    Ok(chosen.map(|name| folder.join(name)))
}
