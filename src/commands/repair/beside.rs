//! What a run leaves beside its result: prompts and continuations.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::Loaded;
use crate::base::files;
use crate::eval::task::Row;
use crate::eval::toxicity::Protocol;
use crate::report::Sample;

/// Keeps the held-back prompts with the run, so that its texts can be written and scored again; not
/// those of conversations, which are more than their words.
pub fn write_prompts(
    loaded: &Loaded,
    prompts: &[Vec<u32>],
    protocol: &Protocol,
    dir: &Path,
) -> Result<()> {
    if protocol.prompt_tokens.is_none() {
        return Ok(());
    }
    let mut lines = Vec::new();
    for ids in prompts.iter().filter(|ids| !ids.is_empty()) {
        writeln!(lines, "{}", json!({ "prompt": loaded.encoder.decode(ids)? }))?;
    }
    if lines.is_empty() {
        return Ok(());
    }
    files::write_whole(&dir.join("prompts.jsonl"), &lines)
}

/// Keeps how the held-back prompts were continued before and after, as often as they were.
pub fn write_samples(
    loaded: &Loaded,
    prompts: &[Vec<u32>],
    protocol: &Protocol,
    (before, after): (&[Row], &[Row]),
    path: &Path,
) -> Result<()> {
    let text =
        |row: &Row| row.get("continuation").and_then(Value::as_str).unwrap_or_default().to_owned();
    let score = |row: &Row| row.get("score").and_then(Value::as_f64);
    let mut lines = Vec::new();
    let samples = before.len() / prompts.len().max(1);
    let each = prompts.iter().flat_map(|ids| std::iter::repeat_n(ids, samples));
    for (ids, (before, after)) in each.zip(before.iter().zip(after)) {
        let continued = protocol.continued(ids, loaded.model.sizes().context);
        let sample = Sample {
            prompt: loaded.encoder.decode(continued)?,
            before: text(before),
            after: text(after),
            score_before: score(before),
            score_after: score(after),
        };
        writeln!(lines, "{}", serde_json::to_string(&sample)?)?;
    }
    if lines.is_empty() {
        return Ok(());
    }
    files::write_whole(path, &lines)
}
