use super::{Kind, PairedBlock};
use crate::{DType, Tensor};
use half::{bf16, f16};

pub fn kv_write(kind: Kind, cache: &mut Tensor, x: &Tensor, slots: &[u32]) {
    let &[_, kv_heads, block_size, head_dim] = cache.shape() else { unreachable!("checked") };
    for (t, &slot) in slots.iter().enumerate() {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        for (head, x) in x.f32_row(t).chunks_exact(head_dim).enumerate() {
            let block_start = (block * kv_heads + head) * block_size * head_dim;
            let start = block_start + offset * head_dim;
            match cache.dtype() {
                DType::F16 => {
                    let out = &mut cache.f16_mut()[start..start + head_dim];
                    out.iter_mut().zip(x).for_each(|(out, &x)| *out = f16::from_f32(x));
                }
                DType::BF16 => {
                    let layout = PairedBlock { block_size, head_dim };
                    for (d, &x) in x.iter().enumerate() {
                        let at = block_start + layout.at(kind, offset, d);
                        cache.bf16_mut()[at] = bf16::from_f32(x);
                    }
                }
                _ => cache.f32_mut()[start..start + head_dim].copy_from_slice(x),
            }
        }
    }
}
