//! Files as shared bytes, without reading them.
#![allow(unsafe_code)]

use crate::LoadError;
use bytes::Bytes;
use std::fs::File;
use std::path::Path;

/// Maps a whole file read-only. The bytes stay valid as long as any slice of them lives.
///
/// Errors: `Io`; `Invalid` for an empty file or for what is no file.
pub fn map_file(path: &Path) -> Result<Bytes, LoadError> {
    let file = File::open(path).map_err(|e| LoadError::io(path, e))?;
    let metadata = file.metadata().map_err(|e| LoadError::io(path, e))?;
    if !metadata.is_file() || metadata.len() == 0 {
        let reason = if metadata.is_file() { "the file is empty" } else { "not a file" };
        return Err(LoadError::invalid(path, reason));
    }
    // SAFETY: the map is read-only and private, made just above from an open regular file. Its
    // bytes are only ever read as plain numbers, so a change by another process gives other
    // numbers, and a truncation ends this process by SIGBUS; checkpoints are put in place by an
    // atomic rename and are not written again.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| LoadError::io(path, e))?;
    // Reading ahead only saves time, so a kernel that refuses the advice is no error.
    #[cfg(unix)]
    let _ = map.advise(memmap2::Advice::WillNeed);
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_contents_and_refuses_what_cannot_be_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(&map_file(&path).unwrap()[..], b"abc");
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(map_file(&path), Err(LoadError::Invalid { .. })));
        assert!(matches!(map_file(folder.path()), Err(LoadError::Invalid { .. })));
        assert!(matches!(map_file(&folder.path().join("no")), Err(LoadError::Io { .. })));
    }
}
