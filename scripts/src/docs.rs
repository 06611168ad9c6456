//! `cargo xtask docs`: writes the pages of server/docs/api.

use crate::mpi;
use crate::process::{self, cargo};
use anyhow::Result;

/// The test that compares the pages writes them first: what they are made of is the server's.
pub fn run() -> Result<()> {
    let mut tests = cargo(&["test", "--quiet", "--workspace"]);
    tests.args(mpi::features()).args(["--test", "docs"]).env("MONSOON_WRITE_DOCS", "1");
    process::run(&mut tests)
}
