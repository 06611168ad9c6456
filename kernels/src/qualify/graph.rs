//! Work recorded once and replayed, against the same work queued.

use super::Findings;
use super::numbers::{Tolerance, on_device, values};
use crate::device::cuda::Graph;
use crate::ops;
use crate::{DType, KernelError};

const LEN: usize = 5000;
const REPLAYS: usize = 3;

/// x += y, recorded and replayed; between two replays y changes in place.
pub fn record_and_replay(findings: &mut Findings) {
    let deviation = one(findings);
    findings.add("graph", format!("x += y recorded, {REPLAYS} replays"), deviation);
}

fn one(findings: &Findings) -> Result<f64, KernelError> {
    let (device, backend) = (&findings.device, findings.backend());
    let mut expected = values(1, LEN, 2.0);
    let mut x = on_device(device, DType::F32, &[LEN], &expected)?;
    let y = on_device(device, DType::F32, &[LEN], &vec![0.0; LEN])?;
    // Loads the kernel, which cannot be done inside a recording; adds nothing.
    ops::add_assign(&backend, &mut x, &y)?;
    let graph = Graph::record(device, || ops::add_assign(&backend, &mut x, &y))?;
    for replay in 0..REPLAYS {
        let addend = values(2 + replay as u64, LEN, 2.0);
        let bytes: Vec<u8> = addend.iter().flat_map(|x| x.to_le_bytes()).collect();
        y.device_buffer().write(0, &bytes)?;
        graph.launch()?;
        expected.iter_mut().zip(&addend).for_each(|(x, y)| *x += y);
    }
    Ok(Tolerance::of(DType::F32, 1.0).deviation(&x.to_f32()?, &expected))
}
