//! Real client SDKs against real servers: one with the default model, and one each with the tiny
//! embedding model and reranker of the tests' data.

use crate::mpi;
use crate::process::{self, Server, cargo, root, target_dir};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// Pinned, so that a new release of an SDK is a change we make; and the script that uses it.
const SDKS: [(&str, &str); 4] = [
    ("openai==3.54.0", "openai_sdk.py"),
    ("openai==3.54.0", "openai_embeddings.py"),
    ("anthropic==2.14.0", "anthropic_sdk.py"),
    ("dashscope==2.0.2", "dashscope_sdk.py"),
];

/// Each script gets the addresses of all servers: the generating one, the embedder, the reranker.
fn run_clients(urls: &[&str]) -> Result<()> {
    for (sdk, script) in SDKS {
        let python = sdk_python(sdk)?;
        let script = root().join("tests/clients").join(script);
        process::run(Command::new(python).arg(script).args(urls))?;
    }
    Ok(())
}

pub fn run() -> Result<()> {
    process::run(cargo(&["build"]).args(process::MONSOON).args(mpi::features()))?;
    let jobs = target_dir().join("clients-jobs");
    let serve = |model: Option<&str>| {
        let mut command = Command::new(target_dir().join("debug/monsoon"));
        command.args(["serve", "--log-level", "warn"]);
        match model {
            Some(model) => command.arg(root().join("tests/data/models").join(model)),
            None => command.arg("--jobs-dir").arg(&jobs),
        };
        Server::start(&mut command)
    };
    let generator = serve(None)?;
    let embedder = serve(Some("qwen3-embedding"))?;
    let reranker = serve(Some("qwen3-reranker"))?;
    run_clients(&[&generator.url, &embedder.url, &reranker.url])
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
