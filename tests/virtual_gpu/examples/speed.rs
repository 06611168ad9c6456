//! Warp instructions per second on a linear kernel: `speed PTX KERNEL N K SPLIT_STEPS SHARED_BYTES
//! [checks]`.
//!
//! The kernel's parameters are those of `ops/linear` (out, x, codes, headers, bias, m, n, k,
//! steps per split, epilogue, splits), for one row and splits in turn.
use std::time::Instant;
use virtual_gpu::{Checks, GlobalMemory, LaunchConfig, Module, launch};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&args[1]).expect("readable file");
    let started = Instant::now();
    let module = Module::parse(&text).expect("known PTX");
    println!("parsed {} kernels in {:?}", module.kernels().len(), started.elapsed());
    let number = |i: usize| args[i].parse::<u32>().expect("a number");
    let (n, k, steps, shared) = (number(3), number(4), number(5), number(6));
    let memory = GlobalMemory::new(0);
    let tiles = n.div_ceil(128) as u64;
    let fill = |bytes: u64| {
        let address = memory.alloc(bytes);
        memory.fill(address, 0x3C, bytes).expect("allocated");
        address
    };
    let (out, x) = (fill(n as u64 * 4), fill(k as u64 * 2));
    let codes = fill(tiles * k.div_ceil(64) as u64 * 128 * 64 * 2);
    let mut params = Vec::new();
    for pointer in [out, x, codes, 0, 0] {
        params.extend(u64::to_le_bytes(pointer));
    }
    for value in [1, n, k, steps, 0, 0] {
        params.extend(u32::to_le_bytes(value));
    }
    for threads in [1, 2] {
        let full = args.len() > 7;
        let config = LaunchConfig {
            grid: [1, tiles as u32, 1],
            block: [128, 1, 1],
            dynamic_shared_bytes: shared,
            checks: if full { Checks::ALL } else { Checks::NONE },
            counters: full,
            threads,
            ..LaunchConfig::default()
        };
        let started = Instant::now();
        let counters = launch(&module, &args[2], &memory, &params, &config).expect("clean");
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{threads} threads: {} warp instructions in {seconds:.3} s: {:.2} million/s; {:?}",
            counters.warp_instructions,
            counters.warp_instructions as f64 / seconds / 1e6,
            counters.by_class
        );
    }
}
