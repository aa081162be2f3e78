//! The record of a comparison, `compare.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::report::pareto::{Pareto, Point, ScaledPoint, Scales};
use crate::report::record::{RunRecord, read_versioned};
use crate::report::sheet::{Sheet, digits};
use crate::slice::sensitivity::Density;

/// A folder with this file is one of a finished comparison.
pub const RECORD: &str = "compare.json";
/// The name of the row of the base itself.
pub const VANILLA: &str = "vanilla";
/// The version of the format of `compare.json`.
pub(super) const FORMAT_VERSION: u32 = 1;

/// The base: the model from which all runs start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRecord {
    /// The model as the user named it.
    pub model: String,
    /// The name for titles and folders.
    pub name: String,
    /// The commit of a hub model.
    pub revision: Option<String>,
    /// SHA-256 of all weights.
    pub sha256: String,
    /// SHA-256 of each file of weights.
    pub files: BTreeMap<String, String>,
    pub parameters: usize,
    pub scorer: String,
    /// The toxic label of a classifier, where the user gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toxic_label: Option<String>,
}

/// A row of the tables: a method, or the base, with its runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodRow {
    pub name: String,
    /// Empty for the base.
    pub method: String,
    /// One run for each seed.
    pub runs: Vec<MethodRun>,
}

/// One run of a method, or the base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodRun {
    pub seed: u64,
    /// `None` for the base, and if the run failed.
    pub made: Option<FinishedRun>,
    /// Why the run or its evaluation failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    pub figures: Vec<ComparedFigure>,
    /// A point for each step at which the run kept its weights, in their order, and a last one for
    /// its end.
    pub points: Vec<Point>,
    /// Parts and multiples of the run's change, in ascending order; empty if none was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaled: Vec<ScaledPoint>,
}

/// What a finished run did, and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishedRun {
    pub dir: PathBuf,
    pub data_sha256: String,
    /// Prompts that texts were sampled from; 0: the run learned from pairs of a file, or targets.
    #[serde(default)]
    pub prompts: usize,
    pub steps: usize,
    /// The step whose weights were kept.
    pub kept_step: usize,
    pub stopped: String,
    pub changed_parameters: usize,
    /// ‖change‖₂ over all parameters.
    pub change_norm: f64,
    /// Seconds of the steps, and of the selector's look or trials before them. In a neuron-level
    /// repair the checks between steps count, too.
    pub seconds: f64,
    /// Tokens of the sequences in the steps, and in the look or trials before them.
    pub tokens: usize,
    /// Floating-point operations of the products; 0 where they are not counted.
    pub operations: u64,
    pub peak_rss_mib: Option<u64>,
    /// Values by names. Settings that were not given have the value that the run chose.
    pub settings: BTreeMap<String, String>,
    /// Number of changed neurons. `None` for a block-level repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neurons: Option<usize>,
}

/// A figure of one model with its 95 % interval, and whether it differs from the base's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparedFigure {
    /// The name of the task. Task and id together identify the figure.
    pub task: String,
    pub id: String,
    /// The name for people.
    pub name: String,
    pub value: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Whether the difference from the base is more than chance.
    pub real: Option<bool>,
    #[serde(deserialize_with = "digits")]
    pub digits: usize,
    pub less_is_better: bool,
}

impl ComparedFigure {
    /// Whether this is the same figure, perhaps of another model.
    pub fn is(&self, other: &Self) -> bool {
        self.task == other.task && self.id == other.id
    }
}

/// The sensitivity of the base's blocks, as `irepair sensitivity --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SensitivityRecord {
    /// How many pairs it was measured on.
    pub pairs: usize,
    pub blocks: Vec<BlockRecord>,
    /// `None` for a model of one block.
    pub error_density: Option<Density>,
}

/// One block of a [`SensitivityRecord`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockRecord {
    pub block: usize,
    pub sensitivity: f64,
    /// The share of the sum over all blocks.
    pub share: f64,
    pub parameters: usize,
    /// The sensitivity divided by the mean over all blocks.
    pub density: f64,
}

/// What was measured on every model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// One line for each task.
    pub about: Vec<String>,
    /// The toxicity of the base, which is one side of the trade-off.
    pub toxicity: Option<ComparedFigure>,
    /// The perplexity of the base, which is the other side, and the name of its text.
    pub perplexity: Option<(ComparedFigure, String)>,
}

/// The whole of `compare.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    pub format_version: u32,
    pub irepair: String,
    pub base: BaseRecord,
    /// The seeds that were asked for. Runs that were finished before may have others.
    pub seeds: Vec<u64>,
    /// How many wrong answers are repaired. `None` if the repairs learn from pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<usize>,
    pub asked: Asked,
    /// The base, and then the methods.
    #[serde(rename = "entries")]
    pub rows: Vec<MethodRow>,
    /// `None` if it could not be measured.
    pub sensitivity: Option<SensitivityRecord>,
    /// `None` if toxicity or perplexity was not measured.
    pub pareto: Option<Pareto>,
    /// `None` if no scales were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<Scales>,
    pub sheets: Vec<Sheet>,
    /// What is missing in the figures and why, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
}

impl Comparison {
    /// Reads `compare.json`. Errors (bad input) if it is broken or of another format version.
    pub fn read(path: &Path) -> Result<Self> {
        read_versioned(path, FORMAT_VERSION)
    }

    /// Runs of the method that has most of them. [`Comparison::seeds`] does not count runs that
    /// were finished before.
    pub fn seed_count(&self) -> usize {
        let methods = self.rows.iter().filter(|row| !row.is_base());
        methods.map(|row| row.runs.len()).fold(1, usize::max)
    }
}

impl MethodRow {
    /// The row of the base.
    pub fn vanilla() -> Self {
        Self { name: VANILLA.into(), method: String::new(), runs: vec![MethodRun::new(0, None)] }
    }

    pub fn is_base(&self) -> bool {
        self.method.is_empty()
    }
}

impl MethodRun {
    fn new(seed: u64, made: Option<FinishedRun>) -> Self {
        let (figures, points, scaled) = (Vec::new(), Vec::new(), Vec::new());
        Self { seed, made, failed: None, figures, points, scaled }
    }

    /// A run that failed, and why.
    pub fn failed(seed: u64, why: String) -> Self {
        Self { failed: Some(why), ..Self::new(seed, None) }
    }

    /// A finished run in this folder, which is not evaluated yet.
    pub fn finished(seed: u64, dir: &Path, record: &RunRecord) -> Self {
        let norm = record.changed.iter().fold(0.0, |norm: f64, change| norm.hypot(change.norm));
        let edits = record.edits.as_ref();
        let made = FinishedRun {
            dir: dir.to_owned(),
            data_sha256: record.data.sha256.clone(),
            prompts: record.data.prompts,
            steps: record.steps,
            kept_step: record.kept_step,
            stopped: record.stopped.clone(),
            changed_parameters: record.changed_parameters,
            change_norm: norm,
            seconds: edits.map_or(record.step_seconds, |edits| edits.repair_seconds),
            tokens: record.tokens,
            operations: record.operations,
            peak_rss_mib: record.peak_rss_mib,
            settings: record.resolved_settings().into_iter().map(<[String; 2]>::into).collect(),
            neurons: edits.map(|edits| edits.neurons.values().sum()),
        };
        Self::new(seed, Some(made))
    }
}
