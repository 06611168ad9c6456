//! Packages of Debian that chores need.

use crate::process;
use anyhow::Result;
use std::process::{Command, Stdio};

/// Those of `packages` that are not installed; `None`: this is no Debian.
pub fn missing<'a>(packages: &[&'a str]) -> Option<Vec<&'a str>> {
    let is_missing = |package: &str| {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat=${db:Status-Status}", package]);
        let output = query.stderr(Stdio::null()).output().ok()?;
        Some(output.stdout != b"installed")
    };
    let mut missing = Vec::new();
    for package in packages {
        if is_missing(package)? {
            missing.push(*package);
        }
    }
    Some(missing)
}

/// Installs the packages that are missing, on a machine that has Debian's tools.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages).unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    process::run(&mut apt_get(&["update", "--quiet"]))?;
    let options = ["install", "--quiet", "--yes", "--no-install-recommends"];
    process::run(&mut apt_get(&[&options[..], &missing].concat()))
}

/// Run by root, or by a user who may become root.
fn apt_get(args: &[&str]) -> Command {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let mut command = Command::new(if is_root { "apt-get" } else { "sudo" });
    if !is_root {
        command.arg("apt-get");
    }
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
