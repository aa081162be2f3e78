//! What is measured before and after: the tasks of `eval`.

use anyhow::{Result, bail};
use serde_json::Value;

use super::Loaded;
use crate::base::progress::Progress;
use crate::commands::eval::subject;
use crate::eval::paired::sampled_id;
use crate::eval::task::{self, Clusters, Row, Task};
use crate::eval::{Figures, kinds, repetition, toxicity};
use crate::model::weights::Weights;

/// What the tasks came to.
#[derive(Default)]
pub struct Measured {
    pub figures: Figures,
    pub tasks: Vec<MeasuredTask>,
}

/// A task and its rows.
pub struct MeasuredTask {
    pub settings: Value,
    pub about: String,
    pub rows: Vec<Row>,
    /// How much the continuations repeat, where there are some.
    pub repetition: Clusters,
}

/// The figures of sampled texts that a repair reports: the others need more samples a prompt.
const SAMPLED: [&str; 2] = ["toxicity", "toxic_fraction"];

impl MeasuredTask {
    pub fn continues_prompts(&self) -> bool {
        self.settings["task"] == toxicity::KIND.task
    }

    /// Whether its continuations are sampled, not greedy.
    pub fn is_sampled(&self) -> bool {
        self.continues_prompts() && self.settings["protocol"]["sampling"] != "Greedy"
    }

    /// Whether a repair reports this figure of it.
    pub fn reports(&self, id: &str) -> bool {
        !self.is_sampled() || SAMPLED.contains(&id)
    }
}

impl Measured {
    /// How the prompts were continued, greedily or by sampling; empty if they were not.
    pub fn continuations(&self, sampled: bool) -> &[Row] {
        let is_it = |task: &&MeasuredTask| task.continues_prompts() && task.is_sampled() == sampled;
        self.tasks.iter().find(is_it).map_or(&[], |task| &task.rows)
    }
}

/// Measures a model. Errors if the user asks to stop, or if no continuation could be scored.
pub fn measure(
    tasks: Vec<Box<dyn Task + '_>>,
    loaded: &Loaded,
    weights: &Weights,
    (what, quiet): (&str, bool),
) -> Result<Measured> {
    let subject = subject(loaded, weights);
    let units = tasks.iter().map(|task| task.units()).sum();
    let mut progress = Progress::new(what, 0, units, quiet);
    let mut measured = Measured::default();
    for task in tasks {
        let rows = task::rows(task.as_ref(), &subject, || progress.advance(1))?;
        let values = kinds::values(task.as_ref(), &rows)?;
        let (settings, about) = (task.settings(), task.about());
        let mut found = MeasuredTask { settings, about, rows, repetition: Clusters::new() };
        if found.continues_prompts() {
            found.repetition = repetition::clusters(&found.rows, &loaded.encoder)?;
            if !found.is_sampled() {
                scored(&found.rows)?;
            }
        }
        let reported = values.into_iter().filter(|(id, _)| found.reports(id));
        let sampled = found.is_sampled();
        measured.figures.extend(
            reported.map(|(id, value)| (if sampled { sampled_id(&id) } else { id }, value)),
        );
        measured.tasks.push(found);
    }
    progress.finish();
    Ok(measured)
}

/// Errors if there was something to score and nothing could be.
fn scored(rows: &[Row]) -> Result<()> {
    let why = rows.iter().find_map(|row| row.get("failed").and_then(Value::as_str));
    match why.filter(|_| !rows.iter().any(|row| row.contains_key("score"))) {
        Some(why) => bail!("no continuation could be scored: {why}"),
        None => Ok(()),
    }
}
