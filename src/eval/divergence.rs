//! *Divergence* is what a change cost elsewhere: KL(base ‖ model) on normal text, and how often
//! both models find the same next token likeliest.

use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::task::{Figure, Row, Subject, Task, TaskKind, hash_ids, items, no_counts, numbers};
use crate::model::Model;
use crate::model::finite::finite;
use crate::model::weights::{Weights, Who};
use crate::tokens::Packed;

const FIGURES: &[Figure] = &[
    Figure {
        id: "kl",
        name: "KL from the base",
        unit: "nats a token",
        from_sums: |s| s[0] / s[1],
        digits: 4,
        less_is_better: true,
    },
    Figure {
        id: "same_token",
        name: "same likeliest token",
        unit: "%",
        from_sums: |s| 100.0 * s[2] / s[1],
        digits: 2,
        less_is_better: false,
    },
];

pub const KIND: TaskKind = TaskKind {
    task: "kl",
    all: FIGURES,
    figures: |_| FIGURES,
    clusters: |_, rows| numbers(rows, &["nats", "tokens", "same"]),
    counts: no_counts,
};

/// Texts in a unit.
const UNIT: usize = 8;
/// Positions whose logits are in memory at a time.
const CHUNK: usize = 64;

/// The model that the measured one is compared with.
pub enum Base<'a> {
    /// Another model. `hash` is the SHA-256 of its weights.
    Model { model: &'a Model, weights: &'a Weights, hash: String },
    /// The measured model before its repair.
    Reference,
}

/// The task of `eval --kl`, and of a repair on its held-back normal texts. Its figures are means
/// over all tokens of all texts.
pub struct Divergence<'a> {
    pub base: Base<'a>,
    /// The normal texts as token ids.
    pub texts: Vec<Vec<u32>>,
    pub texts_name: String,
}

/// KL(p ‖ q) in nats of the distributions with these logits (V), and whether both have the same
/// likeliest token.
fn compare(p: &[f32], q: &[f32]) -> (f64, bool) {
    let log_sum = |x: &[f32]| {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(top) + x.iter().map(|v| f64::from((v - top).exp())).sum::<f64>().ln()
    };
    let (log_p, log_q) = (log_sum(p), log_sum(q));
    let shift = log_q - log_p;
    let nats = p
        .iter()
        .zip(q)
        .map(|(p, q)| (f64::from(*p) - log_p).exp() * (f64::from(p - q) + shift))
        .sum();
    let best = |x: &[f32]| {
        x.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).map(|(i, _)| i)
    };
    (nats, best(p) == best(q))
}

impl Task for Divergence<'_> {
    fn name(&self) -> String {
        KIND.task.into()
    }

    fn settings(&self) -> Value {
        let base = match &self.base {
            Base::Model { hash, .. } => hash,
            Base::Reference => "the reference",
        };
        json!({"task": KIND.task, "base": base, "texts": self.texts.len(),
               "ids_sha256": hash_ids(self.texts.iter().flatten().copied())})
    }

    fn about(&self) -> String {
        let tokens: usize = self.texts.iter().map(Vec::len).sum();
        format!(
            "KL(base ‖ model) over {tokens} tokens of {} normal texts ({})",
            self.texts.len(),
            self.texts_name
        )
    }

    fn units(&self) -> usize {
        self.texts.len().div_ceil(UNIT)
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let view = subject.weights.frozen(Who::Patient)?;
        let (base_model, base) = match self.base {
            Base::Model { model, weights, .. } => (model, weights.frozen(Who::Patient)?),
            Base::Reference => (subject.model, subject.weights.frozen(Who::Reference)?),
        };
        let (first, texts) = items(&self.texts, UNIT, unit);
        let packed = Packed::new(texts.iter().map(Vec::as_slice));
        let (h, base_h) =
            (subject.model.hidden(&view, &packed)?, base_model.hidden(&base, &packed)?);
        let mut found = Vec::with_capacity(packed.ids.len());
        for begin in (0..packed.ids.len()).step_by(CHUNK) {
            let rows = CHUNK.min(packed.ids.len() - begin);
            let logits = |model: &Model, view, h: &Tensor| -> Result<Vec<Vec<f32>>> {
                Ok(model
                    .logits(view, &h.narrow(0, begin, rows)?.contiguous()?)?
                    .to_vec2::<f32>()?)
            };
            let (p, q) = (logits(base_model, &base, &base_h)?, logits(subject.model, &view, &h)?);
            p.iter().try_for_each(|row| finite("the logits of the base", row))?;
            q.iter().try_for_each(|row| finite("the model's logits", row))?;
            found.par_extend(p.par_iter().zip(&q).map(|(p, q)| compare(p, q)));
        }
        let rows = packed.sequences.iter().enumerate();
        Ok(rows
            .map(|(index, sequence)| {
                let own = &found[sequence.rows.clone()];
                Row::from_iter([
                    ("row".to_owned(), (first + index).into()),
                    ("nats".to_owned(), own.iter().map(|f| f.0).sum::<f64>().into()),
                    ("tokens".to_owned(), own.len().into()),
                    ("same".to_owned(), own.iter().filter(|f| f.1).count().into()),
                ])
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KL((1/2, 1/4, 1/4) ‖ (1/4, 1/2, 1/4)) = ½·ln 2 − ¼·ln 2.
    #[test]
    fn divergence_of_known_distributions() {
        let p = [0.5f32, 0.25, 0.25].map(|x| x.ln() + 3.0);
        let q = [0.25f32, 0.5, 0.25].map(|x| x.ln() - 1.0);
        let (nats, same) = compare(&p, &q);
        assert!((nats - 0.25 * 2f64.ln()).abs() < 1e-6, "{nats}");
        assert!(!same);
        assert_eq!(compare(&p, &p), (0.0, true));
    }
}
