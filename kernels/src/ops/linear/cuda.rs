//! Launches of the tensor-core kernels, see `multiply.cuh`.

pub mod layout;
pub mod groups;
pub mod pack;
pub mod rows;
#[cfg(test)]
mod tests;

use crate::device::cuda::{Arg, CudaDevice, DeviceBuffer, Geometry, KernelSpec, Param};
use crate::{DType, KernelError, Tensor};
use groups::Groups;
use layout::{Format, Layout, PIECE_N, SPLITS_MAX, TILE_K, TILE_N};
use pack::Packed;
use rows::Rows;

/// Rows of x that one block computes, one kernel each.
const HEIGHTS: [usize; 4] = [16, 32, 64, 128];
/// The tallest one that has a warp for each 32 columns; taller ones have two.
const HEIGHT_OF_4_WARPS: usize = 64;
/// Rows of x up to which W is read once, by one row of blocks.
const SKINNY_ROWS_MAX: usize = 64;
/// Rows of a warp's collected sums in shared memory, in bytes; `OUT_STRIDE` in the kernel.
const OUT_ROW_BYTES: usize = (PIECE_N + 8) * 4;
/// Of a large device, to weigh plans; they give the same bits, so it need not be this device's.
const MULTIPROCESSORS: usize = 128;

const PARAMS: &[Param] = &[
    Param::Ptr,
    Param::Ptr,
    Param::Ptr,
    Param::Ptr,
    Param::Ptr,
    Param::U32,
    Param::U32,
    Param::U32,
    Param::U32,
    Param::U32,
    Param::U32,
];

/// The kernels of each module: BF16, then F16, in the order of `HEIGHTS`.
macro_rules! specs {
    ($($module:literal)*) => {
        &[$(
            specs!($module, "_bf16_m16"),
            specs!($module, "_bf16_m32"),
            specs!($module, "_bf16_m64"),
            specs!($module, "_bf16_m128"),
            specs!($module, "_f16_m16"),
            specs!($module, "_f16_m32"),
            specs!($module, "_f16_m64"),
            specs!($module, "_f16_m128"),
        )*]
    };
    ($module:literal, $suffix:literal) => {
        KernelSpec { module: $module, name: concat!($module, $suffix), params: PARAMS }
    };
}

/// In the order of `Format::ALL`.
pub const KERNELS: &[KernelSpec] =
    specs!("linear_plain" "linear_w8" "linear_w4" "linear_w4k" "linear_w8k" "linear_w4z");

/// cuBLASLt as one more kernel for plain weights, by which it is named where kernels are tried,
/// switched off and reported: BF16, then F16. It is not launched by this name.
pub static CUBLASLT: [KernelSpec; 2] = [
    KernelSpec { module: "linear_plain", name: "cublaslt_bf16", params: &[] },
    KernelSpec { module: "linear_plain", name: "cublaslt_f16", params: &[] },
];

/// That of `CUBLASLT` for this activation format.
pub fn cublaslt(activation: DType) -> &'static KernelSpec {
    &CUBLASLT[usize::from(activation == DType::F16)]
}

/// A weight in device memory.
#[derive(Debug)]
pub struct DeviceWeight {
    layout: Layout,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// For our own kernels.
    Tiles(Tiles),
    /// For cuBLASLt.
    Rows(Box<Rows>),
}

#[derive(Debug)]
struct Tiles {
    codes: DeviceBuffer,
    headers: DeviceBuffer,
}

impl DeviceWeight {
    /// Repacks `bytes` for the activation dtype of `device` and copies them there.
    ///
    /// Errors: `OutOfMemory`; `Device`, also when all kernels for such weights are switched off.
    pub fn new(
        device: &CudaDevice,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<DeviceWeight, KernelError> {
        let layout = Layout { format: Format::of(dtype), out_features, in_features };
        expect_kernel(device, &layout)?;
        let packed = Packed::new(&layout, dtype, device.activation_dtype(), bytes)?;
        Self::of_packed(device, layout, &packed)
    }

    /// As `new`, for products that get no bias: cuBLASLt's form of the weight, where it was chosen
    /// for such weights on this device.
    ///
    /// Errors: as `new`.
    pub fn without_bias(
        device: &CudaDevice,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<DeviceWeight, KernelError> {
        let layout = Layout { format: Format::of(dtype), out_features, in_features };
        let chosen = device.chosen_product([out_features, in_features]);
        match chosen.filter(|_| layout.format == Format::Plain) {
            Some(algorithms) => {
                let rows = Rows::new(device, &layout, &algorithms, dtype, bytes)?;
                Ok(DeviceWeight { layout, form: Form::Rows(Box::new(rows)) })
            }
            None => Self::new(device, dtype, out_features, in_features, bytes),
        }
    }

    /// As `new`, for a weight in groups of 4-bit codes.
    ///
    /// Errors: as `new`; `Shape` if the arrays of `groups` do not fit together.
    pub fn of_groups(device: &CudaDevice, groups: &Groups) -> Result<DeviceWeight, KernelError> {
        Self::of_packed(device, groups.layout(), &Packed::of_groups(groups)?)
    }

    fn of_packed(
        device: &CudaDevice,
        layout: Layout,
        packed: &Packed,
    ) -> Result<DeviceWeight, KernelError> {
        let codes = DeviceBuffer::from_bytes(device, &packed.codes)?;
        let headers = DeviceBuffer::from_bytes(device, &packed.headers)?;
        Ok(DeviceWeight { layout, form: Form::Tiles(Tiles { codes, headers }) })
    }

    /// Bytes on the device.
    pub fn num_bytes(&self) -> usize {
        match &self.form {
            Form::Tiles(Tiles { codes, headers }) => codes.len() + headers.len(),
            Form::Rows(rows) => rows.num_bytes(),
        }
    }
}

/// What becomes of the products. The numbers are those of `Epilogue` in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    StoreActivation = 0,
    StoreF32 = 1,
}

/// The kernel and the grid of a launch. Every plan for a weight gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Index into `HEIGHTS`.
    height: usize,
    splits: Splits,
}

/// How a block shares the work among its warps. The numbers are those of `Splits` in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splits {
    /// Each four warps take 128 columns, all splits in turn.
    InTurn = 0,
    /// Four warps take the same 32 columns, one split each.
    SideBySide = 1,
}

impl Splits {
    /// Columns of a block.
    fn columns(self) -> usize {
        match self {
            Splits::InTurn => TILE_N,
            Splits::SideBySide => PIECE_N,
        }
    }
}

impl Plan {
    /// The lowest kernel that reads W once, for more rows one of the tallest two; whichever gives
    /// the busiest multiprocessor the least to read.
    fn new(layout: &Layout, num_rows: usize) -> Plan {
        let tallest = HEIGHTS.len() - 1;
        let mut heights = match num_rows {
            0..=SKINNY_ROWS_MAX => {
                let lowest = HEIGHTS.iter().position(|&h| num_rows <= h).unwrap_or(tallest);
                lowest..lowest + 1
            }
            _ => tallest - 1..tallest + 1,
        };
        // Where two are equal, the taller one, which reads less on the whole.
        let first = heights.next_back().expect("one height at least");
        let first = Self::with_height(layout, num_rows, first);
        heights.fold(first, |best, height| {
            let plan = Self::with_height(layout, num_rows, height);
            let [cost, least] = [plan, best].map(|p| p.busiest_bytes(layout, num_rows));
            if cost < least { plan } else { best }
        })
    }

    /// The same among the kernels that `device` may launch: the one it prefers, or else the nearest
    /// height from there up, or else down.
    ///
    /// Errors: `Device` when all of them are switched off.
    fn on_device(
        device: &CudaDevice,
        layout: &Layout,
        num_rows: usize,
    ) -> Result<Plan, KernelError> {
        let (format, activation) = (layout.format, device.activation_dtype());
        let kernel = |height| kernel(format, activation, height);
        let preferred = device.preferred(kernel(Plan::new(layout, num_rows).height));
        let first = (0..HEIGHTS.len()).find(|&height| kernel(height) == preferred).unwrap_or(0);
        let mut heights = (first..HEIGHTS.len()).chain((0..first).rev());
        let height = heights.find(|&height| !device.is_switched_off(kernel(height)));
        let height = height.ok_or_else(|| no_kernel(format, activation))?;
        Ok(Self::with_height(layout, num_rows, height))
    }

    /// The better of the plans for this height. Where both are equal, splits in turn, which read x
    /// less often.
    fn with_height(layout: &Layout, num_rows: usize, height: usize) -> Plan {
        let [in_turn, side_by_side] =
            [Splits::InTurn, Splits::SideBySide].map(|splits| Plan { height, splits });
        let cost = |plan: Plan| plan.busiest_bytes(layout, num_rows);
        if side_by_side.is_possible(layout) && cost(side_by_side) < cost(in_turn) {
            side_by_side
        } else {
            in_turn
        }
    }

    fn is_possible(&self, layout: &Layout) -> bool {
        self.splits == Splits::InTurn || own_stages(layout.format)[self.height] > 0
    }

    /// Bytes of x and W that the multiprocessor with the most blocks reads: it gets that many in a
    /// time that does not depend on how few others are busy.
    fn busiest_bytes(&self, layout: &Layout, num_rows: usize) -> usize {
        let columns = self.splits.columns();
        let rows = num_rows.div_ceil(HEIGHTS[self.height]);
        let num_blocks = rows * layout.out_features.div_ceil(columns);
        let x_bytes = num_rows.min(HEIGHTS[self.height]) * layout.num_steps() * TILE_K * 2;
        let w_bytes = columns * layout.row_bytes();
        num_blocks.div_ceil(MULTIPROCESSORS) * (x_bytes + w_bytes)
    }

    fn geometry(&self, layout: &Layout, num_rows: usize) -> Geometry {
        let height = HEIGHTS[self.height];
        let columns = layout.out_features.div_ceil(self.splits.columns());
        let grid = [num_rows.div_ceil(height), columns, 1].map(u32_of);
        let block_threads = if height > HEIGHT_OF_4_WARPS { 256 } else { 128 };
        let shared_bytes = u32_of(shared_bytes(layout.format, self.height, self.splits));
        Geometry { grid, block_threads, shared_bytes }
    }
}

/// Errors: `Device` when no kernel may multiply with such a weight.
fn expect_kernel(device: &CudaDevice, layout: &Layout) -> Result<(), KernelError> {
    match can_multiply(device, layout.format) {
        true => Ok(()),
        false => Err(no_kernel(layout.format, device.activation_dtype())),
    }
}

/// Whether one of our own kernels may multiply with weights of `format`.
pub fn can_multiply(device: &CudaDevice, format: Format) -> bool {
    let kernels = kernels_for(format, device.activation_dtype());
    kernels.iter().any(|kernel| !device.is_switched_off(kernel))
}

fn no_kernel(format: Format, activation: DType) -> KernelError {
    let names: Vec<&str> = kernels_for(format, activation).iter().map(|k| k.name).collect();
    let names = names.join(", ");
    KernelError::Device(format!("all kernels for these weights are switched off: {names}"))
}

fn kernel(format: Format, activation: DType, height: usize) -> &'static KernelSpec {
    let format = Format::ALL.iter().position(|&f| f == format).expect("all formats");
    let is_f16 = usize::from(activation == DType::F16);
    &KERNELS[(format * 2 + is_f16) * HEIGHTS.len() + height]
}

/// The kernels that multiply with weights of `format`; all compute the same bits.
pub fn kernels_for(format: Format, activation: DType) -> &'static [KernelSpec] {
    let first =
        KERNELS.iter().position(|k| k == kernel(format, activation, 0)).expect("one of them");
    &KERNELS[first..first + HEIGHTS.len()]
}

/// Steps of k that are on their way or in use, as in the `LINEAR_KERNEL` lines of the kernels: for
/// each of `HEIGHTS`. Chosen so that a block has at most 99 KiB, which is what compute capability
/// 8.6 offers, and so that low blocks, of which two or more share a multiprocessor, keep 32 KiB or
/// more of W on its way.
fn num_stages(format: Format) -> [usize; 4] {
    match format {
        Format::Plain => [4, 4, 3, 3],
        Format::W8 => [6, 6, 4, 4],
        Format::W4 | Format::W4K | Format::W4Z => [8, 8, 5, 4],
        Format::W8K => [6, 6, 4, 3],
    }
}

/// As `num_stages`, for each warp of a block with splits side by side, where its own tiles of x
/// take most of the memory. Blocks of 128 rows have too many of them.
fn own_stages(format: Format) -> [usize; 4] {
    match format {
        Format::Plain => [4, 3, 2, 0],
        Format::W8 => [6, 4, 2, 0],
        Format::W4 | Format::W4K | Format::W4Z => [7, 4, 2, 0],
        Format::W8K => [5, 3, 2, 0],
    }
}

/// One launch, as `launch` makes it.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    pub kernel: &'static KernelSpec,
    pub geometry: Geometry,
    /// Rows of x and columns of W that one block computes.
    pub block_rows: usize,
    pub block_columns: usize,
    /// The kernel's last argument.
    pub splits: u32,
}

/// What a product with `num_rows` rows of `activation` launches.
pub fn launch_of(layout: &Layout, activation: DType, num_rows: usize) -> Launch {
    let plan = Plan::new(layout, num_rows);
    Launch {
        kernel: kernel(layout.format, activation, plan.height),
        geometry: plan.geometry(layout, num_rows),
        block_rows: HEIGHTS[plan.height],
        block_columns: plan.splits.columns(),
        splits: plan.splits as u32,
    }
}

/// The most dynamic shared memory of a kernel of `KERNELS`.
pub fn shared_bytes_of(kernel: &KernelSpec) -> Option<usize> {
    let at = KERNELS.iter().position(|k| k == kernel)?;
    let (format, height) = (Format::ALL[at / HEIGHTS.len() / 2], at % HEIGHTS.len());
    let bytes = |splits| shared_bytes(format, height, splits);
    Some(bytes(Splits::InTurn).max(bytes(Splits::SideBySide)))
}

/// Dynamic shared memory: the tiles of all stages and the headers they need, later the sums.
fn shared_bytes(format: Format, height: usize, splits: Splits) -> usize {
    let [in_turn, own] = [num_stages(format)[height], own_stages(format)[height]];
    let x_bytes = HEIGHTS[height] * TILE_K * 2;
    let tiles = match splits {
        Splits::InTurn => in_turn * (x_bytes + format.tile_bytes()),
        Splits::SideBySide => own * (SPLITS_MAX * x_bytes + format.tile_bytes()),
    };
    let header_slots = (in_turn.max(own) - 1).div_ceil(format.header_k() / TILE_K) + 1;
    let headers = header_slots * TILE_N * format.header_bytes();
    (tiles + headers).max(TILE_N / PIECE_N * HEIGHTS[height] * OUT_ROW_BYTES)
}

pub fn linear(
    device: &CudaDevice,
    out: &mut Tensor,
    x: &Tensor,
    weight: &DeviceWeight,
    bias: Option<&Tensor>,
) -> Result<(), KernelError> {
    let epilogue = match out.dtype() {
        DType::F32 => Epilogue::StoreF32,
        _ => Epilogue::StoreActivation,
    };
    if let Form::Rows(rows) = &weight.form {
        assert!(bias.is_none(), "the weight was loaded for products without a bias");
        return rows.multiply(out, x);
    }
    let plan = Plan::on_device(device, &weight.layout, x.rows())?;
    launch(device, plan, epilogue, out, x, weight, bias)
}

fn launch(
    device: &CudaDevice,
    plan: Plan,
    epilogue: Epilogue,
    out: &mut Tensor,
    x: &Tensor,
    weight: &DeviceWeight,
    bias: Option<&Tensor>,
) -> Result<(), KernelError> {
    let (layout, num_rows) = (&weight.layout, x.rows());
    let Form::Tiles(tiles) = &weight.form else { panic!("not a weight for our own kernels") };
    if num_rows == 0 {
        return Ok(());
    }
    let kernel = kernel(layout.format, device.activation_dtype(), plan.height);
    let args = [
        Arg::Ptr(out.device_ptr()),
        Arg::Ptr(x.device_ptr()),
        Arg::Ptr(tiles.codes.ptr()),
        Arg::Ptr(tiles.headers.ptr()),
        Arg::Ptr(bias.map_or(0, Tensor::device_ptr)),
        Arg::U32(u32_of(num_rows)),
        Arg::U32(u32_of(layout.out_features)),
        Arg::U32(u32_of(layout.in_features)),
        Arg::U32(u32_of(layout.steps_per_split())),
        Arg::U32(epilogue as u32),
        Arg::U32(plan.splits as u32),
    ];
    device.launch(kernel, plan.geometry(layout, num_rows), &args)
}

fn u32_of(x: usize) -> u32 {
    u32::try_from(x).expect("a dimension of a model")
}
