//! Running cargo, and servers that end with the chore.

use anyhow::{Context, Result, bail, ensure};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

const START_SECONDS_MAX: u64 = 120;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a command to its end, in the repository's root, and fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.current_dir(root()).status().with_context(|| format!("start {shown}"))?;
    ensure!(status.success(), "{shown} ended with {status}");
    Ok(())
}

/// What `cargo build` is told to build for tests: all at once, so that every part is compiled once,
/// with one choice of features.
pub const ALL_TARGETS: [&str; 3] = ["--workspace", "--bins", "--tests"];

/// The same for `monsoon` alone. The workspace and one test are named so that its dependencies have
/// the features that tests are built with: otherwise most would be compiled once more.
pub const MONSOON: [&str; 5] = ["--workspace", "--bin", "monsoon", "--test", "tidy"];

pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Builds `monsoon` in the release profile and gives its path.
pub fn release_binary() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--release", "--package", "server"]))?;
    Ok(target_dir().join("release/monsoon"))
}

pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A server process on a free port of this machine; it ends when this value is dropped.
pub struct Server {
    child: Child,
    pub url: String,
}

impl Server {
    /// `command` gets `--host 127.0.0.1 --port PORT`; returns once /health answers 200.
    pub fn start(command: &mut Command) -> Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let mut server = Server { child, url: format!("http://127.0.0.1:{port}") };
        let started = Instant::now();
        while get(&format!("{}/health", server.url)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended while starting: {status}");
            }
            let waited = started.elapsed().as_secs();
            ensure!(waited < START_SECONDS_MAX, "no answer within {START_SECONDS_MAX} s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Resident memory in KiB, as the kernel counts it.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("VmRSS value")?.parse()?)
    }

    /// How many of its threads with a name that begins so are computing, or would if they could.
    pub fn num_running(&self, name: &str) -> Result<usize> {
        let mut found = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // One that has just ended is not there any more.
            let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
            // "ID (NAME) STATE ..."
            let parts = stat.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") "));
            let (comm, rest) = parts.context("a thread's name")?;
            found += usize::from(comm.starts_with(name) && rest.starts_with('R'));
        }
        Ok(found)
    }

    /// The sum over all label sets of a metric, by its name in the text format.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = get(&format!("{}/metrics", self.url))?;
        let is_it = |l: &&str| l.split(['{', ' ']).next() == Some(name);
        let values = text.lines().filter(is_it).map(|l| l.rsplit(' ').next().unwrap_or_default());
        let values: Vec<f64> = values.map(str::parse).collect::<Result<_, _>>()?;
        ensure!(!values.is_empty(), "no metric {name}");
        Ok(values.iter().sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn get(url: &str) -> Result<String> {
    Ok(agent(10).get(url).call()?.body_mut().read_to_string()?)
}

/// Sends a body and reads the JSON that comes back.
pub fn post(url: &str, content_type: &str, body: &[u8]) -> Result<serde_json::Value> {
    let mut answer = agent(60).post(url).header("content-type", content_type).send(body)?;
    Ok(serde_json::from_str(&answer.body_mut().read_to_string()?)?)
}

fn agent(seconds: u64) -> ureq::Agent {
    let timeout = Some(Duration::from_secs(seconds));
    ureq::Agent::config_builder().timeout_global(timeout).build().into()
}

/// Sends JSON; also an error has a status and a text.
pub fn ask(url: &str, body: &serde_json::Value) -> Result<(u16, String)> {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60)));
    let agent: ureq::Agent = config.http_status_as_error(false).build().into();
    let request = agent.post(url).header("content-type", "application/json");
    let mut answer = request.send(body.to_string().as_bytes())?;
    Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
}
