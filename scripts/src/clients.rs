//! Real client SDKs against a real server with the default model.

use crate::mpi;
use crate::process::{self, Server, cargo, root, target_dir};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// Pinned, so that a new release of an SDK is a change we make.
const OPENAI_SDK: &str = "openai==3.54.0";

fn run_clients(url: &str) -> Result<()> {
    let python = sdk_python()?;
    process::run(Command::new(python).arg(root().join("tests/clients/openai_sdk.py")).arg(url))
}

pub fn run() -> Result<()> {
    process::run(cargo(&["build"]).args(process::MONSOON).args(mpi::features()))?;
    let mut command = Command::new(target_dir().join("debug/monsoon"));
    let server = Server::start(command.args(["serve", "--log-level", "warn"]))?;
    run_clients(&server.url)
}

/// The interpreter of a virtual environment under target/ that holds the SDKs.
fn sdk_python() -> Result<PathBuf> {
    let dir = target_dir().join("clients-venv");
    let python = dir.join("bin/python");
    let installed = dir.join(OPENAI_SDK);
    if !installed.is_file() {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            .context("make an environment")?;
        process::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", OPENAI_SDK]))?;
        std::fs::write(&installed, "")?;
    }
    Ok(python)
}
