//! `cargo xtask test`: everything.

use crate::process::{self, cargo};
use anyhow::{Context, Result};

fn run_tests() -> Result<()> {
    process::run(cargo(&["test", "--workspace"]).env("MONSOON_REQUIRE_MODEL", "1"))
}

pub fn run() -> Result<()> {
    process::run(&mut cargo(&["run", "--quiet", "--package", "server", "--", "pull"]))
        .context("the default model is needed by the tests with real weights")?;
    run_tests()?;
    crate::clients::run()
}
