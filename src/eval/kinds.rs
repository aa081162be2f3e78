//! The table of the kinds of tasks, and the figures that their rows give.

use anyhow::{Context, Result};
use serde_json::Value;

use super::bootstrap::Interval;
use super::task::{Figure, Row, Task, TaskKind};
use super::{Figures, bootstrap, divergence, edits, lambada, lm_eval, nll, perplexity, toxicity};

pub const KINDS: &[&TaskKind] = &[
    &toxicity::KIND,
    &perplexity::KIND,
    &lm_eval::KIND,
    &lambada::KIND,
    &divergence::KIND,
    &nll::KIND,
    &edits::KIND,
];

/// The kind of the task that has these settings. Errors if there is none.
pub fn kind(settings: &Value) -> Result<&'static TaskKind> {
    let task = settings["task"].as_str().unwrap_or_default();
    KINDS
        .iter()
        .copied()
        .find(|k| k.task == task)
        .with_context(|| format!("no task is called {task:?}"))
}

/// The figure with this id, of any kind of task.
pub fn figure(id: &str) -> Option<&'static Figure> {
    KINDS.iter().flat_map(|kind| kind.all).find(|figure| figure.id == id)
}

/// The values of a task's figures by their ids, computed from all its rows. Figures without a
/// finite value are left out.
pub fn values(task: &dyn Task, rows: &[Row]) -> Result<Figures> {
    let settings = task.settings();
    let kind = kind(&settings)?;
    let sums = bootstrap::sum((kind.clusters)(&settings, rows)?.iter());
    if sums.is_empty() {
        return Ok(Figures::new());
    }
    let value = |figure: &Figure| (figure.id.to_owned(), (figure.from_sums)(&sums));
    let values = (kind.figures)(&settings).iter().map(value);
    Ok(values.filter(|(_, value)| value.is_finite()).collect())
}

/// A figure of one model, and its difference from the same figure of the first model.
pub struct MeasuredFigure {
    pub figure: &'static Figure,
    pub value: f64,
    /// 95 %, by the bootstrap over clusters.
    pub interval: Interval,
    /// The difference from the first model on the same clusters, and its interval.
    pub difference: Option<(f64, Interval)>,
}

/// The figures of a task with their intervals. `clusters` are those of the model's rows, `base`
/// those of the first model's rows. There are no differences without `base`, or if it has another
/// number of clusters.
pub fn measure(
    figures: &'static [Figure],
    clusters: &[Vec<f64>],
    base: Option<&[Vec<f64>]>,
    seed: u64,
) -> Vec<MeasuredFigure> {
    figures
        .iter()
        .map(|figure| {
            let (value, interval) = bootstrap::interval(clusters, figure.from_sums, seed);
            let difference = base
                .filter(|base| base.len() == clusters.len())
                .map(|base| bootstrap::difference(clusters, base, figure.from_sums, seed));
            MeasuredFigure { figure, value, interval, difference }
        })
        .collect()
}
