//! Which *files* of a model folder hold its weights.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::conversion::refuse_other_weights;
use super::header::{INDEX, SINGLE};
use crate::bail_input;
use crate::base::files;
use crate::base::plain::shortened;

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

/// File names of the weights of a folder, each with the folders between. Shards may have no index.
pub fn weight_files(dir: &Path, config: &Value) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() {
        return Ok(vec![SINGLE.into()]);
    }
    if index.is_file() {
        return indexed(dir, &index);
    }
    let names = names(dir);
    if let Some(shards) = numbered(dir, &names)? {
        return Ok(shards);
    }
    let other: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
    if let [only] = other.as_slice() {
        bail_input!(
            "{0}: no {SINGLE} and no {INDEX}, only {only}; if these are the weights, call them so: \
             mv {only} {SINGLE} (in {0})",
            dir.display()
        );
    }
    refuse_other_weights(dir, config)?;
    bail_input!(
        "{}: no {SINGLE} and no {INDEX}; a model folder has weights{}",
        dir.display(),
        inner(dir, &[SINGLE, INDEX])
    );
}

/// Words about the folders in a folder that have one of these files.
pub fn inner(dir: &Path, wanted: &[&str]) -> String {
    let folders = names(dir).into_iter().map(|name| dir.join(name));
    let has = |folder: &Path| wanted.iter().any(|file| folder.join(file).is_file());
    let found: Vec<String> =
        folders.filter(|path| has(path)).map(|path| path.display().to_string()).collect();
    match found.as_slice() {
        [] => String::new(),
        [only] => format!("; it lies in {only}: give that, or put its files here"),
        several => format!("; give one of {}", shortened(&several.join(", "), 400)),
    }
}

/// Names of what lies in a folder, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The shards that an index names. They may lie in folders of the folder.
pub fn shards(index: &Path) -> Result<Vec<String>> {
    let value = files::read_json(index)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        bail_input!("{}: no \"weight_map\"", index.display());
    };
    let mut files: Vec<String> =
        map.values().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    for file in &files {
        if !file.split('/').all(|part| files::is_plain(part) && !part.starts_with('.')) {
            bail_input!("{}: {file:?} is not a file of this folder", index.display());
        }
    }
    if files.is_empty() {
        bail_input!("{}: an empty \"weight_map\"", index.display());
    }
    Ok(files)
}

fn indexed(dir: &Path, index: &Path) -> Result<Vec<String>> {
    let files = shards(index)?;
    match files.iter().find(|file| !dir.join(file).is_file()) {
        Some(file) => bail_input!("{}: shard {file} is missing", dir.display()),
        None => Ok(files),
    }
}

/// The shard's series, its number and how many there are: `model-00001-of-00002.safetensors`.
/// `None` if a file of a folder is not called so.
pub fn shard(name: &str) -> Option<(&str, usize, usize)> {
    let name = Some(name).filter(|name| !name.contains('/'))?;
    let (begin, of) = name.strip_suffix(".safetensors")?.split_once("-of-")?;
    let (series, number) = begin.rsplit_once('-')?;
    Some((series, number.parse().ok()?, of.parse().ok()?))
}

/// Shards that no index names, but whose own names say how many there are. `None` if there are no
/// such files. Errors (bad input) if one is missing, or if they are of several models.
fn numbered(dir: &Path, names: &[String]) -> Result<Option<Vec<String>>> {
    let mut series: BTreeMap<(&str, usize), Vec<(usize, &String)>> = BTreeMap::new();
    for name in names {
        if let Some((of, number, all)) = shard(name) {
            series.entry((of, all)).or_default().push((number, name));
        }
    }
    let display = dir.display();
    let Some(((of, all), mut found)) = series.pop_first() else { return Ok(None) };
    if let Some(((other, others), _)) = series.pop_first() {
        bail_input!(
            "{display}: no {INDEX}, and shards of several models ({of}-…-of-{all}, \
             {other}-…-of-{others}); remove those that are not meant"
        );
    }
    found.sort();
    let missing = (1..=all).find(|n| !found.iter().any(|(number, _)| number == n));
    if let Some(missing) = missing {
        bail_input!("{display}: no {INDEX}, and shard {missing} of {all} is missing ({of}-…)");
    }
    Ok(Some(found.into_iter().map(|(_, name)| name.clone()).collect()))
}
