//! What the machine can do at the most, measured again and again in the same run: it drifts.

use super::Args;
use anyhow::Result;
use kernels::device::cpu::CpuDevice;
use kernels::device::limits::{Reader, bf16_ops_per_second, int8_ops_per_second};
use models::weights::gguf::GgufFile;
use serde_json::{Value, json};

/// Read row by row, not as a whole, where the output has weights of its own.
const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

pub struct Limits {
    device: CpuDevice,
    reader: Reader,
    /// Of weights that one decoded token reads.
    pub bytes_per_token: f64,
    /// Products and sums for one token of a prompt, attention and output left out.
    pub ops_per_token: f64,
    bandwidths: Vec<f64>,
    int8: Vec<f64>,
    bf16: Vec<f64>,
}

impl Limits {
    pub fn new(args: &Args) -> Result<Limits> {
        let device = CpuDevice::new(args.threads, None);
        let reader = Reader::new(&device);
        let file = GgufFile::open(&args.model)?;
        let weights: Vec<_> =
            file.tensor_names().filter_map(|n| Some((n, file.tensor(n)?))).collect();
        let has_output = weights.iter().any(|(name, _)| *name == OUTPUT);
        let read = weights.iter().filter(|(name, _)| !has_output || *name != EMBEDDING);
        let bytes: usize = read.map(|(_, tensor)| tensor.bytes.len()).sum();
        let is_product =
            |name: &str, shape: &[usize]| shape.len() == 2 && name != OUTPUT && name != EMBEDDING;
        let products = weights.iter().filter(|(name, tensor)| is_product(name, &tensor.shape));
        let ops: usize = products.map(|(_, t)| 2 * t.shape.iter().product::<usize>()).sum();
        Ok(Limits {
            device,
            reader,
            bytes_per_token: bytes as f64,
            ops_per_token: ops as f64,
            bandwidths: Vec::new(),
            int8: Vec::new(),
            bf16: Vec::new(),
        })
    }

    pub fn measure(&mut self) {
        self.bandwidths.push(self.reader.bytes_per_second(&self.device));
        self.int8.extend(int8_ops_per_second(&self.device));
        self.bf16.extend(bf16_ops_per_second(&self.device));
    }

    /// Bytes a second.
    pub fn bandwidth(&self) -> Option<f64> {
        median(&self.bandwidths)
    }

    /// Operations a second on bytes.
    pub fn int8(&self) -> Option<f64> {
        median(&self.int8)
    }

    pub fn bf16(&self) -> Option<f64> {
        median(&self.bf16)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "weight_bytes_per_token": self.bytes_per_token,
            "ops_per_prompt_token": self.ops_per_token,
            "read_bytes_per_s": self.bandwidths,
            "int8_ops_per_s": self.int8,
            "bf16_ops_per_s": self.bf16,
        })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
