//! What was measured, as a table in Markdown.

use super::limits::Limits;
use super::peers::Peer;
use super::scenarios::SCENARIOS;
use super::{Args, Run, ratio, spread};
use anyhow::{Context, Result};
use std::fmt::Write;

pub fn write(args: &Args, peers: &[Peer], limits: &Limits, runs: &[Run]) -> Result<String> {
    let mut out = String::new();
    let file = args.model.file_name().context("--model")?.to_string_lossy();
    writeln!(out, "{file}, {} threads, {}, {} rounds.", args.threads, processor(), args.rounds)?;
    writeln!(out, "Medians, and in brackets the smallest and the largest.\n")?;
    for peer in peers {
        writeln!(out, "- {} {}: `{}`", peer.name, peer.version, peer.shown())?;
    }
    let names: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
    let ratios: Vec<String> = names[1..].iter().map(|name| format!("better than {name}")).collect();
    let heads = ["Scenario", "Measure"].into_iter().chain(names.iter().copied());
    let heads: Vec<String> = heads.map(str::to_owned).chain(ratios).collect();
    writeln!(out, "\n| {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len()))?;
    for scenario in &SCENARIOS {
        for measure in scenario.measures {
            let mut cells = vec![format!("{}: {}", scenario.name, scenario.says)];
            cells.push(measure.replace('_', " "));
            for name in &names {
                cells.push(match spread(runs, scenario.name, name, measure) {
                    Some([min, median, max]) => format!("{median:.1} ({min:.1} to {max:.1})"),
                    None => continue,
                });
            }
            if cells.len() < 2 + names.len() {
                continue;
            }
            for name in &names[1..] {
                let ratio = ratio(runs, scenario, measure, name).context("both were measured")?;
                cells.push(format!("{ratio:.2} times"));
            }
            writeln!(out, "| {} |", cells.join(" | "))?;
        }
    }
    write_limits(&mut out, limits, runs, &names)?;
    Ok(out)
}

/// The limits of the machine in the same run, and how near to them each came.
fn write_limits(out: &mut String, limits: &Limits, runs: &[Run], names: &[&str]) -> Result<()> {
    let bandwidth = limits.bandwidth().context("the limits were measured")?;
    writeln!(out, "\nThe machine in the same run, medians: {:.1} GB/s read", bandwidth * 1e-9)?;
    let int8 = limits.int8();
    for (name, rate) in [("byte", int8), ("bf16", limits.bf16())] {
        if let Some(rate) = rate {
            writeln!(out, "{:.0} GOP/s of {name} products", rate * 1e-9)?;
        }
    }
    let bytes = limits.bytes_per_token;
    writeln!(out, "\nA decoded token reads {:.0} MB of weights:", bytes * 1e-6)?;
    for name in names {
        if let Some([_, ms, _]) = spread(runs, "decode", name, "tpot_p50_ms") {
            let share = bytes / (ms * 1e-3) / bandwidth;
            writeln!(out, "- {name}: {:.0} % of the read limit", share * 100.0)?;
        }
    }
    let Some(int8) = int8 else { return Ok(()) };
    let ops = limits.ops_per_token;
    writeln!(out, "\nA token of a prompt takes {:.2} GOP in products of weights:", ops * 1e-9)?;
    for (scenario, tokens) in [("prefill-512", 512.0), ("prefill-2048", 2048.0)] {
        for name in names {
            if let Some([_, ms, _]) = spread(runs, scenario, name, "ttft_p50_ms") {
                let share = tokens * ops / (ms * 1e-3) / int8;
                let percent = share * 100.0;
                writeln!(out, "- {scenario}, {name}: {percent:.0} % of the peak of byte products")?;
            }
        }
    }
    Ok(())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown processor", |line| line.trim_start_matches(['\t', ' ', ':'])).to_owned()
}
