//! Real client SDKs against a real server with the default model.

use crate::mpi;
use crate::process::{self, Server, cargo, root, target_dir};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// Pinned, so that a new release of an SDK is a change we make; and the script that uses it.
const SDKS: [(&str, &str); 2] =
    [("openai==3.54.0", "openai_sdk.py"), ("anthropic==2.14.0", "anthropic_sdk.py")];

fn run_clients(url: &str) -> Result<()> {
    for (sdk, script) in SDKS {
        let python = sdk_python(sdk)?;
        process::run(Command::new(python).arg(root().join("tests/clients").join(script)).arg(url))?;
    }
    Ok(())
}

pub fn run() -> Result<()> {
    process::run(cargo(&["build"]).args(process::MONSOON).args(mpi::features()))?;
    let mut command = Command::new(target_dir().join("debug/monsoon"));
    let jobs = target_dir().join("clients-jobs");
    let command = command.args(["serve", "--log-level", "warn", "--jobs-dir"]).arg(jobs);
    let server = Server::start(command)?;
    run_clients(&server.url)
}

/// The interpreter of a virtual environment under target/ that holds `sdk`.
fn sdk_python(sdk: &str) -> Result<PathBuf> {
    let dir = target_dir().join("clients-venv");
    let python = dir.join("bin/python");
    let installed = dir.join(sdk);
    if !python.is_file() {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            .context("make an environment")?;
    }
    if !installed.is_file() {
        process::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", sdk]))?;
        std::fs::write(&installed, "")?;
    }
    Ok(python)
}
