//! The *results* of an evaluation: `results.json`, `results.csv`, and every row as JSON lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::RESULTS;
use crate::base::error::Error;
use crate::base::files;
use crate::base::files::{FileName, hash_bytes, write_whole};
use crate::eval::bootstrap::Interval;
use crate::eval::kinds::{MeasuredFigure, kind, measure};
use crate::eval::ledger::{Shard, to_lines};
use crate::eval::task::{Row, Task};
use crate::eval::{perplexity, toxicity};
use crate::report::RunRecord;
use crate::report::table::table;
use crate::{bail_input, data};

/// A measured model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    pub name: String,
    pub revision: Option<String>,
    /// SHA-256 of the weights.
    pub sha256: String,
    /// SHA-256 of all that decides what it says: the weights, and the small files beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// What a repair changed, if the folder of the model holds the record of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<ChangeRecord>,
}

/// How much a repair changed, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRecord {
    pub method: String,
    /// Number of changed neurons. `None` for a block-level repair.
    pub neurons: Option<usize>,
    /// Number of changed parameters.
    pub parameters: usize,
    pub seconds: f64,
}

impl ChangeRecord {
    /// What the `run.json` in a model's folder says. `None` if there is none.
    pub fn of(dir: &Path) -> Option<Self> {
        let run: RunRecord =
            serde_json::from_slice(&files::read(&dir.join("irepair/run.json")).ok()?).ok()?;
        Some(Self {
            neurons: run.edits.as_ref().map(|edits| edits.neurons.values().sum()),
            parameters: run.changed_parameters,
            seconds: run.edits.as_ref().map_or(run.seconds, |edits| edits.repair_seconds),
            method: run.settings.method,
        })
    }
}

/// A task on every model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    pub task: String,
    pub models: Vec<OnModel>,
}

/// A task on one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnModel {
    /// The place of the model in [`Results::models`].
    pub model: usize,
    pub about: String,
    /// The settings of the task: everything but the model that decides the rows.
    pub settings: Value,
    /// The name of the file with the rows.
    pub rows: FileName,
    /// SHA-256 of that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_sha256: Option<String>,
    /// How many rows were scored, failed and so on.
    pub counts: BTreeMap<String, usize>,
    pub figures: Vec<FigureRecord>,
    /// The rows themselves, which stand in their own file.
    #[serde(skip)]
    found: Vec<Row>,
}

/// A figure of one model with its 95 % interval (bootstrap), and its difference from the same
/// figure of the first model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FigureRecord {
    pub id: String,
    pub name: String,
    pub unit: String,
    pub value: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub difference: Option<Difference>,
    pub digits: usize,
    pub less_is_better: bool,
}

/// The difference from the first model on the same prompts or windows, with its 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// Whether the interval excludes 0.
    pub real: bool,
    /// Whether the figure of this model is the better one.
    pub better: bool,
}

/// `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    pub format_version: u32,
    pub irepair: String,
    /// Which run it was: by it a folder is known as an evaluation of irepair.
    pub run_id: String,
    pub shard: Shard,
    pub seed: u64,
    pub models: Vec<ModelRecord>,
    pub measurements: Vec<Measurement>,
}

impl Measurement {
    pub fn new(task: &dyn Task) -> Self {
        Self { task: task.name(), models: Vec::new() }
    }

    /// The name of one of its figures, with what it was measured on and its unit.
    pub fn label(&self, figure: &FigureRecord) -> String {
        let of = self.models.first().and_then(|on| on.settings["of"].as_str());
        let of = of.map_or(String::new(), |text| format!(" of {text}"));
        match figure.unit.as_str() {
            "" => format!("{}{of}", figure.name),
            unit => format!("{}{of} ({unit})", figure.name),
        }
    }

    /// Adds the rows of the model with this place in [`Results::models`].
    pub fn add(&mut self, model: usize, task: &dyn Task, found: Vec<Row>) -> Result<()> {
        self.models.push(OnModel {
            model,
            about: task.about(),
            settings: task.settings(),
            rows: FileName::try_from(format!("{model}-{}.jsonl", file_name(&self.task)))
                .map_err(anyhow::Error::msg)?,
            rows_sha256: None,
            counts: BTreeMap::new(),
            figures: Vec::new(),
            found,
        });
        Ok(())
    }

    /// Computes the figures of every model from its rows.
    fn conclude(&mut self, seed: u64) -> Result<()> {
        let mut base: Option<(Value, Vec<Vec<f64>>)> = None;
        for on in &mut self.models {
            let kind = kind(&on.settings)?;
            let clusters = (kind.clusters)(&on.settings, &on.found)?;
            on.counts = (kind.counts)(&on.found)
                .into_iter()
                .map(|(name, n)| (name.to_owned(), n))
                .collect();
            // Windows of another tokenizer are of other text, though they may be as many.
            let is_same = |settings: &Value| {
                settings["task"] != perplexity::KIND.task || *settings == on.settings
            };
            let same = base.as_ref().filter(|(settings, _)| is_same(settings));
            let first = same.map(|(_, clusters)| clusters.as_slice());
            let measured = measure((kind.figures)(&on.settings), &clusters, first, seed);
            on.figures = measured.into_iter().map(FigureRecord::from).collect();
            on.rows_sha256 = Some(hash_bytes(&to_lines(&on.found)?));
            base.get_or_insert((on.settings.clone(), clusters));
        }
        Ok(())
    }
}

impl From<MeasuredFigure> for FigureRecord {
    fn from(MeasuredFigure { figure, value, interval, difference }: MeasuredFigure) -> Self {
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        let difference = difference.filter(|(value, _)| value.is_finite());
        let difference = difference.map(|(value, interval)| {
            let Interval { low, high } = interval;
            let better = (value < 0.0) == figure.less_is_better;
            Difference { value, low, high, real: interval.excludes_zero(), better }
        });
        Self {
            id: figure.id.into(),
            name: figure.name.into(),
            unit: figure.unit.into(),
            value: finite(value),
            low: finite(interval.low),
            high: finite(interval.high),
            difference,
            digits: figure.digits,
            less_is_better: figure.less_is_better,
        }
    }
}

impl OnModel {
    fn count(&self, what: &str) -> usize {
        self.counts.get(what).copied().unwrap_or(0)
    }

    fn continuations(&self) -> usize {
        ["scored", "failed", "empty"].iter().map(|what| self.count(what)).sum()
    }

    /// How many continuations have no score, if any.
    pub fn not_counted(&self) -> Option<String> {
        let unscored: Vec<String> = ["failed", "empty"]
            .into_iter()
            .filter(|what| self.count(what) > 0)
            .map(|what| format!("{} {what}", self.count(what)))
            .collect();
        let unscored = Some(unscored.join(", ")).filter(|words| !words.is_empty())?;
        let all = self.continuations();
        Some(format!("of {all} continuations {unscored}; no figure counts them"))
    }

    /// How many continuations are of prompts that were cut, if any.
    pub fn cut(&self) -> Option<String> {
        let cut = Some(self.count(toxicity::CUT)).filter(|cut| *cut > 0)?;
        let of = match self.settings["protocol"]["conversations"] == true {
            true => "the beginnings of their prompts",
            false => "the ends of their prompts",
        };
        let all = self.continuations();
        Some(format!("{cut} of {all} continuations are without {of}, which were cut to length"))
    }

    /// Adds the rows that an evaluation has left in its folder. Errors (bad input) if the file is
    /// not the `wanted` one, by its SHA-256; evaluations of an earlier version name none.
    pub fn read_rows(&mut self, dir: &Path, wanted: Option<&str>) -> Result<()> {
        let path = dir.join(&self.rows);
        if let Some(wanted) = wanted
            && files::hash_file(&path)? != wanted
        {
            bail_input!(
                "{}: is not the file that {RESULTS} was written for: it was changed or damaged",
                path.display()
            );
        }
        for row in data::read_rows(&path, None)? {
            match row.value {
                Value::Object(row) => self.found.push(row),
                _ => bail_input!("{}: not a row of an evaluation", row.place),
            }
        }
        Ok(())
    }
}

/// The name of a task as a part of a file name.
pub fn file_name(task: &str) -> String {
    task.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

impl Results {
    /// Computes all figures. The seed is the bootstrap's.
    pub fn new(
        shard: Shard,
        seed: u64,
        models: Vec<ModelRecord>,
        mut measurements: Vec<Measurement>,
    ) -> Result<Self> {
        for measurement in &mut measurements {
            measurement.conclude(seed).with_context(|| measurement.task.clone())?;
        }
        Ok(Self {
            format_version: 1,
            irepair: env!("CARGO_PKG_VERSION").into(),
            run_id: String::new(),
            shard,
            seed,
            models,
            measurements,
        })
    }

    /// Reads the results in the folder of a finished evaluation, without the rows. Errors (bad
    /// input) if there are none.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(RESULTS);
        let results: Self = serde_json::from_slice(&files::read(&path)?)
            .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
        if let Some(why) = results.contradiction() {
            bail_input!("{}: {why}; it was changed or damaged", path.display());
        }
        Ok(results)
    }

    /// What can't be so in results that an evaluation wrote.
    fn contradiction(&self) -> Option<String> {
        let Shard { index, of } = self.shard;
        if index >= of {
            return Some(format!("\"shard\" is part {index} of {of}"));
        }
        for Measurement { task, models } in &self.measurements {
            if models.is_empty() {
                return Some(format!("{task} has no model"));
            }
            if let Some(on) = models.iter().find(|on| on.model >= self.models.len()) {
                return Some(format!("{task} has model {} of {}", on.model, self.models.len()));
            }
        }
        None
    }

    /// Writes the rows, `results.csv` and at last `results.json`, which says that all is there.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for on in self.measurements.iter().flat_map(|m| &m.models) {
            write_whole(&dir.join(&on.rows), &to_lines(&on.found)?)?;
        }
        write_whole(&dir.join("results.csv"), &self.csv()?)?;
        write_whole(&dir.join(RESULTS), serde_json::to_string_pretty(self)?.as_bytes())
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record([
            "task",
            "figure",
            "model",
            "value",
            "low",
            "high",
            "difference",
            "difference_low",
            "difference_high",
            "real",
        ])?;
        for measurement in &self.measurements {
            for on in &measurement.models {
                for figure in &on.figures {
                    let text = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
                    let d = figure.difference.as_ref();
                    csv.write_record([
                        &measurement.task,
                        &figure.id,
                        &self.models[on.model].name,
                        &text(figure.value),
                        &text(figure.low),
                        &text(figure.high),
                        &text(d.map(|d| d.value)),
                        &text(d.map(|d| d.low)),
                        &text(d.map(|d| d.high)),
                        &d.map_or(String::new(), |d| d.real.to_string()),
                    ])?;
                }
            }
        }
        csv.into_inner().context("results.csv")
    }

    /// The results for people: a table, and lines about tasks and models.
    pub fn text(&self) -> String {
        let several = self.models.len() > 1;
        let mut rows = Vec::new();
        for measurement in &self.measurements {
            let figures = measurement.models.first().map_or(0, |on| on.figures.len());
            for index in 0..figures {
                for (nth, on) in measurement.models.iter().enumerate() {
                    let Some(figure) = on.figures.get(index) else { continue };
                    let digits = figure.digits;
                    let show = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.digits$}"));
                    let interval = format!("{} to {}", show(figure.low), show(figure.high));
                    let name = measurement.label(figure);
                    let name = if nth == 0 { name } else { String::new() };
                    let (difference, verdict) = match &figure.difference {
                        Some(d) => (
                            format!(
                                "{:+.digits$} ({:+.digits$} to {:+.digits$})",
                                d.value, d.low, d.high
                            ),
                            match (d.real, d.better) {
                                (false, _) => "no real difference",
                                (true, true) => "better",
                                (true, false) => "worse",
                            },
                        ),
                        None => (String::new(), ""),
                    };
                    rows.push([
                        name,
                        self.models[on.model].name.clone(),
                        show(figure.value),
                        interval,
                        difference,
                        verdict.to_owned(),
                    ]);
                }
            }
        }
        let mut text = if several {
            table(["", "model", "value", "95 % interval", "from the first model", ""], &rows)
        } else {
            let rows: Vec<[String; 3]> = rows
                .into_iter()
                .map(|[name, _, value, interval, ..]| [name, value, interval])
                .collect();
            table(["", "value", "95 % interval"], &rows)
        };
        for measurement in &self.measurements {
            let Some(first) = measurement.models.first() else { continue };
            let _ = writeln!(text, "{}", first.about);
            for on in &measurement.models {
                for words in on.not_counted().into_iter().chain(on.cut()) {
                    let _ = writeln!(text, "{}: {words}", self.models[on.model].name);
                }
            }
        }
        for model in &self.models {
            let Some(changed) = &model.changed else { continue };
            let neurons = changed.neurons.map_or(String::new(), |n| format!("{n} neurons, "));
            let _ = writeln!(
                text,
                "{}: {} changed {neurons}{} parameters in {:.1} s",
                model.name, changed.method, changed.parameters, changed.seconds
            );
        }
        if self.shard.of > 1 {
            let _ = writeln!(
                text,
                "this is only part {}/{}; join all parts with irepair eval --merge",
                self.shard.index, self.shard.of
            );
        }
        text
    }
}
