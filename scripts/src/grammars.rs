//! `cargo xtask grammars`: what grammars that cannot be held cost those who stream: the same load
//! without and with clients that send nothing else, in turns.

use crate::load::Load;
use crate::process::{Server, ask, release_binary};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Threads of the server whose names begin so compile grammars.
const COMPILING: &str = "grammar-";
/// Of an answer, where a grammar turns out to be too much only while it is followed.
const TOKENS: usize = 16;
const LATENCIES: [&str; 2] = ["ttft_ms", "itl_ms"];

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    load: Load,
    /// Clients that send such grammars, each the next as soon as it has the answer
    #[arg(long, default_value_t = 2)]
    senders: usize,
    /// Milliseconds that each of them waits between an answer and the next one
    #[arg(long, default_value_t = 100)]
    pause_ms: u64,
    /// Fail if a refusal takes longer
    #[arg(long)]
    refusal_ms: Option<f64>,
    /// Folder for the raw reports
    #[arg(long)]
    out: PathBuf,
    /// Arguments for the server, after `--`
    #[arg(last = true)]
    serve: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let binary = release_binary()?;
    std::fs::create_dir_all(&args.out)?;
    let mut command = Command::new(&binary);
    command.args(["serve", "--jobs-dir", "off"]).args(&args.serve);
    let server = Server::start(&mut command)?;
    let report = |kind: &str, turn: usize| args.out.join(format!("{kind}-{turn}.json"));
    let (mut alone, mut beside, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    let number = AtomicUsize::new(0);
    for turn in 0..args.load.turns {
        alone.push(args.load.run(&binary, &server, &report("alone", turn))?);
        let is_over = AtomicBool::new(false);
        let (measured, answers) = std::thread::scope(|scope| {
            let send = || send_grammars(args, &server, &number, &is_over);
            let senders: Vec<_> = (0..args.senders).map(|_| scope.spawn(send)).collect();
            let measured = args.load.run(&binary, &server, &report("beside", turn));
            is_over.store(true, Ordering::Relaxed);
            let answers = senders.into_iter().map(|sender| sender.join().expect("no panic"));
            (measured, answers.collect::<Result<Vec<_>>>())
        });
        beside.push(measured?);
        sent.extend(answers?.into_iter().flatten());
        // What was begun goes on for a while.
        while server.num_running(COMPILING)? > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    summarize(args, &alone, &beside, &sent)
}

/// Its name, and what a request has beside its messages; the number makes each another one.
type Kind = (&'static str, fn(usize) -> Value);

/// What clients should not send, each once: nothing of an earlier one is known.
const KINDS: [Kind; 8] = [
    ("patterns that must all match", |number| {
        let pattern = |i| json!({"pattern": format!("(.*x){{{i}}}{number}")});
        let patterns: Vec<Value> = (0..20).map(pattern).collect();
        json!({"guided_json": {"type": "string", "allOf": patterns}})
    }),
    ("terminals that must all match", |number| {
        let all = "/(.*a){400}/ & /(.*b){400}/ & /(.*c){400}/ & ~/(.*d){40}/";
        json!({"guided_grammar": format!("start: A\nA: {all} & /.*{number}/\n")})
    }),
    ("a pattern of a very long text", |number| {
        let pattern = format!("^(a|b)*c.*{number}");
        let lengths = json!({"type": "string", "minLength": 3000, "maxLength": 40_000});
        let mut schema = lengths;
        schema["pattern"] = pattern.into();
        json!({"guided_json": schema})
    }),
    ("names that overlap", |number| {
        let pattern = |c| (format!("^.*{c}.*{number}"), json!({"type": "string"}));
        let patterns: serde_json::Map<String, Value> = ('a'..='z').map(pattern).collect();
        json!({"guided_json": {"type": "object", "patternProperties": patterns}})
    }),
    ("thousands of names", |number| {
        let name = |i| (format!("{i}_{number}"), json!({"type": "string"}));
        let names: serde_json::Map<String, Value> = (0..2500).map(name).collect();
        json!({"guided_json": {"type": "object", "properties": names}})
    }),
    (
        "states without end",
        |number| json!({"guided_regex": format!("(.*[aeiou].{{300}}[xyz]){{30}}{number}")}),
    ),
    ("rules without end", |number| {
        let rule = |i| format!("r{i}: r{0} r{0} | r{0}\n", i + 1);
        let rules: String = (0..900).map(rule).collect();
        json!({"guided_grammar": format!("start: r0\n{rules}r900: \"{number}\"\n")})
    }),
    (
        "brackets without end",
        |number| json!({"guided_regex": format!("{number}{}", "(".repeat(9000))}),
    ),
];

/// A grammar that was sent.
struct Sent {
    kind: &'static str,
    status: u16,
    answered_ms: f64,
}

fn send_grammars(
    args: &Args,
    server: &Server,
    number: &AtomicUsize,
    is_over: &AtomicBool,
) -> Result<Vec<Sent>> {
    let url = format!("{}/v1/chat/completions", server.url);
    let mut sent = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let (kind, grammar) = KINDS[number % KINDS.len()];
        let mut body = grammar(number);
        body["messages"] = json!([{"role": "user", "content": "Hi"}]);
        body["max_tokens"] = TOKENS.into();
        let begin = Instant::now();
        let (status, text) = ask(&url, &body)?;
        let answered_ms = begin.elapsed().as_secs_f64() * 1e3;
        ensure!(matches!(status, 400 | 429), "{kind} was answered {status}: {text}");
        sent.push(Sent { kind, status, answered_ms });
        std::thread::sleep(Duration::from_millis(args.pause_ms));
    }
    Ok(sent)
}

fn summarize(args: &Args, alone: &[Value], beside: &[Value], sent: &[Sent]) -> Result<()> {
    let mut kinds = Vec::new();
    for (kind, _) in KINDS {
        let of_kind = sent.iter().filter(|sent| sent.kind == kind);
        let slowest_ms = of_kind.clone().map(|sent| sent.answered_ms).fold(0.0, f64::max);
        let count = |status: u16| of_kind.clone().filter(|sent| sent.status == status).count();
        let (refused, put_off) = (count(400), count(429));
        println!(
            "{kind}: {refused} times 400, {put_off} times 429, the slowest {slowest_ms:.0} ms"
        );
        kinds.push(json!({
            "kind": kind, "refused": refused, "put_off": put_off, "slowest_ms": slowest_ms,
        }));
    }
    let slowest_ms = sent.iter().map(|sent| sent.answered_ms).fold(0.0, f64::max);
    println!("{} grammars, the slowest answer after {slowest_ms:.0} ms", sent.len());
    let mut changes = Vec::new();
    let mut summary = json!({
        "turns": args.load.turns, "concurrency": args.load.concurrency,
        "senders": args.senders, "pause_ms": args.pause_ms,
        "grammars": sent.len(), "slowest_ms": slowest_ms, "kinds": kinds,
    });
    for latency in LATENCIES {
        let change = args.load.compare(latency, alone, beside)?;
        summary[latency] = json!({
            "alone_p99": change.alone, "beside_p99": change.beside, "share": change.share(),
        });
        changes.push(change);
    }
    let text = format!("{}\n", serde_json::to_string_pretty(&summary)?);
    std::fs::write(args.out.join("summary.json"), text)?;
    // The promise is of the gaps in streams; the wait for the first piece is told beside it.
    args.load.check(&changes[1])?;
    if let Some(most) = args.refusal_ms {
        ensure!(slowest_ms <= most, "a refusal took longer than {most} ms");
    }
    Ok(())
}
