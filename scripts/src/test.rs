//! `cargo xtask test`: everything.

use crate::process::{self, ALL_TARGETS, cargo, target_dir};
use crate::{clients, cuda_toolchain, mpi, virtual_gpu};
use anyhow::{Context, Result};
use std::process::Command;

/// The tests that have something to do on a GPU, as cargo is told of them. The whole workspace is
/// named so that dependencies keep the features they were built with.
const GPU_TESTS: [&[&str]; 4] = [
    // Of `kernels`: those of other libraries have other paths.
    &["--workspace", "--lib", "--", "ops::", "device::", "comm::", "qualify::"],
    &["--workspace", "--test", "batch_invariance", "--test", "doctor", "--", "gpu"],
    &["--workspace", "--test", "cuda_server", "--test", "cuda_faults"],
    &["--workspace", "--test", "cublaslt", "--test", "gpu_check"],
];

pub fn run() -> Result<()> {
    // Found by the build, which then compiles the GPU's kernels.
    cuda_toolchain::install().context("nvcc compiles the CUDA kernels")?;
    let features = mpi::features();
    if features.is_empty() {
        println!("MPI is not installed (`cargo xtask mpi --install`): tested without it");
    }
    process::run(cargo(&["build"]).args(ALL_TARGETS).args(features))?;
    process::run(Command::new(target_dir().join("debug/monsoon")).arg("pull"))
        .context("the default model is needed by the tests with real weights")?;
    let mut tests = cargo(&["test", "--workspace"]);
    process::run(tests.args(features).env("MONSOON_REQUIRE_MODEL", "1"))?;
    run_on_virtual_gpu(features)?;
    clients::run(&clients::Args::default())
}

/// The same tests once more where there is a GPU: a virtual one, which interprets the PTX that
/// ships.
fn run_on_virtual_gpu(features: &[&str]) -> Result<()> {
    let lib_dir = virtual_gpu::install()?;
    for tests in GPU_TESTS {
        let mut command = cargo(&["test"]);
        command.args(features).args(tests);
        command.env("LD_LIBRARY_PATH", &lib_dir).env("MONSOON_REQUIRE_CUDA", "1");
        process::run(&mut command)?;
    }
    Ok(())
}
