//! A *ledger* is a file that holds the finished units of some work. With it an interrupted command
//! goes on where it was, and several machines can share one evaluation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::task::Row;
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::interrupt;
use crate::base::progress::Progress;

/// The most shards that one work is divided into.
const MOST_SHARDS: usize = 1_000_000;

/// A *shard* is the part of the work that one machine does. Its units follow each other, so the
/// rows of all shards in order are the rows of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its number, from 0.
    pub index: usize,
    /// How many shards there are.
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl Shard {
    /// The units of this shard, if `all` is the number of all units.
    pub fn units(&self, all: usize) -> Range<usize> {
        let up_to = |shards: u128| (all as u128 * shards / self.of as u128) as usize;
        up_to(self.index as u128)..up_to(self.index as u128 + 1)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of && of <= MOST_SHARDS => Ok(Self { index, of }),
            _ => Err(format!(
                "expected I/N with I from 0 to N-1, like 0/4, and N up to {MOST_SHARDS}"
            )),
        }
    }
}

/// The finished units of some work, in memory and on disk.
pub struct Ledger {
    path: PathBuf,
    file: File,
    done: BTreeMap<usize, Vec<Row>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DoneUnit {
    unit: usize,
    rows: Vec<Row>,
    /// SHA-256 of the rows as they stand in the file.
    sha256: String,
}

impl DoneUnit {
    fn new(unit: usize, rows: Vec<Row>) -> Result<Self> {
        let sha256 = Self::hash(&rows)?;
        Ok(Self { unit, rows, sha256 })
    }

    fn hash(rows: &[Row]) -> Result<String> {
        Ok(files::hex(&Sha256::digest(serde_json::to_vec(rows)?)))
    }

    /// Whether the rows are those that were written, all of them measured.
    fn is_whole(&self) -> bool {
        let failed = self.rows.iter().any(|row| row.contains_key("failed"));
        let same = Self::hash(&self.rows).is_ok_and(|hash| hash == self.sha256);
        !self.rows.is_empty() && !failed && same
    }
}

/// How the making of units is shown, and what is said if it is interrupted.
pub struct Making<'a> {
    /// The things that are made, for the progress line: `texts`.
    pub what: &'a str,
    /// Number of these things in a unit.
    pub in_unit: usize,
    /// Number of these things in all units.
    pub total: usize,
    pub quiet: bool,
    /// The error if the user interrupts.
    pub interrupted: &'a str,
}

impl Ledger {
    /// Opens the ledger of the work that `settings` describe, or begins it. Units that an
    /// interrupted command has finished are done. A half-written last line is not, and neither is a
    /// unit with a row that failed, or with other bytes than were written. Errors (bad input) if
    /// the file belongs to other settings.
    pub fn open(path: &Path, settings: &Value) -> Result<Self> {
        let text = files::read_if_there(path)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut done = BTreeMap::new();
        let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        if let Some(first) = lines.next() {
            let found: Value = serde_json::from_str(first).unwrap_or_default();
            if found["settings"] != *settings {
                bail_input!(
                    "{}: was begun with other settings; give those again, or start again with \
                     --overwrite{}",
                    path.display(),
                    differing(&found["settings"], settings)
                );
            }
            for line in lines {
                let Ok(done_unit) = serde_json::from_str::<DoneUnit>(line) else { break };
                if done_unit.is_whole() {
                    done.insert(done_unit.unit, done_unit.rows);
                }
            }
        }
        // The file is written again, so that nothing is appended to a half-written line.
        let mut lines = format!("{}\n", json!({ "settings": settings }));
        for (unit, rows) in &done {
            let done_unit = DoneUnit::new(*unit, rows.clone())?;
            lines += &format!("{}\n", serde_json::to_string(&done_unit)?);
        }
        files::write_whole(path, lines.as_bytes())?;
        let file =
            File::options().append(true).open(path).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.into(), file, done })
    }

    /// Opens the ledger of an output file, which lies beside it until the output is written. What
    /// was begun with other settings is removed if it is to be replaced (`overwrite`).
    pub fn beside(out: &Path, overwrite: bool, settings: &Value) -> Result<Self> {
        let path = files::partial(out);
        if overwrite {
            Self::remove_others(&path, settings)?;
        }
        Self::open(&path, settings)
    }

    /// Removes a ledger that was begun with other settings than these.
    pub fn remove_others(path: &Path, settings: &Value) -> Result<()> {
        let first = match File::open(path) {
            Ok(file) => BufReader::new(file).lines().next().and_then(std::io::Result::ok),
            Err(_) => return Ok(()),
        };
        let found: Value = serde_json::from_str(&first.unwrap_or_default()).unwrap_or_default();
        if found["settings"] != *settings {
            std::fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Whether this unit is done.
    pub fn has(&self, unit: usize) -> bool {
        self.done.contains_key(&unit)
    }

    /// Number of done units.
    pub fn done(&self) -> usize {
        self.done.len()
    }

    /// The rows of what is done so far.
    pub fn found(&self) -> impl Iterator<Item = &Row> {
        self.done.values().flatten()
    }

    /// Makes the units that are not done yet, and puts each on record as soon as it is made. `make`
    /// gives the rows of a unit. Errors (interrupted) if the user asks to stop: the unit that was
    /// being made is thrown away, because the interrupt may have cut it short.
    pub fn fill(
        &mut self,
        units: Range<usize>,
        making: &Making,
        mut make: impl FnMut(usize) -> Result<Vec<Row>>,
    ) -> Result<()> {
        let Making { what, in_unit, total, quiet, interrupted } = *making;
        // Rows of units that this work has not would count in its figures.
        self.done.retain(|unit, _| units.contains(unit));
        let mut progress = Progress::new(what, self.done() * in_unit, total, quiet);
        for unit in units {
            if self.has(unit) {
                continue;
            }
            let rows = make(unit)?;
            if interrupt::asked() {
                return Err(Error::Interrupted(interrupted.into()).into());
            }
            self.add(unit, rows)?;
            progress.advance(in_unit);
        }
        progress.finish();
        Ok(())
    }

    /// Puts the rows of a unit on record.
    fn add(&mut self, unit: usize, rows: Vec<Row>) -> Result<()> {
        let done_unit = DoneUnit::new(unit, rows)?;
        let mut text = serde_json::to_string(&done_unit)?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.done.insert(unit, done_unit.rows);
        Ok(())
    }

    /// All rows in the order of their units.
    pub fn rows(self) -> Vec<Row> {
        self.done.into_values().flatten().collect()
    }

    /// Writes the rows for which `is_kept` holds to the output file, removes the ledger, and gives
    /// all rows.
    pub fn finish(self, out: &Path, is_kept: impl Fn(&Row) -> bool) -> Result<Vec<Row>> {
        let path = self.path.clone();
        let rows = self.rows();
        files::write_whole(out, &to_lines(rows.iter().filter(|row| is_kept(row)))?)?;
        std::fs::remove_file(path).ok();
        Ok(rows)
    }
}

/// ` (seed was 1, is 2)`, for the settings that differ.
fn differing(was: &Value, is: &Value) -> String {
    let (Value::Object(was), Value::Object(is)) = (was, is) else { return String::new() };
    let differing: Vec<String> = is
        .iter()
        .filter(|(key, value)| was.get(*key) != Some(value))
        .map(|(key, value)| {
            format!("{key} was {}, is {value}", was.get(key).unwrap_or(&Value::Null))
        })
        .collect();
    format!(" ({})", differing.join("; "))
}

/// Rows as JSON lines.
pub fn to_lines<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(x: f64) -> Row {
        Row::from_iter([("x".to_owned(), x.into())])
    }

    #[test]
    fn a_half_line_is_not_done_and_what_failed_is_tried_again() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("t.jsonl");
        let settings = json!({"seed": 1});
        let mut ledger = Ledger::open(&path, &settings).expect("opens");
        ledger.add(1, vec![row(0.1), row(1.0 / 3.0)]).expect("adds");
        ledger.add(0, vec![row(2.0)]).expect("adds");
        let mut failed = row(3.0);
        failed.insert("failed".into(), "quota".into());
        ledger.add(2, vec![failed]).expect("adds");
        let mut file = File::options().append(true).open(&path).expect("opens");
        file.write_all(b"{\"unit\":3,\"rows\":[{").expect("writes");
        let ledger = Ledger::open(&path, &settings).expect("opens again");
        assert!(ledger.has(0) && ledger.has(1) && !ledger.has(2) && !ledger.has(3));
        assert_eq!(ledger.rows(), [row(2.0), row(0.1), row(1.0 / 3.0)]);
        let error =
            Ledger::open(&path, &json!({"seed": 2})).err().expect("other settings").to_string();
        assert!(error.contains("seed was 1, is 2"), "{error}");
    }

    #[test]
    fn shards_are_named_as_i_of_n() {
        assert_eq!("1/3".parse(), Ok(Shard { index: 1, of: 3 }));
        for wrong in ["3/3", "1", "0/0", "a/2", "-1/2"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
        let shards = [0, 1, 2].map(|index| Shard { index, of: 3 });
        assert!(shards.iter().flat_map(|s| s.units(10)).eq(0..10));
        assert!(shards.iter().flat_map(|s| s.units(2)).eq(0..2));
    }
}
