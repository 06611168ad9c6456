//! Files as shared bytes, without reading them.
#![allow(unsafe_code)]

use crate::LoadError;
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A file as memory.
#[derive(Debug, Clone)]
pub struct MappedFile {
    map: Arc<Mmap>,
}

/// What slices of the file keep alive.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl MappedFile {
    /// They stay valid as long as any slice of them lives.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(Owner(Arc::clone(&self.map)))
    }

    /// Gives back the memory of what was read so far, which counts as this process's. Nothing
    /// changes: what is looked at again is there again, as a rule without reading the disk.
    pub fn forget_pages(&self) {
        #[cfg(unix)]
        // SAFETY: the map is of a file, and nobody writes to it, so that what is dropped is a copy
        // of what the file holds. Without the advice the memory stays, which is no error.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// Maps a whole file read-only.
///
/// Errors: `Io`; `Invalid` for an empty file or for what is no file.
pub fn map_file(path: &Path) -> Result<MappedFile, LoadError> {
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
    let map = unsafe { Mmap::map(&file) }.map_err(|e| LoadError::io(path, e))?;
    // Reading ahead only saves time, so a kernel that refuses the advice is no error.
    #[cfg(unix)]
    let _ = map.advise(memmap2::Advice::WillNeed);
    Ok(MappedFile { map: Arc::new(map) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_contents_and_refuses_what_cannot_be_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let file = map_file(&path).unwrap();
        let bytes = file.bytes();
        assert_eq!(&bytes[..], b"abc");
        file.forget_pages();
        assert_eq!(&bytes[..], b"abc");
        drop(file);
        assert_eq!(&bytes[..], b"abc");
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(map_file(&path), Err(LoadError::Invalid { .. })));
        assert!(matches!(map_file(folder.path()), Err(LoadError::Invalid { .. })));
        assert!(matches!(map_file(&folder.path().join("no")), Err(LoadError::Io { .. })));
    }
}
