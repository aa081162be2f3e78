//! The output folder: claimed before any work, written beside its final name, checked, renamed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::base::error::Error;
use crate::base::files;
use crate::cli::Repair;
use crate::model::Model;
use crate::model::weights::{Place, Weights};
use crate::report::plot::short;
use crate::report::table::table;
use crate::report::{RunRecord, before_after, block_number, change_by_block, model_card};
use crate::settings::RepairSettings;
use crate::train::state;
use crate::{bail_input, checkpoint};
use checkpoint::{Change, Checkpoint};

/// The folder a run works in and the name it gets in the end.
pub struct Output {
    /// The final name; does not exist until all is written and checked.
    pub path: PathBuf,
    pub partial: PathBuf,
    /// `irepair/` in the partial folder.
    pub dir: PathBuf,
    /// Whether a finished output under that name may be replaced.
    overwrite: bool,
    /// The base's folder, which never may.
    base: PathBuf,
    /// Whether the folder has its final name: what is called `.partial` then is another run's.
    named: Cell<bool>,
    /// Held as long as the run lives: no second run works in this folder.
    _lock: File,
}

/// In the folder of an unfinished output.
const LOCK: &str = ".lock";

impl Output {
    /// The final name: --out, or `repaired/MODEL-METHOD`.
    pub fn path(args: &Repair, settings: &RepairSettings, model: &str) -> Result<PathBuf> {
        let path: PathBuf = match &args.out {
            // Without a slash at its end.
            Some(path) => path.components().collect(),
            None => Path::new("repaired").join(format!("{model}-{}", settings.method)),
        };
        if path.file_name().is_none() {
            bail_input!("--out {}: not a name for a folder", path.display());
        }
        Ok(path)
    }

    /// Errors (bad input) if there is nothing to resume where that is asked for.
    pub fn to_resume(args: &Repair, path: &Path) -> Result<()> {
        let partial = files::partial(path);
        if args.resume && !state::path(&partial.join("irepair")).exists() {
            bail_input!("--resume: there is no unfinished run in {}", partial.display());
        }
        Ok(())
    }

    /// Errors (bad input) if there is an unfinished run, or an output without its name, and neither is it to go on nor may
    /// it be replaced.
    pub fn not_begun(args: &Repair, path: &Path) -> Result<()> {
        let partial = files::partial(path);
        if args.resume || args.overwrite {
            return Ok(());
        }
        if state::path(&partial.join("irepair")).exists() {
            bail_input!(
                "an unfinished run is in {}; go on with --resume, or start again with --overwrite",
                partial.display()
            );
        }
        if is_output(&partial) {
            bail_input!(
                "{} is a finished output that could not get its name; rename it, or start again with --overwrite",
                partial.display()
            );
        }
        Ok(())
    }

    /// Errors (bad input) if the final name is taken and may not be replaced.
    pub fn free(args: &Repair, path: &Path, base: &Path) -> Result<()> {
        if std::fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        if !args.overwrite {
            bail_input!(
                "{} exists; choose another --out, or replace it with --overwrite",
                path.display()
            );
        }
        replaceable(path, base)
    }

    /// Makes the partial folder and takes its lock. Errors (bad input) before anything is computed.
    pub fn claim(
        args: &Repair,
        settings: &RepairSettings,
        model: &str,
        base: &Path,
    ) -> Result<Self> {
        let path = Self::path(args, settings, model)?;
        Self::free(args, &path, base)?;
        Self::to_resume(args, &path)?;
        let partial = files::partial(&path);
        let cannot = |e: std::io::Error| {
            Error::Input(format!("--out {}: can't write there: {e}", path.display()))
        };
        let lock_path = partial.join(LOCK);
        let is_ours = lock_path.exists()
            || !partial.exists()
            || partial.read_dir().is_ok_and(|mut d| d.next().is_none());
        if !is_ours {
            bail_input!(
                "{} is in the way, and no run of irepair made it; move it, or choose another --out",
                partial.display()
            );
        }
        std::fs::create_dir_all(&partial).map_err(cannot)?;
        let lock = File::create(&lock_path).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail_input!("another run is working on {}", path.display())
            }
            Err(TryLockError::Error(e)) => return Err(cannot(e).into()),
        }
        let dir = partial.join("irepair");
        if !args.resume {
            Self::not_begun(args, &path)?;
            // Nothing of an earlier run may get into this one's output.
            for entry in std::fs::read_dir(&partial).map_err(cannot)? {
                let entry = entry.map_err(cannot)?.path();
                if entry == lock_path {
                    continue;
                }
                if entry.is_dir() {
                    std::fs::remove_dir_all(&entry)
                } else {
                    std::fs::remove_file(&entry)
                }
                .map_err(cannot)?;
            }
        }
        std::fs::create_dir_all(&dir).map_err(cannot)?;
        if args.resume {
            // What a run that was killed had begun to write.
            for folder in [&partial, &dir] {
                for entry in std::fs::read_dir(folder).map_err(cannot)? {
                    let entry = entry.map_err(cannot)?;
                    if entry.file_name().to_string_lossy().starts_with(".tmp")
                        && entry.path().is_file()
                    {
                        std::fs::remove_file(entry.path()).map_err(cannot)?;
                    }
                }
            }
        }
        Ok(Self {
            path,
            partial,
            dir,
            overwrite: args.overwrite,
            base: base.to_owned(),
            named: Cell::new(false),
            _lock: lock,
        })
    }

    /// Compares what was written with the base. Errors (a failed check) if nothing changed (the state is forgotten then) or
    /// something outside the slices did.
    pub fn verify(
        &self,
        base: &Checkpoint,
        written: &Checkpoint,
        model: &Model,
        weights: &Weights,
        sliced: &BTreeMap<usize, usize>,
    ) -> Result<Vec<Change>> {
        let changed = checkpoint::compare(base, written)?;
        if changed.is_empty() {
            self.forget()?;
            return Err(Error::Check(format!(
                "nothing changed: the output equals the base, so {} was not made; try more steps or a higher --learning-rate",
                self.path.display()
            ))
            .into());
        }
        let touched: BTreeSet<&str> =
            weights.touched().filter_map(|(n, _)| base.disk_name(n)).collect();
        let block_of = block_of(model, base);
        let outside = changed.iter().find(|c| {
            let in_slice = block_of
                .get(&c.name)
                .is_none_or(|b| b.is_none_or(|b| sliced.is_empty() || sliced.contains_key(&b)));
            !touched.contains(c.name.as_str()) || !in_slice
        });
        if let Some(outside) = outside {
            return Err(
                Error::Check(format!("{} changed, but no slice named it", outside.name)).into()
            );
        }
        Ok(changed)
    }

    /// Removes the state of a run that is over with nothing to keep, so that a corrected command begins anew.
    pub fn forget(&self) -> Result<()> {
        let saved = self.dir.join("state");
        if saved.exists() {
            std::fs::remove_dir_all(&saved).with_context(|| saved.display().to_string())?;
        }
        Ok(())
    }

    /// Writes the records, gives the folder its name, and removes the state. Whatever fails or ends it on the way, a whole
    /// output is left, and a state to resume from until it has its name.
    pub fn finish(&self, run: &RunRecord, base: &Checkpoint) -> Result<()> {
        files::write_whole(
            &self.dir.join("run.json"),
            serde_json::to_string_pretty(run)?.as_bytes(),
        )?;
        let base_card = std::fs::read_to_string(base.dir.join("README.md")).ok();
        files::write_whole(
            &self.partial.join("README.md"),
            model_card(run, base_card.as_deref()).as_bytes(),
        )?;
        // Drawn of the unfinished run, it would lie about this one.
        let report = self.dir.join("report.html");
        if report.exists() {
            std::fs::remove_file(&report).with_context(|| report.display().to_string())?;
        }
        self.rename()?;
        // Names, too, are on disk before the state is gone; where folders can't be synced, nothing more can be done.
        let parent = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        for folder in [&self.path, parent] {
            std::fs::File::open(folder).and_then(|folder| folder.sync_all()).ok();
        }
        let (saved, lock) = (self.path.join("irepair").join("state"), self.path.join(LOCK));
        let removed = if saved.exists() { std::fs::remove_dir_all(&saved) } else { Ok(()) };
        if let Err(e) = removed.and_then(|()| std::fs::remove_file(&lock)) {
            // The output is whole all the same.
            eprintln!(
                "warning: {} and {} could not be removed: {e}",
                saved.display(),
                lock.display()
            );
        }
        Ok(())
    }

    /// Gives the folder its name; what had it before and may be replaced is removed afterwards.
    fn rename(&self) -> Result<()> {
        let naming = || format!("renaming {} to {}", self.partial.display(), self.path.display());
        let remove =
            |path: &Path| std::fs::remove_dir_all(path).with_context(|| path.display().to_string());
        let mut old = self.partial.clone().into_os_string();
        old.push(".replaced");
        let old = PathBuf::from(old);
        let replaces = std::fs::symlink_metadata(&self.path).is_ok();
        if replaces {
            // It may have come since the run began.
            if !self.overwrite {
                bail_input!(
                    "{} exists since this run began; the result is whole in {}: move one of them, and give the same command \
                     with --resume, or rename it",
                    self.path.display(),
                    self.partial.display()
                );
            }
            replaceable(&self.path, &self.base)?;
            if is_output(&old) {
                remove(&old)?;
            }
            std::fs::rename(&self.path, &old).with_context(naming)?;
        }
        if let Err(e) = std::fs::rename(&self.partial, &self.path) {
            if replaces {
                // Better the old output under its name than none.
                std::fs::rename(&old, &self.path).with_context(naming)?;
            }
            return Err(e).with_context(naming);
        }
        self.named.set(true);
        // Also what a run that was killed between the two left there.
        if (replaces || self.overwrite && is_output(&old))
            && let Err(e) = remove(&old)
        {
            eprintln!("warning: the output before this one could not be removed: {e:#}");
        }
        Ok(())
    }
}

impl Drop for Output {
    /// A run that ended in an error leaves its folder only if there is a state to resume from, or a finished output.
    fn drop(&mut self) {
        if !self.named.get()
            && self.partial.exists()
            && !state::path(&self.dir).exists()
            && !is_output(&self.partial)
        {
            // Nothing can be done about a failure here, and the error that brought us here matters more.
            std::fs::remove_dir_all(&self.partial).ok();
        }
    }
}

/// Whether a folder is a finished output of irepair.
fn is_output(path: &Path) -> bool {
    path.join("irepair").join("run.json").is_file()
}

/// Whether `--overwrite` may replace this: an output of irepair, or an empty folder, that is not the base.
fn replaceable(path: &Path, base: &Path) -> Result<()> {
    let is_empty = path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if !is_output(path) && !is_empty {
        bail_input!(
            "{} is no output of irepair, and --overwrite replaces nothing else; choose another --out",
            path.display()
        );
    }
    if let (Ok(path), Ok(base)) = (path.canonicalize(), base.canonicalize())
        && (base.starts_with(&path) || path.starts_with(&base))
    {
        bail_input!("--out {} is the base itself or lies in it; choose another", path.display());
    }
    Ok(())
}

/// The block of each tensor by its name on disk.
fn block_of(model: &Model, base: &Checkpoint) -> BTreeMap<String, Option<usize>> {
    model
        .specs()
        .into_iter()
        .filter_map(|spec| {
            let block = match spec.place {
                Place::Block(b) => Some(b),
                _ => None,
            };
            Some((base.disk_name(&spec.name)?.to_owned(), block))
        })
        .collect()
}

/// Blocks that a summary shows at most: with them it fits 24 lines of 80 columns.
const SUMMARY_BLOCKS: usize = 5;

/// The blocks that changed most, in their order, with how often (as `times` says), norm and share of their norm; what is left
/// out is said in a line below.
pub fn changed_most(
    run: &RunRecord,
    heads: [&str; 2],
    times: impl Fn(Option<usize>) -> usize,
) -> String {
    let changes = change_by_block(&run.changed, block_number);
    let mut order: Vec<(f64, Option<usize>)> =
        changes.iter().map(|(block, change)| (change.norm, *block)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let left_out = order.split_off(order.len().min(SUMMARY_BLOCKS));
    let rows: Vec<[String; 4]> = changes
        .into_iter()
        .filter(|(block, _)| order.iter().any(|(_, shown)| shown == block))
        .map(|(block, change)| {
            let relative = format!("{:.2} %", 100.0 * change.norm / change.base_norm);
            [change.name, times(block).to_string(), short(change.norm), relative]
        })
        .collect();
    let mut text = table(["changed", heads[0], "norm of change", heads[1]], &rows);
    if let Some((most, _)) = left_out.first() {
        let _ = writeln!(text, "and {} more, each by {} or less", left_out.len(), short(*most));
    }
    text
}

/// What happened, for people: it fits a screen and says where the result lies and what to type next.
pub fn summary(run: &RunRecord, out: &Path, model: &Model) -> String {
    let mut text = String::new();
    let rows = before_after(run);
    if !rows.is_empty() {
        text += &table(["", "before", "after", "change"], &rows);
        let _ = writeln!(text, "on held-back rows; scored by {}", run.scorer);
    }
    let changed = change_by_block(&run.changed, block_number).into_keys().flatten().count();
    // Where no step has a slice of its own, every step changes everything.
    let steps = |block: Option<usize>| match run.sliced.is_empty() {
        true => run.steps,
        false => block.and_then(|b| run.sliced.get(&b)).copied().unwrap_or(0),
    };
    text += &changed_most(run, ["steps", "of its norm"], steps);
    let _ = writeln!(
        text,
        "{} of {} blocks, {:.1} % of the parameters; all else is byte-equal to the base",
        changed,
        model.sizes().blocks,
        100.0 * run.changed_parameters as f64 / run.parameters.max(1) as f64
    );
    let memory = run.peak_rss_mib.map_or(String::new(), |m| format!(", {m} MiB at most"));
    let _ = writeln!(
        text,
        "{} steps ({}), weights of step {} kept; {:.0} s{memory}{}",
        run.steps,
        run.stopped,
        run.kept_step,
        run.seconds,
        run.fallback()
    );
    let _ = writeln!(
        text,
        "undo: irepair patch revert {0} {0}/irepair/patch.safetensors --out base",
        out.display()
    );
    let _ = writeln!(
        text,
        "repaired: {} loads in transformers as it is; details in {0}/irepair/run.json",
        out.display()
    );
    let prompts = if run.data.held_back == 0 {
        "FILE".into()
    } else {
        format!("{}/irepair/prompts.jsonl", out.display())
    };
    let _ = writeln!(
        text,
        "next: irepair generate --model {} --prompts {prompts} --out texts.jsonl",
        out.display()
    );
    text
}
