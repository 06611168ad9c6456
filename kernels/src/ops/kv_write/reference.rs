use crate::{DType, Tensor};
use half::f16;

pub fn kv_write(cache: &mut Tensor, x: &Tensor, slots: &[u32]) {
    let &[_, kv_heads, block_size, head_dim] = cache.shape() else { unreachable!("checked") };
    for (t, &slot) in slots.iter().enumerate() {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        for (head, x) in x.f32_row(t).chunks_exact(head_dim).enumerate() {
            let start = ((block * kv_heads + head) * block_size + offset) * head_dim;
            if cache.dtype() == DType::F16 {
                let out = &mut cache.f16_mut()[start..start + head_dim];
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = f16::from_f32(x));
            } else {
                cache.f32_mut()[start..start + head_dim].copy_from_slice(x);
            }
        }
    }
}
