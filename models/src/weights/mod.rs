//! Checkpoints: what lies in a folder or a GGUF file, checked and memory-mapped. Nothing in them is
//! ever run as code.

pub mod safetensors;
pub mod gguf;
pub mod shard;
pub mod loader;
pub mod footprint;
pub mod mmap;
#[cfg(test)]
mod tests;

use crate::config::{self, GenerationDefaults, ModelConfig};
use crate::{ChatTemplateSource, LoadError, TokenId, TokenizerSource};
use bytes::Bytes;
use gguf::GgufFile;
use kernels::DType;
use mmap::MappedFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of one JSON or template file; the largest published tokenizer_config.json has some 100 kB.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// A model on disk: its configuration, and everything that is needed to load weights and tokenizer.
pub struct Checkpoint {
    pub config: ModelConfig,
    pub generation: GenerationDefaults,
    pub tokenizer: TokenizerSource,
    pub chat_template: Option<ChatTemplateSource>,
    pub weights: Weights,
}

impl Checkpoint {
    /// Opens a Hugging Face folder (config.json beside safetensors files), a GGUF file, or a folder
    /// with one GGUF file.
    ///
    /// Errors: `Io`, `Invalid`, and `Unsupported` with the key and value that asks for too much.
    pub fn open(path: &Path) -> Result<Checkpoint, LoadError> {
        let metadata = std::fs::metadata(path).map_err(|e| LoadError::io(path, e))?;
        if !metadata.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").exists() {
            return Self::open_folder(path);
        }
        match only_gguf_in(path)? {
            Some(file) => Self::open_gguf(&file),
            None => Err(LoadError::invalid(path, "neither config.json nor a single .gguf file")),
        }
    }

    fn open_folder(folder: &Path) -> Result<Checkpoint, LoadError> {
        let config_path = folder.join("config.json");
        let config_json = read_json(&config_path)?;
        let generation_path = folder.join("generation_config.json");
        let generation_json = read_json_if_there(&generation_path)?.unwrap_or_default();
        let mut config = config::huggingface::parse_config(&config_path, &config_json)?;
        let eos = config::huggingface::eos_token_ids(&generation_path, &generation_json)?;
        config.eos_token_ids = union(eos, &config.eos_token_ids);
        config.check(&generation_path)?;
        if let Some(purpose) = config::sentence_transformers::purpose(folder)? {
            config.purpose = purpose;
        }
        let generation = config::huggingface::parse_generation(&generation_path, &generation_json)?;
        let tokenizer_config = read_json_if_there(&folder.join("tokenizer_config.json"))?;
        let chat_template = find_template(folder, tokenizer_config.as_ref())?;
        let tokenizer_json = folder.join("tokenizer.json");
        Ok(Checkpoint {
            config,
            generation,
            tokenizer: TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config },
            chat_template,
            weights: safetensors::open(folder)?,
        })
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint, LoadError> {
        let file = GgufFile::open(path)?;
        let tokenizer = config::gguf::parse_tokenizer(&file)?;
        let config = config::gguf::parse_config(&file, &tokenizer)?;
        let template = file.string("tokenizer.chat_template")?;
        Ok(Checkpoint {
            config,
            generation: GenerationDefaults::default(),
            tokenizer: TokenizerSource::Gguf(tokenizer),
            chat_template: template.map(|template| ChatTemplateSource { template }),
            weights: file.weights()?,
        })
    }
}

/// A tensor as it lies in the checkpoint: row-major, little endian, a slice of the mapped file.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    pub dtype: DType,
    /// Slowest dimension first: a projection is [out_features, in_features].
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

/// All tensors of a checkpoint, under the names of Hugging Face's causal language models.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, StoredTensor>,
    /// Tensors whose number format is not supported, with its name.
    refused: BTreeMap<String, String>,
    /// The files they lie in.
    maps: Vec<MappedFile>,
}

impl Weights {
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.refused.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.refused.keys()).map(String::as_str)
    }

    /// A tensor of any shape, if it is there in a supported number format.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// A view of the tensor's bytes.
    ///
    /// Errors: `MissingTensor`; `TensorShape` unless it has `shape`; `Unsupported` number format.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<StoredTensor, LoadError> {
        if let Some(dtype) = self.refused.get(name) {
            let key = format!("the number format of tensor {name}");
            return Err(LoadError::unsupported(key, dtype, "F32, F16, BF16"));
        }
        let missing = || LoadError::MissingTensor { name: name.into() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        if tensor.shape != shape {
            let (got, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(LoadError::TensorShape { name: name.into(), got, expected });
        }
        Ok(tensor.clone())
    }

    /// Gives back the memory of what was read so far, once a model has its own copy of it.
    pub fn forget_pages(&self) {
        self.maps.iter().for_each(MappedFile::forget_pages);
    }

    fn insert(&mut self, name: &str, tensor: StoredTensor, path: &Path) -> Result<(), LoadError> {
        let name = self.free_name(name, path)?;
        self.tensors.insert(name, tensor);
        Ok(())
    }

    fn insert_refused(&mut self, name: &str, dtype: String, path: &Path) -> Result<(), LoadError> {
        let name = self.free_name(name, path)?;
        self.refused.insert(name, dtype);
        Ok(())
    }

    fn free_name(&self, name: &str, path: &Path) -> Result<String, LoadError> {
        let canonical = canonical_name(name);
        if self.contains(&canonical) {
            let reason = format!("two tensors mean {canonical}, one of them named {name}");
            return Err(LoadError::invalid(path, reason));
        }
        Ok(canonical)
    }
}

/// Prefixes differ between exports of the same text network: with a vision tower beside it, or
/// without a language head.
fn canonical_name(name: &str) -> String {
    for prefix in ["model.language_model.", "language_model.model."] {
        if let Some(rest) = name.strip_prefix(prefix) {
            return format!("model.{rest}");
        }
    }
    match name.strip_prefix("language_model.lm_head.") {
        Some(rest) => format!("lm_head.{rest}"),
        None if ["layers.", "embed_tokens.", "norm."].iter().any(|p| name.starts_with(p)) => {
            format!("model.{name}")
        }
        None => name.into(),
    }
}

/// `first`, then what of `second` is not in it.
fn union(mut first: Vec<TokenId>, second: &[TokenId]) -> Vec<TokenId> {
    for id in second {
        if !first.contains(id) {
            first.push(*id);
        }
    }
    first
}

fn only_gguf_in(folder: &Path) -> Result<Option<PathBuf>, LoadError> {
    let entries = std::fs::read_dir(folder).map_err(|e| LoadError::io(folder, e))?;
    let mut files = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let first = files.next();
    Ok(first.filter(|_| files.next().is_none()))
}

/// chat_template.jinja, else `chat_template` of tokenizer_config.json: a string, or a list in which
/// "default" counts.
fn find_template(
    folder: &Path,
    tokenizer_config: Option<&Value>,
) -> Result<Option<ChatTemplateSource>, LoadError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let template = String::from_utf8(read_bounded(&path)?)
            .map_err(|_| LoadError::invalid(&path, "not UTF-8"))?;
        return Ok(Some(ChatTemplateSource { template }));
    }
    let template = match tokenizer_config.and_then(|config| config.get("chat_template")) {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| Some(entry.get("template")?.as_str()?.to_string())),
        _ => None,
    };
    Ok(template.map(|template| ChatTemplateSource { template }))
}

fn read_json(path: &Path) -> Result<Value, LoadError> {
    let bytes = read_bounded(path)?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::invalid(path, e.to_string()))
}

pub(crate) fn read_json_if_there(path: &Path) -> Result<Option<Value>, LoadError> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, LoadError> {
    let len = std::fs::metadata(path).map_err(|e| LoadError::io(path, e))?.len();
    if len > JSON_BYTES_MAX {
        let reason = format!("{len} bytes; the limit is {JSON_BYTES_MAX}");
        return Err(LoadError::invalid(path, reason));
    }
    std::fs::read(path).map_err(|e| LoadError::io(path, e))
}
