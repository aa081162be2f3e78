//! A folder is *ours* only by a mark that we wrote into it: what it holds, in which format, and the
//! id of the run that made it. Nothing else is ever emptied, replaced or removed.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Error;
use super::files::hash_texts;
use crate::bail_input;

/// The file with the mark of a folder that is worked in. It is locked as long as someone does.
pub const MARK: &str = ".lock";

const FORMAT_VERSION: u32 = 1;

/// Hexadecimal digits of an id.
const ID: usize = 32;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    /// What the folder holds: `repair`, `evaluation`, `comparison`.
    irepair: String,
    format_version: u32,
    run_id: String,
}

/// A folder that this process alone works in, as long as the value lives.
pub struct Claim {
    pub run_id: String,
    /// Whether it was made now.
    pub is_new: bool,
    _lock: File,
}

impl Claim {
    /// Makes a folder for a `kind` of work, or takes over one with its mark. Errors (bad input) if
    /// another process works in it, or if it holds anything that we did not mark.
    pub fn take(folder: &Path, kind: &str) -> Result<Self> {
        let cannot = |e: std::io::Error| {
            Error::Input(format!("--out {}: can't write there: {e}", folder.display()))
        };
        let path = folder.join(MARK);
        let is_new = !folder.exists();
        if !is_new && !is_ours(folder, kind) && !is_empty(folder) {
            bail_input!(
                "{} is in the way, and no {kind} of irepair made it; move it, or choose another \
                 --out",
                folder.display()
            );
        }
        std::fs::create_dir_all(folder).map_err(cannot)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(&path).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail_input!("another {kind} is working on {}", folder.display())
            }
            Err(TryLockError::Error(e)) => return Err(cannot(e).into()),
        }
        let mut text = String::new();
        lock.read_to_string(&mut text).map_err(cannot)?;
        let run_id = match serde_json::from_str::<Mark>(&text) {
            Ok(mark) => mark.run_id,
            // Empty: a process was killed between the two.
            Err(_) => {
                let (irepair, run_id) = (kind.to_owned(), new_id());
                let mark = Mark { irepair, format_version: FORMAT_VERSION, run_id: run_id.clone() };
                lock.write_all(serde_json::to_string(&mark)?.as_bytes()).map_err(cannot)?;
                lock.sync_all().map_err(cannot)?;
                run_id
            }
        };
        Ok(Self { run_id, is_new, _lock: lock })
    }
}

/// Whether a folder has our mark for this kind of work.
pub fn is_ours(folder: &Path, kind: &str) -> bool {
    let path = folder.join(MARK);
    let text = match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() < 4096 => std::fs::read_to_string(&path),
        _ => return false,
    };
    let mark = text.ok().and_then(|text| serde_json::from_str::<Mark>(&text).ok());
    mark.is_some_and(|mark| {
        mark.irepair == kind && mark.format_version == FORMAT_VERSION && is_id(&mark.run_id)
    })
}

/// Whether a record of finished work (`run.json`, `results.json`) is one that we wrote.
pub fn is_record(path: &Path) -> bool {
    if !std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        return false;
    }
    let text = std::fs::read(path).unwrap_or_default();
    let record: Value = serde_json::from_slice(&text).unwrap_or_default();
    record["format_version"].is_u64()
        && record["irepair"].is_string()
        && record["run_id"].as_str().is_some_and(is_id)
}

/// A record of finished work that has nothing else to say: by it a folder is known as ours.
pub fn record() -> Value {
    serde_json::json!({ "format_version": FORMAT_VERSION, "irepair": env!("CARGO_PKG_VERSION"),
                        "run_id": new_id() })
}

/// Removes all that a folder of ours holds but its mark.
pub fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == MARK {
            continue;
        }
        // A link is removed, not what it leads to.
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a folder holds nothing, or nothing but a mark that was never written.
fn is_empty(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|entry| {
                entry.file_name() == MARK && entry.metadata().is_ok_and(|found| found.len() == 0)
            })
        })
    })
}

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An id that no other run has.
fn new_id() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let texts = [now.to_string(), std::process::id().to_string(), made.to_string()];
    hash_texts(texts.iter().map(String::as_str))[..ID].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_marked_is_taken_over() {
        let dir = tempfile::tempdir().expect("dir");
        let (new, other) = (dir.path().join("new"), dir.path().join("other"));
        let claim = Claim::take(&new, "repair").expect("a new folder");
        assert!(claim.is_new && is_ours(&new, "repair") && !is_ours(&new, "evaluation"));
        assert!(Claim::take(&new, "repair").is_err(), "it is locked");
        let id = claim.run_id.clone();
        drop(claim);
        assert_eq!(Claim::take(&new, "repair").expect("its own folder").run_id, id);
        assert!(Claim::take(&new, "evaluation").is_err());
        std::fs::create_dir(&other).expect("dir");
        for content in ["", "{}", "{\"irepair\":\"repair\",\"format_version\":1,\"run_id\":\"\"}"] {
            std::fs::write(other.join(MARK), content).expect("writes");
            std::fs::write(other.join("mine"), "mine").expect("writes");
            assert!(Claim::take(&other, "repair").is_err(), "{content:?}");
        }
        std::fs::write(other.join(MARK), "").expect("writes");
        std::fs::remove_file(other.join("mine")).expect("removes");
        assert!(Claim::take(&other, "repair").is_ok(), "a kill between lock and mark");
    }

    #[test]
    fn ids_differ() {
        let (one, two) = (new_id(), new_id());
        assert!(is_id(&one) && is_id(&two) && one != two);
    }
}
