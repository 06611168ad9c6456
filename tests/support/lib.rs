//! What several test files share: where the reference data lies, how to run a model, and a runner
//! without one.

pub mod golden;
pub mod session;
pub mod fake_runner;
pub mod fake_constraint;
pub mod http;
pub mod jobs;
pub mod observed;
pub mod program;
pub mod random;
pub mod random_plans;
pub mod s3;
pub mod serving;
pub mod told;

use kernels::device::cuda::{self, CudaDevice, images};
use std::path::{Path, PathBuf};

/// Reference data kept in this repository.
pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// The full reference data beside the repository, where it exists.
pub fn golden_dir() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    dir.is_dir().then_some(dir)
}

/// The default model, for tests with real weights: `MONSOON_TEST_MODEL`, else the cache. Where it
/// is absent the caller skips and says so, unless `MONSOON_REQUIRE_MODEL=1`: then this panics.
pub fn real_model() -> Option<PathBuf> {
    let cached = || {
        let home = std::env::var_os("HOME")?;
        let file = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
        Some(Path::new(&home).join(".cache/monsoon/models").join(file))
    };
    let path = std::env::var_os("MONSOON_TEST_MODEL").map(PathBuf::from).or_else(cached)?;
    if path.is_file() {
        return Some(path);
    }
    assert!(
        std::env::var("MONSOON_REQUIRE_MODEL").as_deref() != Ok("1"),
        "MONSOON_REQUIRE_MODEL=1, but there is no model at {}",
        path.display()
    );
    println!("skipped: no model at {}", path.display());
    None
}

/// The first GPU, for tests that need one: a virtual one counts (`cargo xtask virtual-gpu`). Where
/// there is none, or no kernels for it, the caller skips and says so, unless
/// `MONSOON_REQUIRE_CUDA=1`: then this panics.
pub fn gpu() -> Option<CudaDevice> {
    if images::has_kernels() && cuda::device_count() > 0 {
        return Some(CudaDevice::open(0).expect("the driver shows a device"));
    }
    let required = std::env::var("MONSOON_REQUIRE_CUDA").as_deref() == Ok("1");
    assert!(!required, "MONSOON_REQUIRE_CUDA=1, but there is no GPU or no kernels for it");
    println!("skipped: no GPU, or no kernels for it");
    None
}
