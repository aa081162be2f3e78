//! *Normal text* is what a model writes by itself, without the toxic texts. It stands in for the
//! corpus that the model learned from (Imtiaz et al.: unconditional nucleus sampling, p = 0.9,
//! temperature 1). It is cached by model, settings and seed.

use anyhow::Result;
use serde_json::{Value, json};

use super::ledger::{Ledger, Making, Shard};
use super::scoring::{TextScore, score_texts};
use super::task::{Row, Subject};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::files::hash_bytes;
use crate::base::{environment, interrupt};
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::weights::Who;
use crate::scorers::Scorer;

/// How normal texts are written, and which of them are left out.
pub struct Writing<'a> {
    /// How many texts are written.
    pub texts: usize,
    /// The most tokens of a text.
    pub new_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// The token that a text begins with. It does not belong to the text.
    pub begin: u32,
    pub scorer: &'a dyn Scorer,
    /// Texts with this score or more are left out.
    pub keep_below: f64,
}

impl Writing<'_> {
    /// The way in which the paper makes its normal data.
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
            "model": model, "texts": self.texts, "new_tokens": self.new_tokens,
            "sampling": self.sampling, "seed": self.seed, "begin": self.begin,
            "scorer": self.scorer.name(), "keep_below": self.keep_below,
        })
    }
}

/// The normal texts of a model.
#[derive(Debug, Clone, Default)]
pub struct Normal {
    pub texts: Vec<String>,
    /// How many toxic texts were left out.
    pub removed: usize,
    /// Whether all texts came from the cache.
    pub cached: bool,
}

/// Texts in a unit, which are generated together.
const UNIT: usize = 64;

/// The normal texts of a model: from the cache, or written now and put into the cache. What an
/// interrupted command has written is used. `hash` is the SHA-256 of the weights. Errors (bad
/// input) if all texts are toxic or empty, or if one could not be scored.
pub fn normal(subject: &Subject, hash: &str, writing: &Writing, quiet: bool) -> Result<Normal> {
    let settings = writing.settings(hash);
    let cache = environment::cache("normal")?;
    std::fs::create_dir_all(&cache)
        .map_err(|e| Error::Input(format!("{}: {e} (IREPAIR_CACHE)", cache.display())))?;
    let key = &hash_bytes(settings.to_string().as_bytes())[..32];
    let path = cache.join(format!("{key}.jsonl"));
    let units = writing.texts.div_ceil(UNIT);
    let mut ledger = Ledger::open(&path, &settings)?;
    let cached = ledger.done() == units;
    if !cached {
        let generation = Generation {
            sampling: writing.sampling,
            max_new_tokens: writing.new_tokens,
            ends: subject.ends.clone(),
            seed: writing.seed,
            at_a_time: usize::MAX,
        };
        let view = subject.weights.frozen(Who::Patient)?;
        let making = Making {
            what: "normal text",
            in_unit: UNIT,
            total: writing.texts,
            quiet,
            interrupted: "interrupted; the normal texts so far are kept",
        };
        ledger.fill(Shard::default().units(units), &making, |unit| {
            let numbers = unit * UNIT..((unit + 1) * UNIT).min(writing.texts);
            let jobs: Vec<Job> =
                numbers.map(|i| Job::new(vec![writing.begin], i as u64, 0)).collect();
            let ids = generate(subject.model, &view, &jobs, &generation)?;
            if interrupt::asked() {
                // These texts are cut short, and the ledger throws the unit away.
                return Ok(Vec::new());
            }
            let texts: Vec<String> =
                ids.iter().map(|ids| subject.encoder.decode(ids)).collect::<Result<_>>()?;
            rows(subject, writing, texts)
        })?;
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

/// One row for each text. A toxic, empty or refused text leaves a row without the text. Errors
/// (bad input) if a text could not be scored.
fn rows(subject: &Subject, writing: &Writing, texts: Vec<String>) -> Result<Vec<Row>> {
    let scores = score_texts(writing.scorer, &texts)?;
    let mut rows = Vec::with_capacity(texts.len());
    for (text, scored) in texts.into_iter().zip(scores) {
        let (key, value): (&str, Value) = match scored {
            TextScore::Empty => ("empty", true.into()),
            TextScore::Score(score) if score >= writing.keep_below => ("toxic", score.into()),
            TextScore::Score(_) if subject.encoder.encode(&text, true)?.len() < 2 => {
                ("empty", true.into())
            }
            TextScore::Score(_) => ("text", text.into()),
            // A text without a score may be toxic, and normal text must not be.
            TextScore::Refused(why) => ("refused", why.into()),
            TextScore::Failed(why) => {
                bail_input!("a normal text could not be scored: {why}; run the command again")
            }
        };
        rows.push(Row::from_iter([(key.to_owned(), value)]));
    }
    Ok(rows)
}

/// Writes texts as JSON lines with the key `text` to a file, whole or not at all.
pub fn write(path: &std::path::Path, texts: &[String]) -> Result<()> {
    let lines: String = texts.iter().map(|text| format!("{}\n", json!({ "text": text }))).collect();
    files::write_whole(path, lines.as_bytes())
}
