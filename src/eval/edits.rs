//! *Edits* are rows that say what a repair of wrong answers is worth: whether the model says the
//! targets, also when it is asked in other words, and whether it still says elsewhere what it said
//! before.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::task::{Clusters, Figure, Row, Subject, Task, TaskKind, hash_ids, items};
use crate::data::{Edit, EditKind};
use crate::model::generate::{Ends, Generation, Job, Sampling, generate};
use crate::model::weights::Who;
use crate::tokens::{Batch, Encoder, LossOn, TokenEdit};

/// The order of kinds in a cluster. For each kind a cluster holds three sums: its rows, its targets
/// said under teacher forcing, and its targets generated.
const KINDS: [EditKind; 3] = [EditKind::Failure, EditKind::Generalization, EditKind::Specificity];

const fn share(id: &'static str, name: &'static str, from_sums: fn(&[f64]) -> f64) -> Figure {
    Figure { id, name, unit: "%", from_sums, digits: 1, less_is_better: false }
}

const FIGURES: &[Figure] = &[
    share("edits_forced", "targets said, teacher forcing", |s| 100.0 * s[1] / s[0]),
    share("edits_generated", "targets said, generated", |s| 100.0 * s[2] / s[0]),
    share("generalization_forced", "generalization, teacher forcing", |s| 100.0 * s[4] / s[3]),
    share("generalization_generated", "generalization, generated", |s| 100.0 * s[5] / s[3]),
    share("specificity_forced", "specificity, teacher forcing", |s| 100.0 * s[7] / s[6]),
    share("specificity_generated", "specificity, generated", |s| 100.0 * s[8] / s[6]),
];

pub const KIND: TaskKind = TaskKind {
    task: "edits",
    all: FIGURES,
    figures: |_| FIGURES,
    clusters,
    counts: |rows| {
        let count =
            |kind: &str| rows.iter().filter(|row| row.get("kind") == Some(&kind.into())).count();
        ["failure", "generalization", "specificity"].map(|kind| (kind, count(kind))).to_vec()
    },
};

fn clusters(_: &Value, rows: &[Row]) -> Result<Clusters> {
    rows.iter()
        .map(|row| {
            let kind: EditKind =
                serde_json::from_value(row.get("kind").cloned().unwrap_or_default())
                    .context("a row without its kind")?;
            let flag = |key: &str| {
                let flag = row.get(key).and_then(Value::as_bool);
                flag.map(|flag| f64::from(u8::from(flag)))
                    .with_context(|| format!("a row without {key:?}"))
            };
            let own = [1.0, flag("forced")?, flag("generated")?];
            Ok(KINDS.iter().flat_map(|k| own.map(|x| if *k == kind { x } else { 0.0 })).collect())
        })
        .collect()
}

/// Rows in a unit.
const UNIT: usize = 16;

/// The task of `eval --edits`. Its figures are shares of the rows of one kind.
pub struct Edits {
    edits: Vec<(EditKind, TokenEdit)>,
    name: String,
}

impl Edits {
    /// Errors (bad input) on a row that has no tokens, or more than the context holds.
    pub fn new(edits: &[Edit], name: &str, encoder: &Encoder, context: usize) -> Result<Self> {
        let tokens = encoder.edits(edits, context)?;
        Ok(Self {
            edits: edits.iter().map(|edit| edit.kind).zip(tokens).collect(),
            name: name.into(),
        })
    }

    fn count(&self, kind: EditKind) -> usize {
        self.edits.iter().filter(|(k, _)| *k == kind).count()
    }
}

impl Task for Edits {
    fn name(&self) -> String {
        KIND.task.into()
    }

    fn settings(&self) -> Value {
        // The lengths belong to the hash, because the same tokens can be split into prompt and
        // target at another place.
        let ids = self.edits.iter().flat_map(|(kind, edit)| {
            let lengths = [*kind as u32, edit.prompt.len() as u32, edit.target.len() as u32];
            lengths.into_iter().chain(edit.prompt.iter().chain(&edit.target).copied())
        });
        json!({"task": KIND.task, "rows": self.edits.len(), "ids_sha256": hash_ids(ids)})
    }

    fn about(&self) -> String {
        format!(
            "{}: {} failures, {} rows of generalization, {} of specificity; said: every token of \
             the target is the likeliest one",
            self.name,
            self.count(EditKind::Failure),
            self.count(EditKind::Generalization),
            self.count(EditKind::Specificity)
        )
    }

    fn units(&self) -> usize {
        self.edits.len().div_ceil(UNIT)
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let view = subject.weights.frozen(Who::Patient)?;
        let (first, edits) = items(&self.edits, UNIT, unit);
        let sequences = edits.iter().map(|(_, e)| (e.prompt.as_slice(), e.target.as_slice()));
        let batch = Batch::new(sequences, LossOn::Response);
        let h = subject.model.hidden(&view, &batch.packed)?;
        let likeliest = subject.model.likeliest(&view, &h, &batch.rows)?;
        let jobs: Vec<Job> =
            edits.iter().map(|(_, edit)| Job::new(edit.prompt.clone(), 0, 0)).collect();
        let longest = edits.iter().map(|(_, edit)| edit.target.len()).max().unwrap_or(0);
        // No token ends a text here. What follows the target does not matter, and the target itself
        // may hold the end token.
        let greedy = Generation {
            sampling: Sampling::Greedy,
            max_new_tokens: longest,
            ends: Ends::default(),
            seed: 0,
            at_a_time: usize::MAX,
        };
        let generated = generate(subject.model, &view, &jobs, &greedy)?;
        let mut at = 0;
        let mut rows = Vec::with_capacity(edits.len());
        for (index, ((kind, edit), generated)) in edits.iter().zip(generated).enumerate() {
            let own = at..at + edit.target.len();
            at = own.end;
            let generated = &generated[..edit.target.len().min(generated.len())];
            rows.push(Row::from_iter([
                ("row".to_owned(), (first + index).into()),
                ("kind".to_owned(), serde_json::to_value(kind)?),
                ("forced".to_owned(), (likeliest[own] == edit.target).into()),
                ("generated".to_owned(), (generated == edit.target).into()),
                ("prompt".to_owned(), subject.encoder.decode(&edit.prompt)?.into()),
                (
                    "target".to_owned(),
                    subject.encoder.decode_after(&edit.prompt, &edit.target)?.into(),
                ),
                (
                    "continuation".to_owned(),
                    subject.encoder.decode_after(&edit.prompt, generated)?.into(),
                ),
            ]));
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_figures() {
        let row = |kind: &str, forced: bool, generated: bool| {
            Row::from_iter([
                ("kind".to_owned(), kind.into()),
                ("forced".to_owned(), forced.into()),
                ("generated".to_owned(), generated.into()),
            ])
        };
        let rows = [
            row("failure", true, true),
            row("failure", true, false),
            row("specificity", false, false),
        ];
        let clusters = (KIND.clusters)(&Value::Null, &rows).expect("clusters");
        let sums: Vec<f64> = (0..9).map(|i| clusters.iter().map(|c| c[i]).sum()).collect();
        let figures: Vec<f64> =
            (KIND.figures)(&Value::Null).iter().map(|f| (f.from_sums)(&sums)).collect();
        assert_eq!(figures[..2], [100.0, 50.0]);
        assert!(figures[2].is_nan() && figures[3].is_nan(), "no row of generalization");
        assert_eq!(figures[4..], [0.0, 0.0]);
        assert!((KIND.clusters)(&Value::Null, &[row("other", true, true)]).is_err());
    }
}
