//! Executes a launch: blocks over host threads, warps of a block in seeded order, instructions in
//! `warp`.
#![allow(unsafe_code)]

mod alu;
mod block;
pub mod float;
pub mod mma;
mod memory_ops;
mod shadow;
mod sync;
mod warp;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::checks::{CheckKind, Checks, Violation};
use crate::counters::Counters;
use crate::memory::{GlobalMemory, Table};
use crate::ptx::Module;
use crate::ptx::decode::{Const, Kernel, Special};
use block::BlockRunner;

/// How a kernel is launched and watched.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared_bytes: u32,
    /// 0: warps run in order. Otherwise the order of warps, the length of their bursts and the
    /// arrival of asynchronous copies are drawn from it.
    pub seed: u64,
    pub checks: Checks,
    /// The most shared memory a block may have on the architecture (after opt-in).
    pub arch_shared_optin: u32,
    /// Host threads that execute blocks. Results and findings do not depend on it.
    pub threads: usize,
    /// Count bytes, sectors, bank conflicts and lines. Costs time.
    pub counters: bool,
    /// A warp that executes more instructions is stopped: `CheckKind::Timeout`.
    pub warp_instructions_max: u64,
}

impl Default for LaunchConfig {
    fn default() -> LaunchConfig {
        LaunchConfig {
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared_bytes: 0,
            seed: 0,
            checks: Checks::ALL,
            arch_shared_optin: 163 * 1024,
            threads: 1,
            counters: true,
            warp_instructions_max: 1 << 34,
        }
    }
}

/// All that the blocks of one launch share.
pub(crate) struct Env<'a> {
    pub kernel: &'a Kernel,
    pub config: &'a LaunchConfig,
    pub memory: &'a GlobalMemory,
    pub table: Arc<Table>,
    pub params: &'a [u8],
    pub threads_per_block: u32,
    pub warps_per_block: u32,
    pub shared_bytes: u32,
    /// Rows with launch-wide values, in both words of 64-bit constants.
    pub consts: Vec<(u32, ConstValue)>,
}

#[derive(Clone, Copy)]
pub(crate) enum ConstValue {
    Bits32(u32),
    Bits64(u64),
    Special(Special),
}

/// Runs a kernel to its end.
///
/// `params` is the parameter block, laid out as `kernel.params()` says. Errors: the first finding
/// of the block with the lowest index; memory then holds what the blocks wrote until they were
/// stopped.
pub fn launch(
    module: &Module,
    kernel: &str,
    memory: &GlobalMemory,
    params: &[u8],
    config: &LaunchConfig,
) -> Result<Counters, Violation> {
    let Some(found) = module.kernel(kernel) else {
        return Err(launch_violation(kernel, "no kernel of this name in the module".to_string()));
    };
    check_launch(found, params, config)?;
    let addresses = memory.module_addresses(module);
    let consts = found
        .consts
        .iter()
        .map(|&(row, value)| {
            let value = match value {
                Const::Bits32(bits) => ConstValue::Bits32(bits),
                Const::Bits64(bits) => ConstValue::Bits64(bits),
                Const::Variable { index, offset } => {
                    ConstValue::Bits64(addresses[index].wrapping_add_signed(offset))
                }
                Const::Special(special) => ConstValue::Special(special),
            };
            (row, value)
        })
        .collect();
    let threads_per_block = config.block.iter().product();
    let env = Env {
        kernel: found,
        config,
        memory,
        table: memory.table(),
        params,
        threads_per_block,
        warps_per_block: u32::div_ceil(threads_per_block, 32),
        shared_bytes: shared_bytes(found, config),
        consts,
    };
    run_blocks(&env)
}

fn shared_bytes(kernel: &Kernel, config: &LaunchConfig) -> u32 {
    if config.dynamic_shared_bytes == 0 {
        kernel.shared_bytes
    } else {
        kernel.dynamic_base + config.dynamic_shared_bytes
    }
}

fn launch_violation(kernel: &str, message: String) -> Violation {
    Violation {
        kind: CheckKind::Launch,
        kernel: kernel.to_string(),
        block: [0; 3],
        thread: None,
        line: 0,
        source: None,
        address: None,
        message,
    }
}

/// The limits that the driver and the device put on a launch.
fn check_launch(kernel: &Kernel, params: &[u8], config: &LaunchConfig) -> Result<(), Violation> {
    let refuse = |message: String| Err(launch_violation(&kernel.name, message));
    if params.len() != kernel.param_bytes {
        return refuse(format!(
            "{} bytes of parameters, the kernel takes {}",
            params.len(),
            kernel.param_bytes
        ));
    }
    let [gx, gy, gz] = config.grid;
    if gx == 0 || gy == 0 || gz == 0 || gx > 0x7FFF_FFFF || gy > 65535 || gz > 65535 {
        return refuse(format!("grid {:?}; the limits are 2^31 - 1, 65535, 65535", config.grid));
    }
    let [bx, by, bz] = config.block;
    let threads = bx as u64 * by as u64 * bz as u64;
    if threads == 0 || bx > 1024 || by > 1024 || bz > 64 || threads > 1024 {
        return refuse(format!("block {:?}; at most 1024 threads", config.block));
    }
    if let Some(max) = kernel.max_threads {
        let limit = max.iter().map(|&x| x as u64).product::<u64>();
        if threads > limit {
            return refuse(format!("{threads} threads per block, launch bounds allow {limit}"));
        }
    }
    if let Some(required) = kernel.required_threads
        && required != config.block
    {
        return refuse(format!("block {:?}, the kernel requires {required:?}", config.block));
    }
    let shared = shared_bytes(kernel, config);
    if shared > config.arch_shared_optin {
        return refuse(format!(
            "{shared} bytes of shared memory, the device allows {}",
            config.arch_shared_optin
        ));
    }
    Ok(())
}

/// What one host thread found.
#[derive(Default)]
struct Outcome {
    counters: Counters,
    violation: Option<(u64, Violation)>,
}

fn run_blocks(env: &Env) -> Result<Counters, Violation> {
    let blocks = env.config.grid.iter().map(|&x| x as u64).product::<u64>();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let work = || {
        let mut outcome = Outcome::default();
        let mut runner = BlockRunner::new(env);
        loop {
            // Blocks are taken in order, so every block before a finding is run to its end.
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= blocks || stop.load(Ordering::Relaxed) {
                break;
            }
            if let Err(violation) = runner.run(index) {
                stop.store(true, Ordering::Relaxed);
                outcome.violation = Some((index, violation));
                break;
            }
        }
        outcome.counters = runner.into_counters();
        outcome
    };
    let threads = env.config.threads.max(1).min(blocks as usize);
    let outcomes: Vec<Outcome> = if threads == 1 {
        vec![work()]
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            handles.into_iter().map(|h| h.join().expect("block thread")).collect()
        })
    };
    let mut counters = Counters { launches: 1, ..Counters::default() };
    let mut first: Option<(u64, Violation)> = None;
    for outcome in outcomes {
        counters.merge(&outcome.counters);
        if let Some((index, violation)) = outcome.violation
            && first.as_ref().is_none_or(|(i, _)| index < *i)
        {
            first = Some((index, violation));
        }
    }
    match first {
        Some((_, violation)) => Err(violation),
        None => Ok(counters),
    }
}
