use super::{Kind, PairedBlock};
use crate::device::cpu::CpuDevice;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};
use crate::{DType, Tensor};
use half::{bf16, f16};

/// On the calling thread alone: even a large step writes a few megabytes at most, and slots that
/// are promised but not checked to differ are no ground for writing from several threads.
pub fn kv_write(device: &CpuDevice, kind: Kind, cache: &mut Tensor, x: &Tensor, slots: &[u32]) {
    let &[_, kv_heads, block_size, head_dim] = cache.shape() else { unreachable!("checked") };
    let shape = [kv_heads, block_size, head_dim];
    match cache.dtype() {
        DType::F16 => {
            let cache = cache.f16_mut();
            dispatch(device.isa, WriteF16 { cache, x: x.f32(), slots, shape });
        }
        DType::BF16 => write_bf16(kind, cache.bf16_mut(), x.f32(), slots, shape),
        _ => super::reference::kv_write(kind, cache, x, slots),
    }
}

fn write_bf16(
    kind: Kind,
    cache: &mut [bf16],
    x: &[f32],
    slots: &[u32],
    [kv_heads, block_size, head_dim]: [usize; 3],
) {
    let layout = PairedBlock { block_size, head_dim };
    let part_len = block_size * head_dim;
    for (row, &slot) in x.chunks_exact(kv_heads * head_dim).zip(slots) {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        let parts = cache[block * kv_heads * part_len..].chunks_exact_mut(part_len);
        for (x, part) in row.chunks_exact(head_dim).zip(parts) {
            for (i, x) in x.as_chunks::<2>().0.iter().enumerate() {
                let pair = [bf16::from_f32(x[0]), bf16::from_f32(x[1])];
                match kind {
                    Kind::Keys => {
                        part[layout.key_at(offset, 2 * i)..][..2].copy_from_slice(&pair);
                    }
                    Kind::Values => {
                        part[layout.value_at(offset, 2 * i)] = pair[0];
                        part[layout.value_at(offset, 2 * i + 1)] = pair[1];
                    }
                }
            }
        }
    }
}

struct WriteF16<'a> {
    cache: &'a mut [f16],
    x: &'a [f32],
    slots: &'a [u32],
    /// kv_heads, block_size, head_dim
    shape: [usize; 3],
}

impl Kernel for WriteF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [kv_heads, block_size, head_dim] = self.shape;
        let rows = self.x.chunks_exact(kv_heads * head_dim);
        for (row, &slot) in rows.zip(self.slots) {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            for (head, x) in row.chunks_exact(head_dim).enumerate() {
                let start = ((block * kv_heads + head) * block_size + offset) * head_dim;
                let out = &mut self.cache[start..start + head_dim];
                let (out, out_rest) = out.as_chunks_mut::<LANES>();
                let (x, x_rest) = x.as_chunks::<LANES>();
                for (out, x) in out.iter_mut().zip(x) {
                    simd.store_f16(simd.load(x), out);
                }
                for (out, &x) in out_rest.iter_mut().zip(x_rest) {
                    *out = f16::from_f32(x);
                }
            }
        }
    }
}
