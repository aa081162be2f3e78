//! The *folder* of an evaluation holds unfinished work in `work/`, and the results once all work is
//! done.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bail_input;
use crate::base::error::Error;
use crate::cli::Eval;

pub struct EvaluationFolder {
    pub path: PathBuf,
    /// Whether the folder was made for this evaluation.
    made: bool,
    /// Locks the folder as long as this value lives.
    _lock: File,
}

const WORK: &str = "work";
const LOCK: &str = ".lock";
/// A folder with this file is one of a finished evaluation.
pub const RESULTS: &str = "results.json";

impl EvaluationFolder {
    /// Makes the folder, or takes over the one of an unfinished evaluation. Errors (bad input) if
    /// it holds something else, or if the flags do not allow to go on with or to replace what it
    /// holds.
    pub fn claim(args: &Eval, model: &str) -> Result<Self> {
        let path: PathBuf = match &args.out {
            Some(path) => path.components().collect(),
            None => Path::new("evaluated").join(model),
        };
        let made = !path.exists();
        let begun = path.join(WORK).is_dir();
        let done = path.join(RESULTS).is_file();
        let is_empty = path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if path.exists() && !begun && !done && !is_empty {
            bail_input!("{} is no evaluation of irepair; choose another --out", path.display());
        }
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
        std::fs::create_dir_all(&path).map_err(cannot)?;
        let lock = File::create(path.join(LOCK)).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail_input!("another evaluation is working on {}", path.display())
            }
            Err(TryLockError::Error(e)) => return Err(cannot(e).into()),
        }
        if !args.resume {
            for entry in std::fs::read_dir(&path).map_err(cannot)? {
                let entry = entry.map_err(cannot)?.path();
                if entry.ends_with(LOCK) {
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
        std::fs::create_dir_all(path.join(WORK)).map_err(cannot)?;
        Ok(Self { path, made, _lock: lock })
    }

    /// The ledger of the task with this name.
    pub fn work(&self, name: &str) -> PathBuf {
        self.path.join(WORK).join(format!("{name}.jsonl"))
    }

    /// Removes the ledgers and the lock. Call it when the results are written.
    pub fn finish(&self) -> Result<()> {
        std::fs::remove_dir_all(self.path.join(WORK))
            .with_context(|| self.path.display().to_string())?;
        std::fs::remove_file(self.path.join(LOCK)).with_context(|| self.path.display().to_string())
    }
}

impl Drop for EvaluationFolder {
    /// Removes the folder of an evaluation that has ended without finishing any work, so that it is
    /// not in the way of the next one.
    fn drop(&mut self) {
        let own =
            |entry: std::fs::DirEntry| [WORK, LOCK].iter().any(|name| entry.file_name() == *name);
        let holds_work = std::fs::read_dir(&self.path)
            .is_ok_and(|mut all| !all.all(|entry| entry.is_ok_and(own)));
        // `remove_dir` fails if `work/` holds a ledger, and then all stays.
        if !holds_work && std::fs::remove_dir(self.path.join(WORK)).is_ok() {
            // If something can't be removed, the next evaluation finds it and says so.
            std::fs::remove_file(self.path.join(LOCK)).ok();
            if self.made {
                std::fs::remove_dir(&self.path).ok();
            }
        }
    }
}
