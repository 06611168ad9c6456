//! What computes: a device for each rank of this process, and which cores it has.

use crate::commands::qualification::products;
use crate::commands::{StartupError, qualification};
use crate::config::{ComputeConfig, CpuPin, DeviceChoice, cuda_obstacle};
use crate::machine;
use kernels::comm::messages::Messages;
use kernels::comm::nccl::NcclId;
use kernels::device::cpu::CpuDevice;
use kernels::device::cuda::{self, CudaDevice};
use kernels::device::thread_pool::THREADS_MAX;
use kernels::{Backend, DType, KernelError};
use std::ops::Range;
use std::path::Path;

/// The devices of the ranks in this process.
pub struct Devices {
    pub ranks: Vec<RankDevice>,
    num_threads_each: usize,
    is_pinned: bool,
}

pub struct RankDevice {
    pub backend: Backend,
    /// The core of the rank's own thread.
    pub pin_core: Option<usize>,
    /// Of a GPU, before anything was loaded.
    pub free_bytes: Option<u64>,
}

impl Devices {
    /// For `num_ranks` ranks that share the threads of this process out evenly, at least one each;
    /// on GPUs, one for each rank. `activation`: what a GPU computes in.
    ///
    /// Errors: there are not enough GPUs.
    pub fn share(
        config: &ComputeConfig,
        num_ranks: usize,
        activation: DType,
    ) -> Result<Devices, StartupError> {
        if uses_cuda(config.device) {
            return Self::on_gpus(0..num_ranks, activation);
        }
        let num_threads = config.threads.unwrap_or_else(machine::cores);
        let each = (num_threads / num_ranks).clamp(1, THREADS_MAX);
        let cores = match config.cpu_pin {
            CpuPin::Off => None,
            CpuPin::On => machine::all_cores().or_else(|| Some((0..each * num_ranks).collect())),
            CpuPin::Auto => machine::all_cores().filter(|cores| cores.len() == num_threads),
        };
        Ok(Self::with_cores(config, num_ranks, each, cores))
    }

    /// For the rank of this process, one of several on this machine: a GPU of its own, or cores.
    /// Where the launcher has given each its own cores it takes all of them, else its share.
    ///
    /// Errors: there are not enough GPUs.
    pub fn one_of(
        config: &ComputeConfig,
        processes: &dyn Messages,
        activation: DType,
    ) -> Result<Devices, StartupError> {
        if uses_cuda(config.device) {
            // A launcher may show each process its own GPU alone.
            let has_one = cuda::device_count() == 1;
            let ordinal = if has_one { 0 } else { processes.local_rank() };
            return Self::on_gpus(ordinal..ordinal + 1, activation);
        }
        let local_size = processes.local_size();
        let share = || match machine::is_bound_to_cores() {
            true => machine::cores(),
            false => machine::cores() / local_size,
        };
        let num_threads = config.threads.unwrap_or_else(share).clamp(1, THREADS_MAX);
        // Which cores the other processes have is not known here.
        Ok(Self::with_cores(config, 1, num_threads, None))
    }

    /// Makes sure that the GPUs among them compute right, by a record in `cache_dir` or by trying.
    ///
    /// Errors: a GPU does not.
    pub fn qualified(self, cache_dir: &Path) -> Result<Devices, StartupError> {
        for rank in &self.ranks {
            if let Backend::Cuda(device) = &rank.backend {
                qualification::ensure(device, cache_dir)?;
            }
        }
        Ok(self)
    }

    /// Decides on the GPUs among them between our own kernels and cuBLASLt, for each weight
    /// shape of a model.
    ///
    /// Errors: those of `products::choose`.
    pub fn with_products(
        self,
        shapes: &[[usize; 2]],
        config: &ComputeConfig,
        cache_dir: &Path,
    ) -> Result<Devices, StartupError> {
        for rank in &self.ranks {
            if let Backend::Cuda(device) = &rank.backend {
                products::choose(device, shapes, config.matmul, cache_dir)?;
            }
        }
        Ok(self)
    }

    fn on_gpus(ordinals: Range<usize>, activation: DType) -> Result<Devices, StartupError> {
        let rank = |ordinal| {
            let device = CudaDevice::open(ordinal)?;
            let free_bytes = Some(device.memory()?.0 as u64);
            let backend = Backend::Cuda(device.with_activation(activation));
            Ok(RankDevice { backend, pin_core: None, free_bytes })
        };
        let ranks = ordinals.map(rank).collect::<Result<_, KernelError>>();
        let ranks = ranks.map_err(StartupError::Device)?;
        Ok(Devices { ranks, num_threads_each: 0, is_pinned: false })
    }

    fn with_cores(
        config: &ComputeConfig,
        num_ranks: usize,
        num_threads_each: usize,
        cores: Option<Vec<usize>>,
    ) -> Devices {
        let is_reference = config.device == DeviceChoice::Reference;
        let enough = |cores: &Vec<usize>| cores.len() >= num_ranks * num_threads_each;
        let cores = cores.filter(|cores| enough(cores) && !is_reference);
        let rank = |rank: usize| {
            let own = cores.as_ref().map(|cores| &cores[rank * num_threads_each..]);
            let backend = match is_reference {
                true => Backend::Reference,
                false => Backend::Cpu(CpuDevice::new(num_threads_each, own)),
            };
            RankDevice { backend, pin_core: own.map(|cores| cores[0]), free_bytes: None }
        };
        let ranks = (0..num_ranks).map(rank).collect();
        Devices { ranks, num_threads_each, is_pinned: cores.is_some() }
    }
}

/// Whether models are served on GPUs. `check_device` made sure that there is one where it is asked
/// for.
pub fn uses_cuda(choice: DeviceChoice) -> bool {
    match choice {
        DeviceChoice::Cuda => true,
        DeviceChoice::Auto => cuda_obstacle().is_none(),
        DeviceChoice::Cpu | DeviceChoice::Reference => false,
    }
}

impl RankDevice {
    /// By which the GPUs of ranks in other processes find this one. `None`: it is no GPU.
    ///
    /// Errors: there is no NCCL.
    pub fn nccl_id(&self) -> Result<Option<NcclId>, StartupError> {
        match &self.backend {
            Backend::Cuda(_) => NcclId::new().map(Some).map_err(StartupError::Device),
            Backend::Cpu(_) | Backend::Reference => Ok(None),
        }
    }

    /// What decides on the bits of a result.
    pub fn arithmetic(&self) -> String {
        match &self.backend {
            Backend::Cpu(cpu) => format!("cpu, {:?}", cpu.isa),
            Backend::Cuda(device) => format!("cuda, {}", device.name()),
            Backend::Reference => self.backend.name().to_string(),
        }
    }
}

impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.ranks.len() > 1 {
            write!(f, "{} ranks, each: ", self.ranks.len())?;
        }
        match &self.ranks[0].backend {
            Backend::Cpu(cpu) => {
                let pinned = if self.is_pinned { ", pinned" } else { "" };
                let threads = if self.num_threads_each == 1 { "thread" } else { "threads" };
                write!(f, "cpu, {:?}, {} {threads}{pinned}", cpu.isa, self.num_threads_each)
            }
            Backend::Cuda(device) => {
                let activation = device.activation_dtype().name().to_lowercase();
                write!(f, "cuda, {}, {activation}", device.name())
            }
            other => write!(f, "{}: plain loops, for checking, very slow", other.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MatmulChoice;
    use crate::ranks::CudaGraphs;

    fn devices(threads: usize, num_ranks: usize) -> Devices {
        let config = ComputeConfig {
            device: DeviceChoice::Cpu,
            threads: Some(threads),
            cpu_pin: CpuPin::Off,
            tensor_parallel: num_ranks,
            gpu_memory_fraction: 0.9,
            cuda_graphs: CudaGraphs::On,
            matmul: MatmulChoice::Auto,
            stall_time_max: None,
        };
        Devices::share(&config, num_ranks, DType::BF16).expect("there is a CPU")
    }

    #[test]
    fn ranks_share_the_threads_out_and_have_one_at_least() {
        for (threads, num_ranks, each) in [(8, 1, 8), (8, 2, 4), (7, 2, 3), (1, 4, 1)] {
            let devices = devices(threads, num_ranks);
            assert_eq!(devices.ranks.len(), num_ranks);
            for rank in &devices.ranks {
                let Backend::Cpu(device) = &rank.backend else { panic!("not the CPU") };
                assert_eq!(device.pool.num_threads(), each);
            }
        }
        assert!(devices(4, 2).to_string().starts_with("2 ranks, each: cpu"));
    }
}
