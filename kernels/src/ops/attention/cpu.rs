//! Attention by tiles of 64 keys with a running maximum, on groups of query rows that share their
//! keys. What is summed in which order depends on key positions alone:
//!
//! * a score adds up its products from the first dimension to the last;
//! * a tile starts at a multiple of 64 positions, a segment at a multiple of 512; within a segment
//!   tiles are added in order, each to the sums of those before it;
//! * segments are computed apart and then merged in order, also when one thread computes them all.
//!
//! Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022, and "Flash-Decoding", 2023.
#![allow(unsafe_code)]

use super::AttentionBatch;
use crate::device::cpu::CpuDevice;
use crate::device::memory::{AlignedVec, SharedMut};
use crate::device::simd::{Kernel, LANES, Simd, dispatch};
use crate::{DType, Tensor};
use half::f16;
use std::cell::RefCell;

/// Keys of one tile: with 64 dimensions a tile of keys and one of values fill a first-level cache.
const TILE_KEYS: usize = 64;
const TILE_VECTORS: usize = TILE_KEYS / LANES;
/// Keys that one task may have to itself when a long context is split over threads.
const SEGMENT_KEYS: usize = 512;
/// Query rows (tokens x heads of one kv head) that share each unpacked tile, if there are as many.
const UNIT_ROWS: usize = 128;
/// Rows of accumulators held in registers at once.
const PANEL_ROWS: usize = 6;
/// Below this many multiply-adds in all, a few microseconds of work, threads are not woken.
const PARALLEL_WORK_MIN: usize = 1 << 17;

pub fn attention(
    device: &CpuDevice,
    out: &mut Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    batch: &AttentionBatch,
    scale: f32,
) {
    let &[_, kv_heads, block_size, head_dim] = k_cache.shape() else { unreachable!("checked") };
    if q.is_empty() {
        return;
    }
    let group = q.row_len() / (kv_heads * head_dim);
    let (q, out) = (q.f32(), SharedMut::new(out.f32_mut()));
    let shape = Shape { kv_heads, group, block_size, head_dim };
    match k_cache.dtype() {
        DType::F16 => {
            let (keys, values) = (k_cache.f16(), v_cache.f16());
            attend(device, &Call { q, keys, values, out, batch, scale, shape });
        }
        _ => {
            let (keys, values) = (k_cache.f32(), v_cache.f32());
            attend(device, &Call { q, keys, values, out, batch, scale, shape });
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    kv_heads: usize,
    /// Query heads of one kv head.
    group: usize,
    block_size: usize,
    head_dim: usize,
}

impl Shape {
    /// `head_dim` in whole vectors.
    fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Values of a row's state: the weighted values, the sum of weights lane by lane, and the
    /// largest score so far in all lanes.
    fn state_len(self) -> usize {
        self.padded_dim() + 2 * LANES
    }
}

/// The arguments of the op.
struct Call<'a, T> {
    q: &'a [f32],
    keys: &'a [T],
    values: &'a [T],
    out: SharedMut<f32>,
    batch: &'a AttentionBatch<'a>,
    scale: f32,
    shape: Shape,
}

/// Some consecutive tokens of one sequence with all query heads of one kv head: row i is head
/// i % group of token i / group.
#[derive(Clone, Copy)]
struct Unit {
    seq: usize,
    kv_head: usize,
    first_token: usize,
    num_tokens: usize,
    /// Keys that the last of its tokens sees.
    num_keys: usize,
}

impl Unit {
    fn num_rows(self, shape: Shape) -> usize {
        self.num_tokens * shape.group
    }

    fn num_segments(self) -> usize {
        self.num_keys.div_ceil(SEGMENT_KEYS)
    }

    fn work(self, shape: Shape) -> usize {
        self.num_rows(shape) * self.num_keys * shape.head_dim * 2
    }
}

/// A number type of the cache, widened to f32 when it is loaded.
trait Cached: Copy + Default + Send + Sync {
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V;
}

impl Cached for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f32; LANES]) -> S::V {
        simd.load(x)
    }
}

impl Cached for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f16; LANES]) -> S::V {
        simd.load_f16(x)
    }
}

/// One thread's memory, kept from call to call.
struct Scratch {
    tiles: Tiles,
    segment_state: AlignedVec<f32>,
    total_state: AlignedVec<f32>,
}

struct Tiles {
    /// [rows, head_dim]: queries times scale.
    queries: AlignedVec<f32>,
    /// [head_dim, TILE_KEYS]
    keys: AlignedVec<f32>,
    /// [TILE_KEYS, padded_dim]
    values: AlignedVec<f32>,
    /// [rows, TILE_KEYS]: scores, then weights.
    scores: AlignedVec<f32>,
}

impl Scratch {
    fn fit(&mut self, shape: Shape, num_rows: usize) {
        let fit = |memory: &mut AlignedVec<f32>, len: usize| {
            if memory.len() < len {
                *memory = AlignedVec::zeroed(len);
            }
        };
        fit(&mut self.tiles.queries, num_rows * shape.head_dim);
        fit(&mut self.tiles.keys, shape.padded_dim() * TILE_KEYS);
        fit(&mut self.tiles.values, shape.padded_dim() * TILE_KEYS);
        fit(&mut self.tiles.scores, num_rows * TILE_KEYS);
        fit(&mut self.segment_state, num_rows * shape.state_len());
        fit(&mut self.total_state, num_rows * shape.state_len());
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        tiles: Tiles {
            queries: AlignedVec::zeroed(0),
            keys: AlignedVec::zeroed(0),
            values: AlignedVec::zeroed(0),
            scores: AlignedVec::zeroed(0),
        },
        segment_state: AlignedVec::zeroed(0),
        total_state: AlignedVec::zeroed(0),
    });
}

fn attend<T: Cached>(device: &CpuDevice, call: &Call<T>) {
    let mut units = units_of(call);
    // Long ones first, so that no thread starts one when the others are done.
    units.sort_by_key(|unit| std::cmp::Reverse(unit.work(call.shape)));
    let work: usize = units.iter().map(|unit| unit.work(call.shape)).sum();
    let num_threads = device.pool.num_threads();
    if num_threads == 1 || work < PARALLEL_WORK_MIN {
        units.iter().for_each(|&unit| attend_unit(device, call, unit));
    } else if units.len() < 4 * num_threads && units[0].num_segments() > 1 {
        attend_by_segments(device, call, &units);
    } else {
        device.pool.run(units.len(), &|i| attend_unit(device, call, units[i]));
    }
}

fn units_of<T>(call: &Call<T>) -> Vec<Unit> {
    let (shape, batch) = (call.shape, call.batch);
    let tokens_max = (UNIT_ROWS / shape.group).max(1);
    let mut units = Vec::new();
    for seq in 0..batch.num_seqs() {
        let (start, end) = (batch.query_start[seq] as usize, batch.query_start[seq + 1] as usize);
        for first_token in (start..end).step_by(tokens_max) {
            let num_tokens = tokens_max.min(end - first_token);
            let num_keys = batch.context_len[seq] as usize - (end - first_token - num_tokens);
            units.extend((0..shape.kv_heads).map(|kv_head| Unit {
                seq,
                kv_head,
                first_token,
                num_tokens,
                num_keys,
            }));
        }
    }
    units
}

fn attend_unit<T: Cached>(device: &CpuDevice, call: &Call<T>, unit: Unit) {
    let num_rows = unit.num_rows(call.shape);
    let state_len = num_rows * call.shape.state_len();
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.fit(call.shape, num_rows);
        let Scratch { tiles, segment_state, total_state } = scratch;
        let (state, total) = (&mut segment_state[..state_len], &mut total_state[..state_len]);
        clear_state(total, call.shape);
        for segment in 0..unit.num_segments() {
            dispatch(device.isa, AttendSegment { call, unit, segment, tiles, state });
            dispatch(device.isa, Merge { shape: call.shape, total, part: state });
        }
        dispatch(device.isa, Finish { call, unit, total });
    });
}

/// Few units, long contexts: segments are tasks of their own, and their states meet in memory.
fn attend_by_segments<T: Cached>(device: &CpuDevice, call: &Call<T>, units: &[Unit]) {
    let state_len = |unit: Unit| unit.num_rows(call.shape) * call.shape.state_len();
    let mut tasks = Vec::new();
    let mut num_values = 0;
    let mut unit_start = Vec::new();
    for &unit in units {
        unit_start.push(num_values);
        for segment in 0..unit.num_segments() {
            tasks.push((unit, segment, num_values));
            num_values += state_len(unit);
        }
    }
    let mut states = AlignedVec::zeroed(num_values);
    let shared = SharedMut::new(&mut states);
    device.pool.run(tasks.len(), &|i| {
        let (unit, segment, start) = tasks[i];
        // SAFETY: each task has a range of its own, laid out in the loop above.
        let state = unsafe { shared.slice(start, state_len(unit)) };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(call.shape, unit.num_rows(call.shape));
            let tiles = &mut scratch.tiles;
            dispatch(device.isa, AttendSegment { call, unit, segment, tiles, state });
        });
    });
    device.pool.run(units.len(), &|i| {
        let (unit, len) = (units[i], state_len(units[i]));
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(call.shape, unit.num_rows(call.shape));
            let total = &mut scratch.total_state[..len];
            clear_state(total, call.shape);
            for part in states[unit_start[i]..][..unit.num_segments() * len].chunks_exact(len) {
                dispatch(device.isa, Merge { shape: call.shape, total, part });
            }
            dispatch(device.isa, Finish { call, unit, total });
        });
    });
}

/// No keys seen yet.
fn clear_state(state: &mut [f32], shape: Shape) {
    for row in state.chunks_exact_mut(shape.state_len()) {
        let (sums, largest) = row.split_at_mut(shape.padded_dim() + LANES);
        sums.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
    }
}

/// Computes `state` of all rows over the keys of one segment.
struct AttendSegment<'a, T> {
    call: &'a Call<'a, T>,
    unit: Unit,
    segment: usize,
    tiles: &'a mut Tiles,
    state: &'a mut [f32],
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
        for tile_start in (segment * SEGMENT_KEYS..end).step_by(TILE_KEYS) {
            let num_keys = (end - tile_start).min(TILE_KEYS);
            let num_vectors = num_keys.div_ceil(LANES);
            let starts = key_starts(call, unit, tile_start, num_keys);
            load_keys(simd, call.keys, &starts[..num_keys], shape.head_dim, &mut tiles.keys);
            load_values(simd, call.values, &starts[..num_keys], shape.head_dim, &mut tiles.values);
            // Rows of tokens before the tile see none of its keys.
            let first_position = unit.num_keys - unit.num_tokens;
            let first_row = tile_start.saturating_sub(first_position) * shape.group;
            let scores = &mut tiles.scores[first_row * TILE_KEYS..num_rows * TILE_KEYS];
            scores.fill(0.0);
            simd.call(MultiplyAdd {
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
            simd.call(MultiplyAdd {
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

/// Where the `num_keys` keys from position `tile_start` on begin in the cache.
#[inline(always)]
fn key_starts<T>(
    call: &Call<T>,
    unit: Unit,
    tile_start: usize,
    num_keys: usize,
) -> [usize; TILE_KEYS] {
    let Shape { kv_heads, block_size, head_dim, .. } = call.shape;
    let blocks = &call.batch.block_tables[call.batch.block_table_start[unit.seq] as usize..];
    let mut starts = [0; TILE_KEYS];
    let (mut index, mut offset) = (tile_start / block_size, tile_start % block_size);
    for start in &mut starts[..num_keys] {
        let block = blocks[index] as usize;
        *start = ((block * kv_heads + unit.kv_head) * block_size + offset) * head_dim;
        offset += 1;
        if offset == block_size {
            (index, offset) = (index + 1, 0);
        }
    }
    starts
}

/// Dimensions d.. of one key or value, up to 16, then zeros.
#[inline(always)]
fn load_dims<S: Simd, T: Cached>(simd: S, row: &[T], d: usize) -> S::V {
    if let Some(whole) = row[d..].first_chunk() {
        return T::load(simd, whole);
    }
    let mut part = [T::default(); LANES];
    part[..row.len() - d].copy_from_slice(&row[d..]);
    T::load(simd, &part)
}

/// Unpacks keys so that 16 of them lie side by side, dimension by dimension.
#[inline(always)]
fn load_keys<S: Simd, T: Cached>(
    simd: S,
    cache: &[T],
    starts: &[usize],
    head_dim: usize,
    keys: &mut [f32],
) {
    for (i, starts) in starts.chunks(LANES).enumerate() {
        for d in (0..head_dim).step_by(LANES) {
            let mut square = [simd.splat(0.0); LANES];
            for (row, &start) in square.iter_mut().zip(starts) {
                *row = load_dims(simd, &cache[start..start + head_dim], d);
            }
            simd.transpose(&mut square);
            for (j, column) in square.iter().enumerate() {
                let at = (d + j) * TILE_KEYS + i * LANES;
                let out = keys[at..].first_chunk_mut().expect("keys has padded_dim rows");
                simd.store(*column, out);
            }
        }
    }
}

#[inline(always)]
fn load_values<S: Simd, T: Cached>(
    simd: S,
    cache: &[T],
    starts: &[usize],
    head_dim: usize,
    values: &mut [f32],
) {
    let (rows, _) = values.as_chunks_mut::<LANES>();
    let rows = rows.chunks_exact_mut(head_dim.div_ceil(LANES));
    for (row, &start) in rows.zip(starts) {
        for (i, out) in row.iter_mut().enumerate() {
            let v = load_dims(simd, &cache[start..start + head_dim], i * LANES);
            simd.store(v, out);
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
struct Merge<'a> {
    shape: Shape,
    total: &'a mut [f32],
    part: &'a [f32],
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
struct Finish<'a, T> {
    call: &'a Call<'a, T>,
    unit: Unit,
    total: &'a [f32],
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

/// c += a b, for row-major matrices: a [num_rows, depth], b [depth, num_vectors * 16]. Each element
/// of c adds its products one after the other, whatever the number of rows.
struct MultiplyAdd<'a> {
    c: &'a mut [f32],
    c_stride: usize,
    a: &'a [f32],
    a_stride: usize,
    b: &'a [f32],
    b_stride: usize,
    num_rows: usize,
    depth: usize,
    num_vectors: usize,
}

impl Kernel for MultiplyAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (num_rows, width) = (self.num_rows, self.num_vectors * LANES);
        assert!(num_rows > 0 && self.depth > 0 && width > 0, "nothing to multiply");
        assert!((num_rows - 1) * self.a_stride + self.depth <= self.a.len(), "a is too short");
        assert!((self.depth - 1) * self.b_stride + width <= self.b.len(), "b is too short");
        assert!((num_rows - 1) * self.c_stride + width <= self.c.len(), "c is too short");
        let mut column = 0;
        while column < width {
            let num_vectors = (width - column) / LANES;
            column += if S::COLUMNS_MAX >= 4 && num_vectors >= 4 {
                self.columns::<S, 4>(simd, column)
            } else if S::COLUMNS_MAX >= 2 && num_vectors >= 2 {
                self.columns::<S, 2>(simd, column)
            } else {
                self.columns::<S, 1>(simd, column)
            };
        }
    }
}

impl MultiplyAdd<'_> {
    /// All rows of N vectors from `column` on, in panels of about equal height. Returns the width.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S, column: usize) -> usize {
        let num_panels = self.num_rows.div_ceil(PANEL_ROWS);
        let mut row = 0;
        for panel in 0..num_panels {
            let end = self.num_rows * (panel + 1) / num_panels;
            match end - row {
                1 => self.panel::<S, 1, N>(simd, row, column),
                2 => self.panel::<S, 2, N>(simd, row, column),
                3 => self.panel::<S, 3, N>(simd, row, column),
                4 => self.panel::<S, 4, N>(simd, row, column),
                5 => self.panel::<S, 5, N>(simd, row, column),
                _ => self.panel::<S, PANEL_ROWS, N>(simd, row, column),
            }
            row = end;
        }
        N * LANES
    }

    /// R rows of N vectors, held in registers.
    #[inline(always)]
    fn panel<S: Simd, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let mut sums = [[simd.splat(0.0); N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let c = &self.c[(row + r) * self.c_stride + column..];
            for (sum, c) in sums.iter_mut().zip(c.as_chunks::<LANES>().0) {
                *sum = simd.load(c);
            }
        }
        for k in 0..self.depth {
            let mut b = [simd.splat(0.0); N];
            for (n, b) in b.iter_mut().enumerate() {
                let at = k * self.b_stride + column + n * LANES;
                // SAFETY: k < depth and column + (n + 1) * 16 <= width: inside b by the assert in
                // `run`.
                let b_16 = unsafe { &*self.b.as_ptr().add(at).cast::<[f32; LANES]>() };
                *b = simd.load(b_16);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row + r < num_rows and k < depth: inside a by the assert in `run`.
                let a = unsafe { *self.a.get_unchecked((row + r) * self.a_stride + k) };
                let a = simd.splat(a);
                for (sum, b) in sums.iter_mut().zip(&b) {
                    *sum = simd.mul_add(a, *b, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let c = &mut self.c[(row + r) * self.c_stride + column..];
            for (sum, c) in sums.iter().zip(c.as_chunks_mut::<LANES>().0) {
                simd.store(*sum, c);
            }
        }
    }
}
