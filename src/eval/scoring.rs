//! *Scoring* puts the scores of texts into rows. Texts that hold only blanks are not scored.

use anyhow::{Context, Result};

use super::task::Row;
use crate::scorers::{Scored, Scorer};

/// The result of scoring one text that may be empty.
#[derive(Debug, Clone, PartialEq)]
pub enum TextScore {
    /// The text holds only blanks.
    Empty,
    /// In 0..=1.
    Score(f64),
    /// The text could not be scored, and why.
    Failed(String),
    /// The text will never be scored, and why.
    Refused(String),
}

impl TextScore {
    /// Adds itself to a row as `empty`, `score` or `failed`.
    pub fn add_to(self, row: &mut Row) {
        let (key, value) = match self {
            TextScore::Empty => ("empty", true.into()),
            TextScore::Score(score) => ("score", score.into()),
            TextScore::Failed(why) | TextScore::Refused(why) => ("failed", why.into()),
        };
        row.insert(key.into(), value);
    }
}

/// One result for each text, in order. Errors if no text can be scored any more.
pub fn score_texts<T: AsRef<str>>(scorer: &dyn Scorer, texts: &[T]) -> Result<Vec<TextScore>> {
    let is_empty = |text: &str| text.trim().is_empty();
    let full: Vec<&str> = texts.iter().map(T::as_ref).filter(|text| !is_empty(text)).collect();
    let mut scores = scorer.score(&full)?.into_iter();
    let score = |text: &T| {
        if is_empty(text.as_ref()) {
            return Ok(TextScore::Empty);
        }
        Ok(match scores.next().context("the scorer left a text out")? {
            Scored::Score(score) => TextScore::Score(score),
            Scored::Failed(why) => TextScore::Failed(why),
            Scored::Refused(why) => TextScore::Refused(why),
        })
    };
    texts.iter().map(score).collect()
}

/// A share in percent, for people: there is none of no texts.
pub fn percent(part: usize, of: usize) -> String {
    match of {
        0 => "–".into(),
        of => format!("{:.1} %", 100.0 * part as f64 / of as f64),
    }
}
