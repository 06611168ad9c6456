//! The one place that runs kernels: joins the driver's words to those of the crate `virtual_gpu`.

use crate::abi::{Code, DevicePtr};
use crate::config::Config;
use crate::launch::Launch;
use std::result::Result;
use virtual_gpu::{CheckKind, Checks, Counters, GlobalMemory, LaunchConfig};

/// Memory of one device.
pub struct DeviceMemory(GlobalMemory);

/// Why a kernel was stopped: the code a device would give, and the finding in full.
pub struct Finding {
    pub code: Code,
    pub check: String,
    pub message: String,
}

impl DeviceMemory {
    pub fn new(ordinal: usize) -> DeviceMemory {
        DeviceMemory(GlobalMemory::new(ordinal))
    }

    pub fn alloc(&self, bytes: u64) -> DevicePtr {
        self.0.alloc(bytes)
    }

    pub fn free(&self, address: DevicePtr) {
        // The table of allocations is asked first, so the address is one of ours.
        self.0.free(address).expect("a live allocation");
    }

    pub fn read(&self, address: DevicePtr, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        self.0.read(address, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    pub fn write(&self, address: DevicePtr, bytes: &[u8]) -> Result<(), String> {
        self.0.write(address, bytes).map_err(|error| error.to_string())
    }

    /// Copies on one device or between two. What was never written stays so in the copy.
    pub fn copy_from(
        &self,
        address: DevicePtr,
        source: &DeviceMemory,
        source_address: DevicePtr,
        bytes: u64,
    ) -> Result<(), String> {
        self.0
            .copy_from(address, &source.0, source_address, bytes)
            .map_err(|error| error.to_string())
    }

    /// Address and size of a module's variable.
    pub fn variable(&self, module: &virtual_gpu::Module, name: &str) -> Option<(u64, u64)> {
        self.0.variable(module, name)
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, launch: &Launch, seed: u64, config: &Config) -> Result<Counters, Finding> {
        // With the checks off speed counts: warps in order.
        let seed = if config.checks == Checks::NONE { 0 } else { seed };
        let launch_config = LaunchConfig {
            grid: launch.grid,
            block: launch.block,
            dynamic_shared_bytes: launch.shared_bytes,
            seed,
            checks: config.checks,
            arch_shared_optin: config.model.shared_optin_bytes,
            threads: config.threads,
            // They cost time, and only the report shows them.
            counters: config.report.is_some(),
            ..LaunchConfig::default()
        };
        let module = &launch.function.module.ptx;
        virtual_gpu::launch(module, &launch.function.name, &self.0, &launch.params, &launch_config)
            .map_err(|violation| Finding {
                code: code_of(violation.kind),
                check: format!("{:?}", violation.kind),
                message: violation.to_string(),
            })
    }
}

/// What a device would say. Findings that no device makes count as a failed launch.
fn code_of(kind: CheckKind) -> Code {
    match kind {
        CheckKind::Memcheck => Code::ILLEGAL_ADDRESS,
        CheckKind::Alignment => Code::MISALIGNED_ADDRESS,
        CheckKind::Timeout => Code::LAUNCH_TIMEOUT,
        CheckKind::Unsupported => Code::ILLEGAL_INSTRUCTION,
        _ => Code::LAUNCH_FAILED,
    }
}
