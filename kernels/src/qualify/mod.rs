//! Is this GPU to be trusted? Every op's CUDA kernels against the reference, over tables of cases that
//! the binary carries; recorded work against the same work queued; and how fast it all is.
//!
//! On a virtual GPU the same code runs as a test; its times mean nothing there.

mod attention;
mod elementwise;
mod graph;
mod linear;
pub mod numbers;
mod positions;
pub mod speed;

use crate::device::cuda::CudaDevice;
use crate::{Backend, DType, KernelError};

/// How much is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// One or two cases of each op: before a server's first start on a device.
    Short,
    /// All of the tables.
    Full,
}

/// One case of one op on the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub op: &'static str,
    pub activation: DType,
    pub case: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The largest distance from the reference, in units of what is allowed: up to 1 is right.
    Deviation(f64),
    /// The device or the op refused.
    Failed(KernelError),
}

impl Finding {
    pub fn is_right(&self) -> bool {
        matches!(self.outcome, Outcome::Deviation(d) if d <= 1.0)
    }
}

/// One op's cases. Each appends its findings.
type Check = fn(&mut Findings);

const CHECKS: [Check; 8] = [
    elementwise::add,
    elementwise::add_rms_norm,
    elementwise::silu_mul,
    elementwise::embedding,
    positions::qkv_rope_write,
    linear::linear,
    attention::attention,
    graph::record_and_replay,
];

/// Runs every op on the device, in both activation formats.
///
/// A lost device shows as `Outcome::Failed` of what follows.
pub fn qualify(device: &CudaDevice, depth: Depth) -> Vec<Finding> {
    let mut all = Vec::new();
    for activation in [DType::BF16, DType::F16] {
        let device = device.with_activation(activation);
        let mut findings = Findings { device, depth, list: Vec::new() };
        for check in CHECKS {
            check(&mut findings);
        }
        all.append(&mut findings.list);
    }
    all
}

/// What the checks share: the device, and the list they add to.
struct Findings {
    device: CudaDevice,
    depth: Depth,
    list: Vec<Finding>,
}

impl Findings {
    fn activation(&self) -> DType {
        self.device.activation_dtype()
    }

    fn backend(&self) -> Backend {
        Backend::Cuda(self.device.clone())
    }

    /// The first cases of a table only, where little is to be tried.
    fn cases<'a, T>(&self, all: &'a [T], short: usize) -> &'a [T] {
        match self.depth {
            Depth::Short => &all[..short],
            Depth::Full => all,
        }
    }

    fn add(&mut self, op: &'static str, case: String, deviation: Result<f64, KernelError>) {
        let outcome = match deviation {
            Ok(deviation) => Outcome::Deviation(deviation),
            Err(error) => Outcome::Failed(error),
        };
        self.list.push(Finding { op, activation: self.activation(), case, outcome });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::cuda_devices;

    #[test]
    fn every_op_of_a_gpu_agrees_with_the_reference() {
        for device in cuda_devices().into_iter().take(1) {
            let findings = qualify(&device, Depth::Short);
            let wrong: Vec<&Finding> = findings.iter().filter(|f| !f.is_right()).collect();
            assert!(!findings.is_empty() && wrong.is_empty(), "{wrong:#?}");
        }
    }

    #[test]
    fn a_deviation_above_one_and_a_failure_are_not_right() {
        let finding = |outcome| Finding {
            op: "add",
            activation: DType::F16,
            case: "small".into(),
            outcome,
        };
        assert!(finding(Outcome::Deviation(1.0)).is_right());
        assert!(!finding(Outcome::Deviation(1.1)).is_right());
        assert!(!finding(Outcome::Deviation(f64::INFINITY)).is_right());
        let lost = KernelError::Device("gone".into());
        assert!(!finding(Outcome::Failed(lost)).is_right());
    }
}
