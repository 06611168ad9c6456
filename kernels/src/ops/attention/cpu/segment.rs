//! One unit over one segment of keys, and what comes after: merging segments, writing rows.
#![allow(unsafe_code)]

use super::multiply_add::{MultiplyAdd, Start};
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::{Call, SEGMENT_KEYS, Shape, TILE_KEYS, Tiles, Unit, clear_state};
use crate::device::cpu::Isa;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};
use crate::ops::kv_write::PairedBlock;
use half::{bf16, f16};

/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;
const TILE_VECTORS: usize = TILE_KEYS / LANES;

/// Computes `state` of all rows over the keys of one segment.
pub struct AttendSegment<'a, T> {
    pub call: &'a Call<'a, T>,
    pub unit: Unit,
    pub segment: usize,
    pub tiles: &'a mut Tiles,
    pub state: &'a mut [f32],
}

impl<T: Cached> Kernel for AttendSegment<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, unit, segment, tiles, state } = self;
        let shape = call.shape;
        let (num_rows, padded_dim) = (unit.num_rows(shape), shape.padded_dim());
        clear_state(state, shape);
        load_queries(call, unit, &mut tiles.queries);
        let end = unit.num_keys.min((segment + 1) * SEGMENT_KEYS);
        let mut starts = key_starts(call, unit, segment * SEGMENT_KEYS);
        for tile_start in (segment * SEGMENT_KEYS..end).step_by(TILE_KEYS) {
            let num_keys = (end - tile_start).min(TILE_KEYS);
            let num_vectors = num_keys.div_ceil(LANES);
            T::load_keys(simd, call.keys, &starts[..num_keys], shape, &mut tiles.keys);
            T::load_values(simd, call.values, &starts[..num_keys], shape, &mut tiles.values);
            starts = key_starts(call, unit, tile_start + TILE_KEYS);
            let next =
                &starts[..unit.num_keys.saturating_sub(tile_start + TILE_KEYS).min(TILE_KEYS)];
            prefetch(simd, call.keys, next, shape.head_dim);
            // Rows of tokens before the tile see none of its keys.
            let first_position = unit.num_keys - unit.num_tokens;
            let first_row = tile_start.saturating_sub(first_position) * shape.group;
            let scores = &mut tiles.scores[first_row * TILE_KEYS..num_rows * TILE_KEYS];
            simd.call(MultiplyAdd {
                start: Start::Zero,
                c: &mut *scores,
                c_stride: TILE_KEYS,
                a: &tiles.queries[first_row * shape.head_dim..],
                a_stride: shape.head_dim,
                b: &tiles.keys,
                b_stride: TILE_KEYS,
                num_rows: num_rows - first_row,
                depth: shape.head_dim,
                num_vectors,
            });
            let state = &mut state[first_row * shape.state_len()..];
            let rows = scores.chunks_exact_mut(TILE_KEYS);
            for (i, (scores, state)) in
                rows.zip(state.chunks_exact_mut(shape.state_len())).enumerate()
            {
                let position = first_position + (first_row + i) / shape.group;
                let num_seen = (position + 1 - tile_start).min(num_keys);
                weigh(simd, scores, num_vectors, num_seen, state);
            }
            prefetch(simd, call.values, next, shape.head_dim);
            simd.call(MultiplyAdd {
                start: Start::C,
                c: state,
                c_stride: shape.state_len(),
                a: &*scores,
                a_stride: TILE_KEYS,
                b: &tiles.values,
                b_stride: padded_dim,
                num_rows: num_rows - first_row,
                depth: num_keys,
                num_vectors: padded_dim / LANES,
            });
        }
    }
}

/// A number type of the cache, widened to f32 when it is loaded.
pub trait Cached: Copy + Send + Sync + Sized {
    /// Unpacks the keys that begin at `starts` so that 16 of them lie side by side, dimension by
    /// dimension.
    fn load_keys<S: Simd>(
        simd: S,
        cache: &[Self],
        starts: &[usize],
        shape: Shape,
        keys: &mut [f32],
    );

    /// Unpacks values row by row.
    fn load_values<S: Simd>(
        simd: S,
        cache: &[Self],
        starts: &[usize],
        shape: Shape,
        values: &mut [f32],
    );

    /// Runs `job` the fastest way there is.
    fn attend(isa: Isa, job: AttendSegment<Self>) {
        dispatch(isa, job);
    }
}

/// A number type of which keys and values lie in rows.
trait InRows: Copy + Default + Send + Sync {
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V;
}

impl InRows for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f32; LANES]) -> S::V {
        simd.load(x)
    }
}

impl InRows for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f16; LANES]) -> S::V {
        simd.load_f16(x)
    }
}

impl<T: InRows> Cached for T {
    #[inline(always)]
    fn load_keys<S: Simd>(simd: S, cache: &[T], starts: &[usize], shape: Shape, keys: &mut [f32]) {
        simd.call(LoadKeys { cache, starts, head_dim: shape.head_dim, keys });
    }

    #[inline(always)]
    fn load_values<S: Simd>(
        simd: S,
        cache: &[T],
        starts: &[usize],
        shape: Shape,
        values: &mut [f32],
    ) {
        load_values(simd, cache, starts, shape.head_dim, values);
    }
}

/// In pairs, as `PairedBlock` has them.
impl Cached for bf16 {
    #[inline(always)]
    fn load_keys<S: Simd>(_: S, cache: &[bf16], starts: &[usize], shape: Shape, keys: &mut [f32]) {
        for (j, &start) in starts.iter().enumerate() {
            let (part, layout, offset) = part_of(cache, start, shape);
            for d in 0..shape.head_dim {
                keys[d * TILE_KEYS + j] = part[layout.key_at(offset, d)].to_f32();
            }
        }
    }

    #[inline(always)]
    fn load_values<S: Simd>(
        _: S,
        cache: &[bf16],
        starts: &[usize],
        shape: Shape,
        values: &mut [f32],
    ) {
        for (out, &start) in values.chunks_exact_mut(shape.padded_dim()).zip(starts) {
            let (part, layout, offset) = part_of(cache, start, shape);
            for (d, out) in out[..shape.head_dim].iter_mut().enumerate() {
                *out = part[layout.value_at(offset, d)].to_f32();
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn attend(isa: Isa, job: AttendSegment<bf16>) {
        if pairs::fits(isa, job.call.shape) {
            pairs::attend(isa, job);
        } else {
            dispatch(isa, job);
        }
    }
}

/// One head's part of the block of a token that would begin at `start` if tokens lay in rows, and
/// the token's place in it.
#[inline(always)]
fn part_of(cache: &[bf16], start: usize, shape: Shape) -> (&[bf16], PairedBlock, usize) {
    let Shape { block_size, head_dim, .. } = shape;
    let offset = start / head_dim % block_size;
    let part = &cache[start - offset * head_dim..][..block_size * head_dim];
    (part, PairedBlock { block_size, head_dim }, offset)
}

#[inline(always)]
fn load_queries<T>(call: &Call<T>, unit: Unit, queries: &mut [f32]) {
    let Shape { kv_heads, group, head_dim, .. } = call.shape;
    let row_len = kv_heads * group * head_dim;
    let part_len = group * head_dim;
    for (t, queries) in queries.chunks_exact_mut(part_len).take(unit.num_tokens).enumerate() {
        let start = (unit.first_token + t) * row_len + unit.kv_head * part_len;
        for (query, q) in queries.iter_mut().zip(&call.q[start..start + part_len]) {
            *query = q * call.scale;
        }
    }
}

/// Where the keys from position `tile_start` on begin in the cache, as far as the unit sees them.
#[inline(always)]
fn key_starts<T>(call: &Call<T>, unit: Unit, tile_start: usize) -> [usize; TILE_KEYS] {
    let Shape { kv_heads, block_size, head_dim, .. } = call.shape;
    let blocks = &call.batch.block_tables[call.batch.block_table_start[unit.seq] as usize..];
    let num_keys = unit.num_keys.saturating_sub(tile_start).min(TILE_KEYS);
    let mut starts = [0; TILE_KEYS];
    let (mut index, mut offset) = (tile_start / block_size, tile_start % block_size);
    let mut filled = 0;
    while filled < num_keys {
        let first = (blocks[index] as usize * kv_heads + unit.kv_head) * block_size + offset;
        let from_block = (block_size - offset).min(num_keys - filled);
        for (i, start) in starts[filled..filled + from_block].iter_mut().enumerate() {
            *start = (first + i) * head_dim;
        }
        filled += from_block;
        (index, offset) = (index + 1, 0);
    }
    starts
}

/// Dimensions d.. of one key or value, up to 16, then zeros.
#[inline(always)]
fn load_dims<S: Simd, T: InRows>(simd: S, row: &[T], d: usize) -> S::V {
    if let Some(whole) = row[d..].first_chunk() {
        return T::load(simd, whole);
    }
    let mut part = [T::default(); LANES];
    part[..row.len() - d].copy_from_slice(&row[d..]);
    T::load(simd, &part)
}

/// Asks for keys and values that will be read after the current tile. Blocks lie anywhere, so the
/// hardware cannot guess the next one.
#[inline(always)]
fn prefetch<S: Simd, T>(simd: S, cache: &[T], starts: &[usize], head_dim: usize) {
    for &start in starts {
        for line in cache[start..start + head_dim].chunks(CACHE_LINE / size_of::<T>()) {
            simd.prefetch(&line[0]);
        }
    }
}

/// Unpacks keys so that 16 of them lie side by side, dimension by dimension.
struct LoadKeys<'a, T> {
    cache: &'a [T],
    starts: &'a [usize],
    head_dim: usize,
    keys: &'a mut [f32],
}

impl<T: InRows> Kernel for LoadKeys<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, starts, head_dim, keys } = self;
        let (whole, rest) = starts.as_chunks::<LANES>();
        for (i, starts) in whole.iter().enumerate() {
            for d in (0..head_dim).step_by(LANES) {
                // The count of 16 is a constant here, so that the square stays in registers.
                let mut square = [simd.splat(0.0); LANES];
                for (row, &start) in square.iter_mut().zip(starts) {
                    *row = load_dims(simd, &cache[start..start + head_dim], d);
                }
                store_columns(simd, square, &mut keys[d * TILE_KEYS + i * LANES..]);
            }
        }
        for d in (0..if rest.is_empty() { 0 } else { head_dim }).step_by(LANES) {
            let mut square = [simd.splat(0.0); LANES];
            for (row, &start) in square.iter_mut().zip(rest) {
                *row = load_dims(simd, &cache[start..start + head_dim], d);
            }
            store_columns(simd, square, &mut keys[d * TILE_KEYS + whole.len() * LANES..]);
        }
    }
}

#[inline(always)]
fn store_columns<S: Simd>(simd: S, mut square: [S::V; LANES], keys: &mut [f32]) {
    simd.transpose(&mut square);
    for (j, column) in square.iter().enumerate() {
        let out = keys[j * TILE_KEYS..].first_chunk_mut().expect("keys has padded_dim rows");
        simd.store(*column, out);
    }
}

/// Unpacks values as they lie.
#[inline(always)]
fn load_values<S: Simd, T: InRows>(
    simd: S,
    cache: &[T],
    starts: &[usize],
    head_dim: usize,
    values: &mut [f32],
) {
    let rows = values.chunks_exact_mut(head_dim.next_multiple_of(LANES));
    for (out, &start) in rows.zip(starts) {
        let row = &cache[start..start + head_dim];
        for (out, x) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(row.as_chunks::<LANES>().0) {
            simd.store(T::load(simd, x), out);
        }
        if !head_dim.is_multiple_of(LANES) {
            let out = out.last_chunk_mut().expect("padded_dim is at least one vector");
            simd.store(load_dims(simd, row, head_dim - head_dim % LANES), out);
        }
    }
}

/// Turns one row's scores into weights, exp(score - largest so far), and makes its state ready to
/// take them: older sums shrink by exp(old largest - new largest). Only the first `num_seen`
/// scores count; the others weigh 0.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    scores: &mut [f32],
    num_vectors: usize,
    num_seen: usize,
    state: &mut [f32],
) {
    let (state, _) = state.as_chunks_mut::<LANES>();
    let [sums @ .., weight_sum, largest] = state else { unreachable!("a row's state") };
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let mut seen = [simd.splat(f32::NEG_INFINITY); TILE_VECTORS];
    let mut tile_largest = seen[0];
    for (i, (seen, scores)) in seen.iter_mut().zip(&scores[..num_vectors]).enumerate() {
        let num_seen = num_seen.saturating_sub(i * LANES);
        *seen = simd.keep_first(simd.load(scores), num_seen, f32::NEG_INFINITY);
        tile_largest = simd.max(tile_largest, *seen);
    }
    let old_largest = simd.load(largest);
    let new = simd.largest(simd.max(old_largest, tile_largest));
    let new_largest = simd.splat(new);
    let mut sum = simd.load(weight_sum);
    if new > largest[0] {
        let shrink = simd.exp(simd.sub(old_largest, new_largest));
        sum = simd.mul(sum, shrink);
        for x in sums.iter_mut() {
            simd.store(simd.mul(simd.load(x), shrink), x);
        }
        simd.store(new_largest, largest);
    }
    for (seen, scores) in seen.iter().zip(&mut scores[..num_vectors]) {
        let weights = simd.exp(simd.sub(*seen, new_largest));
        sum = simd.add(sum, weights);
        simd.store(weights, scores);
    }
    simd.store(sum, weight_sum);
}

/// Adds `part`, the state over one segment, to `total`.
pub struct Merge<'a> {
    pub shape: Shape,
    pub total: &'a mut [f32],
    pub part: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let state_len = self.shape.state_len();
        let rows = self.total.chunks_exact_mut(state_len).zip(self.part.chunks_exact(state_len));
        for (total, part) in rows {
            let (total, _) = total.as_chunks_mut::<LANES>();
            let (part, _) = part.as_chunks::<LANES>();
            let [sums @ .., largest] = total else { unreachable!("a row's state") };
            let [part_sums @ .., part_largest] = part else { unreachable!("a row's state") };
            if part_largest[0] == f32::NEG_INFINITY {
                // The segment lies behind this row's token.
                continue;
            }
            let (old, added) = (simd.load(largest), simd.load(part_largest));
            let new = simd.max(old, added);
            let (shrink, shrink_added) =
                (simd.exp(simd.sub(old, new)), simd.exp(simd.sub(added, new)));
            for (sum, part) in sums.iter_mut().zip(part_sums) {
                let part = simd.mul(simd.load(part), shrink_added);
                simd.store(simd.mul_add(simd.load(sum), shrink, part), sum);
            }
            simd.store(new, largest);
        }
    }
}

/// Divides by the sum of weights and writes the rows of `out`.
pub struct Finish<'a, T> {
    pub call: &'a Call<'a, T>,
    pub unit: Unit,
    pub total: &'a [f32],
}

impl<T> Kernel for Finish<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Shape { kv_heads, group, head_dim, .. } = self.call.shape;
        let padded_dim = self.call.shape.padded_dim();
        for (row, state) in self.total.chunks_exact(self.call.shape.state_len()).enumerate() {
            let head = self.unit.kv_head * group + row % group;
            let token = self.unit.first_token + row / group;
            let start = (token * kv_heads * group + head) * head_dim;
            // SAFETY: a unit's tokens and heads are its own (`units_of`), and `out` outlives the
            // call, which borrows it in `attention`.
            let out = unsafe { self.call.out.slice(start, head_dim) };
            let (state, _) = state.as_chunks::<LANES>();
            let weight_sum = simd.sum(simd.load(&state[padded_dim / LANES]));
            let scale = simd.splat(1.0 / weight_sum);
            for (out, sums) in out.chunks_mut(LANES).zip(state) {
                // Whether a zero is negative depends on how many zeros were added to it, and that
                // on the chunk; adding a positive zero makes it positive.
                let x = simd.mul_add(simd.load(sums), scale, simd.splat(0.0));
                match out.as_mut_array::<LANES>() {
                    Some(out) => simd.store(x, out),
                    None => simd.store_part(x, out),
                }
            }
        }
    }
}
