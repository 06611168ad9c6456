//! Any bytes as a safetensors file: opened or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    static FOLDER: RefCell<tempfile::TempDir> =
        RefCell::new(folder());
}

fuzz_target!(|data: &[u8]| {
    FOLDER.with_borrow(|folder| {
        std::fs::write(folder.path().join("model.safetensors"), data).expect("room");
        let _ = models::weights::safetensors::open(folder.path());
    });
});

/// In memory where the system has such a place: disks are slow for a million small files.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}
