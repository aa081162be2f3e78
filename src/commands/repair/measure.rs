//! What is measured before and after: the tasks of `eval`.

use anyhow::{Result, bail};
use serde_json::Value;

use super::Loaded;
use crate::commands::eval::subject;
use crate::eval::Figures;
use crate::eval::kinds;
use crate::eval::task::{self, Row, Task};
use crate::eval::toxicity;
use crate::model::weights::Weights;

/// What the tasks came to.
#[derive(Default)]
pub struct Measured {
    pub figures: Figures,
    /// How the prompts were continued, where they were.
    pub continuations: Vec<Row>,
}

/// Measures a model. Errors if the user asks to stop, or if no continuation could be scored.
pub fn measure(
    tasks: Vec<Box<dyn Task + '_>>,
    loaded: &Loaded,
    weights: &Weights,
) -> Result<Measured> {
    let subject = subject(loaded, weights);
    let mut measured = Measured::default();
    for task in tasks {
        let rows = task::rows(task.as_ref(), &subject)?;
        measured.figures.extend(kinds::values(task.as_ref(), &rows)?);
        if task.settings()["task"] == toxicity::KIND.task {
            scored(&rows)?;
            measured.continuations = rows;
        }
    }
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
