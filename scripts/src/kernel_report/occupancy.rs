//! How many thread blocks a multiprocessor holds at once, computed by NVIDIA's cuda_occupancy.h:
//! host code of the toolchain, compiled and run here.

use super::compile::output;
use crate::cuda_toolchain;
use crate::process::{root, target_dir};
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::process::{Command, Stdio};

/// Devices in the order of the program's output: name, architecture.
pub const DEVICES: [(&str, &str); 3] = [("A100", "80"), ("H100", "90"), ("B200", "100")];
/// Threads that a multiprocessor of each holds.
const THREADS_MAX: f64 = 2048.0;

/// What a kernel asks for on the three devices.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// On each device, for they are compiled apart.
    pub registers: [u32; 3],
    pub static_shared: [u32; 3],
    pub dynamic_shared: u32,
    pub threads: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Occupancy {
    pub blocks: u32,
    /// Threads in use of those that fit.
    pub share: f64,
}

/// Occupancy of each query on A100, H100 and B200.
///
/// Errors: a kernel that cannot run on one of them, or no C++ compiler.
pub fn compute(queries: &[Query]) -> Result<Vec<[Occupancy; 3]>> {
    let source = root().join("scripts/src/kernel_report/occupancy.cpp");
    let folder = target_dir().join("kernel-report");
    std::fs::create_dir_all(&folder)?;
    let program = folder.join("occupancy");
    let include = cuda_toolchain::folder()?.join("nvidia/cu13/include");
    output(Command::new("c++").arg("-I").arg(include).arg(source).arg("-o").arg(&program))
        .context("compile the occupancy calculator")?;
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // One line for each device, of which the program's answer for that device counts.
    let lines = queries.iter().flat_map(|q| (0..DEVICES.len()).map(move |d| line(q, d)));
    let text: String = lines.collect();
    let mut stdin = child.stdin.take().context("a pipe")?;
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let answer = child.wait_with_output()?;
    writer.join().expect("no panic in a write")?;
    ensure!(answer.status.success(), "the occupancy calculator ended with {}", answer.status);
    let answer = String::from_utf8(answer.stdout)?;
    let rows: Vec<&str> = answer.lines().collect();
    ensure!(rows.len() == queries.len() * DEVICES.len(), "an answer for each line");
    let row = |(query, rows): (&Query, &[&str])| -> Result<[Occupancy; 3]> {
        let mut result = [Occupancy { blocks: 0, share: 0.0 }; 3];
        for (device, (result, row)) in result.iter_mut().zip(rows).enumerate() {
            let blocks: i32 = row.split_whitespace().nth(device).context("a number")?.parse()?;
            ensure!(blocks > 0, "{query:?} cannot run on {}", DEVICES[device].0);
            let blocks = blocks as u32;
            *result = Occupancy { blocks, share: f64::from(blocks * query.threads) / THREADS_MAX };
        }
        Ok(result)
    };
    queries.iter().zip(rows.chunks(DEVICES.len())).map(row).collect()
}

fn line(query: &Query, device: usize) -> String {
    let (registers, fixed) = (query.registers[device], query.static_shared[device]);
    format!("{registers} {fixed} {} {}\n", query.dynamic_shared, query.threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the toolchain there is nothing to test.
    #[test]
    fn known_occupancies_come_out() {
        if !cuda_toolchain::tool("nvcc").is_ok_and(|nvcc| nvcc.is_file()) {
            return;
        }
        let query = |registers, dynamic_shared, threads| Query {
            registers: [registers; 3],
            static_shared: [0; 3],
            dynamic_shared,
            threads,
        };
        let queries = [
            // 2048 threads fill it.
            query(32, 0, 256),
            // 65536 / (128 * 256) = 2 blocks.
            query(128, 0, 256),
            // 80 KiB and the reserved one: 2 in the 164 KiB of an A100, 2 in 228 KiB.
            query(32, 80 << 10, 128),
            // 70 KiB: 2 in 164, 3 in 228.
            query(32, 70 << 10, 128),
        ];
        let rows = compute(&queries).expect("it compiles");
        let blocks: Vec<_> = rows.into_iter().map(|row| row.map(|o| o.blocks)).collect();
        assert_eq!(blocks, [[8, 8, 8], [2, 2, 2], [2, 2, 2], [2, 3, 3]]);
    }
}
