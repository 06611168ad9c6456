//! What the files of the sentence-transformers library say of an embedding model: modules.json, and
//! the config.json of its pooling module.

use super::Purpose;
use crate::LoadError;
use crate::weights::read_json_if_there;
use serde_json::Value;
use std::path::Path;

/// Modules of a published model: transformer, pooling, normalisation, at times a projection.
const MODULES_MAX: usize = 16;
const LAST_TOKEN: &str = "lasttoken";
/// Older files have one switch for each way of pooling.
const SWITCH: &str = "pooling_mode_";

/// `None`: the folder has no such files, so that they say nothing.
///
/// Errors: `Invalid`; `Unsupported` for embeddings that are not the normalised hidden state of the
/// last token.
pub fn purpose(folder: &Path) -> Result<Option<Purpose>, LoadError> {
    let path = folder.join("modules.json");
    let Some(json) = read_json_if_there(&path)? else { return Ok(None) };
    let modules = json.as_array().filter(|list| list.len() <= MODULES_MAX);
    let modules = modules.ok_or_else(|| {
        LoadError::invalid(&path, format!("not a list of at most {MODULES_MAX} modules"))
    })?;
    let mut pools = false;
    for module in modules {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => {
                check_pooling(&folder.join(part_of(&path, module)?).join("config.json"))?;
                pools = true;
            }
            // A reranker of the same library reads logits.
            "LogitScore" | "CausalScoreHead" => return Ok(None),
            other => {
                let supported = "Transformer, Pooling, Normalize";
                return Err(LoadError::unsupported("modules.json type", other, supported));
            }
        }
    }
    Ok(pools.then_some(Purpose::Embedding))
}

/// The module's own folder, beside modules.json and nowhere else.
fn part_of<'a>(path: &Path, module: &'a Value) -> Result<&'a str, LoadError> {
    let name = module.get("path").and_then(Value::as_str).unwrap_or_default();
    match name.contains(['/', '\\']) || name.starts_with('.') {
        true => Err(LoadError::invalid(path, "a module's path is not the name of a folder")),
        false => Ok(name),
    }
}

fn check_pooling(path: &Path) -> Result<(), LoadError> {
    let missing = || LoadError::invalid(path, "it is missing, and modules.json asks for it");
    let json = read_json_if_there(path)?.ok_or_else(missing)?;
    let refuse = |mode: &str| Err(LoadError::unsupported("pooling_mode", mode, LAST_TOKEN));
    if let Some(mode) = json.get("pooling_mode").and_then(Value::as_str) {
        return if mode == LAST_TOKEN { Ok(()) } else { refuse(mode) };
    }
    let switches = json.as_object().into_iter().flatten();
    let on = switches.filter(|(_, value)| value.as_bool() == Some(true));
    let mut modes = on.filter_map(|(key, _)| key.strip_prefix(SWITCH));
    match (modes.next(), modes.next()) {
        (Some(LAST_TOKEN), None) => Ok(()),
        (None, _) => Err(LoadError::invalid(path, "no way of pooling is on")),
        (Some(first), second) => refuse(second.unwrap_or(first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(modules: Value, pooling: Value) -> Result<Option<Purpose>, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("modules.json"), modules.to_string()).unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let config = folder.path().join("1_Pooling/config.json");
        std::fs::write(config, pooling.to_string()).unwrap();
        purpose(folder.path())
    }

    fn modules() -> Value {
        let kind = |name: &str| format!("sentence_transformers.models.{name}");
        json!([
            {"idx": 0, "path": "", "type": kind("Transformer")},
            {"idx": 1, "path": "1_Pooling", "type": kind("Pooling")},
            {"idx": 2, "path": "2_Normalize", "type": kind("Normalize")},
        ])
    }

    #[test]
    fn the_last_token_makes_an_embedding() {
        let old = json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false});
        assert_eq!(read(modules(), old).unwrap(), Some(Purpose::Embedding));
        let new = json!({"pooling_mode": "lasttoken"});
        assert_eq!(read(modules(), new).unwrap(), Some(Purpose::Embedding));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(purpose(folder.path()).unwrap(), None);
    }

    #[test]
    fn other_embeddings_are_refused_by_name() {
        let refused = |modules, pooling| read(modules, pooling).unwrap_err().to_string();
        for pooling in [
            json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": true}),
            json!({"pooling_mode_mean_tokens": true}),
        ] {
            let error = refused(modules(), pooling);
            assert!(error.contains("mean_tokens") && error.contains("lasttoken"), "{error}");
        }
        assert!(refused(modules(), json!({"pooling_mode": "cls"})).contains("cls"));
        assert!(refused(modules(), json!({})).contains("no way of pooling"));
        let dense = json!([{"path": "", "type": "sentence_transformers.models.Dense"}]);
        assert!(refused(dense, json!({})).contains("Dense"));
        let outside = json!([{"path": "../1_Pooling", "type": "x.Pooling"}]);
        assert!(refused(outside, json!({})).contains("folder"));
    }
}
