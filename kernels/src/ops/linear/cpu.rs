//! Packed tiles times grouped activations, on all threads.
#![allow(unsafe_code)]

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod format;
pub mod pack;
mod portable;
mod widening;

use super::Weight;
use crate::device::cpu::{CpuDevice, Isa};
use crate::device::memory::SharedMut;
use crate::{DType, Tensor};
use activations::{Activations, GROUP_ROWS_MAX, Group, Input};
use format::{PANEL_TILES, TILE_ROWS, format_of};
use pack::{Chunk, Packed};
use std::cell::RefCell;
use std::ops::Range;
use widening::{Wide, Widening};

/// Panels of one task stay in a core's second-level cache while all rows of activations pass by.
const TASK_BYTES_MAX: usize = 256 * 1024;
/// Tasks for each thread, if there are panels enough: they even out cores of unequal speed.
const TASKS_PER_THREAD: usize = 16;

/// Groups of rows from which on a task unpacks its weights before it multiplies. For up to four the
/// kernels do as well when they unpack into registers for each.
const WIDE_GROUPS_MIN: usize = 5;

/// The work of one kernel call: columns of one tile times those of the rows of one group.
pub struct Job<'a> {
    tile: &'a [u8],
    x: &'a Group<'a>,
    start: Start,
}

/// What a kernel adds its products to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nothing: these are the first columns.
    Zero,
    /// The sums of the columns before.
    Sums,
}

/// What a kernel adds to: the 16 outputs of the tile for each row of the group.
#[repr(C, align(64))]
pub struct Sums([[f32; TILE_ROWS]; GROUP_ROWS_MAX]);

const NO_SUMS: [Sums; PANEL_TILES] = [const { Sums::ZERO }; PANEL_TILES];

impl Sums {
    const ZERO: Sums = Sums([[0.0; TILE_ROWS]; GROUP_ROWS_MAX]);

    /// Makes the sums of `job`'s rows zero if that is what it starts from.
    fn start(&mut self, job: &Job) {
        if job.start == Start::Zero {
            self.0[..job.x.rows].fill([0.0; TILE_ROWS]);
        }
    }
}

type Kernel = fn(&Job, &mut Sums);

/// One weight of a call, cut into tasks.
struct Part<'a> {
    packed: &'a Packed,
    out_features: usize,
    in_features: usize,
    bias: Option<&'a [f32]>,
    out: SharedMut<f32>,
    input: Input,
    kernel: Kernel,
    widening: Option<Widening>,
    tasks: Range<usize>,
    panels_per_task: usize,
}

thread_local! {
    /// Each thread that computes models keeps its own buffers.
    static ACTIVATIONS: RefCell<Activations> = RefCell::default();
    static WIDE: RefCell<Wide> = RefCell::default();
}

pub fn linear_many(
    device: &CpuDevice,
    outs: &mut [&mut Tensor],
    x: &Tensor,
    weights: &[(&Weight, Option<&Tensor>)],
) {
    let isa = device.isa;
    assert!(isa <= Isa::hardware(), "this machine cannot run {isa:?}");
    let inputs: Vec<Input> = weights.iter().map(|(w, _)| input_of(w.dtype, isa)).collect();
    let parts = parts(device, outs, weights, &inputs);
    let num_tasks = parts.last().map_or(0, |part| part.tasks.end);
    ACTIVATIONS.with_borrow_mut(|activations| {
        activations.prepare(device, x, &inputs);
        let activations = &*activations;
        device.pool.run(num_tasks, &|i| {
            let found = parts.iter().find(|part| part.tasks.contains(&i));
            run_task(found.expect("the parts cover all tasks"), i, activations);
        });
    });
}

/// The form of activations that weights of `dtype` meet.
fn input_of(dtype: DType, isa: Isa) -> Input {
    match (format_of(dtype), dtype) {
        (Some(format), _) => Input::Int8(format.correction),
        (None, DType::BF16) if isa >= Isa::Avx512Bf16 => Input::Bf16,
        (None, _) => Input::F32,
    }
}

fn kernel_of(dtype: DType, isa: Isa) -> Kernel {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if dtype == DType::BF16 => avx512::bf16_pairs_kernel,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => avx512::kernel(dtype),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::kernel(dtype),
        _ => portable::kernel(dtype),
    }
}

/// How to unpack weights of `dtype` once for several groups of rows, where that pays.
fn widening_of(dtype: DType, isa: Isa) -> Option<Widening> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => avx512::wide::widening(dtype),
        _ => None,
    }
}

fn parts<'a>(
    device: &CpuDevice,
    outs: &mut [&mut Tensor],
    weights: &[(&'a Weight, Option<&'a Tensor>)],
    inputs: &[Input],
) -> Vec<Part<'a>> {
    let total_bytes: usize = weights.iter().map(|(w, _)| w.packed().num_bytes()).sum();
    let task_bytes = total_bytes / (device.pool.num_threads() * TASKS_PER_THREAD);
    let mut first_task = 0;
    let mut parts = Vec::with_capacity(weights.len());
    for ((out, (weight, bias)), &input) in outs.iter_mut().zip(weights).zip(inputs) {
        let packed = weight.packed();
        let panel_bytes = packed.num_bytes() / packed.num_panels();
        let panels_per_task = (task_bytes.min(TASK_BYTES_MAX) / panel_bytes).max(1);
        let tasks = first_task..first_task + packed.num_panels().div_ceil(panels_per_task);
        first_task = tasks.end;
        parts.push(Part {
            packed,
            out_features: weight.out_features,
            in_features: weight.in_features,
            bias: bias.map(Tensor::f32),
            out: SharedMut::new(out.f32_mut()),
            input,
            kernel: kernel_of(weight.dtype, device.isa),
            widening: widening_of(weight.dtype, device.isa),
            tasks,
            panels_per_task,
        });
    }
    parts
}

/// Multiplies the panels of task `i` with all rows.
fn run_task(part: &Part, i: usize, activations: &Activations) {
    let first_panel = (i - part.tasks.start) * part.panels_per_task;
    let panels = first_panel..(first_panel + part.panels_per_task).min(part.packed.num_panels());
    let num_groups = activations.num_groups();
    match &part.widening {
        Some(widening) if num_groups >= WIDE_GROUPS_MIN => WIDE.with_borrow_mut(|wide| {
            wide.fit(part.packed, widening, num_groups);
            multiply_widened(part, panels, activations, widening, wide);
        }),
        _ => {
            let mut sums = NO_SUMS;
            for g in 0..num_groups {
                for panel in panels.clone() {
                    multiply_panel(part, panel, activations, g, &mut sums);
                }
            }
        }
    }
}

/// Multiplies one panel with the rows of group `g`, in the order in which the panel lies in memory.
/// Each sum still takes its products in the order of k.
fn multiply_panel(
    part: &Part,
    panel: usize,
    activations: &Activations,
    g: usize,
    sums: &mut [Sums; PANEL_TILES],
) {
    let tiles = part.packed.tiles(panel);
    for chunk in part.packed.chunks() {
        let x = activations.group(g, part.input, chunk.columns.clone());
        let is_last = chunk.columns.end == part.in_features;
        for (i, sums) in tiles.clone().zip(sums.iter_mut()) {
            let tile = part.packed.part(&tiles, i, chunk);
            (part.kernel)(&Job { tile, x: &x, start: start_of(chunk) }, sums);
            if is_last {
                store(part, i, &x, sums);
            }
        }
    }
}

/// Multiplies the tiles of some panels with all rows. A tile's part of a chunk is unpacked into the
/// first-level cache, and all groups pass by it.
fn multiply_widened(
    part: &Part,
    panels: Range<usize>,
    activations: &Activations,
    widening: &Widening,
    wide: &mut Wide,
) {
    let packed = part.packed;
    let tiles = panels.flat_map(|panel| packed.tiles(panel).map(move |i| (panel, i)));
    let pieces = tiles.flat_map(|tile| packed.chunks().iter().map(move |chunk| (tile, chunk)));
    let bytes = |(panel, i): (usize, usize), chunk| packed.part(&packed.tiles(panel), i, chunk);
    let mut pieces = pieces.peekable();
    let num_groups = activations.num_groups();
    while let Some((tile, chunk)) = pieces.next() {
        let codes = &mut wide.codes[..widening.num_bytes(chunk.bytes)];
        widening.widen(bytes(tile, chunk), codes);
        // The memory is not to be idle while the products are computed.
        let next = pieces.peek().map_or(&[][..], |&(tile, chunk)| bytes(tile, chunk));
        let mut next = next.chunks(next.len().div_ceil(num_groups).max(1));
        for (g, sums) in wide.sums[..num_groups].iter_mut().enumerate() {
            widening::prefetch(next.next().unwrap_or_default());
            let x = activations.group(g, part.input, chunk.columns.clone());
            (widening.kernel)(&Job { tile: codes, x: &x, start: start_of(chunk) }, sums);
            if chunk.columns.end == part.in_features {
                store(part, tile.1, &x, sums);
            }
        }
    }
}

fn start_of(chunk: &Chunk) -> Start {
    if chunk.columns.start == 0 { Start::Zero } else { Start::Sums }
}

/// Adds the bias and writes the columns that exist.
fn store(part: &Part, tile: usize, x: &Group, sums: &Sums) {
    let first_column = tile * TILE_ROWS;
    let num_columns = TILE_ROWS.min(part.out_features - first_column);
    let bias = part.bias.map(|bias| &bias[first_column..first_column + num_columns]);
    for (row, sums) in sums.0[..x.rows].iter().enumerate() {
        let start = (x.first_row + row) * part.out_features + first_column;
        // SAFETY: a tile's columns belong to one task alone, and the tensor outlives the parallel
        // region.
        let out = unsafe { part.out.slice(start, num_columns) };
        // A copy of a length that is known is some instructions instead of a call.
        match (out.as_mut_array::<TILE_ROWS>(), bias.map(|bias| bias.as_array::<TILE_ROWS>())) {
            (Some(out), None) => *out = *sums,
            (Some(out), Some(Some(bias))) => *out = std::array::from_fn(|i| sums[i] + bias[i]),
            _ => store_part(out, sums, bias),
        }
    }
}

fn store_part(out: &mut [f32], sums: &[f32; TILE_ROWS], bias: Option<&[f32]>) {
    match bias {
        Some(bias) => {
            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                *out = sum + bias;
            }
        }
        None => out.copy_from_slice(&sums[..out.len()]),
    }
}
