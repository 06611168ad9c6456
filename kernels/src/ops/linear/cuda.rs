//! Launches of the tensor-core kernels, see `multiply.cuh`.

pub mod layout;
pub mod pack;
#[cfg(test)]
mod tests;

use crate::device::cuda::{Arg, CudaDevice, DeviceBuffer, Geometry, KernelSpec, Param};
use crate::{DType, KernelError, Tensor};
use layout::{BLOCKS_WANTED, Format, Layout, TILE_K, TILE_N};
use pack::Packed;

/// Rows of x that one block computes, one kernel each.
const HEIGHTS: [usize; 4] = [16, 32, 64, 128];
/// The tallest one that has a warp for each 32 columns; taller ones have two.
const HEIGHT_OF_4_WARPS: usize = 64;
/// Rows of collected sums in shared memory, in bytes; `OUT_STRIDE` in the kernel.
const OUT_ROW_BYTES: usize = (TILE_N + 8) * 4;
/// The counters of arrived blocks lie before the partial sums in the device's workspace.
const ARRIVALS_BYTES: usize = BLOCKS_WANTED * 4;

const PARAMS: &[Param] = &[
    Param::Ptr,
    Param::Ptr,
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
    specs!("linear_plain" "linear_w8" "linear_w4" "linear_w4k" "linear_w8k");

/// A weight in device memory.
#[derive(Debug)]
pub struct DeviceWeight {
    layout: Layout,
    codes: DeviceBuffer,
    headers: DeviceBuffer,
}

impl DeviceWeight {
    /// Repacks `bytes` for the activation dtype of `device` and copies them there.
    ///
    /// Errors: `OutOfMemory`, `Device`.
    pub fn new(
        device: &CudaDevice,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<DeviceWeight, KernelError> {
        let layout = Layout::new(Format::of(dtype), out_features, in_features);
        Self::with_layout(device, dtype, layout, bytes)
    }

    /// As `new`, for a weight that may be a part of another.
    pub fn with_layout(
        device: &CudaDevice,
        dtype: DType,
        layout: Layout,
        bytes: &[u8],
    ) -> Result<DeviceWeight, KernelError> {
        let packed = Packed::new(&layout, dtype, device.activation_dtype(), bytes)?;
        let codes = DeviceBuffer::from_bytes(device, &packed.codes)?;
        let headers = DeviceBuffer::from_bytes(device, &packed.headers)?;
        // Allocated now, since the first launch may be recorded into a graph.
        device.workspace()?;
        Ok(DeviceWeight { layout, codes, headers })
    }

    /// Bytes on the device.
    pub fn num_bytes(&self) -> usize {
        self.codes.len() + self.headers.len()
    }
}

/// What becomes of the products. The numbers are those of `Epilogue` in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    StoreActivation = 0,
    StoreF32 = 1,
    AddF32 = 2,
}

/// The kernel and the grid of a launch. Every plan for a weight gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Index into `HEIGHTS`.
    height: usize,
    /// Whether each split has blocks of its own.
    splits: Splits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splits {
    /// A block computes all of them in turn.
    InTurn,
    /// Blocks of their own leave partial sums in the workspace.
    SideBySide,
}

impl Plan {
    /// The lowest kernel that reads W once, up to the tallest; splits side by side while that gives
    /// multiprocessors work that would have none.
    fn new(layout: &Layout, num_rows: usize) -> Plan {
        let tallest = HEIGHTS.len() - 1;
        let height = HEIGHTS.iter().position(|&h| num_rows <= h).unwrap_or(tallest);
        Self::with_height(layout, num_rows, height)
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
        let height = height.ok_or_else(|| {
            KernelError::Device(format!("all kernels for weights of {format:?} are switched off"))
        })?;
        Ok(Self::with_height(layout, num_rows, height))
    }

    fn with_height(layout: &Layout, num_rows: usize, height: usize) -> Plan {
        let side_by_side = Plan { height, splits: Splits::SideBySide };
        let fits = side_by_side.num_blocks_of_split(layout, num_rows) < BLOCKS_WANTED
            && side_by_side.partials_bytes(layout, num_rows)
                <= CudaDevice::WORKSPACE_BYTES - ARRIVALS_BYTES;
        if layout.num_splits() > 1 && fits {
            side_by_side
        } else {
            Plan { height, splits: Splits::InTurn }
        }
    }

    fn num_blocks_of_split(&self, layout: &Layout, num_rows: usize) -> usize {
        num_rows.div_ceil(HEIGHTS[self.height]) * layout.num_tile_rows()
    }

    fn partials_bytes(&self, layout: &Layout, num_rows: usize) -> usize {
        layout.num_splits() * num_rows * layout.num_tile_rows() * TILE_N * 4
    }

    fn geometry(&self, layout: &Layout, num_rows: usize) -> Geometry {
        let height = HEIGHTS[self.height];
        let depth = match self.splits {
            Splits::InTurn => 1,
            Splits::SideBySide => layout.num_splits(),
        };
        let grid = [num_rows.div_ceil(height), layout.num_tile_rows(), depth].map(u32_of);
        let block_threads = if height > HEIGHT_OF_4_WARPS { 256 } else { 128 };
        let shared_bytes = u32_of(shared_bytes(layout.format, self.height));
        Geometry { grid, block_threads, shared_bytes }
    }
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
        Format::W4 | Format::W4K => [8, 8, 5, 4],
        Format::W8K => [6, 6, 4, 3],
    }
}

/// What a product with `num_rows` rows of `activation` launches, and the rows of x that one block
/// computes.
pub fn launch_of(
    layout: &Layout,
    activation: DType,
    num_rows: usize,
) -> (&'static KernelSpec, Geometry, usize) {
    let plan = Plan::new(layout, num_rows);
    let kernel = kernel(layout.format, activation, plan.height);
    (kernel, plan.geometry(layout, num_rows), HEIGHTS[plan.height])
}

/// Dynamic shared memory of a kernel of `KERNELS`.
pub fn shared_bytes_of(kernel: &KernelSpec) -> Option<usize> {
    let at = KERNELS.iter().position(|k| k == kernel)?;
    Some(shared_bytes(Format::ALL[at / HEIGHTS.len() / 2], at % HEIGHTS.len()))
}

/// Dynamic shared memory: the tiles of all stages and the headers they need, later the sums.
fn shared_bytes(format: Format, height: usize) -> usize {
    let (num_stages, height) = (num_stages(format)[height], HEIGHTS[height]);
    let tiles = num_stages * (height * TILE_K * 2 + format.tile_bytes());
    let header_slots = (num_stages - 1).div_ceil(format.header_k() / TILE_K) + 1;
    let headers = header_slots * TILE_N * format.header_bytes();
    (tiles + headers).max(height * OUT_ROW_BYTES)
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
    let plan = Plan::on_device(device, &weight.layout, x.rows())?;
    launch(device, plan, epilogue, out, x, weight, bias)
}

pub fn linear_add(
    device: &CudaDevice,
    out: &mut Tensor,
    x: &Tensor,
    weight: &DeviceWeight,
    bias: Option<&Tensor>,
) -> Result<(), KernelError> {
    let plan = Plan::on_device(device, &weight.layout, x.rows())?;
    launch(device, plan, Epilogue::AddF32, out, x, weight, bias)
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
    if num_rows == 0 {
        return Ok(());
    }
    let kernel = kernel(layout.format, device.activation_dtype(), plan.height);
    let workspace = device.workspace()?;
    let args = [
        Arg::Ptr(out.device_ptr()),
        Arg::Ptr(x.device_ptr()),
        Arg::Ptr(weight.codes.ptr()),
        Arg::Ptr(weight.headers.ptr()),
        Arg::Ptr(bias.map_or(0, Tensor::device_ptr)),
        Arg::Ptr(workspace + ARRIVALS_BYTES as u64),
        Arg::Ptr(workspace),
        Arg::U32(u32_of(num_rows)),
        Arg::U32(u32_of(layout.out_features)),
        Arg::U32(u32_of(layout.in_features)),
        Arg::U32(u32_of(layout.steps_per_split())),
        Arg::U32(epilogue as u32),
    ];
    device.launch(kernel, plan.geometry(layout, num_rows), &args)
}

fn u32_of(x: usize) -> u32 {
    u32::try_from(x).expect("a dimension of a model")
}
