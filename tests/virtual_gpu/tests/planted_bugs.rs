//! Each planted bug is found by the check that is there for it, and clean kernels report nothing.

mod common;

use common::{Gpu, Param, bf16, params};
use virtual_gpu::{CheckKind, Checks, Counters, LaunchConfig, Violation};

const PLANTED: &str = include_str!("../kernels/planted.ptx");
const K: usize = 128;
const PAGES: [u32; 4] = [5, 0, 3, 2];
/// Two stages of 96 rows of 40 numbers.
const SHARED_BYTES: u32 = 15_360;

struct Case {
    gpu: Gpu,
    a: Vec<f32>,
    b: Vec<f32>,
    c: u64,
    args: Vec<u8>,
    a_address: u64,
}

impl Case {
    fn new() -> Case {
        let gpu = Gpu::new(PLANTED);
        let a: Vec<f32> = (0..96 * K).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let b: Vec<f32> = (0..32 * K).map(|i| ((i * 53 % 89) as f32 - 44.0) / 64.0).collect();
        let table: Vec<u8> = PAGES.iter().flat_map(|p| p.to_le_bytes()).collect();
        let (a_address, b_address) = (gpu.upload(&bf16(&a)), gpu.upload(&bf16(&b)));
        let table = gpu.upload(&table);
        let c = gpu.memory.alloc(64 * 32 * 4);
        let args = params(&[&c, &a_address, &b_address, &table, &(K as u32)]);
        Case { gpu, a, b, c, args, a_address }
    }

    fn config(&self, seed: u64) -> LaunchConfig {
        LaunchConfig { dynamic_shared_bytes: SHARED_BYTES, seed, ..self.gpu.config([1, 1, 1], 128) }
    }

    fn run(&self, kernel: &str, seed: u64) -> Result<Counters, Violation> {
        self.gpu.launch_with(kernel, &self.config(seed), &self.args)
    }

    /// The largest error of c against f64.
    fn error(&self) -> f64 {
        let got = self.gpu.floats(self.c, 64 * 32);
        let mut worst: f64 = 0.0;
        for row in 0..64 {
            let from = (PAGES[row / 16] as usize * 16 + row % 16) * K;
            for column in 0..32 {
                let want: f64 =
                    (0..K).map(|k| self.a[from + k] as f64 * self.b[column * K + k] as f64).sum();
                let error = (got[row * 32 + column] as f64 - want).abs();
                // NaN must not pass for small.
                worst = if error <= worst { worst } else { error };
            }
        }
        worst
    }
}

/// The bug is found for every seed, by this check, at a line of the CUDA source.
fn found(kernel: &str, kind: CheckKind) {
    let case = Case::new();
    for seed in 0..5 {
        let violation = case.run(kernel, seed).expect_err(kernel);
        assert_eq!(violation.kind, kind, "{kernel}, seed {seed}: {violation}");
        assert!(violation.line > 0, "{violation}");
        let source = violation.source.as_ref().expect("compiled with -lineinfo");
        assert!(source.line > 0, "{violation}");
    }
}

#[test]
fn clean_kernel_reports_nothing_and_is_right_for_50_seeds() {
    for seed in 0..50 {
        let case = Case::new();
        if let Err(violation) = case.run("clean", seed) {
            panic!("seed {seed}: {violation}");
        }
        let error = case.error();
        assert!(error <= 1e-4, "seed {seed}: {error}");
    }
}

#[test]
fn missing_barrier_before_read_is_a_race() {
    let case = Case::new();
    for seed in 0..20 {
        let violation = case.run("no_barrier_before_read", seed).unwrap_err();
        // By the order of the warps either the reader is first (bytes in flight) or the copy.
        let kinds = [CheckKind::Racecheck, CheckKind::Synccheck, CheckKind::Initcheck];
        assert!(kinds.contains(&violation.kind), "{violation}");
    }
    let mut config = case.config(0);
    config.checks = Checks { racecheck: true, ..Checks::NONE };
    let violation = case.gpu.launch_with("no_barrier_before_read", &config, &case.args);
    assert_eq!(violation.unwrap_err().kind, CheckKind::Racecheck);
}

#[test]
fn missing_barrier_before_overwrite_is_a_race() {
    let case = Case::new();
    let mut config = case.config(0);
    config.checks = Checks { racecheck: true, ..Checks::NONE };
    for seed in 0..20 {
        config.seed = seed;
        let kernel = "no_barrier_before_overwrite";
        let violation = case.gpu.launch_with(kernel, &config, &case.args).unwrap_err();
        assert_eq!(violation.kind, CheckKind::Racecheck, "{violation}");
    }
}

#[test]
fn weak_wait_reads_bytes_in_flight() {
    found("weak_wait", CheckKind::Synccheck);
}

#[test]
fn weak_wait_gives_wrong_numbers_without_checks() {
    let case = Case::new();
    let mut config = case.config(0);
    config.checks = Checks { memcheck: true, ..Checks::NONE };
    case.gpu.launch_with("weak_wait", &config, &case.args).unwrap();
    assert!(!(case.error() <= 1.0), "poison must show");
}

#[test]
fn read_past_the_block_table_is_found() {
    found("table_overrun", CheckKind::Memcheck);
}

#[test]
fn write_past_shared_memory_is_found() {
    found("shared_overrun", CheckKind::Memcheck);
}

#[test]
fn swapped_operands_give_wrong_numbers() {
    let case = Case::new();
    case.run("swapped_operands", 0).unwrap();
    assert!(case.error() > 0.1);
}

#[test]
fn read_of_unwritten_shared_memory_is_found() {
    found("unwritten_shared", CheckKind::Initcheck);
}

#[test]
fn read_of_unwritten_global_memory_is_found() {
    let case = Case::new();
    let fresh = case.gpu.memory.alloc(96 * K as u64 * 2);
    let mut args = case.args.clone();
    args[8..16].copy_from_slice(&fresh.bytes());
    let violation = case.gpu.launch_with("clean", &case.config(0), &args).unwrap_err();
    assert_eq!(violation.kind, CheckKind::Initcheck, "{violation}");
}

#[test]
fn barrier_in_divergent_code_is_found() {
    found("divergent_barrier", CheckKind::Synccheck);
}

#[test]
fn barrier_after_exit_is_found() {
    found("barrier_after_exit", CheckKind::Synccheck);
}

#[test]
fn shuffle_that_names_an_inactive_lane_is_found() {
    found("shuffle_with_inactive_lane", CheckKind::Synccheck);
}

#[test]
fn exchange_in_a_warp_without_sync_is_a_race() {
    found("no_warp_sync", CheckKind::Racecheck);
}

#[test]
fn misaligned_store_is_found() {
    found("misaligned", CheckKind::Alignment);
}

#[test]
fn use_after_free_is_found() {
    let case = Case::new();
    case.gpu.memory.free(case.a_address).unwrap();
    let violation = case.run("clean", 0).unwrap_err();
    assert_eq!(violation.kind, CheckKind::Memcheck);
    assert!(violation.message.contains("freed"), "{violation}");
}

#[test]
fn u32_passed_for_u64_is_refused_at_launch() {
    let case = Case::new();
    let mut args = case.args.clone();
    args.drain(28..32);
    let violation = case.gpu.launch_with("clean", &case.config(0), &args).unwrap_err();
    assert_eq!(violation.kind, CheckKind::Launch, "{violation}");
}

#[test]
fn limits_of_a_launch_are_checked() {
    let case = Case::new();
    let refused = |change: &dyn Fn(&mut LaunchConfig)| {
        let mut config = case.config(0);
        change(&mut config);
        let violation = case.gpu.launch_with("clean", &config, &case.args).unwrap_err();
        assert_eq!(violation.kind, CheckKind::Launch, "{violation}");
    };
    refused(&|c| c.block = [256, 1, 1]);
    refused(&|c| c.block = [0, 1, 1]);
    refused(&|c| c.grid = [1, 65_536, 1]);
    refused(&|c| c.dynamic_shared_bytes = 200 * 1024);
    refused(&|c| c.arch_shared_optin = 10_000);
}

#[test]
fn padding_removes_bank_conflicts() {
    let case = Case::new();
    let clean = case.run("clean", 0).unwrap();
    let slow = case.run("bank_conflicts", 0).unwrap();
    let worst = |counters: &Counters, class: &str| {
        let lines: Vec<&str> = PLANTED.lines().collect();
        let of_class = counters
            .shared_by_line
            .iter()
            .filter(|(line, _)| lines[**line as usize - 1].contains(class));
        of_class.map(|(_, w)| w.ways()).fold(0.0, f64::max)
    };
    assert_eq!(worst(&clean, "ldmatrix"), 1.0, "{clean:?}");
    // The price: the copies of two neighbouring rows of 80 bytes meet in four banks.
    assert_eq!(worst(&clean, "cp.async"), 2.0, "{clean:?}");
    assert_eq!(worst(&slow, "cp.async"), 1.0, "{slow:?}");
    assert_eq!(worst(&slow, "ldmatrix"), 4.0, "{slow:?}");
    assert!(slow.shared_wavefronts.ways() > clean.shared_wavefronts.ways());
    assert_eq!(slow.shared_wavefronts.minimal, clean.shared_wavefronts.minimal);
}

#[test]
fn counters_do_not_depend_on_seed() {
    let case = Case::new();
    let first = case.run("clean", 0).unwrap();
    for seed in 1..5 {
        assert_eq!(case.run("clean", seed).unwrap(), first);
    }
    // a, b, the table and c: each 16-byte copy once.
    assert_eq!(first.global.written_bytes, 64 * 32 * 4);
    let copies = (64 + 32) * K as u64 * 2;
    assert_eq!(first.global_widths[&16], copies / 16);
    // Pages, rows and c are whole lines; only the table is read by many threads at once.
    assert_eq!(first.global_sectors, first.global_sectors_minimal);
    assert_eq!(first.global.read_bytes - copies, first.global_widths[&4] * 4 - 64 * 32 * 4);
}
