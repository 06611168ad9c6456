//! Temperature, min_p, top_k, top_p and the draw itself.

use super::Scratch;
use super::filter::{Candidate, Cut, collect, keep_mass, select_top_k};
use super::softmax::{BLOCK, sum_weights, weight};
use crate::engine::SamplingParams;

impl Scratch {
    /// Draws an id by inverting the distribution at `uniform`, ids in rising order. `max` is the
    /// highest logit and finite.
    pub(super) fn draw(
        &mut self,
        row: &[f32],
        max: f32,
        params: &SamplingParams,
        uniform: f64,
    ) -> u32 {
        let inverse_temperature = 1.0 / params.temperature;
        let floor = min_p_floor(max, params);
        let top_k = params.top_k as usize;
        let has_top_k = top_k > 0 && top_k < row.len();
        let has_top_p = params.top_p < 1.0;
        if !has_top_k && !has_top_p && floor == f32::NEG_INFINITY {
            return self.draw_from_row(row, max, inverse_temperature, uniform);
        }
        let mut cut = Cut::at(floor);
        if has_top_k {
            select_top_k(row, floor, top_k, &mut self.work);
            if self.work.len() == top_k {
                let last = self.work.iter().max_by(|a, b| a.order(b)).expect("top_k is above 0");
                cut = Cut { logit: last.logit, id: last.id };
            }
        }
        let mut total = None;
        if has_top_p && cut.logit == f32::NEG_INFINITY {
            let sum = sum_weights(row, max, inverse_temperature);
            cut = Cut::at(top_p_floor(row.len(), sum, max, params));
            total = Some(sum);
        }
        collect(row, cut, max, inverse_temperature, &mut self.candidates);
        if has_top_p {
            let total = total.unwrap_or_else(|| sum_of(&self.candidates));
            let mass = f64::from(params.top_p) * total;
            keep_mass(&mut self.candidates, mass, &mut self.work);
        }
        draw_from_candidates(&self.candidates, uniform)
    }

    /// The draw from the whole row: sums of blocks first, then one block value by value.
    fn draw_from_row(
        &mut self,
        row: &[f32],
        max: f32,
        inverse_temperature: f32,
        uniform: f64,
    ) -> u32 {
        self.block_sums.clear();
        let blocks = row.chunks(BLOCK).map(|block| sum_weights(block, max, inverse_temperature));
        self.block_sums.extend(blocks);
        let target = uniform * self.block_sums.iter().sum::<f64>();
        let (mut reached, mut last) = (0.0f64, 0);
        for (index, (block, &sum)) in row.chunks(BLOCK).zip(&self.block_sums).enumerate() {
            if reached + sum <= target {
                reached += sum;
                continue;
            }
            for (place, &logit) in block.iter().enumerate() {
                let weight = f64::from(weight(logit, max, inverse_temperature));
                if weight > 0.0 {
                    reached += weight;
                    last = index * BLOCK + place;
                    if reached > target {
                        return last as u32;
                    }
                }
            }
            // The block's sum, added up in another order, was larger by a rounding: its last token
            // it is.
            return last as u32;
        }
        // `target` rounded up to the total: the last token that has a weight.
        let has_weight = |&x: &f32| weight(x, max, inverse_temperature) > 0.0;
        row.iter().rposition(has_weight).expect("the best token has weight 1") as u32
    }
}

fn draw_from_candidates(candidates: &[Candidate], uniform: f64) -> u32 {
    let target = uniform * sum_of(candidates);
    let mut reached = 0.0f64;
    for candidate in candidates {
        reached += f64::from(candidate.weight);
        if reached > target {
            return candidate.id;
        }
    }
    // `target` rounded up to the total.
    let last = candidates.iter().rev().find(|c| c.weight > 0.0);
    last.expect("the best token has weight 1").id
}

fn sum_of(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// The lowest logit that min_p keeps: a token stays if its probability is at least min_p times the
/// highest one.
fn min_p_floor(max: f32, params: &SamplingParams) -> f32 {
    if params.min_p <= 0.0 {
        return f32::NEG_INFINITY;
    }
    let floor = f64::from(max) + f64::from(params.temperature) * f64::from(params.min_p).ln();
    // The best token always stays.
    (floor as f32).min(max)
}

/// A logit below which no token can be in the nucleus: tokens of at most (1 - top_p) / n of the
/// mass are worth at most 1 - top_p together, so all of them lie behind the one that reaches top_p.
/// Keeps the candidates few.
fn top_p_floor(num_tokens: usize, sum: f64, max: f32, params: &SamplingParams) -> f32 {
    /// Room for the rounding of weights and sums.
    const MARGIN: f64 = 0.5;
    let rest = (1.0 - f64::from(params.top_p)) * sum / num_tokens as f64 * MARGIN;
    let floor = f64::from(max) + f64::from(params.temperature) * rest.ln();
    (floor as f32).min(max)
}
