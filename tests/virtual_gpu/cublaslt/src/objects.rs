//! Handles and descriptors of this process.

use crate::abi::{COMPUTE_32F, DataType, Result, Status, refuse};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug)]
pub enum Object {
    Handle { device: i32 },
    Product(Product),
    Layout(Layout),
    Preference(Preference),
}

/// A `cublasLtMatmulDesc_t`: what is multiplied how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Product {
    pub transposes_a: bool,
    pub transposes_b: bool,
}

/// A `cublasLtMatrixLayout_t`: a column-major matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pub data_type: DataType,
    pub rows: u64,
    pub columns: u64,
    pub stride: i64,
}

/// A `cublasLtMatmulPreference_t`.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    pub workspace_bytes_max: u64,
    pub reduction_schemes: u32,
    /// Of A, B, C and D, in bytes.
    pub alignments: [u32; 4],
}

impl Product {
    pub fn new(compute_type: u32, scale_type: u32) -> Result<Product> {
        if compute_type != COMPUTE_32F || DataType::from_raw(scale_type)? != DataType::Float32 {
            let why = format!("compute type {compute_type} with scale type {scale_type}");
            return refuse(Status::NOT_SUPPORTED, &why);
        }
        Ok(Product { transposes_a: false, transposes_b: false })
    }

    fn set(&mut self, which: u32, value: u64) -> Result<()> {
        let transposes = || match value {
            0 => Ok(false),
            1 => Ok(true),
            _ => refuse(Status::NOT_SUPPORTED, &format!("operation {value} on a matrix")),
        };
        match (which, value) {
            (3, _) => self.transposes_a = transposes()?,
            (4, _) => self.transposes_b = transposes()?,
            // Factors on the host, C as it is, no epilogue: what it is without being set.
            (2, 0) | (5, 0) | (7, 1) => {}
            _ => {
                let why = format!("attribute {which} of a product, as {value}, is not built");
                return refuse(Status::NOT_SUPPORTED, &why);
            }
        }
        Ok(())
    }
}

impl Layout {
    /// From the first byte to the last.
    pub fn span_bytes(&self) -> u64 {
        match (self.rows, self.columns) {
            (0, _) | (_, 0) => 0,
            (rows, columns) => ((columns - 1) * self.stride as u64 + rows) * self.data_type.bytes(),
        }
    }

    fn set(&mut self, which: u32, value: u64) -> Result<()> {
        match which {
            2 => self.rows = value,
            3 => self.columns = value,
            4 => self.stride = value as i64,
            // Column-major.
            1 if value == 0 => {}
            _ => {
                let why = format!("attribute {which} of a matrix, as {value}, is not built");
                return refuse(Status::NOT_SUPPORTED, &why);
            }
        }
        Ok(())
    }
}

impl Preference {
    pub const DEFAULT: Preference =
        Preference { workspace_bytes_max: 0, reduction_schemes: 7, alignments: [256; 4] };

    fn set(&mut self, which: u32, value: u64) -> Result<()> {
        match which {
            1 => self.workspace_bytes_max = value,
            3 => self.reduction_schemes = value as u32,
            5..=8 => self.alignments[which as usize - 5] = value as u32,
            _ => {
                let why = format!("attribute {which} of a preference is not built");
                return refuse(Status::NOT_SUPPORTED, &why);
            }
        }
        Ok(())
    }
}

impl Object {
    /// Bytes of an attribute, as the header says.
    fn attribute_bytes(&self, which: u32) -> usize {
        match (self, which) {
            (Object::Layout(_), 2..=4 | 6 | 7) | (Object::Preference(_), 1) => 8,
            _ => 4,
        }
    }
}

#[derive(Default)]
struct Table {
    objects: BTreeMap<u64, Object>,
    last: u64,
}

static TABLE: Mutex<Table> = Mutex::new(Table { objects: BTreeMap::new(), last: 0 });
/// No canonical address: a program that dereferences a handle crashes at once.
const HANDLES: u64 = 0x4C54_0000_0000_0000;

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn add(object: Object) -> u64 {
    let mut table = table();
    table.last += 16;
    let handle = HANDLES + table.last;
    table.objects.insert(handle, object);
    handle
}

pub fn find(handle: u64) -> Result<Object> {
    match table().objects.get(&handle) {
        Some(object) => Ok(*object),
        None => refuse(Status::INVALID_VALUE, "no such handle or descriptor"),
    }
}

pub fn remove(handle: u64) -> Result<()> {
    match table().objects.remove(&handle) {
        Some(_) => Ok(()),
        None => refuse(Status::INVALID_VALUE, "no such handle or descriptor"),
    }
}

/// Sets an attribute of a descriptor.
///
/// # Safety
/// `value` is null or has `bytes` bytes.
pub unsafe fn set(handle: u64, which: u32, value: *const c_void, bytes: usize) -> Result<()> {
    let mut object = find(handle)?;
    let expected = object.attribute_bytes(which);
    if value.is_null() || bytes != expected {
        let why = format!("attribute {which} has {expected} bytes, not {bytes}");
        return refuse(Status::INVALID_VALUE, &why);
    }
    let mut word = [0; 8];
    // SAFETY: not null, so `bytes` bytes, which are 4 or 8.
    unsafe { std::ptr::copy_nonoverlapping(value.cast(), word.as_mut_ptr(), bytes) };
    let value = u64::from_le_bytes(word);
    match &mut object {
        Object::Handle { .. } => {
            return refuse(Status::INVALID_VALUE, "a handle has no attributes");
        }
        Object::Product(product) => product.set(which, value)?,
        Object::Layout(layout) => layout.set(which, value)?,
        Object::Preference(preference) => preference.set(which, value)?,
    }
    table().objects.insert(handle, object);
    Ok(())
}

/// Errors: `NOT_INITIALIZED` for what is no handle.
pub fn device_of(handle: u64) -> Result<i32> {
    match find(handle) {
        Ok(Object::Handle { device }) => Ok(device),
        _ => refuse(Status::NOT_INITIALIZED, "no handle of this library"),
    }
}

pub fn product(handle: u64) -> Result<Product> {
    match find(handle)? {
        Object::Product(product) => Ok(product),
        _ => refuse(Status::INVALID_VALUE, "not a description of a product"),
    }
}

pub fn layout(handle: u64) -> Result<Layout> {
    match find(handle)? {
        Object::Layout(layout) => Ok(layout),
        _ => refuse(Status::INVALID_VALUE, "not a description of a matrix"),
    }
}

pub fn preference(handle: u64) -> Result<Preference> {
    match find(handle)? {
        Object::Preference(preference) => Ok(preference),
        _ => refuse(Status::INVALID_VALUE, "not a preference"),
    }
}
