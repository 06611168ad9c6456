//! What a kernel may take: `kernels/budgets.toml`, changed on purpose only.

use super::cases;
use super::facts::Kernel;
use crate::process::root;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

const HEADER: &str = "\
# The most that each kernel may take on any architecture: registers of a thread, shared memory of a
# block (static and dynamic) in bytes. `cargo xtask kernel-report --check` fails above them. After a
# change that is worth more: `cargo xtask kernel-report --set-budgets`.
";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub registers: u32,
    pub shared_bytes: u32,
}

impl Budget {
    /// What the kernel takes now.
    pub fn of(kernel: &Kernel) -> Budget {
        let shared_bytes = kernel.static_shared_max() + cases::dynamic_shared(&kernel.name);
        Budget { registers: kernel.registers_max(), shared_bytes }
    }
}

fn path() -> PathBuf {
    root().join("kernels/budgets.toml")
}

pub fn load() -> Result<BTreeMap<String, Budget>> {
    let text = std::fs::read_to_string(path()).context("kernels/budgets.toml")?;
    toml::from_str(&text).context("kernels/budgets.toml")
}

pub fn store(kernels: &[Kernel]) -> Result<()> {
    let all: BTreeMap<&str, Budget> =
        kernels.iter().map(|k| (k.name.as_str(), Budget::of(k))).collect();
    let text = format!("{HEADER}\n{}", toml::to_string(&all)?);
    std::fs::write(path(), text).context("kernels/budgets.toml")
}

/// Everything that a kernel's code breaks: spills, budgets, and instructions that must be there.
pub fn complaints(kernels: &[Kernel], budgets: &BTreeMap<String, Budget>) -> Vec<String> {
    let mut found = Vec::new();
    for kernel in kernels {
        let name = &kernel.name;
        let spills = kernel.resources.iter().any(|r| r.spill_bytes + r.stack_bytes > 0);
        if spills || kernel.sass.iter().any(|s| s.local > 0) {
            found.push(format!("{name}: keeps registers in local memory"));
        }
        let now = Budget::of(kernel);
        match budgets.get(name) {
            None => found.push(format!("{name}: has no budget")),
            Some(may) if now.registers > may.registers || now.shared_bytes > may.shared_bytes => {
                found.push(format!("{name}: takes {now:?}, its budget is {may:?}"));
            }
            Some(_) => {}
        }
        let complete = |s: &super::facts::Sass| s.hmma > 0 && s.ldsm > 0 && s.ldgsts > 0;
        if multiplies_matrices(name) && !kernel.sass.iter().all(complete) {
            found.push(format!("{name}: has no HMMA, LDSM or LDGSTS on some architecture"));
        }
    }
    let gone = budgets.keys().filter(|name| !kernels.iter().any(|k| &k.name == *name));
    found.extend(gone.map(|name| format!("{name}: has a budget, but does not exist")));
    found
}

/// Whether a kernel must use matrix instructions, matrix loads and asynchronous copies.
pub fn multiplies_matrices(kernel: &str) -> bool {
    ["linear_", "attention_decode_", "attention_prefill_"].iter().any(|p| kernel.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Resources, Sass};
    use super::*;

    fn kernel(name: &str, resources: Resources, sass: Sass) -> Kernel {
        Kernel {
            name: name.into(),
            threads_max: 128,
            resources: vec![resources; 6],
            sass: vec![sass; 6],
        }
    }

    fn complaints_of(kernel: Kernel) -> Vec<String> {
        let budget = Budget { registers: 100, shared_bytes: 64 };
        let shared_bytes = 64 + cases::dynamic_shared(&kernel.name);
        let budgets = [(kernel.name.clone(), Budget { shared_bytes, ..budget })].into();
        complaints(&[kernel], &budgets)
    }

    const GOOD: Resources =
        Resources { registers: 100, stack_bytes: 0, spill_bytes: 0, static_shared_bytes: 64 };
    const MMA: Sass = Sass { hmma: 1, ldsm: 1, ldgsts: 1, local: 0 };

    #[test]
    fn a_kernel_within_its_budget_is_fine() {
        assert!(complaints_of(kernel("add", GOOD, Sass::default())).is_empty());
        assert!(complaints_of(kernel("linear_w4_bf16_m16", GOOD, MMA)).is_empty());
    }

    #[test]
    fn spills_budgets_and_missing_instructions_are_told() {
        let spills = [
            (Resources { spill_bytes: 4, ..GOOD }, Sass::default()),
            (Resources { stack_bytes: 8, ..GOOD }, Sass::default()),
            (GOOD, Sass { local: 1, ..Sass::default() }),
            (Resources { registers: 101, ..GOOD }, Sass::default()),
            (Resources { static_shared_bytes: 65, ..GOOD }, Sass::default()),
        ];
        for (resources, sass) in spills {
            assert_eq!(complaints_of(kernel("add", resources, sass)).len(), 1, "{resources:?}");
        }
        for sass in [Sass { hmma: 0, ..MMA }, Sass { ldsm: 0, ..MMA }, Sass { ldgsts: 0, ..MMA }] {
            let found = complaints_of(kernel("linear_w4_bf16_m16", GOOD, sass));
            assert!(found[0].contains("HMMA"), "{found:?}");
        }
    }

    #[test]
    fn kernels_without_budget_and_budgets_without_kernel_are_told() {
        let budgets = [("gone".to_string(), Budget { registers: 1, shared_bytes: 1 })].into();
        let found = complaints(&[kernel("add", GOOD, Sass::default())], &budgets);
        assert_eq!(found, ["add: has no budget", "gone: has a budget, but does not exist"]);
    }
}
