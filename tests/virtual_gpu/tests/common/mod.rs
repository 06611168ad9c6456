//! A device with one module, for tests.
#![allow(dead_code)]

use virtual_gpu::{Counters, GlobalMemory, LaunchConfig, Module, Violation};

pub struct Gpu {
    pub module: Module,
    pub memory: GlobalMemory,
}

impl Gpu {
    pub fn new(ptx: &str) -> Gpu {
        Gpu { module: Module::parse(ptx).expect("known PTX"), memory: GlobalMemory::new(0) }
    }

    pub fn upload(&self, bytes: &[u8]) -> u64 {
        let address = self.memory.alloc(bytes.len() as u64);
        self.memory.write(address, bytes).expect("just allocated");
        address
    }

    pub fn floats(&self, address: u64, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        self.memory.read(address, &mut bytes).expect("allocated");
        bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    pub fn config(&self, grid: [u32; 3], threads: u32) -> LaunchConfig {
        LaunchConfig { grid, block: [threads, 1, 1], ..LaunchConfig::default() }
    }

    pub fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        params: &[u8],
    ) -> Result<Counters, Violation> {
        self.launch_with(kernel, &self.config(grid, threads), params)
    }

    pub fn launch_with(
        &self,
        kernel: &str,
        config: &LaunchConfig,
        params: &[u8],
    ) -> Result<Counters, Violation> {
        virtual_gpu::launch(&self.module, kernel, &self.memory, params, config)
    }
}

pub trait Param {
    fn bytes(&self) -> Vec<u8>;
}

impl Param for u32 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

impl Param for u64 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

/// The parameter block: each value at a multiple of its size.
pub fn params(values: &[&dyn Param]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for value in values {
        let bytes = value.bytes();
        out.resize(out.len().next_multiple_of(bytes.len()), 0);
        out.extend(bytes);
    }
    out
}

pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Values must be exact in bf16.
pub fn bf16(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|v| {
            assert_eq!(v.to_bits() & 0xFFFF, 0, "{v} is not exact in bf16");
            ((v.to_bits() >> 16) as u16).to_le_bytes()
        })
        .collect()
}
