use crate::device::cpu::CpuDevice;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};
use crate::{DType, Tensor};
use half::f16;

/// On the calling thread alone: even a large step writes a few megabytes at most, and slots that
/// are promised but not checked to differ are no ground for writing from several threads.
pub fn kv_write(device: &CpuDevice, cache: &mut Tensor, x: &Tensor, slots: &[u32]) {
    let &[_, kv_heads, block_size, head_dim] = cache.shape() else { unreachable!("checked") };
    if cache.dtype() != DType::F16 {
        return super::reference::kv_write(cache, x, slots);
    }
    let cache = cache.f16_mut();
    let (x, shape) = (x.f32(), [kv_heads, block_size, head_dim]);
    dispatch(device.isa, WriteF16 { cache, x, slots, shape });
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
