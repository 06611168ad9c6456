//! GGUF files, versions 2 and 3, little endian: metadata and tensors of one mapped file.
//!
//! Nothing is copied while the header is read: strings and arrays stay ranges of the file until
//! they are asked for, so that a file cannot make us allocate more than a small multiple of its own
//! size.
//! Source: the GGUF specification of the ggml project.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use super::mmap::MappedFile;
use super::{StoredTensor, Weights, mmap};
use crate::LoadError;
use bytes::Bytes;
use kernels::DType;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub const MAGIC: &[u8; 4] = b"GGUF";

const METADATA_ENTRIES_MAX: usize = 1 << 16;
const TENSORS_MAX: usize = 1 << 16;
const NAME_BYTES_MAX: usize = (1 << 16) - 1;
const STRING_BYTES_MAX: usize = 16 << 20;
/// Values of one array; the largest published vocabularies have about 250,000 tokens.
const ARRAY_LEN_MAX: usize = 1 << 23;
const DIMS_MAX: usize = 4;
const ALIGNMENT_MAX: u64 = 1 << 16;
const ALIGNMENT_DEFAULT: u64 = 32;

/// A whole GGUF file, checked: every string, array and tensor lies inside it.
pub struct GgufFile {
    pub path: PathBuf,
    file: Bytes,
    /// Where it lies, unless it was made of bytes alone.
    map: Option<MappedFile>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, StoredTensor>,
}

/// One metadata value; numbers are widened.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array { kind: u32, len: usize, range: Range<usize> },
}

impl GgufFile {
    /// Errors: `Io`, `Invalid`; `Unsupported` for a number format that is not served.
    pub fn open(path: &Path) -> Result<GgufFile, LoadError> {
        let map = mmap::map_file(path)?;
        Ok(GgufFile { map: Some(map.clone()), ..Self::parse(path, map.bytes())? })
    }

    fn parse(path: &Path, file: Bytes) -> Result<GgufFile, LoadError> {
        let invalid = |reason: String| LoadError::invalid(path, reason);
        let mut reader = Reader { file: &file, at: 0 };
        let (num_tensors, num_entries) = read_counts(&mut reader).map_err(invalid)?;
        let metadata = read_metadata(&mut reader, num_entries).map_err(invalid)?;
        let infos = read_tensor_infos(&mut reader, num_tensors).map_err(invalid)?;
        if let Some(info) = infos.iter().find(|info| dtype_of(info.kind).is_none()) {
            let names: Vec<_> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
            let key = format!("the number format of tensor {}", info.name);
            return Err(LoadError::unsupported(key, type_name(info.kind), names.join(", ")));
        }
        let alignment = alignment(&metadata).map_err(invalid)?;
        let data_start = (reader.at as u64).next_multiple_of(alignment);
        let tensors = place_tensors(&file, infos, data_start, alignment).map_err(invalid)?;
        Ok(GgufFile { path: path.to_path_buf(), file, map: None, metadata, tensors })
    }

    /// The tensors, under canonical names.
    pub fn weights(&self) -> Result<Weights, LoadError> {
        let mut weights = Weights::default();
        for (name, tensor) in &self.tensors {
            weights.insert(&canonical_name(name), tensor.clone(), &self.path)?;
        }
        weights.maps.extend(self.map.clone());
        Ok(weights)
    }

    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The names as the file has them.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// `None` when the key is absent. Errors: `Invalid` when the value is of another type.
    pub fn string(&self, key: &str) -> Result<Option<String>, LoadError> {
        self.typed(key, "a string", |value| match value {
            Value::String(range) => text(&self.file[range.clone()]),
            _ => None,
        })
    }

    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, LoadError> {
        self.typed(key, "a whole number from 0", |value| match *value {
            Value::Unsigned(n) => Some(n),
            Value::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        })
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number", |value| match *value {
            Value::Float(x) => x.is_finite().then_some(x),
            Value::Unsigned(n) => Some(n as f64),
            Value::Signed(n) => Some(n as f64),
            _ => None,
        })
    }

    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, LoadError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array { kind: 8, len, range } => {
                let mut reader = Reader { file: &self.file[..range.end], at: range.start };
                let string = |_| text(&reader.file[reader.string("", STRING_BYTES_MAX).ok()?]);
                (0..*len).map(string).collect()
            }
            _ => None,
        })
    }

    /// The values of an array of 32-bit whole numbers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, LoadError> {
        self.typed(key, "an array of 32-bit whole numbers", |value| match value {
            Value::Array { kind: 4 | 5, range, .. } => {
                let words = self.file[range.clone()].chunks_exact(4);
                words
                    .map(|w| i32::try_from(i64::from(i32::from_le_bytes(w.try_into().ok()?))).ok())
                    .collect()
            }
            _ => None,
        })
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        get: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let wrong = || LoadError::invalid(&self.path, format!("{key} is not {expected}"));
        get(value).map(Some).ok_or_else(wrong)
    }
}

/// Tokens of a vocabulary may hold broken UTF-8 in files of careless writers; such a token is never
/// produced by BPE.
fn text(bytes: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(bytes).into_owned())
}

/// The Hugging Face name of a GGUF tensor; names without one stay as they are and are never asked
/// for.
fn canonical_name(name: &str) -> String {
    let top = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(top) = top {
        return top.into();
    }
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, (part, suffix))) =
        layer.and_then(|(layer, rest)| Some((layer, rest.rsplit_once('.')?)))
    else {
        return name.into();
    };
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" | "post_attention_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{layer}.{part}.{suffix}")
}

/// Number formats by their number in the file.
fn dtype_of(kind: u32) -> Option<DType> {
    Some(match kind {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        6 => DType::Q5_0,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        30 => DType::BF16,
        _ => return None,
    })
}

/// The name that ggml gives to a number format.
fn type_name(kind: u32) -> String {
    const NAMES: [&str; 42] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
        "NVFP4",
        "Q1_0",
    ];
    match NAMES.get(kind as usize) {
        Some(name) => format!("{name} (ggml type {kind})"),
        None => format!("ggml type {kind}"),
    }
}

struct TensorInfo {
    name: String,
    /// Slowest first, as everywhere else here; the file has them the other way round.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// Numbers of tensors and of metadata entries.
fn read_counts(reader: &mut Reader) -> Result<(usize, usize), String> {
    if reader.take(4)? != MAGIC {
        return Err("the file does not start with GGUF".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version}; versions 2 and 3, little endian, can be read"));
    }
    let num_tensors = reader.count("tensors", TENSORS_MAX)?;
    Ok((num_tensors, reader.count("metadata entries", METADATA_ENTRIES_MAX)?))
}

fn read_metadata(reader: &mut Reader, len: usize) -> Result<BTreeMap<String, Value>, String> {
    let mut metadata = BTreeMap::new();
    for _ in 0..len {
        let key = reader.name("metadata key")?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|reason| format!("{key}: {reason}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata key {key} is there twice"));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_tensor_infos(reader: &mut Reader, len: usize) -> Result<Vec<TensorInfo>, String> {
    let mut infos = Vec::new();
    for _ in 0..len {
        let name = reader.name("tensor name")?;
        let num_dims = reader.u32()? as usize;
        if !(1..=DIMS_MAX).contains(&num_dims) {
            return Err(format!("tensor {name} has {num_dims} dimensions, not 1 to {DIMS_MAX}"));
        }
        let mut shape = vec![0; num_dims];
        for dim in shape.iter_mut().rev() {
            let wide = reader.u64()?;
            *dim = usize::try_from(wide).map_err(|_| format!("a dimension of {wide}"))?;
        }
        let (kind, offset) = (reader.u32()?, reader.u64()?);
        infos.push(TensorInfo { name, shape, kind, offset });
    }
    Ok(infos)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(&Value::Unsigned(n)) if n.is_power_of_two() && n <= ALIGNMENT_MAX => Ok(n),
        Some(value) => {
            Err(format!("general.alignment is {value:?}, not a power of two up to {ALIGNMENT_MAX}"))
        }
    }
}

/// Cuts the tensors out of the file: each inside it, aligned, named once, sharing no byte with
/// another.
fn place_tensors(
    file: &Bytes,
    infos: Vec<TensorInfo>,
    data_start: u64,
    alignment: u64,
) -> Result<BTreeMap<String, StoredTensor>, String> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(infos.len());
    for TensorInfo { name, shape, kind, offset } in infos {
        let dtype = dtype_of(kind).ok_or_else(|| type_name(kind))?;
        let (row_len, rows) = shape.split_last().expect("one dimension at least");
        let num_rows = rows.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let len = dtype.row_bytes(*row_len).and_then(|bytes| bytes.checked_mul(num_rows?));
        let Some(len) = len.filter(|&len| len > 0) else {
            return Err(format!("tensor {name} {shape:?} is no whole number of {dtype} blocks"));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name} at {offset} is not aligned to {alignment}"));
        }
        let start = data_start.checked_add(offset).and_then(|n| usize::try_from(n).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        let Some(range) = range.filter(|range| range.end <= file.len()) else {
            return Err(format!("tensor {name} at {offset} reaches beyond the file's end"));
        };
        ranges.push((range.start, range.end));
        let tensor = StoredTensor { dtype, shape, bytes: file.slice(range) };
        if tensors.contains_key(&name) {
            return Err(format!("tensor {name} is there twice"));
        }
        tensors.insert(name, tensor);
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("two tensors share the bytes at {}", pair[1].0)),
        None => Ok(tensors),
    }
}

/// A cursor over the file whose every step is checked.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.file.len());
        let end = end.ok_or_else(|| format!("the file ends within {len} bytes at {}", self.at))?;
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn count(&mut self, what: &str, max: usize) -> Result<usize, String> {
        let count = self.u64()?;
        match usize::try_from(count) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(format!("{count} {what}; the limit is {max}")),
        }
    }

    fn string(&mut self, what: &str, len_max: usize) -> Result<Range<usize>, String> {
        let len = self.count(what, len_max)?;
        self.take(len)?;
        Ok(self.at - len..self.at)
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let range = self.string("bytes in a name", NAME_BYTES_MAX)?;
        let name = std::str::from_utf8(&self.file[range]);
        name.map(String::from).map_err(|_| format!("a {what} is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.take(1)?[0].into()),
            1 => Value::Signed((self.take(1)?[0] as i8).into()),
            2 => Value::Unsigned(u16::from_le_bytes([self.take(1)?[0], self.take(1)?[0]]).into()),
            3 => Value::Signed(i16::from_le_bytes([self.take(1)?[0], self.take(1)?[0]]).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed((self.u32()? as i32).into()),
            6 => Value::Float(f32::from_bits(self.u32()?).into()),
            7 => Value::Bool(self.take(1)?[0] != 0),
            8 => Value::String(self.string("bytes in a string", STRING_BYTES_MAX)?),
            9 => self.array()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(self.u64()? as i64),
            12 => Value::Float(f64::from_bits(self.u64()?)),
            _ => return Err(format!("value type {kind} is unknown")),
        })
    }

    fn array(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        let len = self.count("values in an array", ARRAY_LEN_MAX)?;
        let start = self.at;
        let value_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..len {
                    self.string("bytes in a string", STRING_BYTES_MAX)?;
                }
                0
            }
            _ => return Err(format!("an array of values of type {kind} is not supported")),
        };
        self.take(len * value_bytes)?;
        Ok(Value::Array { kind, len, range: start..self.at })
    }
}
