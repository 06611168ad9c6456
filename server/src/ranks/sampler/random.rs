//! The counter-based generator behind every draw: a function of (seed, position) with no state.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox 4x32 with ten
//! rounds).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A number in [0, 1) with 53 random bits.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let counter = [position as u32, (position >> 32) as u32, 0, 0];
    let bits = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(bits[0]) << 32 | u64::from(bits[1]);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library (kat_vectors).
    #[test]
    fn philox_gives_the_published_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn every_bit_of_seed_and_position_matters() {
        let base = uniform(7, 11);
        for bit in 0..64 {
            assert_ne!(uniform(7 ^ 1 << bit, 11), base, "seed bit {bit}");
            assert_ne!(uniform(7, 11 ^ 1 << bit), base, "position bit {bit}");
        }
    }

    #[test]
    fn uniforms_fill_the_unit_interval_evenly() {
        let mut counts = [0u32; 64];
        for position in 0..64_000 {
            let u = uniform(3, position);
            assert!((0.0..1.0).contains(&u));
            counts[(u * 64.0) as usize] += 1;
        }
        let chi_square: f64 =
            counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
        // 63 degrees of freedom: above 113 one time in ten thousand, below 30 as well.
        assert!((30.0..113.0).contains(&chi_square), "chi square {chi_square}");
    }
}
