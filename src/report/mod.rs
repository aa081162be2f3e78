//! What a run leaves for people and for scripts: `run.json`, tables, the model card, pictures, pages, progress.

pub mod compare_page;
pub mod comparison;
pub mod folder;
pub mod neurons;
pub mod page;
pub mod pareto;
pub mod plot;
pub mod run_page;
pub mod sheet;
pub mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::Change;
use crate::eval::{Figures, task};
use crate::model::precision::Precision;
use crate::settings::RepairSettings;

/// Of `run.json`.
pub const FORMAT_VERSION: u32 = 1;

/// `irepair/run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    pub format_version: u32,
    pub irepair: String,
    pub model: String,
    /// Commit of a hub model.
    pub base_revision: Option<String>,
    pub base_sha256: BTreeMap<String, String>,
    pub settings: RepairSettings,
    /// Settings that were not given, and what they came to.
    #[serde(default)]
    pub resolved: BTreeMap<String, Value>,
    pub seed: u64,
    /// What was read: pairs for training and held back, normal texts, and how many were cut to length.
    pub data: DataRecord,
    pub scorer: String,
    /// Figures by their ids, before and after.
    pub before: Figures,
    pub after: Figures,
    pub steps: usize,
    /// Of all steps, and of what the selector looked at or tried before them: seconds, tokens of the batches, operations of
    /// the products (0: not counted).
    #[serde(default)]
    pub step_seconds: f64,
    #[serde(default)]
    pub tokens: usize,
    #[serde(default)]
    pub operations: u64,
    /// The step whose weights were kept.
    pub kept_step: usize,
    pub stopped: String,
    /// How often each block was sliced.
    pub sliced: BTreeMap<usize, usize>,
    /// Of a neuron-level repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edits: Option<EditsRecord>,
    /// Changed tensors with the norms of their changes.
    pub changed: Vec<Change>,
    pub changed_parameters: usize,
    pub parameters: usize,
    pub seconds: f64,
    pub peak_rss_mib: Option<u64>,
    pub threads: usize,
    pub device: String,
    /// Of the operands of large products while training.
    pub dtype: Precision,
}

impl RunRecord {
    /// The settings by name; those that were not given as what they came to.
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

    /// Where products were not of the precision that was asked for, the words for it.
    pub fn fallback(&self) -> &'static str {
        if self.dtype == self.settings.dtype {
            ""
        } else {
            ", in f32: bf16 has no fast products here"
        }
    }
}

/// Failures of a neuron-level repair; the patch says which neurons were changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditsRecord {
    /// Rows whose target the base already says: skipped.
    pub skipped: usize,
    /// Rows whose target the base does not say.
    pub failures: usize,
    /// Of those, how many the repaired model says.
    pub repaired: usize,
    /// Passes over the rows.
    pub rounds: usize,
    /// Optimizations (star, sgd), or tokens that were tried (mint).
    pub tried: usize,
    /// Tokens that mint gave up in the last round.
    pub given_up: usize,
    /// The worst ‖ZΔ − S‖ / ‖S‖ of star's systems.
    pub worst_residual: f64,
    /// Seconds of the repair alone.
    pub repair_seconds: f64,
    /// Number of changed neurons, by block.
    pub neurons: BTreeMap<usize, usize>,
}

/// Rows of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    /// Of the pairs' texts in the order of the file.
    #[serde(default)]
    pub sha256: String,
    pub pairs: usize,
    /// Prompts that texts were sampled from; 0: the pairs are of a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prompts: usize,
    pub held_back: usize,
    pub normal: usize,
    pub normal_held_back: usize,
    /// `None`: read from a file.
    pub normal_removed_as_toxic: Option<usize>,
    pub cut_prompts: usize,
    pub cut_responses: usize,
    pub cut_texts: usize,
    /// Which text the perplexity is of (protocol `paper`: encoded once, no BOS, windows without overlap).
    pub perplexity_of: String,
    pub perplexity_window: usize,
    /// Tokens of that text.
    pub perplexity_tokens: usize,
}

/// A line of `irepair/samples.jsonl`: how a held-back prompt was continued before and after the repair. What is empty or
/// could not be scored has no score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// As far as it was continued.
    pub prompt: String,
    pub before: String,
    pub after: String,
    pub score_before: Option<f64>,
    pub score_after: Option<f64>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The figures of a repair, in the order they are shown in.
const SHOWN: [&str; 6] = ["toxic_fraction", "toxicity", "nll_chosen", "nll_rejected", "ppl", "kl"];

/// The rows of the before/after table: name, before, after, change.
pub fn before_after(run: &RunRecord) -> Vec<[String; 4]> {
    let row = |id: &str| {
        let figure = task::figure(id)?;
        let (b, a) = (*run.before.get(id)?, *run.after.get(id)?);
        let name = match id {
            "ppl" => format!("{} of {}", figure.label(), run.data.perplexity_of),
            _ => figure.label(),
        };
        let show = |x: f64| format!("{x:.*}", figure.digits);
        let change =
            if b == 0.0 { "–".into() } else { format!("{:+.1} %", 100.0 * (a / b - 1.0)) };
        Some([name, show(b), show(a), change])
    };
    SHOWN.into_iter().filter_map(row).collect()
}

/// Figures without a value before or after.
pub fn not_measured(run: &RunRecord) -> Vec<&'static str> {
    let missing = |id: &&str| !run.before.contains_key(*id) || !run.after.contains_key(*id);
    let figures = SHOWN.into_iter().filter(missing).filter_map(task::figure);
    figures.map(|figure| figure.name).collect()
}

/// The fields of a record by name, for people.
pub fn fields(record: &impl Serialize) -> Vec<[String; 2]> {
    match serde_json::to_value(record) {
        Ok(Value::Object(fields)) => {
            fields.iter().map(|(name, value)| [name.replace('_', " "), show(value)]).collect()
        }
        _ => Vec::new(),
    }
}

/// A value for people.
pub fn show(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::Null) | Err(_) => "not set".into(),
        Ok(Value::Array(items)) if items.is_empty() => "not set".into(),
        Ok(Value::String(text)) => text,
        Ok(value) => value.to_string(),
    }
}

/// N of `…h.N.…` or `…layers.N.…`.
pub fn block_number(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Norms of the changes by block (`None`: outside the blocks), over all tensors of it.
pub fn change_by_block(
    changed: &[Change],
    block_of: impl Fn(&str) -> Option<usize>,
) -> BTreeMap<Option<usize>, Change> {
    let mut blocks: BTreeMap<Option<usize>, Change> = BTreeMap::new();
    for change in changed {
        let block = block_of(&change.name);
        let sum = blocks.entry(block).or_insert_with(|| Change {
            name: block.map_or("outside the blocks".into(), |b| format!("block {b}")),
            norm: 0.0,
            base_norm: 0.0,
            values: 0,
        });
        sum.norm = sum.norm.hypot(change.norm);
        sum.base_norm = sum.base_norm.hypot(change.base_norm);
        sum.values += change.values;
    }
    blocks
}

/// The model card: front matter, what was done, the table, how to go back.
pub fn model_card(run: &RunRecord, base_card: Option<&str>) -> String {
    // A local base has no public name, and its path is the user's own business.
    let on_hub = run.base_revision.is_some();
    let mut card = String::from("---\n");
    if on_hub {
        card += &format!("base_model: {}\nbase_model_relation: finetune\n", run.model);
    }
    let license = base_card
        .and_then(|c| c.lines().find(|l| l.starts_with("license:") && l.len() > "license: ".len()));
    if let Some(license) = license {
        card += &format!("{license}\n");
    }
    card += "library_name: transformers\npipeline_tag: text-generation\n";
    card += if run.edits.is_some() {
        "tags: [irepair, model-editing]"
    } else {
        "tags: [irepair, detoxified]"
    };
    card += "\n---\n\n";
    let base = match &run.base_revision {
        Some(revision) => format!("`{}` (revision `{revision}`)", run.model),
        None if run.model == "demo" => "irepair's demo model".into(),
        None => "a local model".into(),
    };
    card += &format!(
        "# Repaired with irepair\n\nBase: {base}. Method: `{}`, {} steps on {} {}, seed {}; the weights of step {} were \
         kept. {} of {} parameters ({:.2} %) differ from the base, all in the tensors listed in `irepair/run.json`; every \
         other tensor is byte-equal.\n\n",
        run.settings.method,
        run.steps,
        run.data.pairs,
        if run.edits.is_some() { "prompts with their targets" } else { "pairs" },
        run.seed,
        run.kept_step,
        run.changed_parameters,
        run.parameters,
        100.0 * run.changed_parameters as f64 / run.parameters.max(1) as f64,
    );
    let rows = before_after(run);
    if !rows.is_empty() {
        let on = match &run.edits {
            Some(edits) => format!(
                "Targets said: {} of {} that the base got wrong",
                edits.repaired, edits.failures
            ),
            None => format!("On held-back rows (scorer: {})", run.scorer),
        };
        card += &format!("{on}:\n\n| | before | after | change |\n|---|---|---|---|\n");
        for row in rows {
            card += &format!("| {} |\n", row.join(" | "));
        }
        card += if run.edits.is_some() {
            "\n"
        } else {
            "\nScores of different scorers don't compare.\n\n"
        };
    }
    card += "`irepair/run.json` has the settings, versions and hashes; `irepair/steps.jsonl` every step; \
             `irepair/patch.safetensors` the changed tensors alone.\n";
    card
}
