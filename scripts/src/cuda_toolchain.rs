//! `cargo xtask cuda-toolchain`: nvcc and what it needs, in a cache folder of the user.

use crate::process;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// One release for all parts: the oldest of its series, which most drivers run. 105 MB.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];
/// Readers of machine code, for the reports; these exist from 13.2 on and read older code.
const READERS: [&str; 2] = ["nvidia-cuda-cuobjdump==13.5.37", "nvidia-cuda-nvdisasm==13.5.37"];

/// The folder that `kernels/build.rs` looks into, too.
pub fn folder() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Ok(cache.context("neither HOME nor XDG_CACHE_HOME is set")?.join("monsoon/cuda-toolchain/13.0"))
}

/// A program of the toolchain.
pub fn tool(name: &str) -> Result<PathBuf> {
    Ok(folder()?.join("nvidia/cu13/bin").join(name))
}

/// Installs the toolchain unless it is there.
pub fn install() -> Result<()> {
    let folder = folder()?;
    if tool("nvcc")?.is_file() && tool("cuobjdump")?.is_file() && tool("nvdisasm")?.is_file() {
        return Ok(());
    }
    let parent = folder.parent().context("the cache folder has a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    // Moved into place when complete, so that a broken download is never taken for a toolchain.
    let fresh = parent.join(format!("13.0.incomplete-{}", std::process::id()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&fresh);
    process::run(pip.args(WHEELS).args(READERS))?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::rename(&fresh, &folder)?;
    ensure!(tool("nvcc")?.is_file(), "no nvcc in {}", folder.display());
    Ok(())
}

pub fn run() -> Result<()> {
    install()?;
    println!("{}", folder()?.display());
    Ok(())
}
