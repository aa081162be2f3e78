//! `patch` makes a file of what a repair changed, shows it, applies it to the base, takes it back
//! from the repaired model, makes another of a part of it or of the mean of several, and exports it
//! as an adapter.

mod export;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::replaceable;
use crate::bail_input;
use crate::base::claim;
use crate::base::error::Error;
use crate::base::files;
use crate::base::plain::{plain_line, shortened};
use crate::base::print;
use crate::checkpoint::combine::combine;
use crate::checkpoint::hub::{self, OpenedModel};
use crate::checkpoint::patch::{Direction, PatchFile, RowsOrColumns, Summary, diff, is_patch};
use crate::checkpoint::{Change, Checkpoint};
use crate::cli::{NewPatch, Patch, PatchCommand};
use crate::print_line;
use crate::report::plot::short;
use crate::report::table::table;
use crate::report::{RunRecord, block_number, change_by_block};

/// The bytes of a hash that are shown; a patch may say anything.
const LONGEST_HASH: usize = 64;
/// How many changed rows or columns of a matrix are named in the text. The JSON has all of them.
const LINES_SHOWN: usize = 12;

pub fn run(args: &Patch) -> Result<()> {
    match &args.command {
        PatchCommand::Diff { base, repaired, out, overwrite } => {
            replaces_patches(out, *overwrite)?;
            diff(&open(base)?.checkpoint, &open(repaired)?.checkpoint, out)?;
            show(args.json, out)
        }
        PatchCommand::Apply { base, patch, out, overwrite } => {
            let to = Walk { direction: Direction::Apply, out, overwrite: *overwrite };
            walk(base, &patch_in(patch), &to, args.json)
        }
        PatchCommand::Revert { repaired, patch, out, overwrite } => {
            let to = Walk { direction: Direction::Revert, out, overwrite: *overwrite };
            walk(repaired, &patch_in(patch), &to, args.json)
        }
        PatchCommand::Show { patch } => show(args.json, &patch_in(patch)),
        PatchCommand::Export(export) => export::run(export, args.json),
        PatchCommand::Scale { patch, by, to } => {
            if !by.is_finite() {
                bail_input!("--by {by}: expected a finite number");
            }
            if *by == 0.0 {
                bail_input!("--by 0 leaves the base as it is: there would be no patch");
            }
            let patches = [PatchFile::open(&patch_in(patch))?];
            let usual = PathBuf::from(format!("scaled-{by}.safetensors"));
            made(&patches, *by, to, &usual, args.json)
        }
        PatchCommand::Mean { patches, to } => {
            if patches.len() < 2 {
                let why = "a mean is of 2 patches or more; for a part of one: irepair patch scale";
                return Err(Error::Usage(why.into()).into());
            }
            let patches: Vec<PatchFile> = patches
                .iter()
                .map(|path| PatchFile::open(&patch_in(path)))
                .collect::<Result<_>>()?;
            made(&patches, 1.0, to, Path::new("mean.safetensors"), args.json)
        }
    }
}

/// Errors (bad input) if no patch can be written there, or if something is there that is no patch
/// or may not be replaced.
fn replaces_patches(out: &Path, overwrite: bool) -> Result<()> {
    replaceable(out, overwrite)?;
    if out.exists() && !is_patch(out) {
        bail_input!(
            "--out {}: the file there is no patch, and --overwrite replaces patches alone; choose \
             another --out",
            out.display()
        );
    }
    Ok(())
}

/// Writes the patch of λ times the mean of the patches' changes, where it is told or to the usual
/// file, and prints what it changes.
fn made(patches: &[PatchFile], by: f64, to: &NewPatch, usual: &Path, json: bool) -> Result<()> {
    let NewPatch { out, base, overwrite } = to;
    let out = out.as_deref().unwrap_or(usual);
    replaces_patches(out, *overwrite)?;
    let first = &patches[0];
    if let Some(other) = patches.iter().find(|patch| patch.base_sha256 != first.base_sha256) {
        bail_input!(
            "{} and {} are for different bases (sha256 {}… and {}…), so their changes can't be \
             put together",
            first.path().display(),
            other.path().display(),
            first.base_sha256.get(..12).unwrap_or(&first.base_sha256),
            other.base_sha256.get(..12).unwrap_or(&other.base_sha256)
        );
    }
    let (_scratch, [of_base, of_result]) = folders_beside(out, ["base", "result"])?;
    match base {
        Some(base) => combine(&open(base)?.checkpoint, patches, by, &of_result, out)?,
        None => combine(&base_beside(patches, &of_base)?, patches, by, &of_result, out)?,
    }
    show(json, out)
}

/// Empty folders in a temporary one beside the output, which is there as long as the first of the
/// two. Models get folders inside, because temporary folders are private.
fn folders_beside<const N: usize>(
    out: &Path,
    names: [&str; N],
) -> Result<(tempfile::TempDir, [PathBuf; N])> {
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = |e: std::io::Error| {
        Error::Input(format!("--out {}: can't write there: {e}", out.display()))
    };
    std::fs::create_dir_all(parent).map_err(cannot)?;
    let beside =
        tempfile::Builder::new().prefix(".irepair-patch-").tempdir_in(parent).map_err(cannot)?;
    let folders = names.map(|name| beside.path().join(name));
    for folder in &folders {
        std::fs::create_dir(folder).map_err(cannot)?;
    }
    Ok((beside, folders))
}

/// The base, taken back in `folder` from a repaired model that one of the patches lies in. Errors
/// (bad input) if none does.
fn base_beside(patches: &[PatchFile], folder: &Path) -> Result<Checkpoint> {
    for patch in patches {
        let path = patch.path().canonicalize().unwrap_or_default();
        let Some(repaired) = path.parent().and_then(Path::parent) else { continue };
        if !repaired.join("config.json").is_file() {
            continue;
        }
        let repaired = Checkpoint::open(repaired, "the repaired model", None)?;
        if repaired.hash()? == patch.repaired_sha256 {
            if folder.canonicalize().is_ok_and(|to| to.starts_with(&repaired.dir)) {
                bail_input!(
                    "--out lies in {}, the repaired model from which the base is taken back; \
                     choose another --out, or give --base MODEL",
                    repaired.dir.display()
                );
            }
            patch.apply(&repaired, Direction::Revert, folder)?;
            return Checkpoint::open(folder, "the base", None);
        }
    }
    bail_input!(
        "{}: lies in no repaired model (OUT/irepair), so the base is not known; give --base MODEL",
        patches[0].path().display()
    )
}

/// The demo's files are there as long as this is.
fn open(model: &str) -> Result<OpenedModel> {
    hub::open_model(model, None)
}

/// The patch that lies in the folder of a repaired model, or the file itself.
fn patch_in(path: &Path) -> PathBuf {
    let within = path.join("irepair").join("patch.safetensors");
    if within.is_file() { within } else { path.to_owned() }
}

/// Where a patch leads to.
struct Walk<'a> {
    direction: Direction,
    out: &'a Path,
    overwrite: bool,
}

/// A folder with this record is one that a patch made.
const MADE: &str = "patched.json";

impl Walk<'_> {
    /// Errors (bad input) if the output is there and may not be replaced: it may, if a patch or a
    /// repair made it, or if it is empty, and if neither the model that the patch is applied to nor
    /// the patch lies in it.
    fn free(&self, from: &Checkpoint, patch: &Path) -> Result<()> {
        let out = self.out;
        if std::fs::symlink_metadata(out).is_err() {
            return Ok(());
        }
        if !self.overwrite {
            bail_input!(
                "{} exists; choose another --out, or replace it with --overwrite",
                out.display()
            );
        }
        let of_ours = |name: &str| claim::is_record(&out.join("irepair").join(name));
        let is_empty = out.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if !of_ours(MADE) && !of_ours("run.json") && !is_empty {
            bail_input!(
                "{} is no output of irepair, and --overwrite replaces nothing else; choose another \
                 --out",
                out.display()
            );
        }
        for (what, path) in [("model", from.dir.as_path()), ("patch", patch)] {
            if let (Ok(out_path), Ok(path)) = (out.canonicalize(), path.canonicalize())
                && path.starts_with(&out_path)
            {
                bail_input!("--out {} holds the {what} itself; choose another", out.display());
            }
        }
        Ok(())
    }

    /// Gives the folder its name. What had it before is removed afterwards.
    fn name(&self, folder: &Path, beside: &Path) -> Result<()> {
        let old = beside.join("replaced");
        if std::fs::symlink_metadata(self.out).is_ok() {
            std::fs::rename(self.out, &old).with_context(|| self.out.display().to_string())?;
        }
        let named = std::fs::rename(folder, self.out);
        if named.is_err() && old.exists() {
            // Better the old model under its name than none.
            std::fs::rename(&old, self.out).ok();
        }
        named.with_context(|| format!("renaming {} to {}", folder.display(), self.out.display()))
    }
}

/// Applies a patch or takes it back. The folder is written beside its name and renamed when it is
/// whole.
fn walk(from: &str, patch: &Path, to: &Walk, json: bool) -> Result<()> {
    let Walk { direction, out, .. } = *to;
    let (from, patch) = (open(from)?, PatchFile::open(patch)?);
    to.free(&from.checkpoint, patch.path())?;
    from.checkpoint.stays_whole(out)?;
    let (beside, [folder]) = folders_beside(out, ["model"])?;
    patch.apply(&from.checkpoint, direction, &folder)?;
    mark(&folder)?;
    to.name(&folder, beside.path())?;
    let sha256 = match direction {
        Direction::Apply => &patch.repaired_sha256,
        Direction::Revert => &patch.base_sha256,
    };
    if json {
        print::json(
            &serde_json::json!({ "out": out, "tensors": patch.tensors.len(), "sha256": sha256 }),
        )?;
    } else {
        print_line!(
            "{}: {} tensors changed; its weights have sha256 {sha256}",
            out.display(),
            patch.tensors.len()
        )?;
    }
    Ok(())
}

/// Writes into a folder that a patch made it.
fn mark(folder: &Path) -> Result<()> {
    let dir = folder.join("irepair");
    std::fs::create_dir_all(&dir)?;
    let record = serde_json::to_string_pretty(&claim::record())?;
    files::write_whole(&dir.join(MADE), record.as_bytes())
}

/// Prints what a patch changes.
fn show(json: bool, path: &Path) -> Result<()> {
    let summary = PatchFile::open(path)?.summary();
    let run = record_beside(path, &summary);
    if json {
        let mut printed = serde_json::to_value(&summary)?;
        printed["made_by"] = run.as_ref().map_or(serde_json::Value::Null, |run| {
            serde_json::json!({
                "model": run.model, "revision": run.base_revision, "method": run.settings.method,
                "seed": run.seed, "steps": run.steps, "irepair": run.irepair,
                "verdict": run.verdict_line(),
            })
        });
        return print::json(&printed);
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
    print::text(table(["changed", "values", "norm of change", "of its norm"], &rows))?;
    for (name, RowsOrColumns { axis, indices }) in &summary.lines {
        let lines = if *axis == 0 { "rows" } else { "columns" };
        let shown: Vec<String> =
            indices.iter().take(LINES_SHOWN).map(ToString::to_string).collect();
        let more = if indices.len() > LINES_SHOWN { ", …" } else { "" };
        let name = plain_line(name);
        print_line!("{name}: {} {lines}: {}{more}", indices.len(), shown.join(", "))?;
    }
    print_line!(
        "{}: {} tensors in {} bytes ({:.0} % of theirs)\n\
         from weights with sha256 {}\n\
         to   weights with sha256 {}",
        path.display(),
        summary.changes.len(),
        summary.bytes,
        100.0 * summary.bytes as f64 / summary.tensor_bytes as f64,
        plain_line(&shortened(&summary.base_sha256, LONGEST_HASH)),
        plain_line(&shortened(&summary.repaired_sha256, LONGEST_HASH))
    )?;
    match run {
        Some(run) => {
            let revision = run.base_revision.as_ref().map(|at| format!(" (revision {at})"));
            print_line!(
                "made by {} with seed {}, {} steps, of {}{}\n{}",
                plain_line(&run.settings.method),
                run.seed,
                run.steps,
                plain_line(&run.model),
                plain_line(&revision.unwrap_or_default()),
                plain_line(&run.verdict_line())
            )
        }
        None => print_line!("which repair made it is not known: its run.json is not beside it"),
    }
}

/// The record of the repair that made a patch, if it lies beside it and tells of the same changes.
fn record_beside(patch: &Path, summary: &Summary) -> Option<RunRecord> {
    let run = RunRecord::read(&patch.parent()?.join("run.json")).ok()?;
    let changes = |changes: &[Change]| -> Vec<(String, u64)> {
        changes.iter().map(|change| (change.name.clone(), change.norm.to_bits())).collect()
    };
    (changes(&run.changed) == changes(&summary.changes)).then_some(run)
}
