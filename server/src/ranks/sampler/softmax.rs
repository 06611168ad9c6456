//! Passes over a whole row, written so that the compiler vectorises them.

use super::filter::Candidate;

/// Values that a pass takes at a time: 4 KiB, so that a second look at a block finds it in the
/// first cache.
pub const BLOCK: usize = 1024;

/// NaN and infinities become -inf. The check alone is cheap; blocks are written to only if
/// something is wrong.
pub fn replace_non_finite(row: &mut [f32]) {
    for block in row.chunks_mut(BLOCK) {
        let broken = block.iter().fold(false, |any, x| any | !x.is_finite());
        if broken {
            block.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = f32::NEG_INFINITY);
        }
    }
}

/// The highest logit and the lowest id that has it; id 0 and -inf when all are -inf.
pub fn argmax(row: &[f32]) -> Candidate {
    let mut best = Candidate { logit: f32::NEG_INFINITY, weight: 0.0, id: 0 };
    let mut best_block = 0;
    for (index, block) in row.chunks(BLOCK).enumerate() {
        let max = block_max(block);
        if max > best.logit {
            (best.logit, best_block) = (max, index);
        }
    }
    let start = best_block * BLOCK;
    let place = row[start..].iter().position(|&x| x == best.logit).unwrap_or(0);
    Candidate { id: (start + place) as u32, ..best }
}

/// The highest value of a block without NaN.
pub fn block_max(block: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut parts = block.chunks_exact(LANES);
    for part in &mut parts {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(parts.remainder()).fold(f32::NEG_INFINITY, |max, &x| max.max(x))
}

/// Sum of `weight` over the values, in f64: eight lanes, lane i takes values i, i + 8, ..., then
/// the lanes in order.
pub fn sum_weights(values: &[f32], max: f32, inverse_temperature: f32) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    let mut parts = values.chunks_exact(LANES);
    for part in &mut parts {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane += f64::from(weight(x, max, inverse_temperature));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(parts.remainder()) {
        *lane += f64::from(weight(x, max, inverse_temperature));
    }
    lanes.iter().sum()
}

/// exp((logit - max) / temperature): the probability before it is divided by the sum. `logit` is at
/// most `max`, or -inf.
///
/// Numbers: within 3e-7 of the exponential of its rounded argument; 0 below exp(-87).
#[inline]
pub fn weight(logit: f32, max: f32, inverse_temperature: f32) -> f32 {
    /// Below this the result would not be a normal number.
    const ARGUMENT_MIN: f32 = -87.0;
    /// 1.5 * 2^23: adding it rounds to an integer, which then is the difference of the bits.
    const ROUNDER: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few bits, so that its product with an integer is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let argument = (logit - max) * inverse_temperature;
    let x = if argument > ARGUMENT_MIN { argument } else { ARGUMENT_MIN };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // The Taylor series to r^7; |r| <= ln(2) / 2, so that the next term is below 6e-9.
    let tail = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0));
    let series = 1.0 + r + r * r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * tail)));
    let exponent = rounded.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23;
    let value = series * f32::from_bits(exponent);
    if argument > ARGUMENT_MIN { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_is_the_exponential() {
        for i in 0..200_000 {
            let x = -87.0 * (i as f32) / 200_000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(weight(x, 0.0, 1.0)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(weight(5.0, 5.0, 100.0), 1.0);
        for (logit, max, inverse) in
            [(f32::NEG_INFINITY, 3.0, 0.5), (-1e30, 3.0, 1e5), (f32::MIN, f32::MAX, 1.0)]
        {
            assert_eq!(weight(logit, max, inverse), 0.0);
        }
    }

    #[test]
    fn argmax_takes_the_lowest_id_on_a_tie_wherever_it_lies() {
        for (len, ties) in [(1, vec![0]), (5000, vec![4999]), (5000, vec![1023, 1024, 4000])] {
            let mut row = vec![-3.0f32; len];
            ties.iter().for_each(|&i| row[i] = 2.5);
            let best = argmax(&row);
            assert_eq!((best.id as usize, best.logit), (ties[0], 2.5));
        }
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]).logit, f32::NEG_INFINITY);
    }

    #[test]
    fn only_values_that_are_not_finite_are_replaced() {
        let mut row: Vec<f32> = (0..3000).map(|i| i as f32).collect();
        (row[7], row[1500], row[2999]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        replace_non_finite(&mut row);
        for (i, &x) in row.iter().enumerate() {
            let broken = [7, 1500, 2999].contains(&i);
            assert_eq!(x, if broken { f32::NEG_INFINITY } else { i as f32 });
        }
    }
}
