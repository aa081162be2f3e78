//! Which *files* of a model folder hold its weights.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::conversion::refuse_other_weights;
use super::header::{INDEX, SINGLE};
use crate::bail_input;
use crate::base::files;

/// Files of a model folder that change what the same weights say.
pub const BESIDE_WEIGHTS: [&str; 12] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// File names of the weights of a folder.
pub fn weight_files(dir: &Path, config: &Value) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() {
        return Ok(vec![SINGLE.into()]);
    }
    if !index.is_file() {
        refuse_other_weights(dir, config)?;
        bail_input!("{}: no {SINGLE} and no {INDEX}; a model folder has weights", dir.display());
    }
    let value = files::read_json(&index)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        bail_input!("{}: no \"weight_map\"", index.display());
    };
    let mut files: Vec<String> =
        map.values().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    for file in &files {
        if !files::is_plain(file) || file.starts_with('.') {
            bail_input!("{}: {file:?} is not a file of this folder", index.display());
        }
        if !dir.join(file).is_file() {
            bail_input!("{}: shard {file} is missing", dir.display());
        }
    }
    if files.is_empty() {
        bail_input!("{}: an empty \"weight_map\"", index.display());
    }
    Ok(files)
}
