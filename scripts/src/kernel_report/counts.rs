//! Runs the cases on the virtual GPU, as a library: the PTX that ships, no driver.

use super::cases::{Case, Fill, Launch, Value};
use super::compile::Module;
use crate::process::target_dir;
use anyhow::{Context, Result, ensure};
use kernels::device::cuda::{KernelSpec, Param};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Mutex;
use virtual_gpu::counters::InstClass;
use virtual_gpu::{Checks, Counters, GlobalMemory, LaunchConfig};

/// Lines with less than this share of the shared-memory passes are not the main loop.
const MAIN_LINE_SHARE: f64 = 0.05;
const THREADS_MAX: usize = 8;

/// What the whole op would execute: the counts of the slice times the number of slices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Bytes that threads asked for in global memory.
    pub bytes: f64,
    /// Those of them that were asked for 16 at a time.
    pub wide_bytes: f64,
    /// Matrix instructions (m16n8k16), by warps.
    pub mma: f64,
    /// Of the worst line of the main loop: passes over those that its bytes alone need.
    pub ways: f64,
}

/// Counts of each case, in order. Those of unchanged kernels and shapes are taken from the last
/// run.
pub fn run_all(cases: &[Case], modules: &[Module], specs: &[&KernelSpec]) -> Result<Vec<Counts>> {
    let mut parsed = BTreeMap::new();
    for module in modules {
        let ptx = virtual_gpu::Module::parse(&module.ptx).with_context(|| module.name.clone())?;
        parsed.insert(module.name.as_str(), (ptx, module));
    }
    let next = Mutex::new(cases.iter().enumerate());
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((i, case)) = next.lock().expect("no panic").next() else { break };
                    let counts = run_or_recall(case, &parsed, specs);
                    let named = || format!("{} of {}, {}", case.op, case.model, case.class);
                    results.lock().expect("no panic").push((i, counts.with_context(named)));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no panic");
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, counts)| counts).collect()
}

type Parsed<'a> = BTreeMap<&'a str, (virtual_gpu::Module, &'a Module)>;

fn run_or_recall(case: &Case, parsed: &Parsed, specs: &[&KernelSpec]) -> Result<Counts> {
    let mut hasher = DefaultHasher::new();
    format!("{:?}{:?}{}", case.buffers, case.launches, case.num_slices).hash(&mut hasher);
    for launch in &case.launches {
        parsed[spec_of(launch, specs)?.module].1.ptx.hash(&mut hasher);
    }
    let file = memory_of(hasher.finish());
    if let Ok(text) = std::fs::read_to_string(&file) {
        return Ok(serde_json::from_str(&text)?);
    }
    let counts = run(case, parsed, specs)?;
    std::fs::write(&file, serde_json::to_string(&counts)?)?;
    Ok(counts)
}

fn memory_of(key: u64) -> PathBuf {
    target_dir().join("kernel-report").join(format!("counts-{key:016x}.json"))
}

fn spec_of<'a>(launch: &Launch, specs: &[&'a KernelSpec]) -> Result<&'a KernelSpec> {
    let found = specs.iter().copied().find(|s| s.name == launch.kernel);
    found.with_context(|| format!("no kernel {}", launch.kernel))
}

fn run(case: &Case, parsed: &Parsed, specs: &[&KernelSpec]) -> Result<Counts> {
    let memory = GlobalMemory::new(0);
    let mut addresses = Vec::new();
    for buffer in &case.buffers {
        let address = memory.alloc(buffer.bytes as u64);
        match &buffer.fill {
            Fill::Zeros => memory.fill(address, 0, buffer.bytes as u64)?,
            Fill::Words(words) => {
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                memory.write(address, &bytes)?;
            }
            Fill::Result | Fill::Scratch => {}
        }
        addresses.push(address);
    }
    let mut counters = Counters::default();
    let mut ways = 1.0f64;
    for launch in &case.launches {
        let spec = spec_of(launch, specs)?;
        let (module, _) = &parsed[spec.module];
        let kernel = module.kernel(spec.name).context("it is in the module")?;
        let params = params(spec, launch, &addresses)?;
        let config = LaunchConfig {
            grid: launch.grid,
            block: kernel.max_threads().context("launch bounds")?,
            dynamic_shared_bytes: launch.shared_bytes,
            // Reads of unwritten memory are found; races are looked for by the kernels' own tests.
            checks: Checks { racecheck: false, ..Checks::ALL },
            ..LaunchConfig::default()
        };
        let counted = virtual_gpu::launch(module, spec.name, &memory, &params, &config)?;
        ways = ways.max(main_loop_ways(&counted));
        counters.merge(&counted);
    }
    for (buffer, &address) in case.buffers.iter().zip(&addresses) {
        if matches!(buffer.fill, Fill::Result) {
            let missed = memory.first_unwritten(address, buffer.bytes as u64)?;
            ensure!(missed.is_none(), "a byte of the result was not written");
        }
    }
    let of_16 = counters.global_widths.get(&16).copied().unwrap_or(0) * 16;
    Ok(Counts {
        bytes: (counters.global.read_bytes + counters.global.written_bytes) as f64
            * case.num_slices,
        wide_bytes: of_16 as f64 * case.num_slices,
        mma: counters.class(InstClass::Mma) as f64 * case.num_slices,
        ways,
    })
}

/// The parameter block, by the kernel's table; the arguments must be of its types.
fn params(spec: &KernelSpec, launch: &Launch, addresses: &[u64]) -> Result<Vec<u8>> {
    ensure!(spec.params.len() == launch.args.len(), "{} takes {:?}", spec.name, spec.params);
    let mut block = Vec::new();
    for (param, arg) in spec.params.iter().zip(&launch.args) {
        let bits: u64 = match (*param, *arg) {
            (Param::Ptr, Value::Buffer(i)) => addresses[i],
            (Param::Ptr, Value::Null) => 0,
            (Param::U32, Value::U32(x)) => x.into(),
            (Param::U64, Value::U64(x)) => x,
            (Param::F32, Value::F32(x)) => x.to_bits().into(),
            mismatch => anyhow::bail!("{}: {mismatch:?}", spec.name),
        };
        block.resize(block.len().next_multiple_of(param.bytes()), 0);
        block.extend(&bits.to_le_bytes()[..param.bytes()]);
    }
    Ok(block)
}

fn main_loop_ways(counters: &Counters) -> f64 {
    let total: u64 = counters.shared_by_line.values().map(|w| w.minimal).sum();
    let is_main = |minimal: u64| minimal as f64 >= MAIN_LINE_SHARE * total as f64;
    let lines = counters.shared_by_line.values().filter(|w| is_main(w.minimal));
    lines.map(|w| w.ways()).fold(1.0, f64::max)
}

/// Everything in which a case breaks its limits.
pub fn complaints(cases: &[Case], counts: &[Counts]) -> Vec<String> {
    let mut found = Vec::new();
    for (case, counts) in cases.iter().zip(counts) {
        let kernel = &case.launches[0].kernel;
        let name = format!("{kernel} ({} of {}, {})", case.op, case.model, case.class);
        let ratio = counts.bytes_ratio(case);
        if case.limits.bytes.is_some_and(|max| ratio > max) {
            found.push(format!("{name}: moves {ratio:.3} times the bytes that it needs"));
        }
        if case.limits.ways.is_some_and(|max| counts.ways > max) {
            found.push(format!("{name}: bank conflicts of {:.2} ways", counts.ways));
        }
        if counts.wide_bytes < case.wide_bytes {
            found.push(format!("{name}: moves weights or KV in pieces below 16 bytes"));
        }
    }
    found
}

impl Counts {
    /// Bytes counted, but for what blocks must read again of what they share, over the minimal
    /// ones.
    pub fn bytes_ratio(&self, case: &Case) -> f64 {
        (self.bytes - case.reread_bytes) / case.minimal_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::*;

    #[test]
    fn each_broken_limit_is_told() {
        let case = cases::all().into_iter().find(|c| c.op == "attention").expect("a case");
        let good = Counts {
            bytes: case.minimal_bytes + case.reread_bytes,
            wide_bytes: case.wide_bytes,
            mma: 1.0,
            ways: 1.0,
        };
        let told = |counts| complaints(std::slice::from_ref(&case), &[counts]).len();
        assert_eq!(told(good), 0);
        assert_eq!(told(Counts { bytes: good.bytes + 0.2 * case.minimal_bytes, ..good }), 1);
        assert_eq!(told(Counts { ways: 1.2, ..good }), 1);
        assert_eq!(told(Counts { wide_bytes: good.wide_bytes / 2.0, ..good }), 1);
    }

    #[test]
    fn arguments_of_another_type_or_number_are_refused() {
        let spec = KernelSpec { module: "m", name: "k", params: &[Param::U32, Param::U64] };
        let launch = |args| Launch { kernel: "k".into(), grid: [1; 3], shared_bytes: 0, args };
        let good = params(&spec, &launch(vec![Value::U32(1), Value::U64(2)]), &[]);
        assert_eq!(good.expect("they fit"), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert!(params(&spec, &launch(vec![Value::U32(1), Value::U32(2)]), &[]).is_err());
        assert!(params(&spec, &launch(vec![Value::U32(1)]), &[]).is_err());
    }
}
