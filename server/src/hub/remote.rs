//! What a hub has of a model, which files of it are served, and fetching them.

use super::client::{Failure, HubClient, is_sha256};
use super::download::{ATTEMPTS_MAX, BACKOFF, RemoteFile, check_name, download, lock_folder};
use super::local::{COMPLETE_MARK, RepoName, fits};
use super::{HubChoice, HubConfig, HubError, Progress, ResolvedModel, io_error};
use serde_json::Value;
use std::path::PathBuf;

/// Most files one model may list.
pub const FILES_MAX: usize = 10_000;
/// The quantisation taken from a repository of many when none is named.
const GGUF_DEFAULT: &str = "q4_k_m";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hub {
    HuggingFace,
    ModelScope,
}

/// Asks the hubs in turn and downloads from the first that has the model.
pub fn fetch(
    repo: &RepoName,
    config: &HubConfig,
    progress: &Progress,
) -> Result<ResolvedModel, HubError> {
    let hubs: &[Hub] = match config.choice {
        HubChoice::Auto => &[Hub::HuggingFace, Hub::ModelScope],
        HubChoice::Huggingface => &[Hub::HuggingFace],
        HubChoice::Modelscope => &[Hub::ModelScope],
    };
    let mut tried = Vec::new();
    for &hub in hubs {
        let client = HubClient::new(match hub {
            Hub::HuggingFace => &config.hf,
            Hub::ModelScope => &config.modelscope,
        });
        match list(hub, &client, repo, config) {
            Ok(files) => return fetch_files(&client, hub, repo, files, config, progress),
            Err(
                error @ (HubError::Unreachable { .. }
                | HubError::Status { status: 401 | 403 | 404, .. }),
            ) => tried.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let hubs = format!("any hub: {}", tried.join("; "));
    Err(HubError::NotFound { model: repo.id(), hubs })
}

/// All files the hub has of the model, names checked.
pub fn list(
    hub: Hub,
    client: &HubClient,
    repo: &RepoName,
    config: &HubConfig,
) -> Result<Vec<RemoteFile>, HubError> {
    let revision = revision_of(hub, config);
    let url = match hub {
        Hub::HuggingFace => format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            client.base(),
            repo.id(),
            escape(&revision)
        ),
        Hub::ModelScope => format!(
            "{}/api/v1/models/{}/repo/files?Revision={}&Recursive=True",
            client.base(),
            repo.id(),
            escape(&revision)
        ),
    };
    let answer = get_json_with_retries(client, &url)?;
    let files = match hub {
        Hub::HuggingFace => hugging_face_files(client, repo, &answer),
        Hub::ModelScope => modelscope_files(client, repo, &revision, &answer),
    };
    let invalid = |reason: &str| HubError::Answer { url: url.clone(), reason: reason.to_string() };
    let files = files.ok_or_else(|| invalid("it is no list of files"))?;
    if files.len() > FILES_MAX {
        return Err(invalid("the list of files is too long"));
    }
    files.iter().try_for_each(|file| check_name_unless_hidden(&file.path))?;
    Ok(files)
}

/// The best GGUF among `names`: the one that is or holds `which`; without it the only one, or the
/// usual quantisation. Of several that fit, the shortest name, then the first in order. Parts of
/// split files are never chosen.
pub fn choose_gguf(names: &[String], which: Option<&str>) -> Option<String> {
    let whole = |n: &&String| n.ends_with(".gguf") && !n.contains("-of-0") && !n.contains("mmproj");
    let ggufs: Vec<&String> = names.iter().filter(whole).collect();
    let wanted = match (which, ggufs.len()) {
        (Some(which), _) => which,
        (None, 1) => return Some(ggufs[0].clone()),
        (None, _) => GGUF_DEFAULT,
    };
    let fitting = ggufs.into_iter().filter(|name| fits(name, wanted));
    fitting.min_by_key(|name| (name.len(), name.as_str())).cloned()
}

/// A revision as the name of a folder.
pub fn folder_name(revision: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = revision.chars().map(plain).collect();
    name.trim_start_matches('.').to_string()
}

fn revision_of(hub: Hub, config: &HubConfig) -> String {
    let default = match hub {
        Hub::HuggingFace => "main",
        Hub::ModelScope => "master",
    };
    config.revision.clone().unwrap_or_else(|| default.to_string())
}

fn get_json_with_retries(client: &HubClient, url: &str) -> Result<Value, HubError> {
    let mut attempt = 1;
    loop {
        match client.get_json(url) {
            Ok(value) => return Ok(value),
            // Nobody there: trying again would only keep the operator waiting.
            Err(Failure::Retry(error @ HubError::Unreachable { .. })) => return Err(error),
            Err(Failure::Retry(_)) if attempt < ATTEMPTS_MAX => {
                std::thread::sleep(BACKOFF * 2u32.pow(attempt - 1));
                attempt += 1;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
}

fn hugging_face_files(
    client: &HubClient,
    repo: &RepoName,
    answer: &Value,
) -> Option<Vec<RemoteFile>> {
    // Files are asked for by commit, so that all are of one version although the branch may move
    // meanwhile.
    let commit = answer["sha"].as_str()?;
    let file = |entry: &Value| {
        let path = entry["rfilename"].as_str()?.to_string();
        let sha256 = entry["lfs"]["sha256"].as_str().map(str::to_ascii_lowercase);
        Some(RemoteFile {
            url: format!(
                "{}/{}/resolve/{}/{}",
                client.base(),
                repo.id(),
                escape(commit),
                escape_path(&path)
            ),
            size: entry["size"].as_u64(),
            sha256: sha256.filter(|hash| is_sha256(hash)),
            path,
        })
    };
    answer["siblings"].as_array()?.iter().map(file).collect()
}

fn modelscope_files(
    client: &HubClient,
    repo: &RepoName,
    revision: &str,
    answer: &Value,
) -> Option<Vec<RemoteFile>> {
    let entries = answer["Data"]["Files"].as_array()?;
    let file = |entry: &Value| {
        let path = entry["Path"].as_str()?.to_string();
        let sha256 = entry["Sha256"].as_str().map(str::to_ascii_lowercase);
        Some(RemoteFile {
            url: format!(
                "{}/api/v1/models/{}/repo?Revision={}&FilePath={}",
                client.base(),
                repo.id(),
                escape(revision),
                escape(&path)
            ),
            size: entry["Size"].as_u64(),
            sha256: sha256.filter(|hash| is_sha256(hash)),
            path,
        })
    };
    entries.iter().filter(|entry| entry["Type"] != "tree").map(file).collect()
}

/// Names such as .gitattributes are common and never downloaded; all others must be safe.
fn check_name_unless_hidden(path: &str) -> Result<(), HubError> {
    let hidden = path.starts_with('.') && !path.contains("..") && !path.contains('/');
    if hidden { Ok(()) } else { check_name(path) }
}

fn fetch_files(
    client: &HubClient,
    hub: Hub,
    repo: &RepoName,
    files: Vec<RemoteFile>,
    config: &HubConfig,
    progress: &Progress,
) -> Result<ResolvedModel, HubError> {
    let (chosen, served) = select(repo, &files)?;
    let folder = repo.folder(config).join(folder_name(&revision_of(hub, config)));
    let _lock = lock_folder(&folder, progress)?;
    let mark = folder.join(COMPLETE_MARK);
    progress.say(&format!("fetching {} from {}", repo.id(), client.base()));
    for file in &chosen {
        download(client, file, &folder, progress)?;
    }
    std::fs::write(&mark, repo.id()).map_err(io_error(&mark))?;
    let path: PathBuf = match served {
        Some(gguf) => folder.join(gguf),
        None => folder,
    };
    Ok(ResolvedModel { path, name: repo.id() })
}

/// The files to download, and the GGUF among them if that is what is served. Pickles are never
/// among them: reading one runs whatever code it holds.
fn select(
    repo: &RepoName,
    files: &[RemoteFile],
) -> Result<(Vec<RemoteFile>, Option<String>), HubError> {
    let top_level: Vec<&RemoteFile> = files.iter().filter(|f| !f.path.contains('/')).collect();
    let weights =
        |f: &RemoteFile| f.path.ends_with(".safetensors") && !f.path.starts_with("consolidated");
    let text = |f: &RemoteFile| {
        let ends = |suffix: &str| f.path.ends_with(suffix);
        ends(".json") || ends(".jinja") || f.path == "merges.txt" || f.path == "vocab.txt"
    };
    if repo.which.is_none() && top_level.iter().any(|f| weights(f)) {
        let chosen = top_level.into_iter().filter(|f| weights(f) || text(f)).cloned().collect();
        return Ok((chosen, None));
    }
    let names: Vec<String> = files.iter().map(|f| f.path.clone()).collect();
    match choose_gguf(&names, repo.which.as_deref()) {
        Some(name) => {
            let chosen = files.iter().filter(|f| f.path == name).cloned().collect();
            Ok((chosen, Some(name)))
        }
        None => {
            let ggufs: Vec<String> =
                names.into_iter().filter(|n| n.ends_with(".gguf")).take(40).collect();
            let found = match ggufs.is_empty() {
                true => "it has neither .safetensors nor .gguf files".to_string(),
                false => format!(
                    "name one of its GGUF files as {}:FILE (split files are not supported): {}",
                    repo.id(),
                    ggufs.join(", ")
                ),
            };
            Err(HubError::NothingToServe { model: repo.id(), found })
        }
    }
}

/// Percent-encodes all but the characters that are plain everywhere in an address (RFC 3986, 2.3).
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn escape_path(path: &str) -> String {
    path.split('/').map(escape).collect::<Vec<_>>().join("/")
}
