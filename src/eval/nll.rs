//! *NLL* is measured on responses after their prompts: on the chosen or the rejected responses of
//! held-back pairs, or on targets.

use anyhow::Result;
use serde_json::{Value, json};

use super::task::{Figure, Row, Subject, Task, TaskKind, hash_ids, items, no_counts, numbers};
use crate::Nats;
use crate::model::Model;
use crate::model::finite::finite;
use crate::model::weights::{View, Who};
use crate::tokens::{Batch, LossOn};

const fn nll(id: &'static str, name: &'static str, less_is_better: bool) -> Figure {
    let from_sums = |s: &[f64]| s[0] / s[1];
    Figure { id, name, unit: "nats a token", from_sums, digits: 3, less_is_better }
}

const FIGURES: &[Figure] =
    &[nll("nll_chosen", "NLL of chosen", true), nll("nll_rejected", "NLL of rejected", false)];

pub const KIND: TaskKind = TaskKind {
    task: "nll",
    all: FIGURES,
    figures: |settings| if settings["of"] == "chosen" { &FIGURES[..1] } else { &FIGURES[1..] },
    clusters: |_, rows| numbers(rows, &["nats", "tokens"]),
    counts: no_counts,
};

/// Sequences in a unit.
const UNIT: usize = 8;

/// Which responses are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Responses {
    Chosen,
    Rejected,
}

/// The task of a repair on its held-back pairs, or on its targets. Its figure is the mean NLL in
/// nats over all counted tokens.
pub struct Nll {
    pub responses: Responses,
    /// Prompt and response as token ids.
    pub sequences: Vec<(Vec<u32>, Vec<u32>)>,
    pub loss_on: LossOn,
}

/// NLL in nats and number of counted tokens of each sequence of a batch.
pub fn sequence_nll(model: &Model, view: &View, batch: &Batch) -> Result<Vec<(Nats, usize)>> {
    if batch.rows.is_empty() {
        return Ok(vec![(0.0, 0); batch.counts.len()]);
    }
    let h = model.hidden(view, &batch.packed)?;
    let logp = model.token_logp(view, &h, &batch.rows, &batch.targets)?.to_vec1::<f32>()?;
    finite("the model's log-probabilities", &logp)?;
    let mut logp = logp.into_iter().map(f64::from);
    let sequence = |&count: &usize| (-logp.by_ref().take(count).sum::<f64>(), count);
    Ok(batch.counts.iter().map(sequence).collect())
}

/// A row for each sequence, numbered from `first`.
pub fn nll_rows(first: usize, sequences: Vec<(Nats, usize)>) -> Vec<Row> {
    let row = |(index, (nats, tokens)): (usize, (Nats, usize))| {
        Row::from_iter([
            ("row".to_owned(), (first + index).into()),
            ("nats".to_owned(), nats.into()),
            ("tokens".to_owned(), tokens.into()),
        ])
    };
    sequences.into_iter().enumerate().map(row).collect()
}

impl Nll {
    fn of(&self) -> &'static str {
        match self.responses {
            Responses::Chosen => "chosen",
            Responses::Rejected => "rejected",
        }
    }
}

impl Task for Nll {
    fn name(&self) -> String {
        format!("nll-{}", self.of())
    }

    fn settings(&self) -> Value {
        let ids =
            self.sequences.iter().flat_map(|(prompt, response)| prompt.iter().chain(response));
        json!({"task": KIND.task, "of": self.of(), "sequences": self.sequences.len(),
               "loss_on": self.loss_on, "ids_sha256": hash_ids(ids.copied())})
    }

    fn about(&self) -> String {
        format!("NLL of {} {} responses", self.sequences.len(), self.of())
    }

    fn units(&self) -> usize {
        self.sequences.len().div_ceil(UNIT)
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let (first, sequences) = items(&self.sequences, UNIT, unit);
        let parts = sequences.iter().map(|(prompt, response)| (&prompt[..], &response[..]));
        let batch = Batch::new(parts, self.loss_on);
        let view = subject.weights.frozen(Who::Patient)?;
        Ok(nll_rows(first, sequence_nll(subject.model, &view, &batch)?))
    }
}
