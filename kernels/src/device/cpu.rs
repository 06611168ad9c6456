//! The CPU: its threads and the widest instructions it has.

#![allow(unsafe_code)]

use super::arena::Arena;
use super::memory::SharedMut;
use super::thread_pool::ThreadPool;
use std::sync::{Arc, OnceLock};

/// Values that one task of an elementwise loop has at the least: some microseconds of work, more
/// than waking a thread costs.
const TASK_VALUES_MIN: usize = 16 * 1024;

/// Instruction sets the kernels know, each one including what it needs. Chosen once, when the
/// process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, vectorised by the compiler for the baseline of the target (SSE2, NEON).
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI and VBMI, without BF16 dot products.
    Avx512,
    /// `Avx512` and AVX512-BF16.
    Avx512Bf16,
}

impl Isa {
    /// The best one of this machine. `MONSOON_ISA` (portable, avx2, avx512, avx512bf16) may lower
    /// it, for tests and diagnosis.
    pub fn detect() -> Isa {
        let best = Self::hardware();
        match std::env::var("MONSOON_ISA").as_deref() {
            Ok("portable") => Isa::Portable.min(best),
            Ok("avx2") => Isa::Avx2.min(best),
            Ok("avx512") => Isa::Avx512.min(best),
            _ => best,
        }
    }

    /// The best one of this machine, whatever `MONSOON_ISA` says.
    pub fn hardware() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Self::detect_hardware)
    }

    #[cfg(target_arch = "x86_64")]
    fn detect_hardware() -> Isa {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        let avx512 = has!("avx512f")
            && has!("avx512bw")
            && has!("avx512dq")
            && has!("avx512vl")
            && has!("avx512vnni")
            && has!("avx512vbmi");
        match (avx2, avx512, has!("avx512bf16")) {
            (true, true, true) => Isa::Avx512Bf16,
            (true, true, false) => Isa::Avx512,
            (true, false, _) => Isa::Avx2,
            _ => Isa::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect_hardware() -> Isa {
        Isa::Portable
    }

    /// All that this machine can run, for tests.
    pub fn available() -> Vec<Isa> {
        let best = Self::hardware();
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16]
            .into_iter()
            .filter(|&isa| isa <= best)
            .collect()
    }
}

/// One CPU as a device. Cloning shares the threads.
#[derive(Clone)]
pub struct CpuDevice {
    pub pool: Arc<ThreadPool>,
    pub isa: Isa,
    /// Where this device's weights lie.
    pub arena: Arc<Arena>,
}

impl CpuDevice {
    /// `num_threads`: compute threads, the calling rank thread included. `pin_to`: one core per
    /// thread, or none.
    pub fn new(num_threads: usize, pin_to: Option<&[usize]>) -> Self {
        let pool = Arc::new(ThreadPool::new(num_threads, pin_to));
        Self { pool, isa: Isa::detect(), arena: Arc::default() }
    }

    /// The same threads with other instructions, for tests that compare them.
    pub fn with_isa(&self, isa: Isa) -> Self {
        Self { isa, ..self.clone() }
    }

    /// Calls `task(first_row, rows)` for ranges of whole rows that together are `out`, in parallel
    /// when there are enough values to be worth it. A row's result must not depend on the range it
    /// is in.
    pub fn for_rows<T: Send>(
        &self,
        out: &mut [T],
        row_len: usize,
        task: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        assert!(row_len > 0 && out.len().is_multiple_of(row_len), "no whole number of rows");
        let num_rows = out.len() / row_len;
        let shared = SharedMut::new(out);
        self.pool.run_ranges(num_rows, TASK_VALUES_MIN.div_ceil(row_len), &|rows| {
            // SAFETY: `run_ranges` gives each row to one task only, and returns before the borrow
            // of `out` ends.
            let part = unsafe { shared.slice(rows.start * row_len, rows.len() * row_len) };
            task(rows.start, part);
        });
    }
}

impl std::fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuDevice({} threads, {:?})", self.pool.num_threads(), self.isa)
    }
}
