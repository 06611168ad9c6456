//! `cargo xtask neighbours`: what a busy tenant costs a quiet one: the quiet one's load alone,
//! beside long prompts, and beside a full queue, in turns.

use crate::process::{self, Server, release_binary};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const QUIET: &str = "quiet-key";
const BUSY: &str = "busy-key";
/// Until a neighbour's work fills the engine, and until it is gone.
const SETTLE: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub struct Args {
    /// Runs of each kind
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// The quiet tenant's clients
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// The quiet tenant's requests in a run
    #[arg(long, default_value_t = 20)]
    requests: usize,
    #[arg(long, default_value_t = 512)]
    input_len: usize,
    #[arg(long, default_value_t = 32)]
    output_len: usize,
    /// Tokens of the busy tenant's long prompts, sent one after the other
    #[arg(long, default_value_t = 30_000)]
    long_prompt: usize,
    /// Requests the busy tenant keeps in the queue
    #[arg(long, default_value_t = 1000)]
    queue: usize,
    /// Fail if the 99th percentile of the time to the first token is more than so many times that
    /// alone
    #[arg(long)]
    times_max: Option<f64>,
    /// Folder for the raw reports
    #[arg(long)]
    out: PathBuf,
    /// Arguments for the server, after `--`
    #[arg(last = true)]
    serve: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    LongPrompts,
    FullQueue,
}

pub fn run(args: &Args) -> Result<()> {
    let binary = release_binary()?;
    std::fs::create_dir_all(&args.out)?;
    let tenants = args.out.join("tenants.toml");
    std::fs::write(&tenants, [("quiet", QUIET), ("busy", BUSY)].map(entry).concat())?;
    let mut command = Command::new(&binary);
    command.args(["serve", "--jobs-dir", "off", "--max-waiting-requests", "4096", "--tenants"]);
    command.arg(&tenants).args(&args.serve);
    let server = Server::start(&mut command)?;
    std::fs::remove_file(&tenants)?;
    let kinds = [Beside::Nothing, Beside::LongPrompts, Beside::FullQueue];
    let mut reports: [Vec<Value>; 3] = Default::default();
    for turn in 0..args.turns {
        for (kind, reports) in kinds.iter().zip(&mut reports) {
            let path = args.out.join(format!("neighbours-{kind:?}-{turn}.json").to_lowercase());
            reports.push(beside(args, &binary, &server, *kind, &path)?);
        }
    }
    let [alone, beside @ ..] = &reports;
    for (kind, reports) in kinds[1..].iter().zip(beside) {
        for percentile in ["p50", "p99"] {
            let (without, with) = (median(alone, percentile)?, median(reports, percentile)?);
            let times = with / without;
            println!(
                "ttft_ms {percentile}, median of turns: {without:.0} alone, {with:.0} beside \
                 {kind:?}: {times:.2} times"
            );
            if let Some(most) = args.times_max.filter(|_| percentile == "p99") {
                ensure!(times <= most, "more than {most} times");
            }
        }
    }
    Ok(())
}

fn entry((name, key): (&str, &str)) -> String {
    let digest: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[tenant]]\nname = \"{name}\"\nkeys = [\"sha256:{digest}\"]\n")
}

/// The quiet tenant's load, with that neighbour.
fn beside(
    args: &Args,
    binary: &Path,
    server: &Server,
    kind: Beside,
    report: &Path,
) -> Result<Value> {
    let number = |n: usize| n.to_string();
    let busy = match kind {
        Beside::Nothing => None,
        Beside::LongPrompts => Some(keep_busy(binary, server, 1, args.long_prompt, 16)?),
        Beside::FullQueue => Some(keep_busy(binary, server, args.queue, 256, 64)?),
    };
    if busy.is_some() {
        std::thread::sleep(SETTLE);
    }
    let measured = process::run(
        bench(binary, server, QUIET, args.input_len, args.output_len)
            .args(["--concurrency", &number(args.concurrency)])
            .args(["--num-requests", &number(args.requests), "--json"])
            .arg(report),
    );
    if let Some(mut busy) = busy {
        ensure!(busy.try_wait()?.is_none(), "the busy tenant's clients have ended");
        // Its requests end with it.
        busy.kill()?;
        busy.wait()?;
        std::thread::sleep(SETTLE);
    }
    measured?;
    Ok(serde_json::from_str(&std::fs::read_to_string(report)?)?)
}

fn bench(binary: &Path, server: &Server, key: &str, input: usize, output: usize) -> Command {
    let mut command = Command::new(binary);
    command.args(["bench", "--url", &server.url, "--api-key", key]).args([
        "--input-len",
        &input.to_string(),
        "--output-len",
        &output.to_string(),
    ]);
    command
}

/// Clients of the busy tenant that each send a request when the last one has ended.
fn keep_busy(
    binary: &Path,
    server: &Server,
    num_clients: usize,
    input: usize,
    output: usize,
) -> Result<Child> {
    let mut command = bench(binary, server, BUSY, input, output);
    command
        .args(["--concurrency", &num_clients.to_string(), "--duration", "3600", "--warmup", "0"])
        .stdout(Stdio::null());
    command.spawn().context("start the busy tenant's clients")
}

fn median(reports: &[Value], percentile: &str) -> Result<f64> {
    let values = reports
        .iter()
        .map(|report| report["latencies"]["ttft_ms"][percentile].as_f64().context("a percentile"));
    let mut values = values.collect::<Result<Vec<f64>>>()?;
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("a turn")
}
