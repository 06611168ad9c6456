//! `cargo xtask guard`: how many instructions fixed work takes, which is the same in every run on
//! every machine, beside what is kept in the tree.
//!
//! Counted by callgrind, whose processor has AVX2 and nothing above: kernels are counted in that
//! form. The build is that of the tests.

use crate::process::{self, MONSOON, cargo, root, target_dir};
use crate::{debian, mpi};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Counts by the names of what was done.
const FILE: &str = "benches/instructions.toml";
/// More than this share above what is kept is a failure, less is said.
const SHARE_MAX: f64 = 0.03;
/// What a product is rounded by.
const ROUNDING: f64 = 1e-9;
/// So often something is counted that seems to have grown: hashing has random keys, and the
/// smallest count depends on them the least.
const COUNTS_MAX: usize = 5;
const PACKAGE: &str = "valgrind";
/// In benches/counted.rs, the function whose instructions count.
const MEASURED: &str = "*counted*measured*";

#[derive(clap::Args)]
pub struct Args {
    /// Only install what counts (Debian, as root or by sudo)
    #[arg(long)]
    install: bool,
    /// Keep what is counted now
    #[arg(long)]
    update: bool,
}

type Counts = BTreeMap<String, u64>;

pub fn run(args: &Args) -> Result<()> {
    if args.install {
        return debian::install(&[PACKAGE]);
    }
    process::run(cargo(&["build"]).args(MONSOON).args(["--bin", "counted"]).args(mpi::features()))?;
    let program = target_dir().join("debug/counted");
    let names = Command::new(&program).output().context("list what is counted")?;
    let names = String::from_utf8(names.stdout)?;
    let kept = match args.update {
        true => Counts::new(),
        false => toml::from_str(&fs::read_to_string(root().join(FILE))?)?,
    };
    let mut counted = Counts::new();
    for name in names.lines() {
        let before = kept.get(name).copied().unwrap_or_default();
        let mut smallest = u64::MAX;
        for _ in 0..COUNTS_MAX {
            smallest = smallest.min(count(&program, name)?);
            if !has_grown(smallest, before) {
                break;
            }
        }
        counted.insert(name.to_owned(), smallest);
    }
    ensure!(!counted.is_empty(), "nothing was counted");
    if args.update {
        return Ok(fs::write(root().join(FILE), toml::to_string(&counted)?)?);
    }
    compare(&counted, &kept)
}

fn has_grown(count: u64, before: u64) -> bool {
    count as f64 > before as f64 * (1.0 + SHARE_MAX) * (1.0 + ROUNDING)
}

fn compare(counted: &Counts, kept: &Counts) -> Result<()> {
    let mut grown = Vec::new();
    for (name, count) in counted {
        let before = *kept.get(name).with_context(|| format!("{name} is not in {FILE}"))?;
        let share = *count as f64 / before as f64 - 1.0;
        println!("{name}: {count} instructions, {:+.2} %", share * 100.0);
        if has_grown(*count, before) {
            grown.push(name.as_str());
        }
    }
    let gone: Vec<&String> = kept.keys().filter(|name| !counted.contains_key(*name)).collect();
    ensure!(gone.is_empty(), "{gone:?} of {FILE} are not counted any more");
    if !grown.is_empty() {
        let percent = SHARE_MAX * 100.0;
        bail!(
            "{} take over {percent} % more instructions than {FILE} says; if that is meant: \
             `cargo xtask guard --update`",
            grown.join(", ")
        );
    }
    Ok(())
}

fn count(program: &Path, name: &str) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(format!("--toggle-collect={MEASURED}"));
    let output = command.arg(program).arg(name).output();
    let output = output.context("start valgrind (`cargo xtask guard --install`)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {said}", output.status);
    // "==PID== Collected : COUNT"
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = line.with_context(|| format!("no count in what valgrind said: {said}"))?;
    let count = count.trim().parse()?;
    ensure!(count > 0, "{name}: nothing was counted");
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(values: &[(&str, u64)]) -> Counts {
        values.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn only_what_grows_beyond_the_share_fails() {
        let kept = counts(&[("a", 1000), ("b", 1000)]);
        assert!(compare(&counts(&[("a", 1030), ("b", 500)]), &kept).is_ok());
        let grown = compare(&counts(&[("a", 1000), ("b", 1031)]), &kept).expect_err("b grew");
        assert!(grown.to_string().starts_with("b take over 3 %"), "{grown}");
    }

    #[test]
    fn what_is_counted_and_what_is_kept_have_the_same_names() {
        let one = counts(&[("a", 1000)]);
        let two = counts(&[("a", 1000), ("b", 1000)]);
        assert!(compare(&two, &one).is_err());
        assert!(compare(&one, &two).is_err());
    }
}
