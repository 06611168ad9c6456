//! The CPU: its threads and the widest instructions it has.

use super::thread_pool::ThreadPool;
use std::sync::Arc;

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
        let best = Self::detect_hardware();
        match std::env::var("MONSOON_ISA").as_deref() {
            Ok("portable") => Isa::Portable.min(best),
            Ok("avx2") => Isa::Avx2.min(best),
            Ok("avx512") => Isa::Avx512.min(best),
            _ => best,
        }
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
        let best = Self::detect_hardware();
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
}

impl CpuDevice {
    /// `num_threads`: compute threads, the calling rank thread included. `pin_to`: one core per
    /// thread, or none.
    pub fn new(num_threads: usize, pin_to: Option<&[usize]>) -> Self {
        Self { pool: Arc::new(ThreadPool::new(num_threads, pin_to)), isa: Isa::detect() }
    }

    /// The same threads with other instructions, for tests that compare them.
    pub fn with_isa(&self, isa: Isa) -> Self {
        Self { pool: self.pool.clone(), isa }
    }
}

impl std::fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuDevice({} threads, {:?})", self.pool.num_threads(), self.isa)
    }
}
