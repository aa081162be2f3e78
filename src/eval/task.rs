//! A *task* measures one thing of a model in *units* of work: a batch of prompts, some windows of a text. A unit's rows
//! are a function of the model, the task and the unit's number alone, so that work can be interrupted, resumed and shared
//! between machines; figures are computed from all rows in the end.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::Figures;
use super::bootstrap;
use super::bootstrap::Interval;
use super::{divergence, edits, lambada, nll, perplexity, toxicity};
use crate::base::error::Error;
use crate::base::interrupt;
use crate::model::Model;
use crate::model::generate::Ends;
use crate::model::weights::Weights;
use crate::tokens::Encoder;

/// A row of a task: what one prompt's sample, one window, one passage came to.
pub type Row = Map<String, Value>;

/// Sums of rows that belong together (samples of one prompt), a cluster each: what is drawn in the bootstrap.
pub type Clusters = Vec<Vec<f64>>;

/// The model that is measured.
pub struct Subject<'a> {
    pub model: &'a Model,
    pub weights: &'a Weights,
    pub encoder: &'a Encoder,
    pub ends: Ends,
}

/// A figure that is a function of sums over clusters.
pub struct Figure {
    /// What it is found by, in records and in code: `toxicity`, `ppl`.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// `%`, `nats a token`; empty for a plain number.
    pub unit: &'static str,
    pub of: fn(&[f64]) -> f64,
    /// Digits behind the point.
    pub digits: usize,
    pub less_is_better: bool,
}

impl Figure {
    /// Name and unit, for people.
    pub fn label(&self) -> String {
        match self.unit {
            "" => self.name.into(),
            unit => format!("{} ({unit})", self.name),
        }
    }
}

/// What rows of a kind of task come to: known from the task's settings alone, so that rows of several machines can be
/// joined without their models.
pub struct Kind {
    /// `settings["task"]`.
    pub task: &'static str,
    /// Every figure that it can have.
    pub all: &'static [Figure],
    /// Those that it has by its settings.
    pub figures: fn(&Value) -> &'static [Figure],
    /// The clusters of rows.
    pub clusters: fn(&Value, &[Row]) -> Result<Clusters>,
    /// Counts of rows by what became of them.
    pub counts: fn(&[Row]) -> Vec<(&'static str, usize)>,
}

/// Every kind.
pub const KINDS: &[&Kind] = &[
    &toxicity::KIND,
    &perplexity::PAPER,
    &perplexity::LM_EVAL,
    &lambada::KIND,
    &divergence::KIND,
    &nll::KIND,
    &edits::KIND,
];

/// The kind of task that has these settings.
pub fn kind(settings: &Value) -> Result<&'static Kind> {
    let task = settings["task"].as_str().unwrap_or_default();
    KINDS
        .iter()
        .copied()
        .find(|k| k.task == task)
        .with_context(|| format!("no task is called {task:?}"))
}

/// What one measures.
pub trait Task {
    /// A name for files and tables: `toxicity`, `ppl-wiki.test.raw`.
    fn name(&self) -> String;

    /// `task`, its [`Kind`], and all that decides the rows beside the model: what must be equal for two runs to be parts
    /// of one.
    fn settings(&self) -> Value;

    /// What a reader must know of the figures, in a line.
    fn about(&self) -> String;

    fn units(&self) -> usize;

    /// The rows of a unit, in order.
    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>>;
}

/// A figure of one model, with an interval, and its difference from the first model's.
pub struct Measured {
    pub figure: &'static Figure,
    pub value: f64,
    /// 95 %, bootstrap over clusters.
    pub interval: Interval,
    /// From the first model's on the same clusters.
    pub difference: Option<(f64, Interval)>,
}

/// The figures of a kind of task from its rows' clusters; with `base`, the first model's clusters, also
/// the paired differences.
pub fn measure(
    figures: &'static [Figure],
    clusters: &[Vec<f64>],
    base: Option<&[Vec<f64>]>,
    seed: u64,
) -> Vec<Measured> {
    figures
        .iter()
        .map(|figure| {
            let (value, interval) = bootstrap::interval(clusters, figure.of, seed);
            let difference = base
                .filter(|base| base.len() == clusters.len())
                .map(|base| bootstrap::difference(clusters, base, figure.of, seed));
            Measured { figure, value, interval, difference }
        })
        .collect()
}

/// The values of a task's figures, by their ids, from its rows; what has no value is left out.
pub fn values(task: &dyn Task, rows: &[Row]) -> Result<Figures> {
    let settings = task.settings();
    let kind = kind(&settings)?;
    let clusters = (kind.clusters)(&settings, rows)?;
    let sums = |sums: Vec<f64>, own: &Vec<f64>| -> Vec<f64> {
        match sums.is_empty() {
            true => own.clone(),
            false => sums.iter().zip(own).map(|(sum, x)| sum + x).collect(),
        }
    };
    let all = clusters.iter().fold(Vec::new(), sums);
    if all.is_empty() {
        return Ok(Figures::new());
    }
    let value = |figure: &Figure| (figure.id.to_owned(), (figure.of)(&all));
    let values = (kind.figures)(&settings).iter().map(value);
    Ok(values.filter(|(_, value)| value.is_finite()).collect())
}

/// All rows of a task. Errors if the user asks to stop; what was made is lost then.
pub fn rows(task: &dyn Task, subject: &Subject) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for unit in 0..task.units() {
        rows.extend(task.work(subject, unit)?);
        if interrupt::asked() {
            let why = format!("interrupted while {} was measured", task.name());
            return Err(Error::Interrupted(why).into());
        }
    }
    Ok(rows)
}

/// A figure of any kind of task, by its id.
pub fn figure(id: &str) -> Option<&'static Figure> {
    KINDS.iter().flat_map(|kind| kind.all).find(|figure| figure.id == id)
}

/// No counts.
pub fn uncounted(_: &[Row]) -> Vec<(&'static str, usize)> {
    Vec::new()
}

/// A number of a row. Errors if it has none.
pub fn number(row: &Row, key: &str) -> Result<f64> {
    row.get(key)
        .and_then(Value::as_f64)
        .with_context(|| format!("a row without the number {key:?}"))
}
