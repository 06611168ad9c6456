//! Reads reference data made by outside implementations.

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A golden.json and its golden.safetensors.
pub struct Golden {
    pub json: Value,
    tensors: Vec<u8>,
}

/// One prompt and its greedy continuation.
pub struct GreedyCase {
    pub ids: Vec<u32>,
    pub continuation: Vec<u32>,
    /// Top-1 minus top-2 before each token of the continuation.
    pub margins: Vec<f32>,
    /// Names the logits after the prompt; text cases have none.
    pub last_logits: Option<String>,
}

impl Golden {
    pub fn read(json: &Path, tensors: &Path) -> Golden {
        let text = std::fs::read_to_string(json).unwrap();
        let tensors = std::fs::read(tensors).unwrap();
        Golden { json: serde_json::from_str(&text).unwrap(), tensors }
    }

    /// All values of an F32 tensor; `None` if it is not there.
    pub fn tensor(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = tensors.tensor(name).ok()?;
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let values = view.data().chunks_exact(4);
        Some(values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    pub fn number(&self, pointer: &str) -> f32 {
        self.json.pointer(pointer).and_then(Value::as_f64).unwrap() as f32
    }

    /// `key`: prompts, batch or text_cases. The margins of a whole continuation stand in for those
    /// of its steps where only they are given.
    pub fn cases(&self, key: &str) -> Vec<GreedyCase> {
        let list = self.json[key].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(greedy_case).collect()
    }
}

pub fn greedy_case(case: &Value) -> GreedyCase {
    let continuation = ["greedy32", "greedy16", "greedy_ids"].iter().find_map(|k| case.get(k));
    let continuation = ids(continuation.unwrap());
    let margins = match case.get("greedy_margins").and_then(Value::as_array) {
        Some(margins) => margins.iter().map(|m| m.as_f64().unwrap() as f32).collect(),
        None => vec![case["min_margin"].as_f64().unwrap() as f32; continuation.len()],
    };
    let last_logits = case.get("last_logits").and_then(Value::as_str).map(String::from);
    let prompt = case.get("ids").or_else(|| case.get("prompt_ids")).unwrap();
    GreedyCase { ids: ids(prompt), continuation, margins, last_logits }
}

pub fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Folders or files under `part` ("models", "gguf") that `keep` takes, each name once, the copy in
/// this repository first.
pub fn golden_paths(part: &str, keep: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for root in [Some(crate::data_dir()), crate::golden_dir()].into_iter().flatten() {
        let entries = std::fs::read_dir(root.join(part)).unwrap();
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        found.sort();
        for path in found {
            let name = path.file_name().unwrap().to_str().unwrap();
            if keep(name) && !paths.iter().any(|p| p.file_name() == path.file_name()) {
                paths.push(path);
            }
        }
    }
    paths
}
