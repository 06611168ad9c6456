//! Sums over all GPUs of this machine, by NCCL.

use super::numbers::{Tolerance, on_device, values};
use crate::comm::nccl::{Nccl, NcclId};
use crate::device::cuda::CudaDevice;
use crate::{DType, KernelError};

const LEN: usize = 10_000;

/// Sums one tensor over `devices`, a thread each. Gives the largest distance from the right sum on
/// any of them, in units of what is allowed.
///
/// Errors: `Device`, also when there is no NCCL.
pub fn all_reduce(devices: &[CudaDevice]) -> Result<f64, KernelError> {
    let id = NcclId::new()?;
    let world_size = devices.len();
    let sum_on = |rank: usize| -> Result<Vec<f32>, KernelError> {
        let device = &devices[rank];
        device.bind()?;
        let mut nccl = Nccl::join(&id, rank, world_size)?;
        let mut x = on_device(device, DType::F32, &[LEN], &part_of(rank))?;
        nccl.sum_tensor(&mut x)?;
        x.to_f32()
    };
    let sums: Vec<_> = std::thread::scope(|scope| {
        let sum_on = &sum_on;
        let ranks: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || sum_on(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    });
    let mut expected = vec![0.0; LEN];
    for rank in 0..world_size {
        expected.iter_mut().zip(part_of(rank)).for_each(|(sum, x)| *sum += x);
    }
    let tolerance = Tolerance::of(DType::F32, 1.0);
    let mut largest = 0.0f64;
    for sum in sums {
        largest = largest.max(tolerance.deviation(&sum?, &expected));
    }
    Ok(largest)
}

fn part_of(rank: usize) -> Vec<f32> {
    values(rank as u64 + 1, LEN, 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::{device_count, images};

    #[test]
    fn all_gpus_of_a_machine_have_the_sum() {
        let count = device_count();
        if count < 2 || !images::has_kernels() {
            return;
        }
        let open = |ordinal| CudaDevice::open(ordinal).expect("the driver shows it");
        let devices: Vec<CudaDevice> = (0..count).map(open).collect();
        let deviation = all_reduce(&devices).expect("NCCL is there");
        assert!(deviation <= 1.0, "{deviation}");
    }
}
