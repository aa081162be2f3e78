//! *Perplexity* by the protocol `paper`: exp(total nats / predicted tokens). The text is encoded
//! once, without BOS, and read in windows without overlap. A window has 1,024 tokens, or as many as
//! the model's context if that is smaller.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::nll::{nll_rows, sequence_nll};
use super::task::{Figure, Row, Subject, Task, TaskKind, hash_ids, items, no_counts, numbers};
use crate::Nats;
use crate::bail_input;
use crate::model::Model;
use crate::model::weights::{View, Who};
use crate::tokens::{Batch, Encoder, LossOn};

/// A perplexity, and what it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    pub value: f64,
    pub nats_per_token: Nats,
    /// Tokens of a window.
    pub window: usize,
    /// Predicted tokens. The first token of a window is not predicted.
    pub tokens: usize,
}

const FIGURES: &[Figure] = &[Figure {
    id: "ppl",
    name: "perplexity",
    unit: "",
    from_sums: |s| (s[0] / s[1]).exp(),
    digits: 2,
    less_is_better: true,
}];

pub const KIND: TaskKind = TaskKind {
    task: "ppl",
    all: FIGURES,
    figures: |_| FIGURES,
    clusters: |_, rows| numbers(rows, &["nats", "tokens"]),
    counts: no_counts,
};

/// Tokens of a window.
pub fn window(model: &Model) -> usize {
    model.sizes().context.min(1024)
}

/// Tokens in a unit: several windows, so that a small context does not mean small matrix products.
fn unit_tokens(window: usize) -> usize {
    window * (1024 / window).max(1)
}

/// Nats and number of predicted tokens of each window of a unit.
fn windows(model: &Model, view: &View, unit: &[u32]) -> Result<Vec<(Nats, usize)>> {
    let windows = unit.chunks(window(model)).map(|w| (&w[..0], w));
    sequence_nll(model, view, &Batch::new(windows, LossOn::All))
}

/// The perplexity of a text, which is given as token ids. Errors (bad input) if it has fewer than
/// two tokens.
pub fn perplexity(model: &Model, view: &View, ids: &[u32]) -> Result<Perplexity> {
    let window = window(model);
    let (mut nats, mut tokens) = (0f64, 0usize);
    for unit in ids.chunks(unit_tokens(window)) {
        for (own, count) in windows(model, view, unit)? {
            nats += own;
            tokens += count;
        }
    }
    if tokens == 0 {
        bail_input!("a text of {} tokens has no perplexity", ids.len());
    }
    let nats_per_token = nats / tokens as f64;
    Ok(Perplexity { value: nats_per_token.exp(), nats_per_token, window, tokens })
}

/// A text on which perplexity is measured.
pub struct Corpus {
    pub name: String,
    /// The documents of the text, or one document with all of it.
    pub documents: Vec<String>,
    /// Whether the text is a whole file as it stands, which may hold many documents.
    pub is_file: bool,
}

impl Corpus {
    /// The whole text: the documents, joined with two newlines.
    pub fn text(&self) -> String {
        self.documents.join("\n\n")
    }
}

/// The task of `eval --ppl`, and of a repair on its text.
pub struct Paper {
    name: String,
    ids: Vec<u32>,
    window: usize,
}

impl Paper {
    /// Errors (bad input) if the text is shorter than a window, because its figure would not be
    /// the one that the protocol means.
    pub fn new(corpus: &Corpus, model: &Model, encoder: &Encoder) -> Result<Self> {
        let ids = encoder.encode(&corpus.text(), false)?;
        let window = window(model);
        if ids.len() < window {
            bail_input!(
                "--ppl {}: {} tokens are fewer than a window of {window}",
                corpus.name,
                ids.len()
            );
        }
        Ok(Self { name: corpus.name.clone(), ids, window })
    }

    /// The task on a text of any length, which is given as token ids.
    pub fn of(name: &str, ids: &[u32], model: &Model) -> Self {
        Self { name: name.into(), ids: ids.to_vec(), window: window(model) }
    }
}

impl Task for Paper {
    fn name(&self) -> String {
        format!("ppl-{}", self.name)
    }

    fn settings(&self) -> Value {
        json!({"task": KIND.task, "of": self.name, "window": self.window,
               "tokens": self.ids.len(), "ids_sha256": hash_ids(self.ids.iter().copied())})
    }

    fn about(&self) -> String {
        let predicted = self.ids.len() - self.ids.len().div_ceil(self.window);
        format!(
            "protocol paper: {} encoded once, no BOS, windows of {} tokens without overlap; \
             {predicted} predicted tokens",
            self.name, self.window
        )
    }

    fn units(&self) -> usize {
        self.ids.len().div_ceil(unit_tokens(self.window))
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let view = subject.weights.frozen(Who::Patient)?;
        let (first, ids) = items(&self.ids, unit_tokens(self.window), unit);
        Ok(nll_rows(first / self.window, windows(subject.model, &view, ids)?))
    }
}
