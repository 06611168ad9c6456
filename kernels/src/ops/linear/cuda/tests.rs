//! Packed weights read as the kernels do, lane by lane, and the plans of launches.

use super::groups::GroupLayout;
use super::layout::{Format, HEADER_PART_BYTES, Layout, TILE_K, TILE_N};
use super::pack::Packed;
use super::*;
use crate::DType;
use crate::ops::dequantize::dequantize;
use crate::ops::linear::tests::weight_bytes;
use crate::ops::testing::{assert_same_bits, check_schedules, cuda_devices, on_device, values};
use half::{bf16, f16};

/// Rows and columns; columns become whole blocks. Some fill tiles, some do not.
const SHAPES: [[usize; 2]; 4] = [[1, 1], [40, 33], [128, 256], [150, 520]];

/// What a lane of a warp has of a tile's 16-row block at one step of 16 columns, for one half of
/// the rows: the two registers of a B operand, as four values. Mirrors `formats.cuh`.
struct Lane<'a> {
    layout: Layout,
    packed: &'a Packed,
    activation: DType,
    tile_row: usize,
    tile_step: usize,
    block: usize,
    half: usize,
    step: usize,
    lane: usize,
}

impl Lane<'_> {
    fn row_in_tile(&self) -> usize {
        self.block * 16 + self.half * 8 + self.lane / 4
    }

    /// Row and column of W of value `i`, by the PTX ISA's table of B fragments of m16n8k16.
    fn place(&self, i: usize) -> [usize; 2] {
        let k = self.lane % 4 * 2 + i % 2 + i / 2 * 8;
        [self.tile_row * TILE_N + self.row_in_tile(), self.tile_step * TILE_K + self.step * 16 + k]
    }

    fn vector(&self, index: usize) -> [u32; 4] {
        let format = self.layout.format;
        let tile = self.tile_row * self.layout.num_steps() + self.tile_step;
        let vectors_per_block = format.code_bits() / 4;
        let vector = self.block * vectors_per_block + index;
        let at = tile * format.tile_bytes() + vector * 512 + self.lane * 16;
        let words = &self.packed.codes[at..at + 16];
        std::array::from_fn(|i| {
            u32::from_le_bytes(words[4 * i..4 * i + 4].try_into().expect("4 bytes"))
        })
    }

    /// Bytes `at..at + len` of the header of this lane's row, all in one part.
    fn header(&self, at: usize, len: usize) -> u32 {
        let format = self.layout.format;
        let header_steps = format.header_k() / TILE_K;
        let header = self.tile_row * self.layout.headers_per_row() + self.tile_step / header_steps;
        let (part, in_part) = (at / HEADER_PART_BYTES, at % HEADER_PART_BYTES);
        let part_bytes = format.header_bytes().min(HEADER_PART_BYTES);
        let row = part * TILE_N + self.row_in_tile();
        let at = header * TILE_N * format.header_bytes() + row * part_bytes + in_part;
        let bytes = &self.packed.headers[at..at + len];
        bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
    }

    fn half_at(&self, at: usize) -> f32 {
        f16::from_bits(self.header(at, 2) as u16).to_f32()
    }

    fn values(&self) -> [f32; 4] {
        match self.layout.format {
            Format::Plain => {
                let words = self.vector(2 * self.half + self.step / 2);
                let word = |i: usize| words[self.step % 2 * 2 + i / 2];
                std::array::from_fn(|i| self.widen((word(i) >> (i % 2 * 16)) as u16))
            }
            Format::W8 => {
                let d = self.half_at(self.step / 2 * 2);
                self.bytes().map(|q| d * q)
            }
            Format::W4 => {
                let d = self.half_at(self.step / 2 * 2);
                self.nibbles().map(|q| d * (q - 8.0))
            }
            Format::W4Z => {
                let (d, zero) = (self.half_at(0), self.header(2, 2) as f32);
                self.nibbles().map(|q| d * (q - zero))
            }
            Format::W4K => {
                let word = |i: usize| self.header(4 * i, 4);
                let bits = match self.tile_step % 4 {
                    3 => word(1) >> 24 | word(2) >> 24 << 8 | word(3) >> 24 << 16,
                    step => word(1 + step),
                } >> (self.step / 2 * 12);
                let scale = self.half_at(0) * (bits & 63) as f32;
                let min = self.half_at(2) * (bits >> 6 & 63) as f32;
                self.nibbles().map(|q| scale * q - min)
            }
            Format::W8K => {
                let sixteenth = self.tile_step % 4 * 4 + self.step;
                let scale = self.half_at(0) * f32::from(self.header(16 + sixteenth, 1) as i8);
                let min = self.half_at(2) * self.header(4 + sixteenth / 2, 1) as f32;
                self.bytes().map(|q| scale * q - min)
            }
        }
    }

    fn bytes(&self) -> [f32; 4] {
        self.vector(self.half)[self.step].to_le_bytes().map(|byte| f32::from(byte) - 128.0)
    }

    fn nibbles(&self) -> [f32; 4] {
        let word = self.vector(0)[self.step];
        let order = if self.half == 0 { [7, 0, 1, 2] } else { [3, 4, 5, 6] };
        order.map(|i| (word >> (4 * i) & 15) as f32)
    }

    fn widen(&self, bits: u16) -> f32 {
        match self.activation {
            DType::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        }
    }
}

/// Every value of W as some lane sees it, in row-major order of the padded weight.
fn values_of_lanes(layout: Layout, packed: &Packed, activation: DType) -> (usize, Vec<f32>) {
    let (rows, columns) = (layout.num_tile_rows() * TILE_N, layout.num_steps() * TILE_K);
    let mut out = vec![f32::NAN; rows * columns];
    for tile_row in 0..layout.num_tile_rows() {
        for tile_step in 0..layout.num_steps() {
            for place in 0..TILE_N / 16 * 2 * (TILE_K / 16) * 32 {
                let [block, half] = [place / 256, place / 128 % 2];
                let [step, lane] = [place / 32 % 4, place % 32];
                let lane = Lane {
                    layout,
                    packed,
                    activation,
                    tile_row,
                    tile_step,
                    block,
                    half,
                    step,
                    lane,
                };
                for (i, value) in lane.values().into_iter().enumerate() {
                    let [row, column] = lane.place(i);
                    out[row * columns + column] = value;
                }
            }
        }
    }
    (columns, out)
}

#[test]
fn lanes_find_the_values_of_the_checkpoint_and_zeros_around_them() {
    for (dtype, [n, k], activation) in DType::ALL.into_iter().flat_map(|dtype| {
        SHAPES.into_iter().flat_map(move |s| [DType::F16, DType::BF16].map(|a| (dtype, s, a)))
    }) {
        let k = k.next_multiple_of(dtype.block_len());
        let layout = Layout { format: Format::of(dtype), out_features: n, in_features: k };
        let bytes = weight_bytes(dtype, n, k);
        let packed = Packed::new(&layout, dtype, activation, &bytes).expect("memory");
        let (columns, values) = values_of_lanes(layout, &packed, activation);
        let mut expected = vec![0.0; n * k];
        dequantize(dtype, &bytes, &mut expected).expect("whole blocks");
        if layout.format == Format::Plain {
            for value in &mut expected {
                *value = match activation {
                    DType::F16 => f16::from_f32(*value).to_f32(),
                    _ => bf16::from_f32(*value).to_f32(),
                };
            }
        }
        let name = format!("{dtype} as {activation} [{n}, {k}]");
        for (row, values) in values.chunks(columns).enumerate() {
            let inside = if row < n { k } else { 0 };
            assert_same_bits(&values[..inside], &expected[row * inside..][..inside], &name);
            assert!(values[inside..].iter().all(|&x| x == 0.0), "{name}: padding of row {row}");
        }
    }
}

/// The kernels' sources, in the order of `Format::ALL`, with the name of each format there.
const SOURCES: [(&str, &str); 6] = [
    ("Plain", include_str!("../linear_plain.cu")),
    ("W8", include_str!("../linear_w8.cu")),
    ("W4", include_str!("../linear_w4.cu")),
    ("W4K", include_str!("../linear_w4k.cu")),
    ("W8K", include_str!("../linear_w8k.cu")),
    ("W4Z", include_str!("../linear_w4z.cu")),
];

#[test]
fn launches_are_those_that_the_sources_are_compiled_for() {
    let mut lines = Vec::new();
    for ((format, (name, _)), kernels) in
        Format::ALL.into_iter().zip(SOURCES).zip(KERNELS.chunks(2 * HEIGHTS.len()))
    {
        for (i, kernel) in kernels.iter().enumerate() {
            let activation = if i < HEIGHTS.len() { "__nv_bfloat16" } else { "__half" };
            let i = i % HEIGHTS.len();
            let (height, stages) = (HEIGHTS[i], num_stages(format)[i]);
            lines.push(format!(
                "LINEAR_KERNEL({}, {activation}, {name}, {height}, {stages}, {})",
                kernel.name,
                own_stages(format)[i]
            ));
        }
    }
    let sources = SOURCES.iter().flat_map(|(_, source)| source.lines());
    let compiled: Vec<&str> = sources.filter(|line| line.starts_with("LINEAR_KERNEL")).collect();
    assert_eq!(compiled, lines);
}

#[test]
fn blocks_fit_the_shared_memory_of_small_devices() {
    for format in Format::ALL {
        for height in 0..HEIGHTS.len() {
            for splits in [Splits::InTurn, Splits::SideBySide] {
                let bytes = shared_bytes(format, height, splits);
                assert!(bytes <= 99 << 10, "{format:?} {height} {splits:?}: {bytes}");
            }
        }
    }
}

#[test]
fn plans_give_the_busiest_multiprocessor_the_least_to_read() {
    use Splits::{InTurn, SideBySide};
    let square = Layout { format: Format::W4K, out_features: 4096, in_features: 4096 };
    let narrow = Layout { format: Format::Plain, out_features: 1024, in_features: 1024 };
    let vocabulary = Layout { format: Format::W4, out_features: 151_936, in_features: 1024 };
    let cases = [
        // layout, rows, height, splits, grid
        (square, 1, 16, SideBySide, [1, 128, 1]),
        (square, 17, 32, SideBySide, [1, 128, 1]),
        (square, 64, 64, SideBySide, [1, 128, 1]),
        (square, 128, 64, InTurn, [2, 32, 1]),
        (square, 8192, 128, InTurn, [64, 32, 1]),
        (narrow, 1, 16, SideBySide, [1, 32, 1]),
        (narrow, 64, 64, SideBySide, [1, 32, 1]),
        (narrow, 2048, 128, InTurn, [16, 8, 1]),
        (vocabulary, 16, 16, InTurn, [1, 1187, 1]),
        (vocabulary, 64, 64, InTurn, [1, 1187, 1]),
    ];
    for (layout, rows, height, splits, grid) in cases {
        let plan = Plan::new(&layout, rows);
        let got = (HEIGHTS[plan.height], plan.splits, plan.geometry(&layout, rows).grid);
        assert_eq!(got, (height, splits, grid), "{layout:?} {rows}");
    }
}

#[test]
fn products_of_few_rows_read_weights_once() {
    for format in Format::ALL {
        for n in [1, 896, 1152, 4096, 16_256, 27_648, 151_936] {
            let layout = Layout { format, out_features: n, in_features: 1024 };
            for rows in [1, 16, 17, 32, 33, 64] {
                let plan = Plan::new(&layout, rows);
                assert!(plan.is_possible(&layout), "{layout:?} {rows}: {plan:?}");
                assert_eq!(plan.geometry(&layout, rows).grid[0], 1, "{layout:?} {rows}: {plan:?}");
            }
        }
    }
}

/// Rows of the largest batch below: two of the tallest blocks.
const ROWS_MAX: usize = 130;

#[test]
fn a_row_has_the_same_bits_from_every_kernel_and_in_any_batch() {
    // 1024 columns are four splits, 576 are fewer or shorter ones.
    for device in cuda_devices() {
        for (format, k) in Format::ALL.into_iter().flat_map(|f| [(f, 1024), (f, 576)]) {
            let (n, k) = (40, usize::next_multiple_of(k, format.header_k()));
            let weight = weight_of(&device, format, n, k);
            let x = values(3, ROWS_MAX * k, 2.0);
            let first = Plan { height: 0, splits: Splits::InTurn };
            let expected = run(&device, first, &weight, &x[..17 * k]);
            for (height, rows) in [(0, 1), (0, 16), (1, 17), (2, 33), (3, 3), (3, ROWS_MAX)] {
                for splits in [Splits::InTurn, Splits::SideBySide] {
                    let plan = Plan { height, splits };
                    if !plan.is_possible(&weight.layout) {
                        continue;
                    }
                    let out = run(&device, plan, &weight, &x[..rows * k]);
                    let name = format!("{device:?} {format:?} {k} {plan:?} {rows}");
                    let same = 17.min(rows) * n;
                    assert_same_bits(&out[..same], &expected[..same], &name);
                    assert!(out.iter().all(|x| x.is_finite()), "{name}");
                }
            }
        }
    }
}

/// A weight of `format`.
fn weight_of(device: &CudaDevice, format: Format, n: usize, k: usize) -> DeviceWeight {
    let dtype = match format {
        Format::Plain => DType::BF16,
        Format::W8 => DType::Q8_0,
        Format::W4 => DType::Q4_0,
        Format::W4K => DType::Q4K,
        Format::W8K => DType::Q6K,
        Format::W4Z => {
            let arrays = GroupArrays::new(GroupLayout::Awq, [n, k], 64);
            return DeviceWeight::of_groups(device, &arrays.groups()).expect("they fit together");
        }
    };
    DeviceWeight::new(device, dtype, n, k, &weight_bytes(dtype, n, k)).expect("memory")
}

fn run(device: &CudaDevice, plan: Plan, weight: &DeviceWeight, x: &[f32]) -> Vec<f32> {
    let layout = &weight.layout;
    let rows = x.len() / layout.in_features;
    let x = on_device(device, device.activation_dtype(), &[rows, layout.in_features], x);
    let shape = [rows, layout.out_features];
    let mut out = on_device(device, DType::F32, &shape, &vec![f32::NAN; rows * shape[1]]);
    launch(device, plan, Epilogue::StoreF32, &mut out, &x, weight, None).expect("shapes fit");
    out.to_f32().expect("the device works")
}

#[test]
fn fifty_schedules_give_the_same_bits_from_every_kernel() {
    let Some(device) = cuda_devices().into_iter().next() else { return };
    let heights = 0..HEIGHTS.len();
    for (format, height) in heights.flat_map(|h| Format::ALL.map(|f| (f, h))) {
        for splits in [Splits::InTurn, Splits::SideBySide] {
            let plan = Plan { height, splits };
            // One step more than there are slots, so that each is filled again.
            let k = match splits {
                Splits::InTurn => (num_stages(format)[height] + 1) * TILE_K,
                Splits::SideBySide => (own_stages(format)[height] + 1) * TILE_K * SPLITS_MAX,
            };
            let k = k.next_multiple_of(format.header_k());
            let weight = weight_of(&device, format, 8, k);
            if plan.is_possible(&weight.layout) {
                let x = values(3, 2 * k, 2.0);
                let name = format!("{format:?} {plan:?}");
                check_schedules(&name, || run(&device, plan, &weight, &x));
            }
        }
    }
}

/// A weight as a checkpoint holds it, written from the description of its layout, and its numbers.
struct GroupArrays {
    layout: GroupLayout,
    shape: [usize; 2],
    group_len: usize,
    qweight: Vec<u8>,
    qzeros: Vec<u8>,
    scales: Vec<u8>,
    numbers: Vec<f32>,
}

impl GroupArrays {
    fn new(layout: GroupLayout, [n, k]: [usize; 2], group_len: usize) -> GroupArrays {
        let num_groups = k.div_ceil(group_len);
        let random = values(7, n * k + 2 * n * num_groups, 1.0);
        let (codes, rest) = random.split_at(n * k);
        let (zeros, scales) = rest.split_at(n * num_groups);
        let stored = |x: &f32| ((x + 1.0) * 8.0) as u32 & 15;
        let scales: Vec<f16> = scales.iter().map(|x| f16::from_f32(x * 0.1)).collect();
        let zero_added = if layout == GroupLayout::Gptq { 1 } else { 0 };
        let mut numbers = vec![0.0; n * k];
        let mut qweight = vec![0u32; n * k / 8];
        let mut qzeros = vec![0u32; n / 8 * num_groups];
        // AutoAWQ packs column order[i] of eight into nibble i.
        let order = match layout {
            GroupLayout::Gptq => [0, 1, 2, 3, 4, 5, 6, 7],
            GroupLayout::Awq => [0, 2, 4, 6, 1, 3, 5, 7],
        };
        for column in (0..n).step_by(8) {
            for (nibble, column) in order.map(|i| column + i).into_iter().enumerate() {
                for group in 0..num_groups {
                    let zero = stored(&zeros[group * n + column]);
                    qzeros[group * (n / 8) + column / 8] |= zero << (4 * nibble);
                }
                for input in 0..k {
                    let code = stored(&codes[input * n + column]);
                    match layout {
                        GroupLayout::Gptq => {
                            qweight[input / 8 * n + column] |= code << (input % 8 * 4);
                        }
                        GroupLayout::Awq => {
                            qweight[input * (n / 8) + column / 8] |= code << (4 * nibble);
                        }
                    }
                    let at = input / group_len * n + column;
                    let zero = stored(&zeros[at]) + zero_added;
                    numbers[column * k + input] = (code as f32 - zero as f32) * scales[at].to_f32();
                }
            }
        }
        let bytes = |words: &[u32]| words.iter().flat_map(|x| x.to_le_bytes()).collect();
        let scales = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (qweight, qzeros) = (bytes(&qweight), bytes(&qzeros));
        GroupArrays { layout, shape: [n, k], group_len, qweight, qzeros, scales, numbers }
    }

    /// 8 outputs of the `down_proj` of a checkpoint made for tests, with the numbers that the
    /// script which quantised it read back; packers of others read the same layouts alike.
    fn golden(layout: GroupLayout) -> GroupArrays {
        let file =
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/group_weights.bin"));
        let at = if layout == GroupLayout::Awq { 0 } else { file.len() / 2 };
        let part = |from: usize, len: usize| file[at + from..at + from + len].to_vec();
        let numbers = part(1064, 8192);
        let numbers = numbers.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let (qweight, qzeros, scales) = (part(0, 1024), part(1024, 8), part(1032, 32));
        GroupArrays { layout, shape: [8, 256], group_len: 128, qweight, qzeros, scales, numbers }
    }

    fn all() -> Vec<GroupArrays> {
        let shapes = [([8, 64], 64), ([40, 320], 128), ([136, 512], 512), ([16, 200], 128)];
        let layouts = [GroupLayout::Gptq, GroupLayout::Awq];
        let made = layouts.into_iter().flat_map(|layout| {
            shapes.map(|(shape, group_len)| GroupArrays::new(layout, shape, group_len))
        });
        made.chain(layouts.map(GroupArrays::golden)).collect()
    }

    fn groups(&self) -> Groups<'_> {
        Groups {
            layout: self.layout,
            out_features: self.shape[0],
            in_features: self.shape[1],
            group_len: self.group_len,
            qweight: &self.qweight,
            qzeros: &self.qzeros,
            scales: &self.scales,
        }
    }

    fn name(&self) -> String {
        format!("{:?} {:?} in groups of {}", self.layout, self.shape, self.group_len)
    }
}

#[test]
fn lanes_find_the_codes_zeros_and_scales_of_groups() {
    for arrays in GroupArrays::all() {
        let (groups, [n, k]) = (arrays.groups(), arrays.shape);
        let packed = Packed::of_groups(&groups).expect("they fit together");
        assert_same_bits(&groups.values().expect("as above"), &arrays.numbers, &arrays.name());
        let (columns, values) = values_of_lanes(groups.layout(), &packed, DType::BF16);
        for (row, values) in values.chunks(columns).enumerate().take(n) {
            let expected = &arrays.numbers[row * k..][..k];
            assert_same_bits(&values[..k], expected, &format!("{} row {row}", arrays.name()));
        }
    }
}

#[test]
fn products_with_groups_are_those_of_the_weights_rounded_once() {
    for device in cuda_devices() {
        let dtype = device.activation_dtype();
        let round = |x: &f32| match dtype {
            DType::F16 => f16::from_f32(*x).to_f32(),
            _ => bf16::from_f32(*x).to_f32(),
        };
        for arrays in GroupArrays::all() {
            let [n, k] = arrays.shape;
            let weight = DeviceWeight::of_groups(&device, &arrays.groups()).expect("memory");
            // Row t is 1 at one input and 0 elsewhere: it gives the weights of that input.
            let inputs: Vec<usize> = (0..20).map(|t| t * 131 % k).collect();
            let mut x = vec![0.0; inputs.len() * k];
            inputs.iter().enumerate().for_each(|(t, input)| x[t * k + input] = 1.0);
            let plan = Plan::new(&weight.layout, inputs.len());
            let out = run(&device, plan, &weight, &x);
            let w = |input: usize| (0..n).map(move |row| row * k + input);
            let expected: Vec<f32> = inputs
                .iter()
                .flat_map(|&input| w(input))
                .map(|at| round(&arrays.numbers[at]) + 0.0)
                .collect();
            assert_same_bits(&out, &expected, &format!("{device:?} {}", arrays.name()));
        }
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let arrays = GroupArrays::new(GroupLayout::Awq, [16, 128], 64);
    let good = arrays.groups();
    assert!(Packed::of_groups(&good).is_ok());
    let bad = [
        Groups { group_len: 32, ..good },
        Groups { group_len: 0, ..good },
        Groups { out_features: 12, ..good },
        Groups { in_features: 120, ..good },
        Groups { qweight: &good.qweight[4..], ..good },
        Groups { qzeros: &good.qzeros[4..], ..good },
        Groups { scales: &good.scales[2..], ..good },
    ];
    for groups in bad {
        let refused = Packed::of_groups(&groups);
        assert!(matches!(refused, Err(KernelError::Shape { .. })), "{groups:?}");
    }
}
