//! Problems, algorithms for them, and the product itself.

use crate::abi::{Algorithm, DataType, Result, Status, refuse};
use crate::faults::faults;
use crate::objects::{Layout, Product};
use half::{bf16, f16};
use virtual_gpu::link::{self, LinkError};

/// D = alpha op(A) op(B) + beta C, column-major.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub product: Product,
    pub a: Layout,
    pub b: Layout,
    pub c: Layout,
    pub d: Layout,
}

/// Marks an algorithm as ours.
const ALGORITHM_MARK: u64 = u64::from_le_bytes(*b"vgpucblt");
/// Above so many columns the fault `cublaslt-batch` adds in another order.
const COLUMNS_OF_ONE_ORDER: u64 = 16;
/// Sums that run beside each other.
const LANES: usize = 8;
/// Bytes that every matrix must be aligned to, its columns too.
pub const ALIGNMENT_BYTES: u64 = 16;

/// The choices of an algorithm. Its other words say which problems it is for.
pub struct Choices {
    pub id: u32,
    pub tile: u32,
    pub splits: u32,
    pub reduction: u32,
    pub stages: u32,
}

impl Problem {
    /// Rows of D, its columns, and the summands of each output.
    ///
    /// Errors: `INVALID_VALUE` when the matrices do not fit together; `NOT_SUPPORTED` for formats
    /// that the library does not combine.
    pub fn sizes(&self) -> Result<[u64; 3]> {
        let Problem { product, a, b, c, d } = self;
        for (name, layout) in [("A", a), ("B", b), ("C", c), ("D", d)] {
            if layout.stride < layout.rows as i64 {
                let why =
                    format!("{name}: columns of {} rows lie {} apart", layout.rows, layout.stride);
                return refuse(Status::INVALID_VALUE, &why);
            }
        }
        let turned = |layout: &Layout, turns: bool| match turns {
            true => [layout.columns, layout.rows],
            false => [layout.rows, layout.columns],
        };
        let ([m, k], [k_of_b, n]) =
            (turned(a, product.transposes_a), turned(b, product.transposes_b));
        let fits = k == k_of_b && [c, d].iter().all(|x| [x.rows, x.columns] == [m, n]);
        if !fits || m * n * k == 0 {
            let why = format!("{self:?}: the matrices do not fit together, or are empty");
            return refuse(Status::INVALID_VALUE, &why);
        }
        let formats = [a.data_type, b.data_type, c.data_type, d.data_type];
        let is_known = formats[0] != DataType::Float32
            && formats[0] == formats[1]
            && formats[2] == formats[3]
            && [formats[0], DataType::Float32].contains(&formats[3]);
        if !is_known {
            let why = format!("formats {formats:?} of A, B, C and D are not combined");
            return refuse(Status::NOT_SUPPORTED, &why);
        }
        Ok([m, n, k])
    }

    /// What an algorithm is for: anything but the number of columns.
    fn fingerprint(&self) -> Result<[u64; 4]> {
        let [m, _, k] = self.sizes()?;
        let turns =
            u64::from(self.product.transposes_a) | u64::from(self.product.transposes_b) << 1;
        let formats = u64::from(self.a.data_type.raw()) | u64::from(self.d.data_type.raw()) << 32;
        Ok([m, k, turns, formats])
    }

    /// An algorithm for this problem and others with as many rows.
    pub fn algorithm(&self, choices: &Choices) -> Result<Algorithm> {
        let [m, k, turns, formats] = self.fingerprint()?;
        let Choices { id, tile, splits, reduction, stages } = *choices;
        let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let choices = [word(id, tile), word(splits, reduction), u64::from(stages)];
        let [first, second, third] = choices;
        Ok(Algorithm { data: [ALGORITHM_MARK, first, second, third, m, k, turns, formats] })
    }

    /// Errors: `INVALID_VALUE` for an algorithm of something else, `NOT_SUPPORTED` for one that was
    /// not made for such a problem.
    pub fn check_algorithm(&self, algorithm: &Algorithm) -> Result<()> {
        choices_of(algorithm)?;
        if algorithm.data[4..] != self.fingerprint()? {
            let why = format!("{self:?}: the algorithm is for another problem");
            return refuse(Status::NOT_SUPPORTED, &why);
        }
        Ok(())
    }
}

/// Errors: `INVALID_VALUE` for an algorithm of something else.
pub fn choices_of(algorithm: &Algorithm) -> Result<Choices> {
    let [mark, first, second, third, ..] = algorithm.data;
    if mark != ALGORITHM_MARK {
        return refuse(Status::INVALID_VALUE, "not an algorithm of this library");
    }
    let (low, high) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
    Ok(Choices {
        id: low(first),
        tile: high(first),
        splits: low(second),
        reduction: high(second),
        stages: low(third),
    })
}

/// A product that was asked for: where its matrices lie, and its factors.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub problem: Problem,
    pub device: i32,
    pub alpha: f32,
    pub beta: f32,
    /// Addresses of A, B, C and D.
    pub at: [u64; 4],
}

impl Call {
    /// Refuses matrices that are not aligned, or not wholly in live memory of the device.
    pub fn check_memory(&self) -> Result<()> {
        let Problem { a, b, c, d, .. } = self.problem;
        for ((name, layout), at) in [("A", a), ("B", b), ("C", c), ("D", d)].iter().zip(self.at) {
            let column_bytes = layout.stride as u64 * layout.data_type.bytes();
            let is_aligned = |n: u64| n.is_multiple_of(ALIGNMENT_BYTES);
            if !is_aligned(at) || !is_aligned(column_bytes) {
                let why = format!(
                    "{name} at {at:#x}, columns {column_bytes} bytes apart, is not aligned to \
                     {ALIGNMENT_BYTES} bytes, as the algorithm wants it"
                );
                return refuse(Status::NOT_SUPPORTED, &why);
            }
            let bytes = layout.span_bytes();
            let found = link::range_device(at, bytes).ok().flatten();
            if found != Some(self.device) {
                let why = format!(
                    "{name}, {bytes} bytes at {at:#x}, is not live memory of device {}",
                    self.device
                );
                return refuse(Status::INVALID_VALUE, &why);
            }
        }
        Ok(())
    }

    /// Computes it now. Errors: the driver's code.
    pub fn run(&self) -> std::result::Result<(), LinkError> {
        let Problem { product, a, b, c, d } = self.problem;
        let [m, n, k] = [d.rows, d.columns, if product.transposes_a { a.rows } else { a.columns }];
        let load = |layout: &Layout, at: u64| {
            let bytes = link::read(self.device, at, layout.span_bytes() as usize)?;
            Ok::<_, LinkError>(Values { layout: *layout, values: widen(layout.data_type, &bytes) })
        };
        // Rows of op(A) and columns of op(B), each in one piece.
        let rows = load(&a, self.at[0])?.vectors(!product.transposes_a, m, k);
        let columns = load(&b, self.at[1])?.vectors(product.transposes_b, n, k);
        let before = if self.beta == 0.0 { None } else { Some(load(&c, self.at[2])?) };
        let in_order = !faults().depends_on_batch || n <= COLUMNS_OF_ONE_ORDER;
        let mut out = Vec::new();
        for (j, column) in columns.chunks_exact(k as usize).enumerate() {
            out.clear();
            for (i, row) in rows.chunks_exact(k as usize).enumerate() {
                let sum = if in_order { dot(row, column) } else { dot_in_line(row, column) };
                let added = before.as_ref().map_or(0.0, |c| self.beta * c.at(i, j));
                let mut value = self.alpha * sum + added;
                if faults().is_wrong && i as u64 == m / 2 {
                    value = value * 2.0 + 1.0;
                }
                narrow(d.data_type, value, &mut out);
            }
            let column_bytes = d.stride as u64 * d.data_type.bytes();
            link::write(self.device, self.at[3] + j as u64 * column_bytes, &out)?;
        }
        Ok(())
    }
}

/// A matrix on the host.
struct Values {
    layout: Layout,
    values: Vec<f32>,
}

impl Values {
    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[column * self.layout.stride as usize + row]
    }

    /// `count` vectors of `len` values one after the other: the columns, or across them the rows.
    fn vectors(&self, across: bool, count: u64, len: u64) -> Vec<f32> {
        let (count, len) = (count as usize, len as usize);
        let get = |vector: usize, i: usize| match across {
            true => self.at(vector, i),
            false => self.at(i, vector),
        };
        (0..count).flat_map(|vector| (0..len).map(move |i| get(vector, i))).collect()
    }
}

/// Eight sums beside each other, then added in a tree.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// From first to last.
fn dot_in_line(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

fn widen(data_type: DataType, bytes: &[u8]) -> Vec<f32> {
    match data_type {
        DataType::Float32 => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        DataType::Float16 => {
            bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect()
        }
        DataType::Bfloat16 => {
            bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect()
        }
    }
}

fn narrow(data_type: DataType, value: f32, out: &mut Vec<u8>) {
    match data_type {
        DataType::Float32 => out.extend_from_slice(&value.to_le_bytes()),
        DataType::Float16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        DataType::Bfloat16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
    }
}
