//! Element types and reductions. Values are combined in rank order, each step rounded to the
//! element type.

use crate::abi::{Code, Result, refuse};
use half::{bf16, f16};

/// An `ncclDataType_t` that is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataType {
    Int8,
    Uint8,
    Int32,
    Uint32,
    Int64,
    Uint64,
    Float16,
    Float32,
    Float64,
    Bfloat16,
}

/// An `ncclRedOp_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Sum,
    Product,
    Max,
    Min,
    Average,
}

impl DataType {
    pub fn from_raw(raw: u32) -> Result<DataType> {
        use DataType::*;
        const TYPES: [DataType; 10] =
            [Int8, Uint8, Int32, Uint32, Int64, Uint64, Float16, Float32, Float64, Bfloat16];
        match TYPES.get(raw as usize) {
            Some(known) => Ok(*known),
            None => refuse(Code::INVALID_ARGUMENT, &format!("data type {raw} is not built")),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            DataType::Int8 | DataType::Uint8 => 1,
            DataType::Float16 | DataType::Bfloat16 => 2,
            DataType::Int32 | DataType::Uint32 | DataType::Float32 => 4,
            DataType::Int64 | DataType::Uint64 | DataType::Float64 => 8,
        }
    }
}

impl Operation {
    pub fn from_raw(raw: u32) -> Result<Operation> {
        use Operation::*;
        match [Sum, Product, Max, Min, Average].get(raw as usize) {
            Some(known) => Ok(*known),
            None => refuse(Code::INVALID_ARGUMENT, &format!("reduction {raw} is not built")),
        }
    }
}

/// out[i] = inputs[0][i] op inputs[1][i] op ..., from left to right.
pub fn reduce(data_type: DataType, operation: Operation, inputs: &[Vec<u8>]) -> Vec<u8> {
    match data_type {
        DataType::Int8 => reduce_as::<i8>(operation, inputs),
        DataType::Uint8 => reduce_as::<u8>(operation, inputs),
        DataType::Int32 => reduce_as::<i32>(operation, inputs),
        DataType::Uint32 => reduce_as::<u32>(operation, inputs),
        DataType::Int64 => reduce_as::<i64>(operation, inputs),
        DataType::Uint64 => reduce_as::<u64>(operation, inputs),
        DataType::Float16 => reduce_as::<f16>(operation, inputs),
        DataType::Float32 => reduce_as::<f32>(operation, inputs),
        DataType::Float64 => reduce_as::<f64>(operation, inputs),
        DataType::Bfloat16 => reduce_as::<bf16>(operation, inputs),
    }
}

fn reduce_as<T: Element>(operation: Operation, inputs: &[Vec<u8>]) -> Vec<u8> {
    let (first, others) = inputs.split_first().expect("at least one rank");
    let elements = first.len() / T::BYTES;
    let mut out = Vec::with_capacity(first.len());
    for index in 0..elements {
        let at = index * T::BYTES;
        let mut value = T::load(&first[at..]);
        for other in others {
            value = value.combine(operation, T::load(&other[at..]));
        }
        if operation == Operation::Average {
            value = value.divide(inputs.len());
        }
        value.store(&mut out);
    }
    out
}

trait Element: Copy {
    const BYTES: usize;
    fn load(bytes: &[u8]) -> Self;
    fn store(self, out: &mut Vec<u8>);
    fn combine(self, operation: Operation, other: Self) -> Self;
    fn divide(self, ranks: usize) -> Self;
}

macro_rules! load_and_store {
    ($type:ty) => {
        const BYTES: usize = size_of::<$type>();

        fn load(bytes: &[u8]) -> Self {
            Self::from_le_bytes(bytes[..size_of::<$type>()].try_into().expect("so many bytes"))
        }

        fn store(self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.to_le_bytes());
        }
    };
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Element for $type {
            load_and_store!($type);

            fn combine(self, operation: Operation, other: Self) -> Self {
                match operation {
                    Operation::Sum | Operation::Average => self.wrapping_add(other),
                    Operation::Product => self.wrapping_mul(other),
                    Operation::Max => self.max(other),
                    Operation::Min => self.min(other),
                }
            }

            fn divide(self, ranks: usize) -> Self {
                self / ranks as $type
            }
        }
    )*};
}

integers!(i8, u8, i32, u32, i64, u64);

macro_rules! floats {
    ($($type:ty, $wide:ty, $widen:expr, $narrow:expr;)*) => {$(
        impl Element for $type {
            load_and_store!($type);

            fn combine(self, operation: Operation, other: Self) -> Self {
                let (a, b): ($wide, $wide) = ($widen(self), $widen(other));
                $narrow(match operation {
                    Operation::Sum | Operation::Average => a + b,
                    Operation::Product => a * b,
                    // A NaN stays: a device that diverged must not look sound.
                    Operation::Max => if a.is_nan() || a > b { a } else { b },
                    Operation::Min => if a.is_nan() || a < b { a } else { b },
                })
            }

            fn divide(self, ranks: usize) -> Self {
                $narrow($widen(self) / ranks as $wide)
            }
        }
    )*};
}

floats! {
    f32, f32, |x| x, |x| x;
    f64, f64, |x| x, |x| x;
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
}
