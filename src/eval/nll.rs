//! NLL of responses after their prompts: of the held-back pairs' chosen and rejected ones, or of
//! targets.

use anyhow::Result;
use serde_json::{Value, json};

use super::task::{Figure, Kind, Row, Subject, Task, number, uncounted};
use crate::base::files::hash_bytes;
use crate::model::weights::Who;
use crate::tokens::{Batch, LossOn};

const fn nll(id: &'static str, name: &'static str, less_is_better: bool) -> Figure {
    Figure { id, name, unit: "nats a token", of: |s| s[0] / s[1], digits: 3, less_is_better }
}

const FIGURES: &[Figure] =
    &[nll("nll_chosen", "NLL of chosen", true), nll("nll_rejected", "NLL of rejected", false)];

pub const KIND: Kind = Kind {
    task: "nll",
    all: FIGURES,
    figures: |settings| if settings["of"] == "chosen" { &FIGURES[..1] } else { &FIGURES[1..] },
    clusters: |_, rows| {
        rows.iter().map(|row| Ok(vec![number(row, "nats")?, number(row, "tokens")?])).collect()
    },
    counts: uncounted,
};

/// Sequences of a unit.
const TOGETHER: usize = 8;

/// Which responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Responses {
    Chosen,
    Rejected,
}

/// Mean NLL in nats over all counted tokens.
pub struct Nll {
    pub responses: Responses,
    /// Prompt and response in tokens.
    pub sequences: Vec<(Vec<u32>, Vec<u32>)>,
    pub loss_on: LossOn,
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
        let bytes: Vec<u8> = ids.flat_map(|id| id.to_le_bytes()).collect();
        json!({"task": KIND.task, "of": self.of(), "sequences": self.sequences.len(),
               "loss_on": self.loss_on, "ids_sha256": hash_bytes(&bytes)})
    }

    fn about(&self) -> String {
        format!("NLL of {} {} responses", self.sequences.len(), self.of())
    }

    fn units(&self) -> usize {
        self.sequences.len().div_ceil(TOGETHER)
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let first = unit * TOGETHER;
        let own = &self.sequences[first..(first + TOGETHER).min(self.sequences.len())];
        let slices = own.iter().map(|(prompt, response)| (prompt.as_slice(), response.as_slice()));
        let batch = Batch::new(slices, self.loss_on);
        let mut logp = Vec::new();
        if !batch.rows.is_empty() {
            let view = subject.weights.frozen(Who::Patient)?;
            let h = subject.model.hidden(&view, &batch.packed)?;
            let found = subject.model.token_logp(&view, &h, &batch.rows, &batch.targets)?;
            logp = found.to_vec1::<f32>()?;
        }
        let mut logp = logp.into_iter().map(f64::from);
        let row = |(index, count): (usize, &usize)| {
            let nats: f64 = -logp.by_ref().take(*count).sum::<f64>();
            Row::from_iter([
                ("row".to_owned(), (first + index).into()),
                ("nats".to_owned(), nats.into()),
                ("tokens".to_owned(), (*count).into()),
            ])
        };
        Ok(batch.counts.iter().enumerate().map(row).collect())
    }
}
