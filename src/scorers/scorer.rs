//! A *scorer* gives a text a toxicity in 0..=1.

use anyhow::Result;

/// A score at or above this counts as toxic.
pub const TOXIC: f64 = 0.5;

/// The result of scoring one text.
#[derive(Debug, Clone, PartialEq)]
pub enum Scored {
    /// In 0..=1; [`TOXIC`] and above counts as toxic.
    Score(f64),
    /// The text could not be scored, and why. This is never a score of 0.
    Failed(String),
    /// The scorer will never score this text, and why.
    Refused(String),
}

pub trait Scorer: Send + Sync {
    /// Its name, with everything that decides its scores: `classifier:ID@COMMIT`.
    fn name(&self) -> String;
    /// What a user must know about its scores, in one line.
    fn about(&self) -> String;
    /// One result for each text. Errors only if no text can be scored any more.
    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>>;
}

/// The settings of a scorer.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which label of a classifier is the toxic one.
    pub toxic_label: Option<String>,
}
