use crate::device::cpu::CpuDevice;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};

pub fn silu_mul(device: &CpuDevice, out: &mut [f32], gate: &[f32], up: &[f32]) {
    device.for_rows(out, 1, &|start, out| {
        let values = start..start + out.len();
        let (gate, up) = (&gate[values.clone()], &up[values]);
        dispatch(device.isa, SiluMul { out, gate, up });
    });
}

struct SiluMul<'a> {
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        let (gate, gate_rest) = self.gate.as_chunks::<LANES>();
        let (up, up_rest) = self.up.as_chunks::<LANES>();
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            simd.store(silu_mul_16(simd, simd.load(gate), simd.load(up)), out);
        }
        // The rest goes through the same vector code: where a range ends must not show in the bits.
        let rest = silu_mul_16(simd, simd.load_part(gate_rest), simd.load_part(up_rest));
        simd.store_part(rest, out_rest);
    }
}

#[inline(always)]
fn silu_mul_16<S: Simd>(simd: S, gate: S::V, up: S::V) -> S::V {
    let exp = simd.exp(simd.sub(simd.splat(0.0), gate));
    simd.mul(simd.div(gate, simd.add(simd.splat(1.0), exp)), up)
}
