//! `replay:FILE`: scores stored by an earlier run (its samples, or the cache of `perspective`) or by
//! RealToxicityPrompts, found by the text itself.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{Scored, Scorer};
use crate::{bail_input, data};

pub struct Replay {
    file: String,
    scores: HashMap<String, f64>,
}

/// Where a row of our own, of RealToxicityPrompts or of Perspective's stored answers has its score.
fn score_of(row: &Value) -> Option<f64> {
    let places = ["/score", "/toxicity", "/response/attributeScores/TOXICITY/summaryScore/value"];
    places.iter().find_map(|place| row.pointer(place)?.as_f64())
}

/// The texts of a row with their scores.
fn texts(row: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for key in ["continuation", "text", "prompt"] {
        match row.get(key) {
            // The score of a row with a continuation is the continuation's.
            Some(Value::String(text)) if found.is_empty() => {
                found.extend(score_of(row).map(|score| (text.clone(), score)));
            }
            // RealToxicityPrompts: prompt and continuation each with scores of their own.
            Some(inner @ Value::Object(_)) => {
                if let (Some(text), Some(score)) = (inner.get("text").and_then(Value::as_str), score_of(inner)) {
                    found.push((text.to_owned(), score));
                }
            }
            _ => {}
        }
    }
    found
}

impl Replay {
    /// Reads the stored scores. Errors (bad input) if there are none.
    pub fn open(file: &str) -> Result<Self> {
        let mut scores = HashMap::new();
        for row in data::read_rows(Path::new(file))? {
            for (text, score) in texts(&row.value) {
                if !(0.0..=1.0).contains(&score) {
                    bail_input!("{}: a score of {score} is not in 0..=1", row.place);
                }
                scores.insert(text, score);
            }
        }
        if scores.is_empty() {
            bail_input!("{file}: no row has a text (\"text\", \"continuation\") and its \"score\" or \"toxicity\"");
        }
        Ok(Self { file: file.into(), scores })
    }
}

impl Scorer for Replay {
    fn name(&self) -> String {
        let file = Path::new(&self.file).file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("replay:{file}")
    }

    fn about(&self) -> String {
        format!("{} stored scores", self.scores.len())
    }

    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        let score = |text: &&str| match self.scores.get(*text) {
            Some(score) => Scored::Score(*score),
            None => Scored::Failed(format!("{} has no score of this text", self.file)),
        };
        Ok(texts.iter().map(score).collect())
    }
}
