//! `cargo xtask fuzz`: libFuzzer on the parsers of outside data, with the stable compiler.

use crate::process::{self, cargo, root, target_dir};
use anyhow::Result;
use std::process::Command;

const TARGETS: [&str; 3] = ["gguf_header", "safetensors_header", "request_body"];

/// What cargo-fuzz passes, less what needs a nightly compiler: coverage counters and compare
/// tracing.
const COVERAGE_FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

#[derive(clap::Args)]
pub struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
}

fn fuzz_dir() -> std::path::PathBuf {
    root().join("tests/fuzz")
}

fn run_target(name: &str, seconds: u64, binary_dir: &std::path::Path) -> Result<()> {
    let corpus = target_dir().join("fuzz-corpus").join(name);
    std::fs::create_dir_all(&corpus)?;
    let mut command = Command::new(binary_dir.join(name));
    command.arg(corpus).arg(fuzz_dir().join("seeds").join(name));
    command.arg(format!("-max_total_time={seconds}"));
    command.args(["-rss_limit_mb=4096", "-timeout=10", "-malloc_limit_mb=1024", "-max_len=65536"]);
    process::run(&mut command)
}

pub fn run(args: &Args) -> Result<()> {
    let build_dir = target_dir().join("fuzz");
    let manifest = fuzz_dir().join("Cargo.toml");
    let mut build = cargo(&["build", "--release", "--target", host()?.trim(), "--manifest-path"]);
    build.arg(manifest).env("RUSTFLAGS", COVERAGE_FLAGS).env("CARGO_TARGET_DIR", &build_dir);
    // No parser launches a kernel.
    build.env("MONSOON_CUDA_ARCHS", "none");
    process::run(&mut build)?;
    let binary_dir = build_dir.join(host()?.trim()).join("release");
    for name in TARGETS {
        if args.target.as_deref().is_none_or(|only| only == name) {
            run_target(name, args.seconds, &binary_dir)?;
        }
    }
    Ok(())
}

/// The compiler's own target, named so that the flags do not reach build scripts.
fn host() -> Result<String> {
    let output = Command::new("rustc").args(["--print", "host-tuple"]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}
