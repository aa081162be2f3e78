//! A *task* measures one property of a model in *units* of work, such as a batch of prompts or
//! some windows of a text. The rows of a unit depend only on the model, the task and the number of
//! the unit. Work can therefore be interrupted, resumed and shared between machines. The figures
//! are computed at the end, from all rows.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::base::error::Error;
use crate::base::files::hash_bytes;
use crate::base::interrupt;
use crate::model::Model;
use crate::model::generate::Ends;
use crate::model::weights::Weights;
use crate::tokens::Encoder;

/// The result of one sample of a prompt, one window of a text or one passage: values by their
/// names.
pub type Row = Map<String, Value>;

/// One cluster for each group of rows that belong together, such as the samples of one prompt. A
/// cluster holds sums over its rows. The bootstrap draws clusters, not rows.
pub type Clusters = Vec<Vec<f64>>;

/// The model that is measured.
pub struct Subject<'a> {
    pub model: &'a Model,
    pub weights: &'a Weights,
    pub encoder: &'a Encoder,
    pub ends: Ends,
}

/// A *figure* is a number that is computed from sums over clusters.
pub struct Figure {
    /// Records and code find the figure by this: `toxicity`, `ppl`.
    pub id: &'static str,
    /// The name for people.
    pub name: &'static str,
    /// `%`, `nats a token`; empty for a plain number.
    pub unit: &'static str,
    /// The value, given the sums over all clusters.
    pub from_sums: fn(&[f64]) -> f64,
    /// Decimal places that are shown.
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

/// How the rows of one kind of task become figures. This depends on the settings of the task
/// alone, so rows from several machines can be joined without their models.
pub struct TaskKind {
    /// The value of `task` in the settings.
    pub task: &'static str,
    /// Every figure that a task of this kind can have.
    pub all: &'static [Figure],
    /// The figures of a task with these settings.
    pub figures: fn(&Value) -> &'static [Figure],
    /// The clusters of the rows of a task with these settings.
    pub clusters: fn(&Value, &[Row]) -> Result<Clusters>,
    /// How many rows were scored, failed and so on.
    pub counts: fn(&[Row]) -> Vec<(&'static str, usize)>,
}

pub trait Task {
    /// A name for files and tables: `toxicity`, `ppl-wiki.test.raw`.
    fn name(&self) -> String;

    /// The `task` of its [`TaskKind`], and everything but the model that decides the rows. Two
    /// runs are parts of one evaluation only if their settings are equal.
    fn settings(&self) -> Value;

    /// What a reader must know about the figures, in one line.
    fn about(&self) -> String;

    fn units(&self) -> usize;

    /// The rows of a unit, in order.
    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>>;
}

/// All rows of a task, in order; `done` is told of each unit. Errors (interrupted) if the user asks
/// to stop; the rows so far are lost then.
pub fn rows(task: &dyn Task, subject: &Subject, mut done: impl FnMut()) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for unit in 0..task.units() {
        rows.extend(task.work(subject, unit)?);
        done();
        if interrupt::asked() {
            let why = format!("interrupted while {} was measured", task.name());
            return Err(Error::Interrupted(why).into());
        }
    }
    Ok(rows)
}

/// The items of a unit of `size` items, and the number of its first item.
pub fn items<T>(all: &[T], size: usize, unit: usize) -> (usize, &[T]) {
    let first = unit * size;
    (first, &all[first..(first + size).min(all.len())])
}

/// SHA-256 of token ids in order, as settings of tasks have it.
pub fn hash_ids(ids: impl IntoIterator<Item = u32>) -> String {
    hash_bytes(&ids.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}

/// [`TaskKind::counts`] of tasks in which no row can fail.
pub fn no_counts(_: &[Row]) -> Vec<(&'static str, usize)> {
    Vec::new()
}

/// A number of a row. Errors if the row has no such number.
pub fn number(row: &Row, key: &str) -> Result<f64> {
    row.get(key)
        .and_then(Value::as_f64)
        .with_context(|| format!("a row without the number {key:?}"))
}

/// One cluster for each row, which holds these numbers of it.
pub fn numbers(rows: &[Row], keys: &[&str]) -> Result<Clusters> {
    rows.iter().map(|row| keys.iter().map(|key| number(row, key)).collect()).collect()
}
