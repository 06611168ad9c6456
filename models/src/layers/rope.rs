//! Tables of cosines and sines for rotary positions, with or without YaRN.

use crate::config::{RopeConfig, YarnConfig};
use kernels::ops::RopeTable;
use kernels::{Backend, DType, KernelError, Tensor};
use std::f64::consts::PI;

/// The table for positions 0..num_positions, computed in f64 and rounded once.
///
/// Errors: `OutOfMemory`.
pub fn rope_table(
    backend: &Backend,
    config: &RopeConfig,
    num_positions: usize,
) -> Result<RopeTable, KernelError> {
    let frequencies = frequencies(config);
    let magnitude = config.yarn.as_ref().map_or(1.0, |yarn| yarn.attention_factor);
    let shape = [num_positions, frequencies.len()];
    let mut cos = Tensor::zeros(DType::F32, &shape)?;
    let mut sin = Tensor::zeros(DType::F32, &shape)?;
    let rows = cos.f32_mut().chunks_exact_mut(shape[1]);
    let rows = rows.zip(sin.f32_mut().chunks_exact_mut(shape[1]));
    for (position, (cos, sin)) in rows.enumerate() {
        for (i, frequency) in frequencies.iter().enumerate() {
            let (s, c) = (position as f64 * frequency).sin_cos();
            cos[i] = (c * magnitude) as f32;
            sin[i] = (s * magnitude) as f32;
        }
    }
    let place = |table: Tensor| match backend {
        Backend::Cuda(_) => Tensor::from_f32_on(backend, &shape, table.f32()),
        Backend::Reference | Backend::Cpu(_) => Ok(table),
    };
    Ok(RopeTable { cos: place(cos)?, sin: place(sin)? })
}

/// Radians per position, one for each rotated pair.
fn frequencies(config: &RopeConfig) -> Vec<f64> {
    let half = config.rotary_dim / 2;
    let plain = |i: usize| config.theta.powf(-(2.0 * i as f64) / config.rotary_dim as f64);
    let Some(yarn) = &config.yarn else { return (0..half).map(plain).collect() };
    let (low, high) = ramp_bounds(config, yarn);
    (0..half)
        .map(|i| {
            // Fast pairs (ramp 0) keep their frequency, slow ones (ramp 1) are stretched.
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            plain(i) * ((1.0 - ramp) + ramp / yarn.factor)
        })
        .collect()
}

/// The pairs between which frequencies pass from kept to stretched.
///
/// Source: Peng et al., "YaRN", 2023, in the form of transformers.
fn ramp_bounds(config: &RopeConfig, yarn: &YarnConfig) -> (f64, f64) {
    let width = config.rotary_dim as f64;
    let original = yarn.original_max_position_embeddings as f64;
    // The pair that turns `turns` times over the original length.
    let pair =
        |turns: f64| width * (original / (2.0 * PI * turns)).ln() / (2.0 * config.theta.ln());
    let (mut low, mut high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(width - 1.0));
    if low == high {
        high += 0.001;
    }
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yarn(factor: f64) -> RopeConfig {
        let yarn = YarnConfig {
            factor,
            original_max_position_embeddings: 32768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138629,
            truncate: true,
        };
        RopeConfig { theta: 1e6, rotary_dim: 128, yarn: Some(yarn) }
    }

    #[test]
    fn yarn_ramp_has_the_published_bounds() {
        let config = yarn(4.0);
        assert_eq!(ramp_bounds(&config, config.yarn.as_ref().unwrap()), (23.0, 40.0));
        let (kept, all) = (RopeConfig { yarn: None, ..config.clone() }, frequencies(&config));
        let plain = frequencies(&kept);
        assert_eq!((all[0], all[23]), (plain[0], plain[23]));
        assert_eq!((all[40], all[63]), (plain[40] / 4.0, plain[63] / 4.0));
        assert!(all[30] < plain[30] && all[30] > plain[30] / 4.0);
    }

    #[test]
    fn table_holds_cosine_and_sine_times_the_magnitude() {
        let table = rope_table(&Backend::Reference, &yarn(4.0), 3).unwrap();
        assert_eq!(table.cos.shape(), [3, 64]);
        assert_eq!(table.cos.f32_row(0)[5], 1.138629);
        assert_eq!(table.sin.f32_row(2)[0], (2f64.sin() * 1.138629) as f32);
        let plain = RopeConfig { theta: 100.0, rotary_dim: 4, yarn: None };
        let table = rope_table(&Backend::Reference, &plain, 8).unwrap();
        assert_eq!(table.cos.f32_row(7), [7f64.cos() as f32, 0.7f64.cos() as f32]);
    }
}
