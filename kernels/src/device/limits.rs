//! What a CPU can do at the most, measured: the yardsticks of the benches. No data sheet has these
//! numbers: on a shared host they change from minute to minute, so they are taken beside what is
//! compared with them.
#![allow(unsafe_code)]

use super::arena::Arena;
use super::cpu::{CpuDevice, Isa};
use std::hint::black_box;
use std::time::Instant;

/// Sums that are added to in turn: more than the instruction's latency times its rate.
const CHAINS: usize = 12;
/// Instructions of one chain and task: some milliseconds.
const STEPS: usize = 2_000_000;
/// Operations of one instruction with 512 bits: a product and a sum for each byte.
const INT8_OPS: usize = 2 * 64;
/// As `INT8_OPS`, for bf16.
const BF16_OPS: usize = 2 * 32;
/// Memory that `Reader` reads: several times the largest last-level cache of one socket.
const READ_BYTES: usize = 512 << 20;
/// Bytes of one task of a read.
const TASK_BYTES: usize = 1 << 20;

/// Operations a second of byte products in registers, on all threads; `None` where the machine has
/// no instruction for them.
pub fn int8_ops_per_second(device: &CpuDevice) -> Option<f64> {
    match device.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => {
            // SAFETY: `Isa::Avx512` says that the machine has VNNI.
            Some(ops_per_second(device, INT8_OPS, &|| unsafe { multiply_bytes() }))
        }
        _ => None,
    }
}

/// As `int8_ops_per_second`, for bf16.
pub fn bf16_ops_per_second(device: &CpuDevice) -> Option<f64> {
    match device.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => {
            // SAFETY: `Isa::Avx512Bf16` says that the machine has the instruction.
            Some(ops_per_second(device, BF16_OPS, &|| unsafe { multiply_bf16() }))
        }
        _ => None,
    }
}

fn ops_per_second(device: &CpuDevice, ops: usize, work: &(dyn Fn() + Sync)) -> f64 {
    let num_threads = device.pool.num_threads();
    // Wakes the threads.
    device.pool.run(num_threads, &|_| work());
    let start = Instant::now();
    device.pool.run(num_threads, &|_| work());
    (num_threads * STEPS * CHAINS * ops) as f64 / start.elapsed().as_secs_f64()
}

/// # Safety
/// AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn multiply_bytes() {
    use std::arch::x86_64::*;
    let (a, b) = black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(2)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

/// # Safety
/// AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_bf16() {
    use std::arch::x86_64::*;
    let one = _mm512_cvtneps_pbh(_mm512_set1_ps(1.0));
    let one = black_box(_mm512_castsi256_si512(_mm256_castps_si256(
        // SAFETY: both are 256 bits.
        unsafe { std::mem::transmute::<__m256bh, __m256>(one) },
    )));
    // SAFETY: both are 512 bits.
    let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(one) };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, a);
        }
    }
    black_box(sums);
}

/// Memory that is read from end to end.
pub struct Reader {
    bytes: super::arena::ArenaBytes,
}

impl Reader {
    /// Panics if there is no memory.
    pub fn new(device: &CpuDevice) -> Reader {
        let mut bytes = Arena::default().try_zeroed(READ_BYTES).expect("memory to read");
        let shared = super::memory::SharedMut::new(&mut bytes[..]);
        device.pool.run(READ_BYTES / TASK_BYTES, &|i| {
            // SAFETY: tasks do not overlap, and `bytes` outlives the region.
            unsafe { shared.slice(i * TASK_BYTES, TASK_BYTES) }.fill(1);
        });
        Reader { bytes }
    }

    /// Bytes a second that all threads read, one after the other.
    pub fn bytes_per_second(&self, device: &CpuDevice) -> f64 {
        let start = Instant::now();
        device.pool.run(READ_BYTES / TASK_BYTES, &|i| {
            let task = &self.bytes[i * TASK_BYTES..][..TASK_BYTES];
            black_box(sum_words(task));
        });
        READ_BYTES as f64 / start.elapsed().as_secs_f64()
    }
}

/// The sum of all words, in as many parts as there are words in two cache lines.
fn sum_words(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for words in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(words.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}
