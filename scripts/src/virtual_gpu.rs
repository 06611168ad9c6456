//! `cargo xtask virtual-gpu`: builds the Virtual GPU and lays it out as a driver would be
//! installed.

use crate::process::{self, cargo, target_dir};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Print only the folder for LD_LIBRARY_PATH
    #[arg(long)]
    print_lib_dir: bool,
}

/// As cargo builds it, and as programs look for it.
const LIBRARIES: [(&str, &str); 3] = [
    ("libvirtual_cuda.so", "libcuda.so.1"),
    ("libvirtual_nccl.so", "libnccl.so.2"),
    ("libvirtual_cublaslt.so", "libcublasLt.so.13"),
];
const PACKAGES: [&str; 3] = ["virtual_gpu_driver", "virtual_gpu_nccl", "virtual_gpu_cublaslt"];

pub fn run(args: &Args) -> Result<()> {
    let lib_dir = install()?;
    let lib_dir = lib_dir.display();
    if args.print_lib_dir {
        println!("{lib_dir}");
        return Ok(());
    }
    println!(
        "The Virtual GPU (no hardware) lies in {lib_dir}

Run any command on it:
  LD_LIBRARY_PATH=$(cargo xtask virtual-gpu --print-lib-dir) COMMAND

Variables:
  VIRTUAL_GPU_DEVICES=N             devices it shows, 0 to 8 (1)
  VIRTUAL_GPU_MEMORY=BYTES          memory of each, also as 512M or 8G (2G)
  VIRTUAL_GPU_COMPUTE_CAPABILITY=C  8.0, 8.6, 8.9, 9.0, 10.0 or 12.0 (8.0)
  VIRTUAL_GPU_SEED=N                order of streams, graph branches and warps (0)
  VIRTUAL_GPU_CHECKS=LIST           all, off, or of memcheck,initcheck,racecheck,synccheck (all)
  VIRTUAL_GPU_FAULT=LIST            alloc:N, launch:N, lost:N (each also @DEVICE),
                                    skip-collective:RANK:N, bug:KERNEL (its additions of
                                    floats subtract), cublaslt-wrong, cublaslt-batch (results
                                    that depend on the number of columns)
  VIRTUAL_GPU_NCCL_TIMEOUT_S=N      a collective that not all ranks join fails after N seconds
  VIRTUAL_GPU_THREADS=N             host threads per kernel (all cores)
  VIRTUAL_GPU_REPORT=FILE           counters, violations and leaks as JSON at exit
  VIRTUAL_GPU_TRACE=1               each driver call and its result on stderr"
    );
    Ok(())
}

/// Builds the libraries and gives the folder that holds them.
pub fn install() -> Result<PathBuf> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    process::run(cargo(&["build", "--quiet"]).args(packages))?;
    let lib_dir = target_dir().join("virtual-gpu/lib");
    fs::create_dir_all(&lib_dir)?;
    for (built, installed) in LIBRARIES {
        replace(&target_dir().join("debug").join(built), &lib_dir.join(installed))?;
    }
    let link = lib_dir.join("libcuda.so");
    if fs::symlink_metadata(&link).is_err() {
        symlink("libcuda.so.1", &link)?;
    }
    fs::canonicalize(lib_dir).context("the folder was just made")
}

/// Puts a new file in place of an old one in one step: a running program may have the old one
/// mapped.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension(format!("new-{}", std::process::id()));
    fs::copy(from, &new).with_context(|| format!("copy {}", from.display()))?;
    fs::rename(&new, to).with_context(|| format!("install {}", to.display()))
}
