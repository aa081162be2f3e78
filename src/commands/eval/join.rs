//! *Joining* makes one evaluation of several: of different models (`compare`), or of the shards of
//! one evaluation (`eval --merge`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::results::{ModelRecord, Results};
use crate::bail_input;
use crate::eval::ledger::Shard;

/// Joins evaluations of different models, as if the models had been evaluated together. Differences
/// are from the first model. Errors (bad input) if the evaluations have different tasks.
pub fn together<P: AsRef<Path>>(dirs: &[P]) -> Result<Results> {
    let mut all: Option<Results> = None;
    for dir in dirs.iter().map(AsRef::as_ref) {
        let mut part = Results::read(dir)?;
        for on in part.measurements.iter_mut().flat_map(|m| &mut m.models) {
            let wanted = on.rows_sha256.clone();
            on.read_rows(dir, wanted.as_deref())?;
        }
        let Some(all) = &mut all else {
            all = Some(part);
            continue;
        };
        let first = all.models.len();
        all.models.append(&mut part.models);
        let tasks = |r: &Results| r.measurements.iter().map(|m| m.task.clone()).collect::<Vec<_>>();
        if all.seed != part.seed || tasks(all) != tasks(&part) {
            bail_input!(
                "{}: its tasks are not those of {}",
                dir.display(),
                dirs[0].as_ref().display()
            );
        }
        for (whole, part) in all.measurements.iter_mut().zip(part.measurements) {
            for mut on in part.models {
                if whole.models[0].settings != on.settings {
                    bail_input!(
                        "{}: {} was measured with other settings than in {}",
                        dir.display(),
                        whole.task,
                        dirs[0].as_ref().display()
                    );
                }
                on.model += first;
                whole.models.push(on);
            }
        }
    }
    let all = all.context("no evaluation")?;
    Results::new(Shard::default(), all.seed, all.models, all.measurements)
}

/// `eval --merge`: joins the shards of one evaluation, as if one machine had made all of it. Errors
/// (bad input) if a shard is missing, given twice, or of another evaluation.
pub fn merge(dirs: &[PathBuf]) -> Result<Results> {
    let mut parts = Vec::new();
    for dir in dirs {
        let part = Results::read(dir).context("--merge: no finished part is there")?;
        parts.push((dir, part));
    }
    parts.sort_by_key(|(_, part)| part.shard.index);
    let of = parts[0].1.shard.of;
    for (dir, part) in &parts {
        if let Some(what) = foreign(&parts[0].1, part) {
            bail_input!(
                "--merge {}: its {what} differ from those of {}",
                dir.display(),
                parts[0].0.display()
            );
        }
    }
    /// More are not named.
    const NAMED: usize = 20;
    let missing: Vec<String> = (0..of)
        .filter(|i| !parts.iter().any(|(_, p)| p.shard.index == *i))
        .map(|i| format!("{i}/{of}"))
        .take(NAMED + 1)
        .collect();
    if !missing.is_empty() {
        let more = if missing.len() > NAMED { ", …" } else { "" };
        let named = missing.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>();
        bail_input!("--merge: part {}{more} is missing", named.join(", "));
    }
    if let Some(pair) = parts.windows(2).find(|p| p[0].1.shard == p[1].1.shard) {
        let index = pair[0].1.shard.index;
        bail_input!(
            "--merge: {} and {} are both part {index}/{of}",
            pair[0].0.display(),
            pair[1].0.display()
        );
    }
    let mut whole = parts[0].1.clone();
    for (task, measurement) in whole.measurements.iter_mut().enumerate() {
        for (model, on) in measurement.models.iter_mut().enumerate() {
            for (dir, part) in &parts {
                // All parts have the same tasks and models.
                let wanted = part.measurements[task].models[model].rows_sha256.as_deref();
                on.read_rows(dir, wanted)?;
            }
        }
    }
    Results::new(Shard::default(), whole.seed, whole.models, whole.measurements)
}

/// In what a shard differs from the first one, if they are not of the same evaluation.
fn foreign(first: &Results, part: &Results) -> Option<&'static str> {
    let settings = |r: &Results| -> Vec<(String, Vec<Value>)> {
        r.measurements
            .iter()
            .map(|m| (m.task.clone(), m.models.iter().map(|on| on.settings.clone()).collect()))
            .collect()
    };
    let hashes = |r: &Results| {
        let of_one = |m: &ModelRecord| (m.sha256.clone(), m.identity.clone());
        r.models.iter().map(of_one).collect::<Vec<_>>()
    };
    if first.shard.of != part.shard.of {
        Some("number of parts")
    } else if first.irepair != part.irepair {
        Some("versions of irepair")
    } else if hashes(first) != hashes(part) {
        Some("models (their weights, tokenizers or settings)")
    } else if first.seed != part.seed || settings(first) != settings(part) {
        Some("tasks")
    } else {
        None
    }
}
