//! `cargo xtask test`: everything.

use crate::process::{self, cargo};
use crate::{clients, cuda_toolchain, virtual_gpu};
use anyhow::{Context, Result};

/// The tests that have something to do on a GPU, as cargo is told of them. The whole workspace is
/// named so that dependencies keep the features they were built with.
const GPU_TESTS: [&[&str]; 4] = [
    &["--package", "kernels", "--lib"],
    &["--workspace", "--test", "batch_invariance", "--test", "doctor", "--", "gpu"],
    &["--workspace", "--test", "cuda_server", "--test", "cuda_faults"],
    &["--workspace", "--test", "cublaslt", "--test", "gpu_check"],
];

pub fn run() -> Result<()> {
    // Found by the build, which then compiles the GPU's kernels.
    cuda_toolchain::install().context("nvcc compiles the CUDA kernels")?;
    // All at once, so that every part is compiled once, with one choice of features.
    process::run(&mut cargo(&["build", "--workspace", "--bins", "--tests"]))?;
    process::run(&mut cargo(&["run", "--quiet", "--package", "server", "--", "pull"]))
        .context("the default model is needed by the tests with real weights")?;
    process::run(cargo(&["test", "--workspace"]).env("MONSOON_REQUIRE_MODEL", "1"))?;
    run_on_virtual_gpu()?;
    clients::run()
}

/// The same tests once more where there is a GPU: a virtual one, which interprets the PTX that
/// ships.
fn run_on_virtual_gpu() -> Result<()> {
    let lib_dir = virtual_gpu::install()?;
    for tests in GPU_TESTS {
        let mut command = cargo(&["test"]);
        command.args(tests);
        command.env("LD_LIBRARY_PATH", &lib_dir).env("MONSOON_REQUIRE_CUDA", "1");
        process::run(&mut command)?;
    }
    Ok(())
}
