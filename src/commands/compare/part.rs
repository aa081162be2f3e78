//! Which part of a comparison a command does, and what the tasks leave for the merge.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::base::error::Error;
use crate::base::files::write_whole;
use crate::cli::Compare;

/// What a command does of its comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Nothing but to write down the plan.
    Plan,
    /// One task.
    Task(usize),
    /// Nothing but to put together what the tasks have done.
    Merge,
}

impl Part {
    pub fn of(args: &Compare) -> Self {
        match (args.plan, args.task, args.merge) {
            (true, ..) => Self::Plan,
            (_, Some(index), _) => Self::Task(index),
            (.., true) => Self::Merge,
            _ => Self::Whole,
        }
    }
}

/// Where a task leaves why something failed.
fn reason(dir: &Path, what: &str) -> PathBuf {
    dir.join("failed").join(format!("{what}.txt"))
}

/// Keeps why a run or an evaluation failed, for the merge.
pub fn remember(dir: &Path, what: &str, why: &str) -> Result<()> {
    let path = reason(dir, what);
    std::fs::create_dir_all(dir.join("failed"))?;
    write_whole(&path, why.as_bytes())
}

/// Forgets why it failed, before it is tried again.
pub fn forget(dir: &Path, what: &str) -> Result<()> {
    removed(std::fs::remove_file(reason(dir, what)))
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not done, or not to its end.
    Open,
    /// At its end, with something that failed.
    Failed,
    Done,
}

impl State {
    fn path(dir: &Path, task: usize) -> PathBuf {
        dir.join("ended").join(task.to_string())
    }

    pub fn of(dir: &Path, task: usize) -> Self {
        match std::fs::read(Self::path(dir, task)).as_deref() {
            Ok(b"done") => Self::Done,
            Ok(b"failed") => Self::Failed,
            _ => Self::Open,
        }
    }

    /// Writes down that a task begins, or has come to its end.
    pub fn set(self, dir: &Path, task: usize) -> Result<()> {
        let path = Self::path(dir, task);
        let text = match self {
            Self::Open => return removed(std::fs::remove_file(path)),
            Self::Failed => "failed",
            Self::Done => "done",
        };
        std::fs::create_dir_all(dir.join("ended"))?;
        write_whole(&path, text.as_bytes())
    }
}

/// What was not there is removed, too.
fn removed(done: std::io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Forgets what all tasks said.
pub fn forget_all(dir: &Path) -> Result<()> {
    removed(std::fs::remove_dir_all(dir.join("failed")))?;
    removed(std::fs::remove_dir_all(dir.join("ended")))
}

/// Why something that a merge needs is not there: it failed, as its task has said. Errors (bad
/// input) if its task was not done, or did not end.
pub fn missing(dir: &Path, what: &str) -> Result<String> {
    match std::fs::read_to_string(reason(dir, what)) {
        Ok(why) => Ok(why),
        Err(_) => Err(Error::Input(format!(
            "{}: {what} is not there: its task was not done or did not end; give the tasks that \
             are missing again (--plan lists them)",
            dir.display()
        ))
        .into()),
    }
}
