//! Codes and numbers of the cuBLASLt interface. Source: cublasLt.h, cublas_api.h and
//! library_types.h of CUDA 13.0.

/// A `cublasStatus_t`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u32);

impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const NOT_INITIALIZED: Status = Status(1);
    pub const INVALID_VALUE: Status = Status(7);
    pub const EXECUTION_FAILED: Status = Status(13);
    pub const NOT_SUPPORTED: Status = Status(15);
}

pub type Result<T> = std::result::Result<T, Status>;

/// 13.0.2.
pub const VERSION: usize = 130_002;

pub const COMPUTE_32F: u32 = 68;

/// A `cudaDataType_t` that is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataType {
    Float32,
    Float16,
    Bfloat16,
}

impl DataType {
    pub fn from_raw(raw: u32) -> Result<DataType> {
        match raw {
            0 => Ok(DataType::Float32),
            2 => Ok(DataType::Float16),
            14 => Ok(DataType::Bfloat16),
            _ => refuse(Status::NOT_SUPPORTED, &format!("data type {raw} is not built")),
        }
    }

    pub fn raw(self) -> u32 {
        match self {
            DataType::Float32 => 0,
            DataType::Float16 => 2,
            DataType::Bfloat16 => 14,
        }
    }

    pub fn bytes(self) -> u64 {
        match self {
            DataType::Float32 => 4,
            DataType::Float16 | DataType::Bfloat16 => 2,
        }
    }
}

/// A `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Algorithm {
    pub data: [u64; 8],
}

/// A `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Suggestion {
    pub algorithm: Algorithm,
    pub workspace_bytes: usize,
    pub state: Status,
    pub waves: f32,
    pub reserved: [i32; 4],
}

/// Refuses a call, and says why on stderr.
pub fn refuse<T>(status: Status, why: &str) -> Result<T> {
    eprintln!("virtual GPU: cuBLASLt: {why}");
    Err(status)
}
