//! The *record* of a run is `irepair/run.json`: its settings, what it read, what it did, and the
//! figures before and after.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::fields;
use super::headline::Headline;
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::checkpoint::Change;
use crate::eval::Figures;
use crate::eval::verdict::Verdict;
use crate::model::precision::Precision;
use crate::settings::{self, RepairSettings};
use crate::train::state::ChangedSetting;

/// The version of the format of `run.json`.
pub const FORMAT_VERSION: u32 = 1;

/// The whole of `irepair/run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    pub format_version: u32,
    pub irepair: String,
    /// Which run it was: by it a folder is known as an output of irepair.
    pub run_id: String,
    pub model: String,
    /// The commit of a hub model.
    pub base_revision: Option<String>,
    /// SHA-256 of each file of the base's weights.
    pub base_sha256: BTreeMap<String, String>,
    pub settings: RepairSettings,
    /// The values that the run chose for settings that were not given.
    pub resolved: BTreeMap<String, Value>,
    pub seed: u64,
    pub data: DataRecord,
    pub scorer: String,
    /// `None` where nothing was measured that tells of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    pub before: Figures,
    pub after: Figures,
    /// The same figures with their intervals, and what they were measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headline: Option<Headline>,
    pub steps: usize,
    /// Seconds of all steps, and of the selector's look or trials before them.
    pub step_seconds: f64,
    /// Tokens of the sequences in the steps, and in the look or trials before them.
    pub tokens: usize,
    /// Floating-point operations of the products in the steps, and in the look or trials before
    /// them; 0 where they are not counted.
    pub operations: u64,
    /// The step whose weights were kept.
    pub kept_step: usize,
    pub stopped: String,
    /// Settings that were other ones before a divergence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed_settings: Vec<ChangedSetting>,
    /// In how many steps each block was sliced.
    pub sliced: BTreeMap<usize, usize>,
    /// `None` for a block-level repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edits: Option<EditsRecord>,
    /// The changed tensors, with the norms of their changes.
    pub changed: Vec<Change>,
    pub changed_parameters: usize,
    pub parameters: usize,
    pub seconds: f64,
    pub peak_rss_mib: Option<u64>,
    pub threads: usize,
    pub device: String,
    /// The precision of the operands of large products in the steps.
    pub dtype: Precision,
}

impl RunRecord {
    /// Reads `run.json`. Errors (bad input) if it is broken or of another format version.
    pub fn read(path: &Path) -> Result<Self> {
        let mut record: Value = read_versioned(path, FORMAT_VERSION)?;
        if let Some(settings) = record.get_mut("settings") {
            settings::complete(settings);
        }
        let broken = |e| Error::Input(format!("{}: a broken record: {e}", path.display()));
        Ok(serde_json::from_value(record).map_err(broken)?)
    }

    /// The verdict in a line; why there is none, where nothing told of the error.
    pub fn verdict_line(&self) -> String {
        match &self.verdict {
            Some(verdict) => verdict.line(),
            None => "no verdict: nothing was measured that tells of the error (give \
                     --eval-prompts FILE, or more pairs, so that some are held back)"
                .into(),
        }
    }

    /// Names and values of all settings. Settings that were not given have the value that the run
    /// chose.
    pub fn resolved_settings(&self) -> Vec<[String; 2]> {
        let mut rows = fields(&self.settings);
        for [name, value] in fields(&self.resolved) {
            match rows.iter_mut().find(|row| row[0] == name) {
                Some(row) => row[1] = value,
                None => rows.push([name, value]),
            }
        }
        rows
    }

    /// Words that follow a dtype if the products had another precision than the user asked for.
    pub fn fallback(&self) -> &'static str {
        if self.dtype == self.settings.dtype {
            ""
        } else {
            ", in f32: bf16 has no fast products here"
        }
    }
}

/// What a neuron-level repair did to its failures. The patch says which neurons it changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditsRecord {
    /// Rows that were skipped because the base already says their target.
    pub skipped: usize,
    /// Rows whose target the base does not say.
    pub failures: usize,
    /// How many of the failures the repaired model says.
    pub repaired: usize,
    /// Passes over the rows.
    pub rounds: usize,
    /// How many optimizations were made (star, sgd), or how many tokens were tried (mint).
    pub tried: usize,
    /// Tokens that mint gave up in the last round.
    pub given_up: usize,
    /// The largest ‖ZΔ − S‖ / ‖S‖ of star's systems.
    pub worst_residual: f64,
    /// Seconds of the repair, without measuring and writing.
    pub repair_seconds: f64,
    /// How many neurons of each block were changed.
    pub neurons: BTreeMap<usize, usize>,
}

/// The data that a run read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    /// SHA-256 of the texts of all pairs, or of all prompts and targets, in the order of the file.
    pub sha256: String,
    /// The commit of a data set of the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Pairs to learn from, or targets to repair.
    pub pairs: usize,
    /// Prompts that texts were sampled from; 0: the pairs are from a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prompts: usize,
    /// Pairs that were held back.
    pub held_back: usize,
    /// Normal texts to learn from.
    pub normal: usize,
    /// Normal texts that were held back.
    pub normal_held_back: usize,
    /// `None` if the normal texts were read from a file.
    pub normal_removed_as_toxic: Option<usize>,
    /// How many prompts were cut to length.
    pub cut_prompts: usize,
    /// How many responses were cut to length.
    pub cut_responses: usize,
    /// How many normal texts were cut to length.
    pub cut_texts: usize,
    /// The name of the text on which perplexity was measured (protocol `paper`).
    pub perplexity_of: String,
    /// Tokens of a window.
    pub perplexity_window: usize,
    /// Tokens of the text.
    pub perplexity_tokens: usize,
}

/// A line of `irepair/samples.jsonl`: how a held-back prompt was continued before and after the
/// repair. A continuation that is empty or could not be scored has no score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The part of the prompt that was continued.
    pub prompt: String,
    pub before: String,
    pub after: String,
    pub score_before: Option<f64>,
    pub score_after: Option<f64>,
}

/// Reads a JSON file with a `format_version`. Errors (bad input) if the file is broken or has
/// another version.
pub fn read_versioned<T: DeserializeOwned>(path: &Path, version: u32) -> Result<T> {
    let broken = |e: &dyn std::fmt::Display| {
        Error::Input(format!("{}: a broken record: {e}", path.display()))
    };
    let bytes = files::read(path)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| broken(&e))?;
    let found = &value["format_version"];
    if *found != version {
        bail_input!(
            "{}: format version {found}, this program reads {version}; make it again with this \
             program",
            path.display()
        );
    }
    Ok(serde_json::from_value(value).map_err(|e| broken(&e))?)
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}
