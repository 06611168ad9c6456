//! Unpacking for more rows of activations than one call of a kernel takes: done once for all of
//! them, and the kernels then do nothing but multiply.
#![allow(unsafe_code)]

use super::format::{self, Format, Quantised};
use super::pack::Packed;
use super::{Kernel, Sums};
use crate::device::memory::AlignedVec;

/// One thread's memory, kept from call to call.
pub struct Wide {
    /// A tile's part of a chunk, unpacked.
    pub codes: AlignedVec<u8>,
    /// The sums of each group.
    pub sums: Vec<Sums>,
}

impl Default for Wide {
    fn default() -> Self {
        Wide { codes: AlignedVec::zeroed(0), sums: Vec::new() }
    }
}

impl Wide {
    pub fn fit(&mut self, packed: &Packed, widening: &Widening, num_groups: usize) {
        let bytes = packed.chunks().iter().map(|chunk| widening.num_bytes(chunk.bytes)).max();
        let bytes = bytes.unwrap_or(0);
        if self.codes.len() < bytes {
            self.codes = AlignedVec::zeroed(bytes);
        }
        if self.sums.len() < num_groups {
            self.sums.resize_with(num_groups, || Sums::ZERO);
        }
    }
}

/// What tiles of one format become.
#[derive(Clone, Copy)]
pub struct Widening {
    packed: Format,
    wide: Format,
    widen: fn(&[u8], &mut [u8]),
    /// For tiles that were widened.
    pub kernel: Kernel,
}

impl Widening {
    /// `widen` unpacks blocks of `F` into as many of `Wide<F>`, and `kernel` multiplies with these.
    pub fn new<F: Quantised>(widen: fn(&[u8], &mut [u8]), kernel: Kernel) -> Widening {
        Widening { packed: F::FORMAT, wide: format::Wide::<F>::FORMAT, widen, kernel }
    }

    /// Bytes that as many `packed` ones become.
    pub fn num_bytes(&self, packed: usize) -> usize {
        packed / self.packed.super_block_bytes() * self.packed.blocks * self.wide.block_bytes()
    }

    /// Unpacks a tile's part of a chunk into `wide`, which is `num_bytes` long.
    pub fn widen(&self, packed: &[u8], wide: &mut [u8]) {
        assert_eq!(wide.len(), self.num_bytes(packed.len()), "room for what is unpacked");
        (self.widen)(packed, wide);
    }
}

/// Asks for memory that will be read soon.
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: prefetching changes nothing, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
