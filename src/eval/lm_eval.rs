//! *Perplexity* by the protocol `lm-eval`, as in its task `wikitext`. Each document is read apart,
//! its first window begins with the tokenizer's `bos_token` (or else its `eos_token`), and every
//! token is predicted once. The nats are divided by the words and by the bytes of the text as it
//! was before it was detokenized.
//!
//! A tokenizer that begins texts with a special token does so here, too, so that lm-eval predicts
//! that token after its own prefix. We follow it.

use anyhow::Result;
use regex::Regex;
use serde_json::{Value, json};

use super::perplexity::Corpus;
use super::task::{Figure, Row, Subject, Task, TaskKind, hash_ids, no_counts, numbers};
use super::wikitext::{Detokenizer, pages};
use crate::bail_input;
use crate::model::Model;
use crate::model::finite::finite;
use crate::model::weights::Who;
use crate::tokens::{Encoder, Packed};

const FIGURES: &[Figure] = &[
    Figure {
        id: "word_ppl",
        name: "word perplexity",
        unit: "",
        from_sums: |s| (s[0] / s[1]).exp(),
        digits: 2,
        less_is_better: true,
    },
    Figure {
        id: "byte_ppl",
        name: "byte perplexity",
        unit: "",
        from_sums: |s| (s[0] / s[2]).exp(),
        digits: 4,
        less_is_better: true,
    },
    Figure {
        id: "bits_per_byte",
        name: "bits per byte",
        unit: "",
        from_sums: |s| s[0] / s[2] / std::f64::consts::LN_2,
        digits: 4,
        less_is_better: true,
    },
];

pub const KIND: TaskKind = TaskKind {
    task: "ppl-lm-eval",
    all: FIGURES,
    figures: |_| FIGURES,
    clusters: |_, rows| numbers(rows, &["nats", "words", "bytes"]),
    counts: no_counts,
};

/// The token that lm-eval puts before what it measures, and how it encodes texts.
pub struct Prefix {
    pub id: u32,
    /// What a text begins with that has it already.
    text: String,
}

impl Prefix {
    pub fn new(id: u32, encoder: &Encoder) -> Result<Self> {
        Ok(Self { id, text: encoder.token(id)? })
    }

    /// Ids of a text as `HFLM.tok_encode` gives them: with the special tokens that the tokenizer
    /// puts around a text, unless the text begins with the prefix.
    pub fn encode(&self, encoder: &Encoder, text: &str) -> Result<Vec<u32>> {
        encoder.encode(text, !text.starts_with(&self.text))
    }
}

/// The task of `eval --ppl` with `--ppl-protocol lm-eval`.
pub struct Rolling {
    name: String,
    documents: Vec<Document>,
    /// The token that stands before each document.
    prefix: u32,
    context: usize,
}

struct Document {
    ids: Vec<u32>,
    /// Words of the text before it was detokenized.
    words: usize,
    /// Bytes of the text before it was detokenized.
    bytes: usize,
}

impl Rolling {
    /// Errors (bad input) if no document has a token.
    pub fn new(corpus: &Corpus, model: &Model, encoder: &Encoder, prefix: Prefix) -> Result<Self> {
        let space = Regex::new(r"[\s\x1c-\x1f]+")?;
        let detokenizer = Detokenizer::new()?;
        let pages = match corpus.documents.as_slice() {
            [whole] if corpus.is_file => pages(whole),
            documents => documents.to_vec(),
        };
        let mut documents = Vec::with_capacity(pages.len());
        for page in &pages {
            let ids = prefix.encode(encoder, &detokenizer.apply(page))?;
            documents.push(Document { ids, words: space.split(page).count(), bytes: page.len() });
        }
        if documents.iter().all(|d| d.ids.is_empty()) {
            bail_input!("--ppl {}: no document has a token", corpus.name);
        }
        let (name, prefix) = (corpus.name.clone(), prefix.id);
        Ok(Self { name, documents, prefix, context: model.sizes().context })
    }
}

/// Windows of at most `context` inputs that predict each of `length` tokens once, as (first input,
/// first predicted token, end of both). Inputs are counted in the prefix and the tokens after it,
/// so input `i` predicts token `i`. Every window but the last predicts as many tokens as it has
/// inputs. The last one begins further back instead of being short.
fn rolling(length: usize, context: usize) -> Vec<(usize, usize, usize)> {
    let mut windows = Vec::new();
    let mut done = 0;
    while done < length {
        let end = (done + context).min(length);
        let begin = if done == 0 { 0 } else { end - context };
        windows.push((begin, done, end));
        done = end;
    }
    windows
}

impl Task for Rolling {
    fn name(&self) -> String {
        format!("ppl-{}-lm-eval", self.name)
    }

    fn settings(&self) -> Value {
        let ids = self.documents.iter().flat_map(|document| document.ids.iter().copied());
        json!({"task": KIND.task, "context": self.context, "documents": self.documents.len(),
               "prefix": self.prefix, "ids_sha256": hash_ids(ids)})
    }

    fn about(&self) -> String {
        format!(
            "protocol lm-eval: {} documents of {}, rolling windows of {} tokens, every token \
             predicted once",
            self.documents.len(),
            self.name,
            self.context
        )
    }

    fn units(&self) -> usize {
        self.documents.len()
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let view = subject.weights.frozen(Who::Patient)?;
        let document = &self.documents[unit];
        let ids: Vec<u32> = [&[self.prefix], document.ids.as_slice()].concat();
        let mut nats = 0f64;
        for (begin, from, to) in rolling(document.ids.len(), self.context) {
            let window = &ids[begin..to];
            let rows: Vec<u32> = (from - begin..to - begin).map(|row| row as u32).collect();
            let packed = Packed::new([window]);
            let h = subject.model.hidden(&view, &packed)?;
            let logp = subject
                .model
                .token_logp(&view, &h, &rows, &document.ids[from..to])?
                .to_vec1::<f32>()?;
            finite("the model's log-probabilities", &logp)?;
            nats -= logp.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        Ok(vec![Row::from_iter([
            ("row".to_owned(), unit.into()),
            ("nats".to_owned(), nats.into()),
            ("tokens".to_owned(), document.ids.len().into()),
            ("words".to_owned(), document.words.into()),
            ("bytes".to_owned(), document.bytes.into()),
        ])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once_and_the_last_window_is_full() {
        assert_eq!(rolling(3, 4), [(0, 0, 3)]);
        assert_eq!(rolling(4, 4), [(0, 0, 4)]);
        assert_eq!(rolling(10, 4), [(0, 0, 4), (4, 4, 8), (6, 8, 10)]);
    }
}
