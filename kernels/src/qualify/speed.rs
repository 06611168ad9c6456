//! How fast a device copies, multiplies and runs each op: medians of several runs, between two
//! events on the stream. Sizes grow until a run takes long enough to be timed, so that a slow
//! device, such as a virtual one, is done soon; its numbers then say little.

use super::numbers::{bytes_of, on_device, values};
use crate::device::cuda::{CudaDevice, DeviceBuffer, Event, KernelSpec, PinnedBuffer};
use crate::ops::linear::cuda::layout::{Format, Layout};
use crate::ops::linear::cuda::{kernels_for, launch_of};
use crate::ops::{self, Weight};
use crate::{Backend, DType, KernelError, Tensor};

/// What one run of some work took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    pub what: String,
    pub median_ms: f64,
    /// Bytes or operations in a second, in units of 10^9.
    pub rate: f64,
    pub unit: &'static str,
}

/// Runs whose median counts; one more before them, which loads kernels and wakes clocks.
const RUNS: usize = 7;
/// A shorter run is not told from the time of a launch.
const RUN_MS_MIN: f64 = 2.0;
/// Copies grow from the first size to the last.
const COPY_BYTES: [usize; 4] = [1 << 20, 16 << 20, 128 << 20, 512 << 20];
/// Sides of square products.
const SIDES: [usize; 6] = [128, 512, 1024, 2048, 4096, 8192];
/// Outputs and inputs of a weight that one row streams, as in a decode step.
const STREAMED: [[usize; 2]; 4] = [[512, 512], [1024, 1024], [4096, 4096], [12_288, 4096]];
/// Values of a step's rows.
const ROWS: [[usize; 2]; 4] = [[4, 1024], [64, 4096], [512, 4096], [4096, 4096]];

/// Everything that is timed, in bf16. Errors: what the device answers.
pub fn measure(device: &CudaDevice) -> Result<Vec<Timing>, KernelError> {
    let device = device.with_activation(DType::BF16);
    Ok(vec![
        grow(&COPY_BYTES, |&bytes| copy_to_device(&device, bytes))?,
        grow(&COPY_BYTES, |&bytes| copy_to_host(&device, bytes))?,
        grow(&COPY_BYTES, |&bytes| copy_on_device(&device, bytes))?,
        grow(&SIDES, |&side| product(&device, DType::BF16, [side; 3]))?,
        grow(&STREAMED, |&[n, k]| product(&device, DType::BF16, [1, n, k]))?,
        grow(&STREAMED, |&[n, k]| product(&device, DType::BF16, [16, n, k]))?,
        grow(&STREAMED, |&[n, k]| product(&device, DType::Q8_0, [1, n, k]))?,
        grow(&STREAMED, |&[n, k]| product(&device, DType::Q4K, [1, n, k]))?,
        grow(&ROWS, |&shape| add_rms_norm(&device, shape))?,
        grow(&ROWS, |&shape| silu_mul(&device, shape))?,
    ])
}

/// Several kernels that do the same, timed.
#[derive(Debug, Clone)]
pub struct Race {
    /// The one that is launched unless told otherwise.
    pub usual: &'static KernelSpec,
    /// Rows of x; the weight is in `times`.
    pub rows: usize,
    /// In the order of their speed; kernels that are switched off do not take part.
    pub times: Vec<(&'static KernelSpec, Timing)>,
}

impl Race {
    /// The fastest one, if it beats the usual one clearly.
    pub fn winner(&self) -> Option<&'static KernelSpec> {
        let (kernel, best) = self.times.first()?;
        let usual = self.times.iter().find(|(k, _)| *k == self.usual);
        let is_clear = |(_, usual): &(_, Timing)| usual.rate < CLEARLY * best.rate;
        (*kernel != self.usual && usual.is_none_or(is_clear)).then_some(kernel)
    }
}

/// A difference below 3% is noise.
pub(super) const CLEARLY: f64 = 0.97;
/// One dtype for each format of weights on a device; the activation's own is the sixth.
const RACE_DTYPES: [DType; 4] = [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K];
/// Rows of x for each of the kernels that may be the usual one.
const RACE_ROWS: [usize; 4] = [1, 32, 64, 512];

/// Lets the kernels of every weight format race at every number of rows. What `device` launches is
/// left as it was.
///
/// Errors: what the device answers.
pub fn race(device: &CudaDevice) -> Result<Vec<Race>, KernelError> {
    let mut races = Vec::new();
    for activation in [DType::BF16, DType::F16] {
        let device = device.with_activation(activation);
        for dtype in RACE_DTYPES.into_iter().chain([activation]) {
            for rows in RACE_ROWS {
                races.push(race_one(&device, dtype, rows)?);
            }
        }
    }
    Ok(races)
}

fn race_one(device: &CudaDevice, dtype: DType, rows: usize) -> Result<Race, KernelError> {
    let format = Format::of(dtype);
    let [n, k] = STREAMED[0];
    let layout = Layout { format, out_features: n, in_features: k };
    let usual = launch_of(&layout, device.activation_dtype(), rows).kernel;
    let kernels = kernels_for(format, device.activation_dtype());
    let before = device.preferred(usual);
    let mut times = Vec::new();
    for kernel in kernels.iter().filter(|kernel| !device.is_switched_off(kernel)) {
        device.prefer(usual, kernel);
        let timing = grow(&STREAMED, |&[n, k]| product(device, dtype, [rows, n, k]));
        device.prefer(usual, before);
        times.push((kernel, timing?));
    }
    // Rates, for the sizes that were reached may differ.
    times.sort_by(|(_, a), (_, b)| b.rate.total_cmp(&a.rate));
    Ok(Race { usual, rows, times })
}

/// The timing at the first size that takes long enough, or at the last.
fn grow<T>(
    sizes: &[T],
    mut time: impl FnMut(&T) -> Result<Timing, KernelError>,
) -> Result<Timing, KernelError> {
    let mut last = time(&sizes[0])?;
    for size in &sizes[1..] {
        if last.median_ms >= RUN_MS_MIN {
            break;
        }
        last = time(size)?;
    }
    Ok(last)
}

/// Times `work`, which moves or computes `amount`.
fn time(
    device: &CudaDevice,
    what: String,
    (amount, unit): (f64, &'static str),
    mut work: impl FnMut() -> Result<(), KernelError>,
) -> Result<Timing, KernelError> {
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    let mut runs = Vec::new();
    work()?;
    for _ in 0..RUNS {
        start.record()?;
        work()?;
        end.record()?;
        end.wait()?;
        runs.push(f64::from(start.elapsed_ms(&end)?));
    }
    runs.sort_by(f64::total_cmp);
    let median_ms = runs[RUNS / 2];
    Ok(Timing { what, median_ms, rate: amount / median_ms / 1e6, unit })
}

fn copy_to_device(device: &CudaDevice, bytes: usize) -> Result<Timing, KernelError> {
    let (host, buffer) = (PinnedBuffer::new(device, bytes)?, DeviceBuffer::zeroed(device, bytes)?);
    let what = format!("copy of {bytes} bytes, host to device, pinned");
    time(device, what, (bytes as f64, "GB/s"), || host.upload(&buffer, 0, bytes))
}

fn copy_to_host(device: &CudaDevice, bytes: usize) -> Result<Timing, KernelError> {
    let mut host = PinnedBuffer::new(device, bytes)?;
    let buffer = DeviceBuffer::zeroed(device, bytes)?;
    let what = format!("copy of {bytes} bytes, device to host, pinned");
    time(device, what, (bytes as f64, "GB/s"), || host.download(&buffer, 0, bytes))
}

/// Reads and writes: twice the bytes move.
fn copy_on_device(device: &CudaDevice, bytes: usize) -> Result<Timing, KernelError> {
    let (from, to) = (DeviceBuffer::zeroed(device, bytes)?, DeviceBuffer::zeroed(device, bytes)?);
    let what = format!("copy of {bytes} bytes on the device, read and written");
    time(device, what, (2.0 * bytes as f64, "GB/s"), || to.copy_from(&from))
}

/// Few rows stream a weight, so bytes count there; many compute.
pub(super) fn product(
    device: &CudaDevice,
    dtype: DType,
    [rows, n, k]: [usize; 3],
) -> Result<Timing, KernelError> {
    let backend = Backend::Cuda(device.clone());
    let row = match dtype.is_quantized() {
        true => vec![0; dtype.row_bytes(k).expect("whole blocks")],
        false => bytes_of(dtype, &values(1, k, 1.0)),
    };
    let bytes = row.repeat(n);
    let weight_bytes = bytes.len() as f64;
    let weight = Weight::load_without_bias(&backend, dtype, n, k, bytes.into())?;
    let x = on_device(device, device.activation_dtype(), &[rows, k], &values(2, rows * k, 1.0))?;
    let mut out = Tensor::zeros_on(&backend, device.activation_dtype(), &[rows, n])?;
    let amount = match rows {
        0..=64 => (weight_bytes, "GB/s of weights"),
        _ => (2.0 * (rows * n * k) as f64, "GFLOP/s"),
    };
    let what = format!("{rows} rows by a weight [{n}, {k}] of {dtype}");
    time(device, what, amount, || ops::linear(&backend, &mut out, &x, &weight, None))
}

fn add_rms_norm(device: &CudaDevice, [rows, n]: [usize; 2]) -> Result<Timing, KernelError> {
    let backend = Backend::Cuda(device.clone());
    let zeros = |dtype, shape: &[usize]| Tensor::zeros_on(&backend, dtype, shape);
    let mut hidden = zeros(DType::F32, &[rows, n])?;
    let (delta, weight) = (zeros(DType::F32, &[rows, n])?, zeros(DType::F32, &[n])?);
    let mut out = zeros(device.activation_dtype(), &[rows, n])?;
    let amount = ((rows * n * 14 + n * 4) as f64, "GB/s");
    time(device, format!("add and norm of {rows} rows of {n}"), amount, || {
        ops::add_rms_norm(&backend, &mut hidden, Some(&delta), &mut out, &weight, 1e-6)
    })
}

fn silu_mul(device: &CudaDevice, shape: [usize; 2]) -> Result<Timing, KernelError> {
    let backend = Backend::Cuda(device.clone());
    let zeros = || Tensor::zeros_on(&backend, device.activation_dtype(), &shape);
    let (mut out, gate, up) = (zeros()?, zeros()?, zeros()?);
    let amount = ((out.len() * 6) as f64, "GB/s");
    let [rows, n] = shape;
    time(device, format!("SiLU and product of {rows} rows of {n}"), amount, || {
        ops::silu_mul(&backend, &mut out, &gate, &up)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static KERNELS: [KernelSpec; 2] = [
        KernelSpec { module: "m", name: "low", params: &[] },
        KernelSpec { module: "m", name: "high", params: &[] },
    ];

    fn winner(rates: [f64; 2]) -> Option<&'static KernelSpec> {
        let timing = |rate| Timing { what: "a product".into(), median_ms: 1.0, rate, unit: "GB/s" };
        let mut times = vec![(&KERNELS[0], timing(rates[0])), (&KERNELS[1], timing(rates[1]))];
        times.sort_by(|(_, a), (_, b)| b.rate.total_cmp(&a.rate));
        Race { usual: &KERNELS[0], rows: 1, times }.winner()
    }

    #[test]
    fn another_kernel_wins_only_by_a_clear_lead() {
        assert_eq!(winner([100.0, 120.0]), Some(&KERNELS[1]));
        assert_eq!(winner([100.0, 101.0]), None);
        assert_eq!(winner([100.0, 80.0]), None);
    }
}
