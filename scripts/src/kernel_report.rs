//! `cargo xtask kernel-report`: what can be known of the GPU kernels without a GPU, in
//! kernels/REPORT.md. Nothing in it is a measured speed.

mod budgets;
mod cases;
mod compile;
mod counts;
mod facts;
mod occupancy;
mod params;
mod render;

use crate::cuda_toolchain;
use crate::process::root;
use anyhow::{Context, Result, bail};
use facts::Kernel;

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail if a kernel breaks its limits or the report is out of date
    #[arg(long)]
    check: bool,
    /// Make what the kernels take now their budget (kernels/budgets.toml)
    #[arg(long, conflicts_with = "check")]
    set_budgets: bool,
}

pub fn run(args: &Args) -> Result<()> {
    cuda_toolchain::install()?;
    let modules = compile::compile_all()?;
    let kernels: Vec<Vec<Kernel>> = modules.iter().map(facts::kernels).collect::<Result<_>>()?;
    let kernels: Vec<Kernel> = kernels.into_iter().flatten().collect();
    if args.set_budgets {
        budgets::store(&kernels)?;
    }
    let specs: Vec<_> = kernels::ops::cuda_kernels().collect();
    let mut complaints = params::differences(&specs, &modules)?;
    complaints.extend(budgets::complaints(&kernels, &budgets::load()?));
    let occupancies = occupancy::compute(&kernels.iter().map(query).collect::<Vec<_>>())?;
    let cases = cases::all();
    let counts = counts::run_all(&cases, &modules, &specs)?;
    complaints.extend(counts::complaints(&cases, &counts));
    let shapes: Vec<_> = cases.iter().zip(&counts).collect();
    let text = render::render(&kernels, &occupancies, &shapes);
    let path = root().join("kernels/REPORT.md");
    if args.check {
        let old = std::fs::read_to_string(&path).context("kernels/REPORT.md")?;
        if old != text {
            complaints.push("kernels/REPORT.md is out of date: cargo xtask kernel-report".into());
        }
    } else {
        std::fs::write(&path, text).context("kernels/REPORT.md")?;
    }
    if complaints.is_empty() {
        println!("{} kernels, {} shapes", kernels.len(), shapes.len());
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    bail!("{} complaints", complaints.len())
}

fn query(kernel: &Kernel) -> occupancy::Query {
    let on = |device: usize| kernel.resources_on(occupancy::DEVICES[device].1);
    occupancy::Query {
        registers: [0, 1, 2].map(|d| on(d).registers),
        static_shared: [0, 1, 2].map(|d| on(d).static_shared_bytes),
        dynamic_shared: cases::dynamic_shared(&kernel.name),
        threads: kernel.threads_max,
    }
}
