//! What the virtual GPU says of its hardware, by compute capability.
//!
//! Source: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability";
//! numbers of multiprocessors are those of A100, RTX A6000, L40S, H100 SXM, B200 and RTX 5090.

use crate::abi::{BLOCK_THREADS_MAX, GRID_YZ_MAX, SHARED_BYTES_DEFAULT, WARP_SIZE};

#[derive(Clone, Copy, Debug)]
pub struct DeviceModel {
    pub major: u32,
    pub minor: u32,
    /// Shared memory that a block may have once its kernel asked for it.
    pub shared_optin_bytes: u32,
    pub shared_bytes_per_sm: u32,
    pub threads_per_sm: u32,
    pub blocks_per_sm: u32,
    pub num_sms: u32,
    pub l2_bytes: u32,
}

const MODELS: [DeviceModel; 6] = [
    model([8, 0], 163, 164, 2048, 32, 108, 40),
    model([8, 6], 99, 100, 1536, 16, 84, 6),
    model([8, 9], 99, 100, 1536, 24, 142, 96),
    model([9, 0], 227, 228, 2048, 32, 132, 50),
    model([10, 0], 227, 228, 2048, 32, 148, 126),
    model([12, 0], 99, 100, 1536, 24, 170, 96),
];

const fn model(
    capability: [u32; 2],
    optin_kib: u32,
    sm_kib: u32,
    threads_per_sm: u32,
    blocks_per_sm: u32,
    num_sms: u32,
    l2_mib: u32,
) -> DeviceModel {
    DeviceModel {
        major: capability[0],
        minor: capability[1],
        shared_optin_bytes: optin_kib << 10,
        shared_bytes_per_sm: sm_kib << 10,
        threads_per_sm,
        blocks_per_sm,
        num_sms,
        l2_bytes: l2_mib << 20,
    }
}

/// Shared memory that the system keeps of each block's.
pub const SHARED_RESERVED_BYTES: u32 = 1024;
pub const REGISTERS_PER_SM: u32 = 65536;

impl DeviceModel {
    pub fn find(capability: &str) -> Option<DeviceModel> {
        MODELS.into_iter().find(|model| model.capability() == capability)
    }

    pub fn known() -> String {
        MODELS.map(|model| model.capability()).join(", ")
    }

    fn capability(&self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    /// As in `sm_80`.
    pub fn sm(&self) -> u32 {
        self.major * 10 + self.minor
    }

    /// A `CUdevice_attribute`, or `None` for one that does not exist in CUDA 13.0. Attributes that
    /// say "can do X" are 0 for each X that is not built.
    pub fn attribute(&self, attribute: u32, ordinal: usize) -> Option<i32> {
        let value = match attribute {
            1 => BLOCK_THREADS_MAX,
            2 | 3 => 1024,
            4 => 64,
            5 => i32::MAX as u32,
            6 | 7 => GRID_YZ_MAX,
            8 => SHARED_BYTES_DEFAULT,
            9 => 65536,
            10 => WARP_SIZE as u32,
            11 => i32::MAX as u32,
            12 => REGISTERS_PER_SM,
            16 => self.num_sms,
            31 => 1,              // concurrent kernels
            33 => ordinal as u32, // PCI bus
            38 => self.l2_bytes,
            39 => self.threads_per_sm,
            40 => 1, // copy engines
            41 => 1, // unified addressing
            75 => self.major,
            76 => self.minor,
            78 => 1, // stream priorities
            79 | 80 => 1,
            81 => self.shared_bytes_per_sm,
            82 => REGISTERS_PER_SM,
            97 => self.shared_optin_bytes,
            99 => 1, // host memory can be registered
            106 => self.blocks_per_sm,
            111 => SHARED_RESERVED_BYTES,
            115 => 1, // memory pools
            // Rates, textures, managed and host-mapped memory, cooperative launch: not built.
            13..=148 => 0,
            _ => return None,
        };
        Some(value as i32)
    }
}
