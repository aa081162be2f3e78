//! What is done of a task, on disk: an interrupted evaluation goes on where it was, and machines share one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::task::Row;
use crate::bail_input;

/// One machine's part: units in a row, so that the parts' rows one after another are those of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    pub index: usize,
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl Shard {
    /// The units that are this machine's, of all there are.
    pub fn units(&self, all: usize) -> Range<usize> {
        all * self.index / self.of..all * (self.index + 1) / self.of
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err("expected I/N with I from 0 to N-1, like 0/4".into()),
        }
    }
}

/// The done units of a task.
pub struct Ledger {
    path: PathBuf,
    file: File,
    done: BTreeMap<usize, Vec<Row>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    unit: usize,
    rows: Vec<Row>,
}

impl Ledger {
    /// Opens or begins the ledger of what `settings` describe. What an interrupted run has left of the same is done; a
    /// half-written last line is not. Errors (bad input) if it is of other settings.
    pub fn open(path: &Path, settings: &Value) -> Result<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut done = BTreeMap::new();
        let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        if let Some(first) = lines.next() {
            let found: Value = serde_json::from_str(first).unwrap_or_default();
            if found["settings"] != *settings {
                bail_input!(
                    "{}: was begun with other settings; give those again, or start again with --overwrite{}",
                    path.display(),
                    differing(&found["settings"], settings)
                );
            }
            for line in lines {
                let Ok(line) = serde_json::from_str::<Line>(line) else { break };
                // What failed is tried again.
                if !line.rows.iter().any(|row| row.contains_key("failed")) {
                    done.insert(line.unit, line.rows);
                }
            }
        }
        // Written anew, so that nothing is appended to a half line.
        let mut lines = format!("{}\n", json!({ "settings": settings }));
        for (unit, rows) in &done {
            lines +=
                &format!("{}\n", serde_json::to_string(&Line { unit: *unit, rows: rows.clone() })?);
        }
        crate::base::files::write_whole(path, lines.as_bytes())?;
        let file =
            File::options().append(true).open(path).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.into(), file, done })
    }

    pub fn has(&self, unit: usize) -> bool {
        self.done.contains_key(&unit)
    }

    /// Number of done units.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Puts a unit's rows on record.
    pub fn add(&mut self, unit: usize, rows: Vec<Row>) -> Result<()> {
        let line = Line { unit, rows };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.done.insert(unit, line.rows);
        Ok(())
    }

    /// All rows in the order of their units.
    pub fn rows(self) -> Vec<Row> {
        self.done.into_values().flatten().collect()
    }
}

/// ": seed was 1, is 2" of two settings.
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
pub fn to_lines(rows: &[Row]) -> Result<Vec<u8>> {
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
