//! Perplexity. Protocol `paper`: the text encoded once, without BOS, windows of 1,024 tokens (or the model's context if
//! that is smaller) without overlap; exp(total nats / predicted tokens). Protocol `lm-eval`: each document apart, its
//! first window begun with the end-of-text token, every token predicted once; a word and a byte perplexity of the text
//! as it was before it was detokenized.

use anyhow::Result;
use regex::Regex;
use serde::Serialize;
use serde_json::{Value, json};

use super::task::{Figure, Kind, Row, Subject, Task, number, uncounted};
use crate::Nats;
use crate::bail_input;
use crate::model::Model;
use crate::model::weights::{View, Who};
use crate::tokens::{Batch, Encoder, LossOn};

/// A perplexity and what it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    pub value: f64,
    pub nats_per_token: Nats,
    pub window: usize,
    /// Predicted tokens: the first of each window is not.
    pub tokens: usize,
}

const PAPER_FIGURES: &[Figure] = &[Figure {
    id: "ppl",
    name: "perplexity",
    unit: "",
    of: |s| (s[0] / s[1]).exp(),
    digits: 2,
    less_is_better: true,
}];

pub const PAPER: Kind = Kind {
    task: "ppl",
    all: PAPER_FIGURES,
    figures: |_| PAPER_FIGURES,
    clusters: |_, rows| {
        rows.iter().map(|row| Ok(vec![number(row, "nats")?, number(row, "tokens")?])).collect()
    },
    counts: uncounted,
};

const LM_EVAL_FIGURES: &[Figure] = &[
    Figure {
        id: "word_ppl",
        name: "word perplexity",
        unit: "",
        of: |s| (s[0] / s[1]).exp(),
        digits: 2,
        less_is_better: true,
    },
    Figure {
        id: "byte_ppl",
        name: "byte perplexity",
        unit: "",
        of: |s| (s[0] / s[2]).exp(),
        digits: 4,
        less_is_better: true,
    },
    Figure {
        id: "bits_per_byte",
        name: "bits per byte",
        unit: "",
        of: |s| s[0] / s[2] / std::f64::consts::LN_2,
        digits: 4,
        less_is_better: true,
    },
];

pub const LM_EVAL: Kind = Kind {
    task: "ppl-lm-eval",
    all: LM_EVAL_FIGURES,
    figures: |_| LM_EVAL_FIGURES,
    clusters: |_, rows| {
        let sums = |row: &Row| -> Result<Vec<f64>> {
            Ok(vec![number(row, "nats")?, number(row, "words")?, number(row, "bytes")?])
        };
        rows.iter().map(sums).collect()
    },
    counts: uncounted,
};

/// Tokens of a window of protocol `paper`.
pub fn window(model: &Model) -> usize {
    model.sizes().context.min(1024)
}

/// Windows that go together, so that a small context does not mean small matrix products.
fn together(window: usize) -> usize {
    (1024 / window).max(1)
}

/// Nats and predicted tokens of each window of some ids.
fn windows(model: &Model, view: &View, ids: &[u32]) -> Result<Vec<(f64, usize)>> {
    let batch = Batch::new(ids.chunks(window(model)).map(|w| (&w[..0], w)), LossOn::All);
    if batch.rows.is_empty() {
        return Ok(vec![(0.0, 0); batch.counts.len()]);
    }
    let h = model.hidden(view, &batch.packed)?;
    let logp = model.token_logp(view, &h, &batch.rows, &batch.targets)?.to_vec1::<f32>()?;
    let mut logp = logp.as_slice();
    Ok(batch
        .counts
        .iter()
        .map(|&count| {
            let (own, rest) = logp.split_at(count);
            logp = rest;
            (-own.iter().map(|x| f64::from(*x)).sum::<f64>(), count)
        })
        .collect())
}

/// Perplexity (protocol `paper`) of a text in tokens. Errors (bad input) if it is shorter than two tokens.
pub fn perplexity(model: &Model, view: &View, ids: &[u32]) -> Result<Perplexity> {
    let window = window(model);
    let (mut nats, mut tokens) = (0f64, 0usize);
    for ids in ids.chunks(window * together(window)) {
        for (own, count) in windows(model, view, ids)? {
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

/// A text whose perplexity is measured: its documents, or one.
pub struct Corpus {
    pub name: String,
    pub documents: Vec<String>,
    /// Whether the one document is a file as it stands, which may hold many.
    pub is_file: bool,
}

impl Corpus {
    /// The whole text: documents joined with two newlines.
    pub fn text(&self) -> String {
        self.documents.join("\n\n")
    }
}

/// Protocol `paper` as a task.
pub struct Paper {
    name: String,
    ids: Vec<u32>,
    window: usize,
}

impl Paper {
    /// Errors (bad input) if the text is shorter than a window: its figure would not be that of the protocol.
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

    /// A text in tokens, however short.
    pub fn of(name: &str, ids: &[u32], model: &Model) -> Self {
        Self { name: name.into(), ids: ids.to_vec(), window: window(model) }
    }

    fn unit_tokens(&self) -> usize {
        self.window * together(self.window)
    }
}

impl Task for Paper {
    fn name(&self) -> String {
        format!("ppl-{}", self.name)
    }

    fn settings(&self) -> Value {
        let bytes: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        json!({"task": PAPER.task, "of": self.name, "window": self.window, "tokens": self.ids.len(),
               "ids_sha256": crate::base::files::hash_bytes(&bytes)})
    }

    fn about(&self) -> String {
        let predicted = self.ids.len() - self.ids.len().div_ceil(self.window);
        format!(
            "protocol paper: {} encoded once, no BOS, windows of {} tokens without overlap; {predicted} predicted tokens",
            self.name, self.window
        )
    }

    fn units(&self) -> usize {
        self.ids.len().div_ceil(self.unit_tokens())
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let view = subject.weights.frozen(Who::Patient)?;
        let begin = unit * self.unit_tokens();
        let ids = &self.ids[begin..(begin + self.unit_tokens()).min(self.ids.len())];
        let first = unit * together(self.window);
        let rows = windows(subject.model, &view, ids)?.into_iter().enumerate();
        Ok(rows
            .map(|(i, (nats, tokens))| {
                Row::from_iter([
                    ("row".to_owned(), (first + i).into()),
                    ("nats".to_owned(), nats.into()),
                    ("tokens".to_owned(), tokens.into()),
                ])
            })
            .collect())
    }
}

/// Protocol `lm-eval` (its task `wikitext`) as a task.
pub struct Rolling {
    name: String,
    documents: Vec<Document>,
    /// The token before a document.
    prefix: u32,
    context: usize,
}

struct Document {
    ids: Vec<u32>,
    /// Of the text before it was detokenized.
    words: usize,
    bytes: usize,
}

impl Rolling {
    pub fn new(corpus: &Corpus, model: &Model, encoder: &Encoder, prefix: u32) -> Result<Self> {
        let space = Regex::new(r"[\s\x1c-\x1f]+")?;
        let detokenizer = Detokenizer::new()?;
        let pages = match corpus.documents.as_slice() {
            [whole] if corpus.is_file => pages(whole),
            documents => documents.to_vec(),
        };
        let mut documents = Vec::with_capacity(pages.len());
        for page in &pages {
            let ids = encoder.encode(&detokenizer.apply(page), false)?;
            documents.push(Document { ids, words: space.split(page).count(), bytes: page.len() });
        }
        if documents.iter().all(|d| d.ids.is_empty()) {
            bail_input!("--ppl {}: no document has a token", corpus.name);
        }
        Ok(Self { name: corpus.name.clone(), documents, prefix, context: model.sizes().context })
    }
}

/// (context, predicted) ranges over [prefix] + ids: windows of `context` inputs that predict every token once. All but
/// the last predict as many as they hold; the last one looks further back instead of being short.
fn rolling(length: usize, context: usize) -> Vec<(usize, usize, usize)> {
    let mut windows = Vec::new();
    let mut done = 0;
    while done < length {
        let end = (done + context).min(length);
        // In [prefix] + ids the inputs of predictions done..end are at done..end; a full window's begins at its first.
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
        let ids = self.documents.iter().flat_map(|d| d.ids.iter().flat_map(|id| id.to_le_bytes()));
        json!({"task": LM_EVAL.task, "context": self.context, "documents": self.documents.len(),
               "ids_sha256": crate::base::files::hash_bytes(&ids.collect::<Vec<u8>>())})
    }

    fn about(&self) -> String {
        format!(
            "protocol lm-eval: {} documents of {}, rolling windows of {} tokens, every token predicted once",
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
            // The last prediction has no input of its own.
            let window = &ids[begin..to];
            let rows: Vec<u32> = (from - begin..to - begin).map(|row| row as u32).collect();
            let packed = crate::tokens::Packed::new([window]);
            let h = subject.model.hidden(&view, &packed)?;
            let logp = subject
                .model
                .token_logp(&view, &h, &rows, &document.ids[from..to])?
                .to_vec1::<f32>()?;
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

/// The pages of a WikiText file as EleutherAI/wikitext_document_level has them: each begins with a heading of the first
/// level (` = Title = `) and ends before the line break before the next one.
fn pages(text: &str) -> Vec<String> {
    let is_title = |line: &str| {
        let flat = line.replace("= = =", "===").replace("= =", "==");
        flat.trim().starts_with("= ") && flat.trim().ends_with(" =")
    };
    let mut pages: Vec<String> = Vec::new();
    for line in text.split('\n') {
        match pages.last_mut() {
            Some(page) if !is_title(line) => {
                page.push('\n');
                page.push_str(line);
            }
            _ => pages.push(line.to_owned()),
        }
    }
    pages.retain(|page| !page.trim().is_empty());
    pages
}

/// WikiText's tokenization taken back, as lm-eval's `wikitext_detokenizer` does, replacement by replacement.
struct Detokenizer {
    /// `/' [0-9]/` becomes `/'[0-9]/` as it stands there: meant for another language's notation.
    slashes: Regex,
    brackets: Vec<(Regex, &'static str)>,
}

impl Detokenizer {
    fn new() -> Result<Self> {
        let brackets = [
            (r"\(\s*([^\)]*?)\s*\)", "($1)"),
            (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
            (r"\{\s*([^}]*?)\s*\}", "{$1}"),
            ("\"\\s*([^\"]*?)\\s*\"", "\"$1\""),
            (r"'\s*([^']*?)\s*'", "'$1'"),
        ];
        // What Python calls space.
        let regex = |r: &str| Regex::new(&r.replace(r"\s", r"[\s\x1c-\x1f]"));
        let brackets =
            brackets.into_iter().map(|(r, to)| Ok((regex(r)?, to))).collect::<Result<_>>()?;
        Ok(Self { slashes: Regex::new("/' [0-9]/")?, brackets })
    }

    fn apply(&self, page: &str) -> String {
        const FIRST: &[(&str, &str)] = &[
            (" @-@ ", "-"),
            (" @,@ ", ","),
            (" @.@ ", "."),
            (" : ", ": "),
            (" ; ", "; "),
            (" . ", ". "),
            (" ! ", "! "),
            (" ? ", "? "),
            (" , ", ", "),
        ];
        const LAST: &[(&str, &str)] = &[
            ("= = = =", "===="),
            ("= = =", "==="),
            ("= =", "=="),
            (" ° ", "°"),
            (" \n", "\n"),
            ("\n ", "\n"),
            (" N ", " 1 "),
            (" 's", "'s"),
        ];
        let text = page.replace("s '", "s'");
        let mut text = self.slashes.replace_all(&text, regex::NoExpand("/'[0-9]/")).into_owned();
        FIRST.iter().for_each(|(from, to)| text = text.replace(from, to));
        for (regex, to) in &self.brackets {
            text = regex.replace_all(&text, *to).into_owned();
        }
        LAST.iter().for_each(|(from, to)| text = text.replace(from, to));
        text
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

    /// Expected: lm-eval 0.4's `wikitext_detokenizer` on the same page.
    #[test]
    fn pages_are_detokenized() {
        let text = " \n = Robert <unk> = \n \n He ( an actor ) said : \" no \" , in 2 @,@ 000 . /' 5/ = = Career = = \n";
        let found = pages(&format!("{text} = Second = \n more \n"));
        assert_eq!(found.len(), 2);
        let page = Detokenizer::new().expect("regexes").apply(&found[0]);
        let first =
            " = Robert <unk> =\n\nHe (an actor) said: \"no\", in 2,000. /'[0-9]/ == Career == ";
        assert_eq!(page, first);
        assert_eq!(found[1], " = Second = \n more \n");
    }
}
