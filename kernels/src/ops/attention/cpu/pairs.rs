//! One unit over one segment of keys with bf16 dot products, straight from the cache. Queries are
//! rounded to bf16 and so are weights, but for the sum of weights; all sums are f32. The order is
//! that of `AttendSegment`: pairs of dimensions in order, pairs of keys in order, tile by tile.
#![allow(unsafe_code)]

use super::segment::AttendSegment;
use super::{Call, SEGMENT_KEYS, Shape, TILE_KEYS, Unit, clear_state};
use crate::device::cpu::Isa;
use crate::device::simd::LANES;
use crate::ops::kv_write::PairedBlock;
use half::bf16;
use std::arch::x86_64::*;

/// Rows whose sums are in registers at once.
const PANEL_ROWS: usize = 6;
const TILE_VECTORS: usize = TILE_KEYS / LANES;
const TILE_PAIRS: usize = TILE_KEYS / 2;
/// Numbers of a cache line.
const LINE_NUMBERS: usize = 32;
/// In place of the score of a key that is not seen: far below any score, yet no infinity, of which
/// the difference to itself is none.
const UNSEEN: f32 = -1e30;
/// 2^r = 1 + r p(r) for |r| <= 1/2: p interpolated at Chebyshev nodes, relative error 7e-6, a
/// hundredth of what rounding to bf16 may do.
const EXP_2_P: [f32; 4] = [0.693_136_7, 0.240_225_3, 0.055_838_283, 0.009_656_71];

/// Whether `attend` can be used: 16 keys and 16 dimensions of a value lie side by side.
pub fn fits(isa: Isa, shape: Shape) -> bool {
    isa.min(Isa::hardware()) == Isa::Avx512Bf16
        && shape.block_size.is_multiple_of(LANES)
        && shape.head_dim.is_multiple_of(LANES)
}

/// Computes the state of all rows over the keys of one segment. Panics unless `fits`.
pub fn attend(isa: Isa, job: AttendSegment<bf16>) {
    assert!(fits(isa, job.call.shape), "no bf16 pairs here");
    // SAFETY: `fits` found AVX-512 F, BW, DQ, VL and BF16.
    unsafe { attend_segment(job) }
}

/// Where a tile lies in memory.
struct Tile {
    /// For each 16 keys: their first pair of dimensions. The next is 2 * block_size numbers on.
    keys: [*const bf16; TILE_VECTORS],
    /// For each pair of keys: their values.
    values: [*const bf16; TILE_PAIRS],
    num_keys: usize,
}

impl Tile {
    /// The keys and values from position `start` on, as far as the unit and the tile go.
    /// `last_value`, `2 * head_dim` numbers, gets the values of a last key that has no second one
    /// beside it: only the last tile of a unit can have one.
    fn new(call: &Call<bf16>, unit: Unit, start: usize, last_value: *mut bf16) -> Tile {
        let Shape { kv_heads, block_size, head_dim, .. } = call.shape;
        let layout = PairedBlock { block_size, head_dim };
        let part_len = block_size * head_dim;
        let blocks = &call.batch.block_tables[call.batch.block_table_start[unit.seq] as usize..];
        let num_keys = unit.num_keys.saturating_sub(start).min(TILE_KEYS);
        let mut tile = Tile {
            keys: [std::ptr::null(); TILE_VECTORS],
            values: [std::ptr::null(); TILE_PAIRS],
            num_keys,
        };
        for i in 0..num_keys.div_ceil(LANES) {
            let (index, offset) =
                ((start + i * LANES) / block_size, (start + i * LANES) % block_size);
            let part_start = (blocks[index] as usize * kv_heads + unit.kv_head) * part_len;
            let keys = &call.keys[part_start..part_start + part_len];
            let values = &call.values[part_start..part_start + part_len];
            tile.keys[i] = &raw const keys[layout.key_at(offset, 0)];
            let num_pairs = (num_keys - i * LANES).min(LANES).div_ceil(2);
            for (pair, at) in tile.values[i * LANES / 2..][..num_pairs].iter_mut().enumerate() {
                *at = &raw const values[layout.value_at(offset + 2 * pair, 0)];
            }
            if (num_keys - i * LANES) < LANES && !num_keys.is_multiple_of(2) {
                // What lies in the place of the missing key may be anything.
                let pair = &values[layout.value_at(offset + 2 * (num_pairs - 1), 0)..];
                for (d, pair) in pair[..2 * head_dim].as_chunks::<2>().0.iter().enumerate() {
                    // SAFETY: `last_value` has 2 * head_dim numbers (`Scratch::fit`).
                    unsafe {
                        last_value.add(2 * d).cast::<[bf16; 2]>().write([pair[0], bf16::ZERO])
                    };
                }
                tile.values[i * LANES / 2 + num_pairs - 1] = last_value;
            }
        }
        tile
    }

    /// Asks for all of it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prefetch(&self, shape: Shape) {
        let num_vectors = self.num_keys.div_ceil(LANES);
        for keys in &self.keys[..num_vectors] {
            for pair in 0..shape.head_dim / 2 {
                // Prefetching reads nothing, wherever it points.
                let at = keys.wrapping_add(pair * 2 * shape.block_size);
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
            }
        }
        for values in &self.values[..self.num_keys.div_ceil(2)] {
            for line in 0..(2 * shape.head_dim).div_ceil(LINE_NUMBERS) {
                _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(line * LINE_NUMBERS).cast());
            }
        }
    }
}

/// The numbers of one panel of rows: scores, then weights.
#[repr(align(64))]
struct Panel {
    scores: [[f32; TILE_KEYS]; PANEL_ROWS],
    weights: [[bf16; TILE_KEYS]; PANEL_ROWS],
}

/// # Safety
/// AVX-512 F, BW, DQ, VL and BF16; a shape that `fits`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn attend_segment(job: AttendSegment<bf16>) {
    let AttendSegment { call, unit, segment, tiles, state } = job;
    let shape = call.shape;
    let (num_rows, state_len) = (unit.num_rows(shape), shape.state_len());
    clear_state(state, shape);
    round_queries(call, unit, &mut tiles.rounded_queries);
    let last_value = tiles.last_value.as_mut_ptr();
    let queries = &tiles.rounded_queries[..num_rows * shape.head_dim];
    let (start, first_position) = (segment * SEGMENT_KEYS, unit.num_keys - unit.num_tokens);
    let end = unit.num_keys.min(start + SEGMENT_KEYS);
    let mut panel = Panel {
        scores: [[0.0; TILE_KEYS]; PANEL_ROWS],
        weights: [[bf16::ZERO; TILE_KEYS]; PANEL_ROWS],
    };
    let mut tile = Tile::new(call, unit, start, last_value);
    for tile_start in (start..end).step_by(TILE_KEYS) {
        // At the end of the segment it is the first tile of the next one, or empty.
        let next = Tile::new(call, unit, tile_start + TILE_KEYS, last_value);
        next.prefetch(shape);
        // Rows of tokens before the tile see none of its keys.
        let first_row = tile_start.saturating_sub(first_position) * shape.group;
        let num_panels = (num_rows - first_row).div_ceil(PANEL_ROWS);
        let mut row = first_row;
        for i in 1..=num_panels {
            let panel_end = first_row + (num_rows - first_row) * i / num_panels;
            let num_seen = std::array::from_fn(|i| {
                let position = first_position + (row + i) / shape.group;
                (position + 1 - tile_start).min(tile.num_keys)
            });
            let rows = Rows {
                queries: &queries[row * shape.head_dim..panel_end * shape.head_dim],
                num_seen,
                state: &mut state[row * state_len..panel_end * state_len],
            };
            // SAFETY: the features are those of this function. The pointers of a tile lie in the
            // cache, with all that is read from them (`Tile::new`).
            unsafe {
                match panel_end - row {
                    1 => attend_panel::<1>(shape, &tile, &mut panel, rows),
                    2 => attend_panel::<2>(shape, &tile, &mut panel, rows),
                    3 => attend_panel::<3>(shape, &tile, &mut panel, rows),
                    4 => attend_panel::<4>(shape, &tile, &mut panel, rows),
                    5 => attend_panel::<5>(shape, &tile, &mut panel, rows),
                    _ => attend_panel::<PANEL_ROWS>(shape, &tile, &mut panel, rows),
                }
            }
            row = panel_end;
        }
        tile = next;
    }
}

/// The queries of a unit times scale, rounded.
fn round_queries(call: &Call<bf16>, unit: Unit, queries: &mut [bf16]) {
    let Shape { kv_heads, group, head_dim, .. } = call.shape;
    let row_len = kv_heads * group * head_dim;
    let part_len = group * head_dim;
    for (t, queries) in queries.chunks_exact_mut(part_len).take(unit.num_tokens).enumerate() {
        let start = (unit.first_token + t) * row_len + unit.kv_head * part_len;
        for (query, q) in queries.iter_mut().zip(&call.q[start..start + part_len]) {
            *query = bf16::from_f32(q * call.scale);
        }
    }
}

/// Some rows of a unit.
struct Rows<'a> {
    /// [rows, head_dim]
    queries: &'a [bf16],
    /// How many keys of the tile each row sees.
    num_seen: [usize; PANEL_ROWS],
    /// [rows, state_len]
    state: &'a mut [f32],
}

/// R rows over one tile.
///
/// # Safety
/// The features of `attend_segment`; a tile of the cache whose shape is `shape`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn attend_panel<const R: usize>(
    shape: Shape,
    tile: &Tile,
    panel: &mut Panel,
    rows: Rows<'_>,
) {
    let num_vectors = tile.num_keys.div_ceil(LANES);
    assert_eq!(rows.queries.len(), R * shape.head_dim, "queries of other rows");
    assert_eq!(rows.state.len(), R * shape.state_len(), "states of other rows");
    // SAFETY: what this function asks of its caller, and the lengths above.
    unsafe {
        match num_vectors {
            1 => score::<R, 1>(shape, tile, rows.queries, panel),
            2 => score::<R, 2>(shape, tile, rows.queries, panel),
            3 => score::<R, 3>(shape, tile, rows.queries, panel),
            _ => score::<R, TILE_VECTORS>(shape, tile, rows.queries, panel),
        }
        for (r, state) in rows.state.chunks_exact_mut(shape.state_len()).enumerate() {
            weigh(&panel.scores[r], rows.num_seen[r], num_vectors, &mut panel.weights[r], state);
        }
        let mut column = 0;
        while column < shape.head_dim {
            column += match (shape.head_dim - column) / LANES {
                1 => mix::<R, 1>(shape, tile, panel, rows.state, column),
                2 | 3 => mix::<R, 2>(shape, tile, panel, rows.state, column),
                _ => mix::<R, 4>(shape, tile, panel, rows.state, column),
            };
        }
    }
}

/// Scores of R rows for N * 16 keys.
///
/// # Safety
/// As `attend_panel`; `queries` of R rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn score<const R: usize, const N: usize>(
    shape: Shape,
    tile: &Tile,
    queries: &[bf16],
    panel: &mut Panel,
) {
    let num_pairs = shape.head_dim / 2;
    let mut sums = [[_mm512_setzero_ps(); N]; R];
    for pair in 0..num_pairs {
        let mut keys = [_mm512_setzero_si512(); N];
        for (keys, start) in keys.iter_mut().zip(&tile.keys) {
            // SAFETY: 16 pairs of one line of the block's part, in which the tile's pointers lie.
            *keys = unsafe { _mm512_loadu_si512(start.add(pair * 2 * shape.block_size).cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's queries have R * num_pairs pairs.
            let query = unsafe {
                queries.as_ptr().cast::<i32>().add(r * num_pairs + pair).read_unaligned()
            };
            let query = as_bf16(_mm512_set1_epi32(query));
            for (sum, keys) in sums.iter_mut().zip(&keys) {
                *sum = _mm512_dpbf16_ps(*sum, as_bf16(*keys), query);
            }
        }
    }
    for (sums, scores) in sums.iter().zip(&mut panel.scores) {
        for (sum, scores) in sums.iter().zip(scores.as_chunks_mut::<LANES>().0) {
            // SAFETY: an array of 16.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), *sum) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(x: __m512i) -> __m512bh {
    // SAFETY: 64 bytes are 64 bytes.
    unsafe { std::mem::transmute(x) }
}

/// As `segment::weigh`: turns a row's scores into weights, exp(score - largest so far), and makes
/// its state ready to take them.
///
/// # Safety
/// The features of `attend_segment`; a row's state.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn weigh(
    scores: &[f32; TILE_KEYS],
    num_seen: usize,
    num_vectors: usize,
    weights: &mut [bf16; TILE_KEYS],
    state: &mut [f32],
) {
    let [sums @ .., weight_sum, largest] = state.as_chunks_mut::<LANES>().0 else {
        unreachable!("a row's state")
    };
    let unseen = _mm512_set1_ps(UNSEEN);
    let mut seen = [unseen; TILE_VECTORS];
    let mut tile_largest = unseen;
    for (i, scores) in scores.as_chunks::<LANES>().0[..num_vectors].iter().enumerate() {
        let num_seen = num_seen.saturating_sub(i * LANES).min(LANES);
        // SAFETY: an array of 16, here and below.
        let scores = unsafe { _mm512_loadu_ps(scores.as_ptr()) };
        let kept = ((1u32 << num_seen) - 1) as u16;
        seen[i] = _mm512_mask_mov_ps(unseen, kept, scores);
        tile_largest = _mm512_max_ps(tile_largest, seen[i]);
    }
    let tile_largest = _mm512_reduce_max_ps(tile_largest);
    let old = largest[0];
    // SAFETY: arrays of 16.
    let mut sum = unsafe { _mm512_loadu_ps(weight_sum.as_ptr()) };
    let mut new = _mm512_set1_ps(old);
    if tile_largest > old {
        new = _mm512_set1_ps(tile_largest);
        let shrink = exp(_mm512_sub_ps(_mm512_set1_ps(old.max(UNSEEN)), new));
        sum = _mm512_mul_ps(sum, shrink);
        for x in sums.iter_mut() {
            // SAFETY: arrays of 16.
            unsafe {
                let shrunk = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), shrink);
                _mm512_storeu_ps(x.as_mut_ptr(), shrunk);
            }
        }
        // SAFETY: an array of 16.
        unsafe { _mm512_storeu_ps(largest.as_mut_ptr(), new) };
    }
    for (seen, out) in seen[..num_vectors].iter().zip(weights.as_chunks_mut::<LANES>().0) {
        let weights = exp(_mm512_sub_ps(*seen, new));
        sum = _mm512_add_ps(sum, weights);
        let rounded = _mm512_cvtneps_pbh(weights);
        // SAFETY: 16 numbers of 2 bytes.
        unsafe { out.as_mut_ptr().cast::<__m256bh>().write_unaligned(rounded) };
    }
    // SAFETY: an array of 16.
    unsafe { _mm512_storeu_ps(weight_sum.as_mut_ptr(), sum) };
}

/// e^x for x <= 0, exactly 1 for 0 and 0 for what is far below.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    let x = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(x);
    let r = _mm512_sub_ps(x, n);
    let mut p = _mm512_set1_ps(EXP_2_P[3]);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_2_P[2]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_2_P[1]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_2_P[0]));
    _mm512_scalef_ps(_mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0)), n)
}

/// Adds the weighted values of N * 16 dimensions from `column` on to the states of R rows. Returns
/// the number of dimensions.
///
/// # Safety
/// As `attend_panel`; `state` of R rows, of which `column` and those after it are in the values.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn mix<const R: usize, const N: usize>(
    shape: Shape,
    tile: &Tile,
    panel: &Panel,
    state: &mut [f32],
    column: usize,
) -> usize {
    let state_len = shape.state_len();
    let mut sums = [[_mm512_setzero_ps(); N]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (n, sum) in sums.iter_mut().enumerate() {
            // SAFETY: inside the row's state: R rows, and columns below head_dim.
            *sum =
                unsafe { _mm512_loadu_ps(state.as_ptr().add(r * state_len + column + n * LANES)) };
        }
    }
    for (pair, start) in tile.values[..tile.num_keys.div_ceil(2)].iter().enumerate() {
        let mut values = [_mm512_setzero_si512(); N];
        for (n, values) in values.iter_mut().enumerate() {
            // SAFETY: a pair has 2 * head_dim numbers from its pointer on.
            *values = unsafe { _mm512_loadu_si512(start.add(2 * (column + n * LANES)).cast()) };
        }
        for (sums, weights) in sums.iter_mut().zip(&panel.weights) {
            // SAFETY: pair is below TILE_PAIRS: two of the row's weights.
            let weight = unsafe { weights.as_ptr().cast::<i32>().add(pair).read_unaligned() };
            let weight = as_bf16(_mm512_set1_epi32(weight));
            for (sum, values) in sums.iter_mut().zip(&values) {
                *sum = _mm512_dpbf16_ps(*sum, as_bf16(*values), weight);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            let at = r * state_len + column + n * LANES;
            // SAFETY: as above, where the same was read.
            unsafe { _mm512_storeu_ps(state.as_mut_ptr().add(at), *sum) };
        }
    }
    N * LANES
}
