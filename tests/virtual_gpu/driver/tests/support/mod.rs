//! Runs a test's body in a process of its own, with the Virtual GPU in its library path.
//!
//! The driver is one per process and reads its environment once, so each test gets a process: the test binary
//! starts itself, asking for that one test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const INSIDE: &str = "VIRTUAL_GPU_TEST_INSIDE";

/// What a test's process said on stderr, for the test to look at; empty inside that process.
pub struct Outcome(String);

impl Outcome {
    /// The driver said so. (True inside: there the body has just run.)
    #[track_caller]
    pub fn said(&self, text: &str) -> &Outcome {
        let is_inside = std::env::var_os(INSIDE).is_some();
        assert!(is_inside || self.0.contains(text), "not said: {text}\nsaid was:\n{}", self.0);
        self
    }
}

/// Runs `body` in a process of its own with these variables set. `test` is the test's own name.
#[track_caller]
pub fn on_virtual_gpu(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Outcome {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return Outcome(String::new());
    }
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", lib_dir())
        .envs(variables.iter().copied());
    let output = command.output().expect("start the test binary");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let ran = stdout.contains("1 passed");
    assert!(output.status.success() && ran, "{}\n{stdout}\n{stderr}", output.status);
    Outcome(stderr)
}

/// A folder with the libraries under the names that programs ask for. cudarc asks for `libnccl.so`, which no
/// distribution has; it is added here and only here.
fn lib_dir() -> &'static Path {
    static LIB_DIR: OnceLock<PathBuf> = OnceLock::new();
    LIB_DIR.get_or_init(|| {
        let binary = std::env::current_exe().expect("the test binary");
        let built = binary.parent().expect("a folder");
        let dir = built.join(format!("virtual-gpu-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("make the folder");
        for (from, to) in [
            ("libvirtual_cuda.so", "libcuda.so.1"),
            ("libvirtual_cuda.so", "libcuda.so"),
            ("libvirtual_nccl.so", "libnccl.so.2"),
            ("libvirtual_nccl.so", "libnccl.so"),
        ] {
            let _ = std::fs::remove_file(dir.join(to));
            std::os::unix::fs::symlink(built.join(from), dir.join(to)).expect("link a library");
        }
        dir
    })
}

/// Sleeps for a moment in which a wrongly eager driver would have done its work.
#[allow(dead_code)]
pub fn a_moment() {
    std::thread::sleep(Duration::from_millis(20));
}
