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

mod multiply_add;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod segment;

use super::AttentionBatch;
use crate::device::cpu::CpuDevice;
use crate::device::memory::{AlignedVec, Element, SharedMut};
use crate::device::simd::{LANES, dispatch};
use crate::{DType, Tensor};
use half::bf16;
use segment::{AttendSegment, Cached, Finish, Merge};
use std::cell::RefCell;

/// Keys of one tile: with 64 dimensions a tile of keys and one of values fill a first-level cache.
const TILE_KEYS: usize = 64;
/// Keys that one task may have to itself when a long context is split over threads.
const SEGMENT_KEYS: usize = 512;
/// Query rows (tokens x heads of one kv head) that share each unpacked tile, if there are as many.
const UNIT_ROWS: usize = 128;
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
        DType::BF16 => {
            let (keys, values) = (k_cache.bf16(), v_cache.bf16());
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
    /// As `queries`, for products of bf16 pairs.
    rounded_queries: AlignedVec<bf16>,
    /// [head_dim, 2]: a value beside zeros.
    last_value: AlignedVec<bf16>,
}

impl Scratch {
    fn fit(&mut self, shape: Shape, num_rows: usize) {
        fit(&mut self.tiles.queries, num_rows * shape.head_dim);
        fit(&mut self.tiles.keys, shape.padded_dim() * TILE_KEYS);
        fit(&mut self.tiles.values, shape.padded_dim() * TILE_KEYS);
        fit(&mut self.tiles.scores, num_rows * TILE_KEYS);
        fit(&mut self.tiles.rounded_queries, num_rows * shape.head_dim);
        fit(&mut self.tiles.last_value, 2 * shape.head_dim);
        fit(&mut self.segment_state, num_rows * shape.state_len());
        fit(&mut self.total_state, num_rows * shape.state_len());
    }
}

fn fit<T: Element>(memory: &mut AlignedVec<T>, len: usize) {
    if memory.len() < len {
        *memory = AlignedVec::zeroed(len);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        tiles: Tiles {
            queries: AlignedVec::zeroed(0),
            keys: AlignedVec::zeroed(0),
            values: AlignedVec::zeroed(0),
            scores: AlignedVec::zeroed(0),
            rounded_queries: AlignedVec::zeroed(0),
            last_value: AlignedVec::zeroed(0),
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
            T::attend(device.isa, AttendSegment { call, unit, segment, tiles, state });
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
            T::attend(device.isa, AttendSegment { call, unit, segment, tiles, state });
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
