//! `Widening` with 512-bit vectors. The kernels are the same functions as for packed weights, so
//! the numbers are the same.
#![allow(unsafe_code)]

use super::super::format::{self, LANES_BYTES, Quantised, WORD_BYTES};
use super::super::widening::Widening;
use super::{quantised_kernel, unpack};
use crate::DType;
use std::arch::x86_64::*;

/// `None` for formats that the kernels need not unpack.
pub fn widening(dtype: DType) -> Option<Widening> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => None,
        DType::Q8_0 => Some(of::<format::Q8_0>()),
        DType::Q4_0 => Some(of::<format::Q4_0>()),
        DType::Q5_0 => Some(of::<format::Q5_0>()),
        DType::Q4K => Some(of::<format::Q4K>()),
        DType::Q5K => Some(of::<format::Q5K>()),
        DType::Q6K => Some(of::<format::Q6K>()),
    }
}

fn of<F: Quantised>() -> Widening {
    // SAFETY: `linear_many` asserted that the machine has the instructions; `Widening::widen`,
    // which alone calls this, asserted the lengths.
    let widen = |packed: &[u8], out: &mut [u8]| unsafe { widen::<F>(packed, out) };
    Widening::new::<F>(widen, quantised_kernel::<format::Wide<F>>)
}

/// # Safety
/// AVX-512 as in `Isa::Avx512`; `out` has a wide block for each packed one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn widen<F: Quantised>(packed: &[u8], out: &mut [u8]) {
    let (format, wide) = const { (F::FORMAT, format::Wide::<F>::FORMAT) };
    let mut out = out.as_mut_ptr();
    for super_block in packed.chunks_exact(format.super_block_bytes()) {
        let (header, blocks) = super_block.split_at(format.header_bytes);
        for block in blocks.chunks_exact(format.block_bytes()) {
            // SAFETY: header and block are whole ones, and `out` moves by one wide block for each.
            unsafe {
                let block = unpack::<F>(header.as_ptr(), block.as_ptr());
                _mm512_storeu_ps(out.cast(), block.scales);
                if wide.scale_bytes() > LANES_BYTES {
                    _mm512_storeu_ps(out.add(LANES_BYTES).cast(), block.second);
                }
                let codes = out.add(wide.scale_bytes());
                for (g, word) in block.words.into_iter().enumerate() {
                    _mm512_storeu_si512(codes.add(g * WORD_BYTES).cast(), word);
                }
                out = out.add(wide.block_bytes());
            }
        }
    }
}
