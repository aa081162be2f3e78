//! The output folder: claimed before any work, written beside its final name, checked, renamed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Order;
use super::done::Done;
use crate::bail_input;
use crate::base::claim::{self, Claim};
use crate::base::error::Error;
use crate::base::files;
use crate::base::plain::message;
use crate::checkpoint::patch::{self, PatchFile};
use crate::checkpoint::{self, Change, Checkpoint};
use crate::cli::Repair;
use crate::model::Model;
use crate::model::weights::{Place, Weights};
use crate::report::{RunRecord, model_card};
use crate::say;
use crate::train::log::count_blocks;
use crate::train::{Diverged, state};

/// The folder a run works in and the name it gets in the end.
pub struct Output {
    /// The final name; does not exist until all is written and checked.
    pub path: PathBuf,
    pub partial: PathBuf,
    /// `irepair/` in the partial folder.
    pub dir: PathBuf,
    /// Whether a finished output under that name may be replaced.
    overwrite: bool,
    quiet: bool,
    /// The base's folder, which never may.
    base: PathBuf,
    /// Whether the folder has its final name: what is called `.partial` then is another run's.
    named: Cell<bool>,
    /// Held as long as the run lives: no second run works in this folder.
    claim: Claim,
}

/// What was written and checked.
pub struct Written {
    pub changed: Vec<Change>,
    pub patch: PatchFile,
}

/// What a folder of an unfinished output is marked for.
const KIND: &str = "repair";

impl Output {
    /// The final name: --out, or `repaired/MODEL-METHOD`.
    pub fn path(order: &Order) -> Result<PathBuf> {
        let path: PathBuf = match &order.args.out {
            // Without a slash at its end.
            Some(path) => path.components().collect(),
            None => {
                let name = order.loaded.short_name();
                Path::new("repaired").join(format!("{name}-{}", order.prepared.settings.method))
            }
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

    /// Errors (bad input) if there is an unfinished run, or an output without its name, and neither
    /// is it to go on nor may it be replaced.
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
                "{} is a finished output that could not get its name; rename it, or start again \
                 with --overwrite",
                partial.display()
            );
        }
        Ok(())
    }

    /// Errors (bad input) if the final name is taken and may not be replaced.
    pub fn free(order: &Order, path: &Path) -> Result<()> {
        if std::fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        if !order.args.overwrite {
            bail_input!(
                "{} exists; choose another --out, or replace it with --overwrite",
                path.display()
            );
        }
        replaceable(path, &order.loaded.checkpoint().dir)
    }

    /// Makes the partial folder and takes its lock. Errors (bad input) before anything is computed.
    pub fn claim(order: &Order) -> Result<Self> {
        let (args, base) = (order.args, &order.loaded.checkpoint().dir);
        let path = Self::path(order)?;
        Self::free(order, &path)?;
        Self::to_resume(args, &path)?;
        let partial = files::partial(&path);
        let cannot = |e: std::io::Error| {
            Error::Input(format!("--out {}: can't write there: {e}", path.display()))
        };
        let claim = Claim::take(&partial, KIND)?;
        let dir = partial.join("irepair");
        if !args.resume {
            Self::not_begun(args, &path)?;
            // Nothing of an earlier run may get into this one's output.
            claim::empty(&partial).map_err(cannot)?;
        }
        std::fs::create_dir_all(&dir).map_err(cannot)?;
        if args.resume {
            files::sweep(&partial).map_err(cannot)?;
        }
        Ok(Self {
            path,
            partial,
            dir,
            overwrite: args.overwrite,
            quiet: args.output.quiet,
            base: base.to_owned(),
            named: Cell::new(false),
            claim,
        })
    }

    /// The id of the run, which its record names.
    pub fn run_id(&self) -> String {
        self.claim.run_id.clone()
    }

    /// Rounds what is written to the dtypes it is stored in. After a failed check nothing is left
    /// in the way of a corrected command.
    pub fn round(&self, base: &Checkpoint, weights: &mut Weights) -> Result<()> {
        base.round(weights).or_else(|error| {
            if matches!(error.downcast_ref(), Some(Error::Check(_))) {
                self.forget()?;
            }
            Err(error)
        })
    }

    /// Copies the base, puts the changed tensors in place, checks what was written against the
    /// base, and writes the patch. Errors (a failed check) if nothing changed (the state is
    /// forgotten then), or something outside the slices did.
    pub fn write(
        &self,
        base: &Checkpoint,
        model: &Model,
        done: &Done,
        unchanged: &str,
    ) -> Result<Written> {
        let left_out = checkpoint::write(base, &done.weights, &self.partial)?;
        let written = Checkpoint::open(&self.partial, "output", None)?;
        let changed = self.verify(base, &written, model, done, unchanged)?;
        let path = self.dir.join("patch.safetensors");
        patch::write(base, &written, &changed, &path).context("the patch")?;
        if !left_out.is_empty() && !self.quiet {
            say!(
                "not copied, being the unrepaired weights in another form or what training goes on \
                 from: {}",
                message(&left_out.join(", "))
            );
        }
        Ok(Written { changed, patch: PatchFile::open(&path)? })
    }

    fn verify(
        &self,
        base: &Checkpoint,
        written: &Checkpoint,
        model: &Model,
        done: &Done,
        unchanged: &str,
    ) -> Result<Vec<Change>> {
        let changed = checkpoint::compare(base, written)?;
        if changed.is_empty() {
            self.forget()?;
            return Err(Error::Check(format!(
                "nothing changed, so {} was not made: {unchanged}",
                self.path.display()
            ))
            .into());
        }
        let sliced = count_blocks(&done.steps);
        let touched: BTreeSet<&str> =
            done.weights.touched().filter_map(|(n, _)| base.disk_name(n)).collect();
        let block_of = block_of(model, base);
        let outside = changed.iter().find(|c| {
            let in_slice = block_of.get(&c.name).is_none_or(|block| {
                block.is_none_or(|b| sliced.is_empty() || sliced.contains_key(&b))
            });
            !touched.contains(c.name.as_str()) || !in_slice
        });
        if let Some(outside) = outside {
            let why = format!("{} changed, but no slice named it", outside.name);
            return Err(Error::Check(why).into());
        }
        Ok(changed)
    }

    /// What the user can do after an error in the loop.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if error.downcast_ref::<Diverged>().is_some() {
            let advice = format!(
                "the last good state is kept in {}; go on with --resume and a lower \
                 --learning-rate",
                self.dir.display()
            );
            return error.context(advice);
        }
        error
    }

    /// After the user stopped the loop.
    pub fn interrupted(&self, step: usize) -> anyhow::Error {
        Error::Interrupted(format!(
            "interrupted after step {step}; the state is saved in {}: give the same command with \
             --resume to go on",
            self.dir.display()
        ))
        .into()
    }

    /// After the user stopped what is measured once the steps are made.
    pub fn while_measuring(&self, error: anyhow::Error, step: usize) -> anyhow::Error {
        match error.downcast_ref() {
            Some(Error::Interrupted(_)) => self.interrupted(step),
            _ => error,
        }
    }

    /// After what is measured once the steps are made could not be: that they are kept.
    pub fn after_the_steps(&self, error: anyhow::Error, step: usize) -> anyhow::Error {
        match error.downcast_ref() {
            Some(Error::Interrupted(_)) => self.interrupted(step),
            _ => error.context(format!(
                "all steps are made and saved in {}; give the same command with --resume to go on",
                self.dir.display()
            )),
        }
    }

    /// After the user stopped what comes before the steps.
    pub fn before_the_first_step(error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref() {
            Some(Error::Interrupted(_)) => {
                let words = "interrupted before the first step; nothing is lost";
                Error::Interrupted(words.into()).into()
            }
            _ => error,
        }
    }

    /// Removes the state of a run that is over with nothing to keep, so that a corrected command
    /// begins anew.
    pub fn forget(&self) -> Result<()> {
        let saved = self.dir.join("state");
        if saved.exists() {
            std::fs::remove_dir_all(&saved).with_context(|| saved.display().to_string())?;
        }
        Ok(())
    }

    /// Writes the records, gives the folder its name, and removes the state. Whatever fails or ends
    /// it on the way, a whole output is left, and a state to resume from until it has its name.
    pub fn finish(&self, run: &RunRecord, base: &Checkpoint) -> Result<()> {
        files::write_whole(
            &self.dir.join("run.json"),
            serde_json::to_string_pretty(run)?.as_bytes(),
        )?;
        let base_card = files::read_text(&base.dir.join("README.md")).ok();
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
        // Names, too, are on disk before the state is gone; where folders can't be synced, nothing
        // more can be done.
        let parent = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        for folder in [&self.path, parent] {
            std::fs::File::open(folder).and_then(|folder| folder.sync_all()).ok();
        }
        let (saved, lock) = (self.path.join("irepair").join("state"), self.path.join(claim::MARK));
        let removed = if saved.exists() { std::fs::remove_dir_all(&saved) } else { Ok(()) };
        if let Err(e) = removed.and_then(|()| std::fs::remove_file(&lock)) {
            // The output is whole all the same.
            say!("warning: {} and {} could not be removed: {e}", saved.display(), lock.display());
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
                    "{} exists since this run began; the result is whole in {}: move one of them, \
                     and give the same command \
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
            say!("warning: the output before this one could not be removed: {e:#}");
        }
        Ok(())
    }
}

impl Drop for Output {
    /// A run that ended in an error leaves its folder only if there is a state to resume from, or a
    /// finished output.
    fn drop(&mut self) {
        if !self.named.get()
            && self.partial.exists()
            && !state::path(&self.dir).exists()
            && !is_output(&self.partial)
        {
            // Nothing can be done about a failure here, and the error that brought us here matters
            // more.
            std::fs::remove_dir_all(&self.partial).ok();
        }
    }
}

/// Whether a folder is a finished output of irepair.
pub fn is_output(path: &Path) -> bool {
    claim::is_record(&path.join("irepair").join("run.json"))
}

/// What is in the way of an output of this name, for a plan.
pub fn in_the_way(path: &Path) -> Option<String> {
    let partial = files::partial(path);
    if state::path(&partial.join("irepair")).exists() {
        return Some(format!(
            "an unfinished run is in {}: --resume goes on with it, --overwrite starts again",
            partial.display()
        ));
    }
    if is_output(path) {
        return Some("it is there already: --overwrite replaces it".into());
    }
    path.exists().then(|| "something else has this name: choose another --out".into())
}

/// Whether `--overwrite` may replace this: an output of irepair, or an empty folder, that is not
/// the base.
fn replaceable(path: &Path, base: &Path) -> Result<()> {
    let is_empty = path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if !is_output(path) && !is_empty {
        bail_input!(
            "{} is no output of irepair, and --overwrite replaces nothing else; choose another \
             --out",
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
