//! A *run folder* is what `repair` leaves, finished or not. What is missing or broken in it becomes
//! a gap, so that the rest can be shown.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::neurons::{NEURONS, NeuronsRecord};
use super::record::{RunRecord, Sample};
use crate::bail_input;
use crate::base::files;
use crate::model::MOST_BLOCKS;
use crate::model::Model;
use crate::slice::{Slice, Unit};
use crate::train::log::{Line, StepLine, TrialLine, ValidationLine, count_blocks};

/// The contents of a run folder.
pub struct RunFolder {
    /// The name of the folder.
    pub name: String,
    /// `None` if the run is not finished.
    pub record: Option<RunRecord>,
    /// In ascending order.
    pub steps: Vec<StepLine>,
    /// In ascending order of their steps.
    pub validations: Vec<ValidationLine>,
    pub trials: Vec<TrialLine>,
    pub samples: Vec<Sample>,
    /// `None` for a block-level repair.
    pub neurons: Option<NeuronsRecord>,
    /// Number of parameters by block. Empty if the model's configuration is missing.
    pub block_parameters: Vec<usize>,
    /// What is missing or can't be read, a sentence each.
    pub gaps: Vec<String>,
}

impl RunFolder {
    /// Reads a run folder. Errors (bad input) if the folder holds no run, or one whose `run.json`
    /// is broken or of another format version.
    pub fn open(dir: &Path) -> Result<Self> {
        let (record_path, log_path) =
            (dir.join("irepair/run.json"), dir.join("irepair/steps.jsonl"));
        if !record_path.is_file() && !log_path.is_file() {
            let partial = files::partial(dir);
            if partial.is_dir() {
                bail_input!(
                    "{}: no such run; an unfinished one is in {}",
                    dir.display(),
                    partial.display()
                );
            }
            bail_input!("{}: no run of irepair (no irepair/run.json in it)", dir.display());
        }
        let record =
            if record_path.is_file() { Some(RunRecord::read(&record_path)?) } else { None };
        let mut gaps = Vec::new();
        let lines: Vec<Line> = read_lines(&log_path, &mut gaps)?;
        let samples_path = dir.join("irepair/samples.jsonl");
        let samples =
            if samples_path.is_file() { read_lines(&samples_path, &mut gaps)? } else { Vec::new() };
        let neurons_path = dir.join("irepair").join(NEURONS);
        let neurons = match std::fs::read(&neurons_path).map(|bytes| serde_json::from_slice(&bytes))
        {
            Ok(Ok(neurons)) => Some(neurons),
            Ok(Err(e)) => {
                gaps.push(format!("{NEURONS} can't be read: {e}"));
                None
            }
            Err(_) => {
                if record.as_ref().is_some_and(|r| r.edits.is_some()) {
                    gaps.push(format!("{NEURONS} is missing"));
                }
                None
            }
        };
        let (mut steps, mut validations, mut trials) =
            (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for line in lines {
            match line {
                Line::Step(line) => drop(steps.insert(line.step, line)),
                Line::Validation(line) => drop(validations.insert(line.step, line)),
                Line::Trial(line) => trials.push(line),
                // What rounds came to is told beside the steps.
                Line::Round(_) => {}
            }
        }
        let config = std::fs::read(dir.join("config.json")).ok();
        let config = config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let model = config.and_then(|config| Model::from_config(&config).ok());
        let block_parameters = model.map_or(Vec::new(), |m| m.block_parameters());
        let blocks = match block_parameters.len() {
            0 => MOST_BLOCKS,
            own => own,
        };
        let record = record.map(|record| within(record, blocks, &mut gaps));
        gaps.extend(strangers(&mut steps, blocks));
        let end = record.as_ref().map_or(usize::MAX, |r| r.steps);
        gaps.extend(outside("steps", &mut steps, 1..=end));
        // The base is validated before the first step.
        gaps.extend(outside("validations", &mut validations, 0..=end));
        let made =
            record.as_ref().map(|r| r.steps).or(steps.keys().next_back().copied()).unwrap_or(0);
        let mut missing = Vec::new();
        let mut next = 1;
        for step in steps.keys().copied().chain([made.saturating_add(1)]) {
            if step > next {
                missing.push(next..=step - 1);
            }
            next = step.saturating_add(1);
        }
        if !missing.is_empty() {
            let n: usize = missing.iter().map(|r| r.end() - r.start() + 1).sum();
            gaps.push(format!("{n} of {made} steps are missing: {}", named(&missing)));
        }
        let path = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        Ok(Self {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            record,
            steps: steps.into_values().collect(),
            validations: validations.into_values().collect(),
            trials,
            samples,
            neurons,
            block_parameters,
            gaps,
        })
    }

    /// Number of blocks: from the configuration, or else the most likely number by the log.
    pub fn blocks(&self) -> usize {
        if !self.block_parameters.is_empty() {
            return self.block_parameters.len();
        }
        let mut measured: Vec<usize> =
            self.steps.iter().map(|s| s.sensitivity.len()).filter(|n| *n > 0).collect();
        measured.sort_unstable();
        let sliced = || self.sliced().keys().next_back().map(|b| b + 1);
        measured.get(measured.len() / 2).copied().or_else(sliced).unwrap_or(0)
    }

    /// The number of the last step.
    pub fn last(&self) -> usize {
        let record = self.record.as_ref().map_or(0, |r| r.steps);
        self.steps.last().map_or(0, |s| s.step).max(record)
    }

    /// The step whose weights were kept.
    pub fn kept(&self) -> Option<usize> {
        self.record.as_ref().map(|r| r.kept_step)
    }

    /// In how many steps each block was sliced.
    pub fn sliced(&self) -> BTreeMap<usize, usize> {
        self.record.as_ref().map_or_else(|| count_blocks(&self.steps), |r| r.sliced.clone())
    }

    /// In how many steps each block or sublayer was sliced, under the names of the log.
    pub fn sliced_units(&self) -> BTreeMap<Unit, usize> {
        let mut counts = BTreeMap::new();
        for slice in self.steps.iter().filter_map(StepLine::sliced) {
            if let Slice::Units(units) = slice {
                units.into_iter().for_each(|unit| *counts.entry(unit).or_default() += 1);
            }
        }
        counts
    }

    /// Whether the run is a neuron-level repair, as far as can be seen.
    pub fn is_neuron_level(&self) -> bool {
        self.neurons.is_some() || self.record.as_ref().is_some_and(|r| r.edits.is_some())
    }

    /// Whether every step changed the whole model.
    pub fn slices_everything(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|s| s.sliced() == Some(Slice::Everything))
    }
}

/// Removes the steps with blocks that the model has not. If there are any, this is a gap.
fn strangers(steps: &mut BTreeMap<usize, StepLine>, blocks: usize) -> Option<String> {
    let mut numbers = Vec::new();
    steps.retain(|step, line| {
        let inside = line.sensitivity.len() <= blocks && line.blocks().iter().all(|b| *b < blocks);
        if !inside {
            numbers.push(*step..=*step);
        }
        inside
    });
    (!numbers.is_empty()).then(|| {
        format!(
            "steps.jsonl names blocks that a model of {blocks} can't have, at steps {}",
            named(&numbers)
        )
    })
}

/// The record without blocks that the model has not. If there are any, this is a gap.
fn within(mut record: RunRecord, blocks: usize, gaps: &mut Vec<String>) -> RunRecord {
    let neurons = record.edits.iter_mut().map(|edits| &mut edits.neurons);
    for counts in neurons.chain([&mut record.sliced]) {
        let before = counts.len();
        counts.retain(|block, _| *block < blocks);
        if counts.len() < before {
            gaps.push(format!("run.json names blocks that a model of {blocks} can't have"));
        }
    }
    record
}

/// Removes the lines of steps that the run has not made. If there are any, this is a gap.
fn outside<T>(
    what: &str,
    lines: &mut BTreeMap<usize, T>,
    made: RangeInclusive<usize>,
) -> Option<String> {
    let mut numbers = Vec::new();
    lines.retain(|step, _| {
        let inside = made.contains(step);
        if !inside {
            numbers.push(*step..=*step);
        }
        inside
    });
    let of = if *made.end() < usize::MAX {
        format!("a run of {} steps", made.end())
    } else {
        "a run".into()
    };
    (!numbers.is_empty())
        .then(|| format!("steps.jsonl has {what} that {of} can't have: {}", named(&numbers)))
}

/// The lines that can be read. The others, and a missing file, become a gap.
fn read_lines<T: DeserializeOwned>(path: &Path, gaps: &mut Vec<String>) -> Result<Vec<T>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            gaps.push(format!("{name} is missing"));
            return Ok(Vec::new());
        }
        Err(e) => bail_input!("{}: {e}", path.display()),
    };
    let (mut lines, mut unreadable) = (Vec::new(), Vec::<RangeInclusive<usize>>::new());
    for (index, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        match (serde_json::from_slice(line), unreadable.last_mut()) {
            (Ok(line), _) => lines.push(line),
            (Err(_), Some(last)) if *last.end() == index => *last = *last.start()..=index + 1,
            (Err(_), _) => unreadable.push(index + 1..=index + 1),
        }
    }
    if !unreadable.is_empty() {
        gaps.push(format!("{name} can't be read at line {}", named(&unreadable)));
    }
    Ok(lines)
}

/// Ranges of numbers in words: `1, 3–5, 9`.
fn named(ranges: &[RangeInclusive<usize>]) -> String {
    /// With more ranges a file of rubbish would fill the page.
    const MOST: usize = 20;
    let name = |r: &RangeInclusive<usize>| match (r.start(), r.end()) {
        (start, end) if start == end => start.to_string(),
        (start, end) => format!("{start}–{end}"),
    };
    let mut text = ranges.iter().take(MOST).map(name).collect::<Vec<_>>().join(", ");
    if ranges.len() > MOST {
        text += ", …";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("lines.jsonl");
        std::fs::write(&path, b"1\nx\n\n\xff\n2\n3").expect("file");
        let mut gaps = Vec::new();
        assert_eq!(read_lines::<u8>(&path, &mut gaps).expect("lines"), [1, 2, 3]);
        assert!(
            read_lines::<u8>(&dir.path().join("none.jsonl"), &mut gaps)
                .expect("nothing")
                .is_empty()
        );
        assert_eq!(gaps, ["lines.jsonl can't be read at line 2–4", "none.jsonl is missing"]);
        let many: Vec<_> = (0..100).map(|n| 2 * n..=2 * n).collect();
        assert!(named(&many).ends_with("38, …"));
    }
}
