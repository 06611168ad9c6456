//! Which tokens stay in the draw. No full sort: a pass that skips blocks below the bar, then
//! selection among what is left.

use super::softmax::{BLOCK, block_max, weight};
use std::cmp::Ordering;

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub logit: f32,
    pub weight: f32,
    pub id: u32,
}

impl Candidate {
    /// Best first: the higher logit, then the lower id. Zeros of either sign are equal.
    pub fn order(&self, other: &Candidate) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).expect("NaN was replaced");
        by_logit.then(self.id.cmp(&other.id))
    }
}

/// The last token that stays: a token stays if its logit is higher, or equal with an id not above
/// `id`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    pub logit: f32,
    pub id: u32,
}

impl Cut {
    /// All tokens with at least this logit.
    pub fn at(logit: f32) -> Cut {
        Cut { logit, id: u32::MAX }
    }

    /// Whether a token stays; never so at -inf.
    fn keeps(&self, logit: f32, id: u32) -> bool {
        (logit > self.logit || (logit == self.logit && id <= self.id)) && logit != f32::NEG_INFINITY
    }
}

/// Leaves in `out` the `k` best of the tokens that `floor` keeps, in any order.
pub fn select_top_k(row: &[f32], floor: f32, k: usize, out: &mut Vec<Candidate>) {
    /// Room beyond k, so that small k are not cut back too often.
    const SLACK: usize = 64;
    out.clear();
    if k == 0 {
        return;
    }
    let len_max = k.saturating_mul(2).saturating_add(SLACK);
    let mut bar = if floor == f32::NEG_INFINITY { floor } else { floor.next_down() };
    for (index, block) in row.chunks(BLOCK).enumerate() {
        if block_max(block) <= bar {
            continue;
        }
        for (place, &logit) in block.iter().enumerate() {
            if logit > bar {
                out.push(Candidate { logit, weight: 0.0, id: (index * BLOCK + place) as u32 });
                if out.len() == len_max {
                    // Ids come in rising order, so that later tokens have to be strictly better
                    // than the k-th.
                    bar = keep_best(out, k);
                }
            }
        }
    }
    if out.len() > k {
        keep_best(out, k);
    }
}

/// Leaves in `out` every token that `cut` keeps, by id, with its weight.
pub fn collect(
    row: &[f32],
    cut: Cut,
    max: f32,
    inverse_temperature: f32,
    out: &mut Vec<Candidate>,
) {
    out.clear();
    for (index, block) in row.chunks(BLOCK).enumerate() {
        if block_max(block) < cut.logit {
            continue;
        }
        for (place, &logit) in block.iter().enumerate() {
            let id = (index * BLOCK + place) as u32;
            if cut.keeps(logit, id) {
                let weight = weight(logit, max, inverse_temperature);
                out.push(Candidate { logit, weight, id });
            }
        }
    }
}

/// Drops all but the best candidates that together reach `mass`, the one that reaches it included.
/// At least one stays.
pub fn keep_mass(candidates: &mut Vec<Candidate>, mass: f64, work: &mut Vec<Candidate>) {
    /// Few enough to be sorted.
    const SORTED_MAX: usize = 64;
    work.clear();
    work.extend_from_slice(candidates);
    // work[..start] are in and better than all others, work[end..] are out and worse.
    let (mut start, mut end, mut reached) = (0, work.len(), 0.0f64);
    while end - start > SORTED_MAX {
        let half = (end - start) / 2;
        work[start..end].select_nth_unstable_by(half, Candidate::order);
        let middle = start + half;
        let better: f64 = work[start..middle].iter().map(|c| f64::from(c.weight)).sum();
        if reached + better >= mass {
            end = middle;
        } else {
            (start, reached) = (middle, reached + better);
        }
    }
    work[start..end].sort_unstable_by(Candidate::order);
    let mut last = work[start];
    for candidate in &work[start..end] {
        last = *candidate;
        reached += f64::from(last.weight);
        if reached >= mass {
            break;
        }
    }
    let cut = Cut { logit: last.logit, id: last.id };
    candidates.retain(|c| cut.keeps(c.logit, c.id));
}

/// Truncates to the k best and returns the logit of the last of them.
fn keep_best(out: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, last, _) = out.select_nth_unstable_by(k - 1, Candidate::order);
    let logit = last.logit;
    out.truncate(k);
    logit
}
