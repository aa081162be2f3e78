//! `patch` makes a file of what a repair changed, shows it, applies it to the base, and takes it
//! back from the repaired model.

use std::path::Path;

use anyhow::{Context, Result};

use crate::bail_input;
use crate::base::error::Error;
use crate::base::plain::{plain_line, shortened};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub;
use crate::checkpoint::patch::{Direction, PatchFile, RowsOrColumns, diff};
use crate::cli::{Patch, PatchCommand};
use crate::report::plot::short;
use crate::report::table::table;
use crate::report::{block_number, change_by_block};

/// The bytes of a hash that are shown; a patch may say anything.
const LONGEST_HASH: usize = 64;
/// How many changed rows or columns of a matrix are named in the text. The JSON has all of them.
const LINES_SHOWN: usize = 12;

pub fn run(args: &Patch) -> Result<()> {
    match &args.command {
        PatchCommand::Diff { base, repaired, out, overwrite } => {
            if out.is_dir() || (out.exists() && !overwrite) {
                bail_input!(
                    "{} exists; choose another --out, or replace it with --overwrite",
                    out.display()
                );
            }
            diff(&open(base)?, &open(repaired)?, out)?;
            show(args.json, out)
        }
        PatchCommand::Apply { base, patch, out } => {
            walk(base, patch, Direction::Apply, out, args.json)
        }
        PatchCommand::Revert { repaired, patch, out } => {
            walk(repaired, patch, Direction::Revert, out, args.json)
        }
        PatchCommand::Show { patch } => show(args.json, patch),
    }
}

fn open(model: &str) -> Result<Checkpoint> {
    Ok(hub::open_model(model, None)?.checkpoint)
}

/// Applies a patch or takes it back. The folder is written beside its name and renamed when it is
/// whole.
fn walk(from: &str, patch: &Path, direction: Direction, out: &Path, json: bool) -> Result<()> {
    let (from, patch) = (open(from)?, PatchFile::open(patch)?);
    if std::fs::symlink_metadata(out).is_ok() {
        bail_input!("{} exists; choose another --out", out.display());
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = |e: std::io::Error| {
        Error::Input(format!("--out {}: can't write there: {e}", out.display()))
    };
    std::fs::create_dir_all(parent).map_err(cannot)?;
    let partial =
        tempfile::Builder::new().prefix(".irepair-patch-").tempdir_in(parent).map_err(cannot)?;
    // The model gets a folder inside, because temporary folders are private.
    let folder = partial.path().join("model");
    std::fs::create_dir(&folder).map_err(cannot)?;
    patch.apply(&from, direction, &folder)?;
    std::fs::rename(&folder, out)
        .with_context(|| format!("renaming {} to {}", folder.display(), out.display()))?;
    let sha256 = match direction {
        Direction::Apply => &patch.repaired_sha256,
        Direction::Revert => &patch.base_sha256,
    };
    if json {
        println!(
            "{}",
            serde_json::json!({ "out": out, "tensors": patch.tensors.len(), "sha256": sha256 })
        );
    } else {
        println!(
            "{}: {} tensors changed; its weights have sha256 {sha256}",
            out.display(),
            patch.tensors.len()
        );
    }
    Ok(())
}

/// Prints what a patch changes.
fn show(json: bool, path: &Path) -> Result<()> {
    let summary = PatchFile::open(path)?.summary();
    if json {
        println!("{}", serde_json::to_string(&summary)?);
        return Ok(());
    }
    let rows: Vec<[String; 4]> = change_by_block(&summary.changes, block_number)
        .into_values()
        .map(|c| {
            [
                c.name,
                c.values.to_string(),
                short(c.norm),
                format!("{:.2} %", 100.0 * c.norm / c.base_norm),
            ]
        })
        .collect();
    print!("{}", table(["changed", "values", "norm of change", "of its norm"], &rows));
    for (name, RowsOrColumns { axis, indices }) in &summary.lines {
        let lines = if *axis == 0 { "rows" } else { "columns" };
        let shown: Vec<String> =
            indices.iter().take(LINES_SHOWN).map(ToString::to_string).collect();
        let more = if indices.len() > LINES_SHOWN { ", …" } else { "" };
        let name = plain_line(name);
        println!("{name}: {} {lines}: {}{more}", indices.len(), shown.join(", "));
    }
    println!(
        "{}: {} tensors in {} bytes ({:.0} % of theirs)\n\
         from weights with sha256 {}\n\
         to   weights with sha256 {}",
        path.display(),
        summary.changes.len(),
        summary.bytes,
        100.0 * summary.bytes as f64 / summary.tensor_bytes as f64,
        plain_line(&shortened(&summary.base_sha256, LONGEST_HASH)),
        plain_line(&shortened(&summary.repaired_sha256, LONGEST_HASH))
    );
    Ok(())
}
