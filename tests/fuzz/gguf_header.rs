//! Any bytes as a GGUF file: opened or refused, never a panic, never memory beyond a small multiple
//! of the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use models::weights::Checkpoint;
use std::cell::RefCell;
use std::io::Write;

thread_local! {
    static FOLDER: RefCell<tempfile::TempDir> =
        RefCell::new(folder());
}

fuzz_target!(|data: &[u8]| {
    FOLDER.with_borrow(|folder| {
        let path = folder.path().join("model.gguf");
        let mut file = std::fs::File::create(&path).expect("a file");
        file.write_all(data).expect("room");
        drop(file);
        let _ = Checkpoint::open(&path);
    });
});

/// In memory where the system has such a place: disks are slow for a million small files.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}
