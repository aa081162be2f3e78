//! The *folder* of an evaluation holds unfinished work in `work/`, and the results once all work is
//! done. What it replaces is renamed first, and removed when the new results are there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bail_input;
use crate::base::claim::{self, Claim};
use crate::base::error::Error;
use crate::base::files;
use crate::cli::Eval;

pub struct EvaluationFolder {
    pub path: PathBuf,
    /// The evaluation that this one replaces, and which comes back if nothing is done here.
    replaced: PathBuf,
    claim: Claim,
}

/// What a folder of an unfinished evaluation is marked for.
const KIND: &str = "evaluation";
const WORK: &str = "work";
/// A folder with this file is one of a finished evaluation.
pub const RESULTS: &str = "results.json";

/// Whether a folder holds an unfinished evaluation, which `--resume` can go on with.
pub fn is_begun(path: &Path) -> bool {
    claim::is_ours(path, KIND) && path.join(WORK).is_dir()
}

/// Whether a folder holds a finished evaluation, and nothing of an unfinished one: a kill at the
/// very end leaves both.
pub fn is_finished(path: &Path) -> bool {
    is_done(path) && !is_begun(path)
}

/// Whether a folder holds the results of an evaluation.
fn is_done(path: &Path) -> bool {
    claim::is_record(&path.join(RESULTS))
}

/// A folder of its own for an evaluation without `--out`: `NAME`, `NAME-2`, … With `--resume` the
/// latest one that is not finished.
fn own(args: &Eval, name: &Path) -> PathBuf {
    let nth = |n: usize| match n {
        1 => name.to_owned(),
        n => PathBuf::from(format!("{}-{n}", name.display())),
    };
    let taken = (1..).take_while(|n| std::fs::symlink_metadata(nth(*n)).is_ok());
    let taken: Vec<PathBuf> = taken.map(nth).collect();
    if args.resume {
        return taken.into_iter().rfind(|path| is_begun(path)).unwrap_or_else(|| name.to_owned());
    }
    match args.overwrite {
        true => name.to_owned(),
        false => nth(taken.len() + 1),
    }
}

impl EvaluationFolder {
    /// Makes the folder, or takes over the one of an unfinished evaluation. Errors (bad input) if
    /// it holds something else, or if the flags do not allow to go on with or to replace what it
    /// holds.
    pub fn claim(args: &Eval, model: &str) -> Result<Self> {
        let path: PathBuf = match &args.out {
            Some(path) => path.components().collect(),
            None => own(args, &Path::new("evaluated").join(model)),
        };
        if path.file_name().is_none() {
            bail_input!("--out {}: not a name for a folder", path.display());
        }
        let (begun, done) = (is_begun(&path), is_done(&path));
        if args.resume && !begun {
            bail_input!("--resume: there is no unfinished evaluation in {}", path.display());
        }
        if !args.resume && !args.overwrite {
            if begun {
                bail_input!(
                    "an unfinished evaluation is in {}; go on with --resume, or start again with \
                     --overwrite",
                    path.display()
                );
            }
            if done {
                bail_input!(
                    "{} exists; choose another --out, or replace it with --overwrite",
                    path.display()
                );
            }
        }
        let cannot = |e: std::io::Error| {
            Error::Input(format!("--out {}: can't write there: {e}", path.display()))
        };
        let mut replaced = path.clone().into_os_string();
        replaced.push(".replaced");
        let replaced = PathBuf::from(replaced);
        if done && !begun {
            if std::fs::symlink_metadata(&replaced).is_ok() {
                bail_input!(
                    "{} is in the way: an evaluation that is to be replaced gets this name until \
                     the new one is there; move it",
                    replaced.display()
                );
            }
            std::fs::rename(&path, &replaced).map_err(cannot)?;
        }
        let claimed = Claim::take(&path, KIND).inspect_err(|_| {
            if done && !begun {
                std::fs::rename(&replaced, &path).ok();
            }
        })?;
        let folder = Self { path: path.clone(), replaced, claim: claimed };
        match args.resume {
            true => files::sweep(&path).map_err(cannot)?,
            false => claim::empty(&path).map_err(cannot)?,
        }
        std::fs::create_dir_all(path.join(WORK)).map_err(cannot)?;
        Ok(folder)
    }

    pub fn run_id(&self) -> String {
        self.claim.run_id.clone()
    }

    /// The ledger of the task with this name.
    pub fn work(&self, name: &str) -> PathBuf {
        self.path.join(WORK).join(format!("{name}.jsonl"))
    }

    /// Removes the ledgers, the mark, and what was replaced. Call it when the results are written.
    pub fn finish(&self) -> Result<()> {
        let place = || self.path.display().to_string();
        std::fs::remove_dir_all(self.path.join(WORK)).with_context(place)?;
        std::fs::remove_file(self.path.join(claim::MARK)).with_context(place)?;
        if is_done(&self.replaced) {
            std::fs::remove_dir_all(&self.replaced)
                .with_context(|| self.replaced.display().to_string())?;
        }
        Ok(())
    }
}

impl Drop for EvaluationFolder {
    /// Removes the folder of an evaluation that has ended without finishing any work, so that it is
    /// not in the way of the next one; what it was to replace gets its name back.
    fn drop(&mut self) {
        let own = |entry: std::fs::DirEntry| {
            [WORK, claim::MARK].iter().any(|name| entry.file_name() == *name)
        };
        let holds_work = std::fs::read_dir(&self.path)
            .is_ok_and(|mut all| !all.all(|entry| entry.is_ok_and(own)));
        // `remove_dir` fails if `work/` holds a ledger, and then all stays.
        if !holds_work && std::fs::remove_dir(self.path.join(WORK)).is_ok() {
            // If something can't be removed, the next evaluation finds it and says so.
            std::fs::remove_file(self.path.join(claim::MARK)).ok();
            let replaces = is_done(&self.replaced);
            if replaces || self.claim.is_new {
                std::fs::remove_dir(&self.path).ok();
            }
            if replaces {
                std::fs::rename(&self.replaced, &self.path).ok();
            }
        }
    }
}
