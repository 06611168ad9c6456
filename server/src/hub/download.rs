//! One file from a hub to disk: resumed when cut, checked, and put in place only when whole.

use super::client::{Answer, Failure, HubClient};
use super::progress::FileProgress;
use super::{HubError, Progress, io_error};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts in a row that brought no new byte.
pub const ATTEMPTS_MAX: u32 = 5;
/// Attempts in all for one file, however well each goes.
pub const RESUMES_MAX: u32 = 200;
/// Pause after the first failure; doubled after each further one.
pub const BACKOFF: Duration = Duration::from_millis(300);
const BUFFER_BYTES: usize = 1 << 20;

/// One file of a model, as the hub describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path inside the model, checked by `check_name`.
    pub path: String,
    pub url: String,
    pub size: Option<u64>,
    /// 64 hex digits, small letters.
    pub sha256: Option<String>,
}

/// Refuses names that would leave the model's folder or hide in it.
pub fn check_name(path: &str) -> Result<(), HubError> {
    let part_is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.contains(['\\', ':', '\0'])
            && !part.chars().any(char::is_control)
    };
    match path.len() <= 512 && path.split('/').all(part_is_plain) {
        true => Ok(()),
        false => Err(HubError::UnsafeName { name: path.chars().take(200).collect() }),
    }
}

/// Downloads `file` to `folder`/path, unless a file that fits the description is there already.
///
/// Errors: `WrongHash` after removing what came; `GaveUp` leaves a .part file that a later call
/// resumes.
pub fn download(
    client: &HubClient,
    file: &RemoteFile,
    folder: &Path,
    progress: &Progress,
) -> Result<PathBuf, HubError> {
    check_name(&file.path)?;
    let target = folder.join(&file.path);
    if is_same(&target, file)? {
        return Ok(target);
    }
    let parent = target.parent().expect("a file in a folder");
    std::fs::create_dir_all(parent).map_err(io_error(parent))?;
    // The hash in the name keeps the beginning of one version from being joined to the end of
    // another.
    let version = file.sha256.as_deref().map_or("unchecked", |hash| &hash[..16]);
    let part = parent.join(format!("{}.{version}.part", file_name(&target)));
    if file.sha256.is_none() {
        let _ = std::fs::remove_file(&part);
    }
    let bar = progress.start_file(&file.path, file.size);
    let mut writer = PartWriter::open(&part)?;
    let expected = fetch_all(client, file, &mut writer, &bar)?;
    writer.finish(file, expected.as_deref(), &part)?;
    std::fs::rename(&part, &target).map_err(io_error(&target))?;
    Ok(target)
}

/// Retries until the whole file is there; gives the sha256 it must have, if the hub named one.
fn fetch_all(
    client: &HubClient,
    file: &RemoteFile,
    writer: &mut PartWriter,
    bar: &FileProgress,
) -> Result<Option<String>, HubError> {
    let mut fruitless = 0;
    let mut expected = file.sha256.clone();
    for _ in 0..RESUMES_MAX {
        if file.size.is_some_and(|size| size == writer.len) && writer.len > 0 {
            return Ok(expected);
        }
        let before = writer.len;
        let failure = match fetch_once(client, file, writer, bar) {
            Ok(named) => return Ok(expected.or(named)),
            Err(Failure::Final(HubError::Status { status: 416, .. })) if before > 0 => {
                // The hub has fewer bytes than we do: what is here belongs to something else.
                writer.restart()?;
                HubError::WrongSize {
                    file: file.path.clone(),
                    got: before,
                    expected: file.size.unwrap_or(0),
                }
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Retry(error)) => error,
        };
        fruitless = if writer.len > before { 0 } else { fruitless + 1 };
        if fruitless >= ATTEMPTS_MAX {
            let last = failure.to_string();
            return Err(HubError::GaveUp { file: file.path.clone(), attempts: fruitless, last });
        }
        expected = expected.or(file.sha256.clone());
        std::thread::sleep(BACKOFF * 2u32.pow(fruitless.saturating_sub(1).min(ATTEMPTS_MAX)));
    }
    let last = "too many connections were cut".to_string();
    Err(HubError::GaveUp { file: file.path.clone(), attempts: RESUMES_MAX, last })
}

/// One request; all that arrives is kept, also when the connection breaks.
fn fetch_once(
    client: &HubClient,
    file: &RemoteFile,
    writer: &mut PartWriter,
    bar: &FileProgress,
) -> Result<Option<String>, Failure> {
    let mut answer = client.get(&file.url, writer.len)?;
    if writer.len > 0 && !continues_at(&answer, writer.len) {
        writer.restart().map_err(Failure::Final)?;
        if answer.status == 206 {
            let reason = "it sent another range than was asked for".to_string();
            return Err(Failure::Retry(HubError::Answer { url: file.url.clone(), reason }));
        }
    }
    let announced = content_length(&answer).map(|length| length + writer.len);
    if let Some(size) = file.size.or(announced) {
        bar.set_size(size);
    }
    let limit = file.size.or(announced).unwrap_or(u64::MAX);
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        let cut = |e: std::io::Error| {
            Failure::Retry(HubError::Unreachable { url: file.url.clone(), reason: e.to_string() })
        };
        let count = match answer.body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(cut(e)),
        };
        if writer.len + count as u64 > limit {
            let got = writer.len + count as u64;
            let error = HubError::WrongSize { file: file.path.clone(), got, expected: limit };
            writer.restart().map_err(Failure::Final)?;
            return Err(Failure::Final(error));
        }
        writer.push(&buffer[..count]).map_err(Failure::Final)?;
        bar.set_position(writer.len);
    }
    if limit != u64::MAX && writer.len < limit {
        let reason = format!("the connection ended after {} of {limit} bytes", writer.len);
        return Err(Failure::Retry(HubError::Unreachable { url: file.url.clone(), reason }));
    }
    Ok(answer.sha256)
}

fn continues_at(answer: &Answer, start: u64) -> bool {
    let range = answer.headers.get("content-range").and_then(|v| v.to_str().ok());
    let range = range.and_then(|v| v.strip_prefix("bytes "));
    let from = range.and_then(|v| v.split('-').next()?.parse::<u64>().ok());
    answer.status == 206 && from == Some(start)
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.headers.get("content-length")?.to_str().ok()?.parse().ok()
}

fn is_same(path: &Path, file: &RemoteFile) -> Result<bool, HubError> {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Ok(false);
    };
    match (&file.sha256, file.size) {
        (_, Some(size)) if size != metadata.len() => Ok(false),
        (Some(expected), _) => Ok(sha256_of_file(path)? == *expected),
        // A small file of equal size may still have changed; it is cheap to fetch again.
        (None, _) => Ok(false),
    }
}

/// sha256 of a whole file in hex.
pub fn sha256_of_file(path: &Path) -> Result<String, HubError> {
    let mut reader = File::open(path).map_err(io_error(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer).map_err(io_error(path))? {
            0 => return Ok(hex(hasher)),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// The .part file with its running hash.
pub struct PartWriter {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    pub len: u64,
}

impl PartWriter {
    /// Goes on where an earlier attempt left off.
    pub fn open(path: &Path) -> Result<Self, HubError> {
        let options =
            File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(io_error(path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0u8; BUFFER_BYTES];
        let mut len = 0;
        loop {
            match file.read(&mut buffer).map_err(io_error(path))? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    len += count as u64;
                }
            }
        }
        Ok(PartWriter { path: path.to_path_buf(), file, hasher, len })
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(io_error(&self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(io_error(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io_error(&self.path))?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Checks size and hash and brings all to disk. A file that is wrong is removed.
    pub fn finish(
        self,
        file: &RemoteFile,
        expected: Option<&str>,
        part: &Path,
    ) -> Result<(), HubError> {
        let remove = || std::fs::remove_file(part).map_err(io_error(part));
        if let Some(size) = file.size.filter(|size| *size != self.len) {
            remove()?;
            return Err(HubError::WrongSize {
                file: file.path.clone(),
                got: self.len,
                expected: size,
            });
        }
        let got = hex(self.hasher);
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            remove()?;
            return Err(HubError::WrongHash {
                file: file.path.clone(),
                got,
                expected: expected.to_string(),
            });
        }
        self.file.sync_all().map_err(io_error(part))
    }
}

/// Holds the folder for this process until dropped; says so when another process has it and waits.
pub fn lock_folder(folder: &Path, progress: &Progress) -> Result<File, HubError> {
    std::fs::create_dir_all(folder).map_err(io_error(folder))?;
    let path = folder.join(".lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(io_error(&path))?;
    if lock.try_lock().is_err() {
        progress
            .say(&format!("waiting for another process that downloads to {}", folder.display()));
        lock.lock().map_err(io_error(&path))?;
    }
    Ok(lock)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
