//! *Normal text*: what a model writes by itself, toxic texts left out. It stands in for the corpus that the model learned
//! from (Imtiaz et al.: unconditional nucleus sampling, p = 0.9, temperature 1). Kept by model, settings and seed.

use anyhow::Result;
use serde_json::{Value, json};

use super::ledger::{Ledger, Shard};
use super::task::{Row, Subject};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::files::hash_bytes;
use crate::base::progress::Progress;
use crate::base::{environment, interrupt};
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::weights::Who;
use crate::scorers::{Scored, Scorer};

/// What is written.
pub struct Writing<'a> {
    pub texts: usize,
    pub new_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// The token that a text begins with.
    pub begin: u32,
    pub scorer: &'a dyn Scorer,
    /// Texts that score this or more are left out.
    pub keep_below: f64,
}

impl Writing<'_> {
    /// As the paper makes its normal data.
    pub fn new(
        texts: usize,
        new_tokens: usize,
        seed: u64,
        begin: u32,
        scorer: &dyn Scorer,
    ) -> Writing<'_> {
        let sampling = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.9 };
        Writing {
            texts,
            new_tokens,
            sampling,
            seed,
            begin,
            scorer,
            keep_below: crate::scorers::TOXIC,
        }
    }

    fn settings(&self, model: &str) -> Value {
        json!({
            "model": model, "texts": self.texts, "new_tokens": self.new_tokens, "sampling": self.sampling,
            "seed": self.seed, "begin": self.begin, "scorer": self.scorer.name(), "keep_below": self.keep_below,
        })
    }
}

/// Normal texts, and what was left out.
#[derive(Debug, Clone, Default)]
pub struct Normal {
    pub texts: Vec<String>,
    pub removed: usize,
    /// Whether an earlier run had written them.
    pub cached: bool,
}

/// Texts a batch.
const BATCH: usize = 64;

/// The model's normal texts: from the cache, or written now and kept; what an interrupt leaves is gone on with. `hash` is
/// that of the weights. Errors if all of them are toxic or empty.
pub fn normal(subject: &Subject, hash: &str, writing: &Writing, quiet: bool) -> Result<Normal> {
    let settings = writing.settings(hash);
    let cache = environment::cache("normal")?;
    std::fs::create_dir_all(&cache)
        .map_err(|e| Error::Input(format!("{}: {e} (IREPAIR_CACHE)", cache.display())))?;
    let key = &hash_bytes(settings.to_string().as_bytes())[..32];
    let path = cache.join(format!("{key}.jsonl"));
    let units = writing.texts.div_ceil(BATCH);
    let mut ledger = Ledger::open(&path, &settings)?;
    let cached = ledger.len() == units;
    if !cached {
        let generation = Generation {
            sampling: writing.sampling,
            max_new_tokens: writing.new_tokens,
            ends: subject.ends.clone(),
            seed: writing.seed,
        };
        let view = subject.weights.frozen(Who::Patient)?;
        let mut progress = Progress::new("normal text", ledger.len() * BATCH, writing.texts, quiet);
        for unit in Shard::default().units(units) {
            if ledger.has(unit) {
                continue;
            }
            let numbers = unit * BATCH..((unit + 1) * BATCH).min(writing.texts);
            let jobs: Vec<Job> = numbers
                .map(|i| Job { ids: vec![writing.begin], prompt: i as u64, sample: 0 })
                .collect();
            let ids = generate(subject.model, &view, &jobs, &generation)?;
            if interrupt::asked() {
                return Err(Error::Interrupted(
                    "interrupted; the normal texts so far are kept".into(),
                )
                .into());
            }
            let texts: Vec<String> =
                ids.iter().map(|ids| subject.encoder.decode(ids)).collect::<Result<_>>()?;
            ledger.add(unit, rows(subject, writing, texts)?)?;
            progress.advance(jobs.len());
        }
        progress.finish();
    }
    let mut found = Normal { cached, ..Normal::default() };
    for row in ledger.rows() {
        match row.get("text").and_then(Value::as_str) {
            Some(text) => found.texts.push(text.to_owned()),
            None => found.removed += usize::from(row.contains_key("toxic")),
        }
    }
    if found.texts.is_empty() {
        bail_input!(
            "the model wrote no usable normal text ({} of {} toxic); give --normal FILE",
            found.removed,
            writing.texts
        );
    }
    Ok(found)
}

/// A row a text; what is toxic, empty or not scored keeps its place without the text.
fn rows(subject: &Subject, writing: &Writing, texts: Vec<String>) -> Result<Vec<Row>> {
    let scores = writing.scorer.score(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut rows = Vec::with_capacity(texts.len());
    for (text, scored) in texts.into_iter().zip(scores) {
        let score = match scored {
            Scored::Score(score) => score,
            // Unscored text may be toxic, and normal text must not be.
            Scored::Failed(why) => {
                bail_input!("a normal text could not be scored: {why}; run the command again")
            }
        };
        let (key, value): (&str, Value) = if score >= writing.keep_below {
            ("toxic", score.into())
        } else if text.trim().is_empty() || subject.encoder.encode(&text, true)?.len() < 2 {
            ("empty", true.into())
        } else {
            ("text", text.into())
        };
        rows.push(Row::from_iter([(key.to_owned(), value)]));
    }
    Ok(rows)
}

/// Texts as rows of a file.
pub fn to_lines(texts: &[String]) -> Vec<u8> {
    texts.iter().flat_map(|text| format!("{}\n", json!({ "text": text })).into_bytes()).collect()
}

/// Writes the texts to a file, whole or not at all.
pub fn write(path: &std::path::Path, texts: &[String]) -> Result<()> {
    files::write_whole(path, &to_lines(texts))
}
