//! What an evaluation leaves: `results.json`, `results.csv`, every row as JSON lines; and how parts become a whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::{Folder, RESULTS};
use crate::base::error::Error;
use crate::base::files::write_whole;
use crate::cli::Eval;
use crate::eval::bootstrap::Interval;
use crate::eval::ledger::{Shard, to_lines};
use crate::eval::task;
use crate::eval::task::{Row, Task, measure};
use crate::report::RunRecord;
use crate::report::table::table;
use crate::{bail_input, data};

/// A model that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    pub name: String,
    pub revision: Option<String>,
    /// Of the weights.
    pub sha256: String,
    /// What a repair changed, if the model's folder says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Changed>,
}

/// How much a repair changed, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    pub method: String,
    /// Of a neuron-level repair.
    pub neurons: Option<usize>,
    pub parameters: usize,
    pub seconds: f64,
}

impl Changed {
    /// From the record that a repair leaves in a model's folder.
    pub fn of(dir: &Path) -> Option<Self> {
        let run: RunRecord =
            serde_json::from_slice(&std::fs::read(dir.join("irepair/run.json")).ok()?).ok()?;
        Some(Self {
            neurons: run.edits.as_ref().map(|edits| edits.neurons.values().sum()),
            parameters: run.changed_parameters,
            seconds: run.edits.as_ref().map_or(run.seconds, |edits| edits.repair_seconds),
            method: run.settings.method,
        })
    }
}

/// A task and its rows, model by model.
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
    /// Number of the model in the list of models.
    pub model: usize,
    pub about: String,
    /// All that decides the rows beside the model.
    pub settings: Value,
    /// The file of the rows.
    pub rows: String,
    /// Rows by what became of them.
    pub counts: BTreeMap<String, usize>,
    pub figures: Vec<FigureRecord>,
    #[serde(skip)]
    found: Vec<Row>,
}

/// A figure with its 95 % interval (bootstrap), and its difference from the first model's.
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

/// From the first model, on the same prompts or windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// Whether the interval excludes 0.
    pub real: bool,
    /// Whether it is for the better.
    pub better: bool,
}

/// `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    pub format_version: u32,
    pub irepair: String,
    pub shard: Shard,
    pub seed: u64,
    pub models: Vec<ModelRecord>,
    pub measurements: Vec<Measurement>,
}

impl Measurement {
    pub fn new(task: &dyn Task) -> Self {
        Self { task: task.name(), models: Vec::new() }
    }

    /// What one of its figures is called beside those of other tasks.
    pub fn label(&self, figure: &FigureRecord) -> String {
        let of = self.models.first().and_then(|on| on.settings["of"].as_str());
        let of = of.map_or(String::new(), |text| format!(" of {text}"));
        match figure.unit.as_str() {
            "" => format!("{}{of}", figure.name),
            unit => format!("{}{of} ({unit})", figure.name),
        }
    }

    /// Adds a model's rows.
    pub fn add(&mut self, model: usize, task: &dyn Task, found: Vec<Row>) -> Result<()> {
        self.models.push(OnModel {
            model,
            about: task.about(),
            settings: task.settings(),
            rows: format!("{model}-{}.jsonl", file_name(&self.task)),
            counts: BTreeMap::new(),
            figures: Vec::new(),
            found,
        });
        Ok(())
    }

    /// Computes the figures from the rows.
    fn conclude(&mut self, seed: u64) -> Result<()> {
        let mut base: Option<Vec<Vec<f64>>> = None;
        for on in &mut self.models {
            let kind = task::kind(&on.settings)?;
            let clusters = (kind.clusters)(&on.settings, &on.found)?;
            on.counts = (kind.counts)(&on.found)
                .into_iter()
                .map(|(name, n)| (name.to_owned(), n))
                .collect();
            let measured = measure((kind.figures)(&on.settings), &clusters, base.as_deref(), seed);
            let finite = |x: f64| Some(x).filter(|x| x.is_finite());
            on.figures = measured
                .into_iter()
                .map(|m| FigureRecord {
                    id: m.figure.id.into(),
                    name: m.figure.name.into(),
                    unit: m.figure.unit.into(),
                    value: finite(m.value),
                    low: finite(m.interval.low),
                    high: finite(m.interval.high),
                    difference: m.difference.filter(|(value, _)| value.is_finite()).map(
                        |(value, interval)| {
                            let Interval { low, high } = interval;
                            let better = (value < 0.0) == m.figure.less_is_better;
                            let real = interval.excludes_zero();
                            Difference { value, low, high, real, better }
                        },
                    ),
                    digits: m.figure.digits,
                    less_is_better: m.figure.less_is_better,
                })
                .collect();
            base.get_or_insert(clusters);
        }
        Ok(())
    }
}

impl OnModel {
    /// Adds the rows that an evaluation left in its folder.
    fn read_rows(&mut self, dir: &Path) -> Result<()> {
        for row in data::read_rows(&dir.join(&self.rows))? {
            match row.value {
                Value::Object(row) => self.found.push(row),
                _ => bail_input!("{}: not a row of an evaluation", row.place),
            }
        }
        Ok(())
    }
}

/// The results of several models, evaluated apart, as if together: differences are from the first one's. Errors (bad
/// input) if they were not asked the same.
pub fn together<P: AsRef<Path>>(dirs: &[P]) -> Result<Results> {
    let mut all: Option<Results> = None;
    for dir in dirs.iter().map(AsRef::as_ref) {
        let mut part = Results::read(dir)?;
        for on in part.measurements.iter_mut().flat_map(|m| &mut m.models) {
            on.read_rows(dir)?;
        }
        let Some(all) = &mut all else {
            all = Some(part);
            continue;
        };
        let first = all.models.len();
        all.models.append(&mut part.models);
        let tasks = |r: &Results| r.measurements.iter().map(|m| m.task.clone()).collect::<Vec<_>>();
        if all.seed != part.seed || tasks(all) != tasks(&part) {
            bail_input!(
                "{}: its tasks are not those of {}",
                dir.display(),
                dirs[0].as_ref().display()
            );
        }
        for (whole, part) in all.measurements.iter_mut().zip(part.measurements) {
            for mut on in part.models {
                if whole.models[0].settings != on.settings {
                    bail_input!(
                        "{}: {} was measured with other settings than in {}",
                        dir.display(),
                        whole.task,
                        dirs[0].as_ref().display()
                    );
                }
                on.model += first;
                whole.models.push(on);
            }
        }
    }
    let all = all.context("no evaluation")?;
    Results::new(Shard::default(), all.seed, all.models, all.measurements)
}

/// A task's name as part of a file's.
fn file_name(task: &str) -> String {
    task.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

impl Results {
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
            shard,
            seed,
            models,
            measurements,
        })
    }

    /// What an evaluation left in its folder; without the rows. Errors (bad input) if nothing did.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(RESULTS);
        let read = || anyhow::Ok(serde_json::from_slice(&std::fs::read(&path)?)?);
        read().map_err(|e| Error::Input(format!("{}: {e:#}", path.display())).into())
    }

    /// Writes the rows, the CSV and, last, `results.json`.
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

    /// A table for people.
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
                let unscored: Vec<String> = ["failed", "empty"]
                    .iter()
                    .filter_map(|what| {
                        Some(format!("{} {what}", on.counts.get(*what).filter(|n| **n > 0)?))
                    })
                    .collect();
                if !unscored.is_empty() {
                    let all: usize = on.counts.values().sum();
                    let _ = writeln!(
                        text,
                        "{}: of {all} continuations {}; they are in no figure",
                        self.models[on.model].name,
                        unscored.join(", ")
                    );
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
                "part {}/{} only: join all parts with irepair eval --merge",
                self.shard.index, self.shard.of
            );
        }
        text
    }
}

/// `eval --merge`: the results of all parts as if one machine had done them.
pub fn merge(args: &Eval) -> Result<()> {
    let mut parts = Vec::new();
    for dir in &args.merge {
        let part = Results::read(dir).context("--merge: no finished part is there")?;
        parts.push((dir, part));
    }
    parts.sort_by_key(|(_, part)| part.shard.index);
    let of = parts[0].1.shard.of;
    for (dir, part) in &parts {
        if let Some(what) = foreign(&parts[0].1, part) {
            bail_input!(
                "--merge {}: its {what} differ from those of {}",
                dir.display(),
                parts[0].0.display()
            );
        }
    }
    let missing: Vec<String> = (0..of)
        .filter(|i| !parts.iter().any(|(_, p)| p.shard.index == *i))
        .map(|i| format!("{i}/{of}"))
        .collect();
    if !missing.is_empty() {
        bail_input!("--merge: part {} is missing", missing.join(", "));
    }
    if let Some(pair) = parts.windows(2).find(|p| p[0].1.shard == p[1].1.shard) {
        let index = pair[0].1.shard.index;
        bail_input!(
            "--merge: {} and {} are both part {index}/{of}",
            pair[0].0.display(),
            pair[1].0.display()
        );
    }
    let mut whole = parts[0].1.clone();
    for on in whole.measurements.iter_mut().flat_map(|m| &mut m.models) {
        parts.iter().try_for_each(|(dir, _)| on.read_rows(dir))?;
    }
    let results = Results::new(Shard::default(), whole.seed, whole.models, whole.measurements)?;
    let folder = Folder::claim(args, "merged")?;
    super::finish(args, &folder, &results)
}

/// What makes a part one of another evaluation.
fn foreign(first: &Results, part: &Results) -> Option<&'static str> {
    let settings = |r: &Results| -> Vec<(String, Vec<Value>)> {
        r.measurements
            .iter()
            .map(|m| (m.task.clone(), m.models.iter().map(|on| on.settings.clone()).collect()))
            .collect()
    };
    let hashes = |r: &Results| r.models.iter().map(|m| m.sha256.clone()).collect::<Vec<_>>();
    if first.shard.of != part.shard.of {
        Some("number of parts")
    } else if first.irepair != part.irepair {
        Some("versions of irepair")
    } else if hashes(first) != hashes(part) {
        Some("models")
    } else if first.seed != part.seed || settings(first) != settings(part) {
        Some("tasks")
    } else {
        None
    }
}
