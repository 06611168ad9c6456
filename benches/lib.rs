//! What the benches share: weights of the default model's shapes, filled with plain numbers, and an
//! engine without a model.

pub mod engine;

use bytes::Bytes;
use half::f16;
use kernels::DType;

/// Legal blocks of `dtype` for [rows, cols]: small scales, every quant value.
pub fn blocks(dtype: DType, rows: usize, cols: usize) -> Bytes {
    let row_bytes = dtype.row_bytes(cols).expect("whole blocks");
    let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 31 % 251) as u8).collect();
    let scale = f16::from_f32(0.01).to_le_bytes();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        match dtype {
            DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => block[..2].copy_from_slice(&scale),
            DType::Q4K | DType::Q5K => {
                block[..2].copy_from_slice(&scale);
                block[2..4].copy_from_slice(&scale);
            }
            DType::Q6K => block[208..].copy_from_slice(&scale),
            DType::F32 => block.copy_from_slice(&0.01f32.to_le_bytes()),
            DType::F16 => block.copy_from_slice(&scale),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(0.01).to_le_bytes()),
        }
    }
    bytes.into()
}

/// All cores this process may use.
pub fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
