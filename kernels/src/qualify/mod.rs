//! Is this GPU to be trusted? Every op's CUDA kernels against the reference, over tables of cases
//! that the binary carries; recorded work against the same work queued; and how fast it all is.
//!
//! On a virtual GPU the same code runs as a test; its times mean nothing there.

mod attention;
mod elementwise;
mod graph;
mod linear;
mod nccl;
pub mod numbers;
mod positions;
pub mod products;
pub mod speed;

pub use nccl::all_reduce;

use crate::device::cuda::{CudaDevice, KernelSpec};
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
    /// The kernel that was tried, where the op has others that do the same.
    pub kernel: Option<&'static KernelSpec>,
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

const CHECKS: [Check; 9] = [
    elementwise::add,
    elementwise::add_rms_norm,
    elementwise::silu_mul,
    elementwise::embedding,
    elementwise::join_columns,
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

/// What follows from findings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Kernels that disagree with the reference and have an alternative that does not.
    pub switch_off: Vec<&'static KernelSpec>,
    /// Findings about what has no alternative.
    pub hopeless: Vec<Finding>,
}

impl Verdict {
    pub fn of(findings: &[Finding]) -> Verdict {
        let wrong = || findings.iter().filter(|f| !f.is_right());
        let is_wrong = |kernel: &KernelSpec| wrong().any(|f| f.kernel == Some(kernel));
        // Another kernel of the same file and format, all of whose cases are right.
        let has_alternative = |f: &Finding, kernel: &KernelSpec| {
            let others = findings.iter().filter(|g| g.activation == f.activation);
            let mut others = others.filter_map(|g| g.kernel);
            others.any(|k| k.module == kernel.module && k != kernel && !is_wrong(k))
        };
        let mut verdict = Verdict::default();
        for finding in wrong() {
            match finding.kernel {
                Some(kernel) if has_alternative(finding, kernel) => {
                    if !verdict.switch_off.contains(&kernel) {
                        verdict.switch_off.push(kernel);
                    }
                }
                _ => verdict.hopeless.push(finding.clone()),
            }
        }
        verdict
    }
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
        self.add_of_kernel(op, None, case, deviation);
    }

    fn add_of_kernel(
        &mut self,
        op: &'static str,
        kernel: Option<&'static KernelSpec>,
        case: String,
        deviation: Result<f64, KernelError>,
    ) {
        let outcome = match deviation {
            Ok(deviation) => Outcome::Deviation(deviation),
            Err(error) => Outcome::Failed(error),
        };
        self.list.push(Finding { op, activation: self.activation(), case, kernel, outcome });
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

    fn finding(kernel: Option<&'static KernelSpec>, outcome: Outcome) -> Finding {
        Finding { op: "linear", activation: DType::F16, case: "small".into(), kernel, outcome }
    }

    const KERNELS: [KernelSpec; 2] = [
        KernelSpec { module: "m", name: "low", params: &[] },
        KernelSpec { module: "m", name: "high", params: &[] },
    ];

    #[test]
    fn a_wrong_kernel_is_switched_off_where_another_is_right_and_hopeless_where_none_is() {
        static LOW: &KernelSpec = &KERNELS[0];
        static HIGH: &KernelSpec = &KERNELS[1];
        let right = |kernel| finding(kernel, Outcome::Deviation(0.5));
        let wrong = |kernel| finding(kernel, Outcome::Deviation(2.0));
        let verdict = Verdict::of(&[wrong(Some(LOW)), wrong(Some(LOW)), right(Some(HIGH))]);
        assert_eq!(verdict.switch_off, [LOW]);
        assert!(verdict.hopeless.is_empty());
        let verdict = Verdict::of(&[wrong(Some(LOW)), wrong(Some(HIGH)), right(None)]);
        assert_eq!((verdict.switch_off.len(), verdict.hopeless.len()), (0, 2));
        let verdict = Verdict::of(&[wrong(None), right(Some(LOW)), right(Some(HIGH))]);
        assert_eq!((verdict.switch_off.len(), verdict.hopeless.len()), (0, 1));
        assert_eq!(Verdict::of(&[right(None)]), Verdict::default());
    }

    #[test]
    fn a_deviation_above_one_and_a_failure_are_not_right() {
        let finding = |outcome| finding(None, outcome);
        assert!(finding(Outcome::Deviation(1.0)).is_right());
        assert!(!finding(Outcome::Deviation(1.1)).is_right());
        assert!(!finding(Outcome::Deviation(f64::INFINITY)).is_right());
        let lost = KernelError::Device("gone".into());
        assert!(!finding(Outcome::Failed(lost)).is_right());
    }
}
