//! Hugging Face checkpoints: one model.safetensors, or shards joined by
//! model.safetensors.index.json.
//!
//! The header is parsed here rather than by the `safetensors` crate: that one adds up header sizes
//! without a check, so sizes near 2^64 get past it, and it lets the last of two equal names win.

#[cfg(test)]
mod tests;

use super::{StoredTensor, Weights, mmap, read_json};
use crate::LoadError;
use bytes::Bytes;
use kernels::DType;
use serde::Deserialize;
use serde::de::{Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of the JSON header of one file; published ones stay below 1 MB.
const HEADER_BYTES_MAX: usize = 100 << 20;
const SHARDS_MAX: usize = 4096;
const TENSORS_MAX: usize = 1 << 20;
const DIMS_MAX: usize = 8;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Maps all tensors of a checkpoint folder, under canonical names.
///
/// Errors: `Io`, `Invalid`. A tensor whose number format is not supported is an error only when it
/// is taken.
pub fn open(folder: &Path) -> Result<Weights, LoadError> {
    let mut weights = Weights::default();
    if !folder.join(INDEX).exists() {
        let path = folder.join(SINGLE);
        if !path.exists() {
            let reason = format!("neither {SINGLE} nor {INDEX} is in the folder");
            return Err(LoadError::invalid(folder, reason));
        }
        for (name, tensor) in open_file(&path, &mut weights)? {
            tensor.add_to(&mut weights, name, &path)?;
        }
        return Ok(weights);
    }
    for (file, names) in read_index(folder)? {
        let path = folder.join(&file);
        let mut tensors = open_file(&path, &mut weights)?;
        for name in names {
            let tensor = tensors.remove(&name);
            let missing = || LoadError::invalid(&path, format!("{INDEX} places {name} here"));
            tensor.ok_or_else(missing)?.add_to(&mut weights, name, &path)?;
        }
    }
    Ok(weights)
}

/// A tensor as the header describes it.
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Entry {
    fn add_to(self, weights: &mut Weights, name: String, path: &Path) -> Result<(), LoadError> {
        match plain_dtype(&self.dtype) {
            Some(dtype) => {
                let tensor = StoredTensor { dtype, shape: self.shape, bytes: self.bytes };
                weights.insert(&name, tensor, path)
            }
            None => weights.insert_refused(&name, self.dtype, path),
        }
    }
}

/// File name -> names of its tensors, as the index says.
fn read_index(folder: &Path) -> Result<BTreeMap<String, Vec<String>>, LoadError> {
    let path = folder.join(INDEX);
    let json = read_json(&path)?;
    let Some(map) = json.get("weight_map").and_then(|m| m.as_object()) else {
        return Err(LoadError::invalid(&path, "weight_map is missing"));
    };
    let mut files = BTreeMap::<String, Vec<String>>::new();
    for (name, file) in map {
        let file = file.as_str().unwrap_or_default();
        // A file name, not a path: a checkpoint must not reach outside its folder.
        if !file.ends_with(".safetensors") || file.contains(['/', '\\']) {
            let reason = format!("{name} lies in {file:?}, which is no safetensors file here");
            return Err(LoadError::invalid(&path, reason));
        }
        files.entry(file.into()).or_default().push(name.clone());
    }
    if files.len() > SHARDS_MAX || map.len() > TENSORS_MAX {
        let reason = format!("{} tensors in {} files are too many", map.len(), files.len());
        return Err(LoadError::invalid(&path, reason));
    }
    Ok(files)
}

/// The tensors of a file, which `weights` keeps.
fn open_file(path: &Path, weights: &mut Weights) -> Result<BTreeMap<String, Entry>, LoadError> {
    let map = mmap::map_file(path)?;
    let tensors = parse(&map.bytes()).map_err(|reason| LoadError::invalid(path, reason))?;
    weights.maps.push(map);
    Ok(tensors)
}

/// Checks a whole file: every tensor lies inside it, has exactly the bytes its shape needs, and
/// shares none with another.
fn parse(file: &Bytes) -> Result<BTreeMap<String, Entry>, String> {
    let size = file.get(..8).ok_or("shorter than its header size")?;
    let size = u64::from_le_bytes(size.try_into().expect("eight bytes"));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > HEADER_BYTES_MAX || size > file.len() - 8 {
        return Err(format!("a header of {size} bytes in a file of {}", file.len()));
    }
    let (header, data) = (file.slice(8..8 + size), file.slice(8 + size..));
    let Header(tensors) =
        serde_json::from_slice(&header).map_err(|e| format!("the header is broken: {e}"))?;
    let mut entries = BTreeMap::new();
    let mut ranges = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let [start, end] = info.data_offsets;
        if start > end || end > data.len() {
            return Err(format!("{name} at {start}..{end} lies outside the data"));
        }
        let bits = dtype_bits(&info.dtype).ok_or(format!("{name} has dtype {}", info.dtype))?;
        let len = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if len.and_then(|n| n.checked_mul(bits)) != (end - start).checked_mul(8)
            || info.shape.len() > DIMS_MAX
        {
            let shape = info.shape;
            return Err(format!("{name} {shape:?} {} has {} bytes", info.dtype, end - start));
        }
        ranges.push((start, end));
        let bytes = data.slice(start..end);
        entries.insert(name, Entry { dtype: info.dtype, shape: info.shape, bytes });
    }
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("two tensors share the bytes at {}", pair[1].0)),
        None => Ok(entries),
    }
}

/// The header's tensors in file order; equal names are refused.
struct Header(Vec<(String, Info)>);

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut tensors, mut names) = (Vec::new(), std::collections::HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} is there twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    if tensors.len() == TENSORS_MAX {
                        return Err(A::Error::custom(format!("more than {TENSORS_MAX} tensors")));
                    }
                    tensors.push((name, map.next_value()?));
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

fn plain_dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::F16, DType::BF16].into_iter().find(|dtype| dtype.name() == name)
}

/// Bits of one value, for every dtype the format names.
fn dtype_bits(name: &str) -> Option<usize> {
    Some(match name {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "C64" | "F64" | "I64" | "U64" => 64,
        _ => return None,
    })
}
