//! Published clients, a browser and a fuzzer of APIs against real servers.

use crate::process::{self, Server, cargo, root, target_dir};
use crate::{debian, mpi};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args, Default)]
pub struct Args {
    /// Only install what the browser needs (Debian, as root or by sudo)
    #[arg(long)]
    install: bool,
}

/// In tests/clients/, by the languages they are written in. Each gets the address of a server with
/// the default model and that of one which says what it is told to.
const PYTHON: [&str; 6] = [
    "openai_sdk.py",
    "anthropic_sdk.py",
    "langchain_sdk.py",
    "litellm_sdk.py",
    "qwen_agent_sdk.py",
    "agentscope_sdk.py",
];
const JAVASCRIPT: [&str; 2] = ["openai_sdk.mjs", "ai_sdk.mjs"];
const PAGE: &str = "page.mjs";
/// These get the addresses of a generating server, an embedder and a reranker.
const POOLING: [&str; 2] = ["openai_embeddings.py", "dashscope_sdk.py"];

/// The browser, and fonts of every script.
const PACKAGES: [&str; 2] = ["chromium", "fonts-noto-core"];
/// Where the browser may be when it did not come from the packages.
const BROWSERS: [&str; 3] =
    ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
/// Asked for by the web page of one server.
const KEY: &str = "a-key-of-tests";

/// Cases that must at least be sent, and how many are made for each operation to get there.
const FUZZ_CASES_MIN: u64 = 2000;
const FUZZ_CASES_PER_OPERATION: &str = "60";
const FUZZ_SEED: &str = "4";
/// Requests that the fuzzer left behind have ended by then.
const IDLE_SECONDS_MAX: u64 = 60;

pub fn run(args: &Args) -> Result<()> {
    if args.install {
        return debian::install(&PACKAGES);
    }
    let bins = ["--workspace", "--bins", "--test", "tidy"];
    process::run(cargo(&["build"]).args(bins).args(mpi::features()))?;
    let python = python()?;
    let jobs = target_dir().join("clients-jobs");
    let real = Server::start(monsoon().args(["--log-level", "warn", "--jobs-dir"]).arg(jobs))?;
    let mut script_server = Command::new(target_dir().join("debug/script_server"));
    let scripted = Server::start(&mut script_server)?;
    let clients = root().join("tests/clients");
    for script in PYTHON {
        let mut command = Command::new(python.join("python"));
        process::run(command.arg(clients.join(script)).args([&real.url, &scripted.url]))?;
    }
    let embedder = Server::start(&mut tiny_monsoon("qwen3-embedding"))?;
    let reranker = Server::start(&mut tiny_monsoon("qwen3-reranker"))?;
    for script in POOLING {
        let mut command = Command::new(python.join("python"));
        let urls = [&real.url, &embedder.url, &reranker.url];
        process::run(command.arg(clients.join(script)).args(urls))?;
    }
    drop((embedder, reranker));
    let modules = node_modules(&python)?;
    for script in JAVASCRIPT {
        let mut command = Command::new(python.join("node"));
        process::run(command.arg(modules.join(script)).args([&real.url, &scripted.url]))?;
    }
    use_page(&python, &modules, &real)?;
    drop(real);
    fuzz(&python)
}

fn monsoon() -> Command {
    let mut command = Command::new(target_dir().join("debug/monsoon"));
    command.arg("serve");
    command
}

fn tiny_monsoon(model: &str) -> Command {
    let mut command = monsoon();
    command.args(["--log-level", "warn", "--kv-cache-memory", "16MiB"]);
    command.arg(root().join("tests/data/models").join(model));
    command
}

fn use_page(python: &Path, modules: &Path, real: &Server) -> Result<()> {
    if !BROWSERS.iter().any(|browser| Path::new(browser).is_file()) {
        let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        ensure!(!is_ci, "no browser: run `cargo xtask clients --install` first");
        println!("SKIPPED: the web page, for want of Chromium (`cargo xtask clients --install`)");
        return Ok(());
    }
    let locked = Server::start(tiny_monsoon("qwen2-tied").args(["--api-key", KEY]))?;
    let screenshots = target_dir().join("screenshots");
    fs::create_dir_all(&screenshots)?;
    let mut command = Command::new(python.join("node"));
    command.arg(modules.join(PAGE)).args([&real.url, &locked.url, KEY]).arg(screenshots);
    process::run(&mut command)
}

/// Sends what /openapi.json allows and what it does not: no answer may be a 5xx or one that is not
/// declared, and afterwards the server is alive and holds nothing of what it was sent.
fn fuzz(python: &Path) -> Result<()> {
    let server = Server::start(&mut tiny_monsoon("qwen2-tied"))?;
    let report = target_dir().join("schemathesis.json");
    let mut command = Command::new(python.join("st"));
    command.args(["run", &format!("{}/openapi.json", server.url)]);
    command.args(["--seed", FUZZ_SEED, "--max-examples", FUZZ_CASES_PER_OPERATION]);
    command.args(["--phases", "coverage,fuzzing", "--warnings", "off", "--no-color"]);
    command.args(["--checks", "not_a_server_error,status_code_conformance"]);
    command.args(["--checks", "content_type_conformance,response_schema_conformance"]);
    command.args(["--continue-on-failure", "--request-timeout", "60"]);
    command.args(["--generation-database", "none"]);
    command.args(["--report", "json", "--report-json-path"]).arg(&report);
    process::run(&mut command)?;
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report)?)?;
    let cases = report["test_cases"]["generated"].as_u64().context("the number of cases")?;
    ensure!(cases >= FUZZ_CASES_MIN, "{cases} cases, at least {FUZZ_CASES_MIN} are wanted");
    wait_until_idle(&server)?;
    println!("{cases} cases, then idle with all blocks free");
    Ok(())
}

fn wait_until_idle(server: &Server) -> Result<()> {
    let begin = Instant::now();
    loop {
        let metric = |name: &str| server.metric(&format!("monsoon_{name}"));
        let blocks = metric("kv_cache_blocks")? - metric("kv_cache_blocks_free")?;
        let left = [metric("num_requests_running")?, metric("num_requests_waiting")?, blocks];
        if left == [0.0; 3] {
            return Ok(());
        }
        let waited = begin.elapsed().as_secs();
        ensure!(waited <= IDLE_SECONDS_MAX, "[running, waiting, blocks held] stay {left:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The folder of the programs of a virtual environment that holds the Python clients, and Node.
fn python() -> Result<PathBuf> {
    let dir = target_dir().join("clients-venv");
    let bin = dir.join("bin");
    if !bin.join("python").is_file() {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            .context("make an environment")?;
    }
    let requirements = root().join("tests/clients/requirements.txt");
    once(&requirements, &dir.join("requirements.txt"), || {
        let mut pip = Command::new(bin.join("python"));
        process::run(pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements))
    })?;
    Ok(bin)
}

/// A folder with the JavaScript clients, installed, and our scripts that use them.
fn node_modules(python: &Path) -> Result<PathBuf> {
    let from = root().join("tests/clients");
    let dir = target_dir().join("clients-npm");
    fs::create_dir_all(&dir)?;
    for file in JAVASCRIPT.iter().chain(&[PAGE, "package.json", "package-lock.json"]) {
        fs::copy(from.join(file), dir.join(file))?;
    }
    once(&from.join("package-lock.json"), &dir.join("installed.json"), || {
        let mut npm = Command::new(python.join("npm"));
        npm.args(["ci", "--no-audit", "--no-fund", "--prefix"]).arg(&dir);
        process::run(&mut npm)
    })?;
    Ok(dir)
}

/// Installs what `list` names, unless `installed`, which is then a copy of it, says that it is.
fn once(list: &Path, installed: &Path, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let wanted = fs::read(list)?;
    if fs::read(installed).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    install().with_context(|| format!("install what {} names", list.display()))?;
    Ok(fs::write(installed, wanted)?)
}
