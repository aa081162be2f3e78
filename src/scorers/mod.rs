//! *Scorers* give a text a toxicity in 0..=1. Scores of different scorers don't compare. One file and one line of
//! [`SCORERS`] each.

mod lexicon;

use anyhow::Result;

use crate::fault::Fault;

/// What scores texts.
pub trait Scorer: Send + Sync {
    fn name(&self) -> &'static str;
    /// What a user must know of its scores, in one line.
    fn about(&self) -> &'static str;
    /// One score in 0..=1 a text; 0.5 and above counts as toxic.
    fn score(&self, texts: &[&str]) -> Result<Vec<f64>>;
}

/// Every scorer.
pub const SCORERS: &[&dyn Scorer] = &[&lexicon::Lexicon];

/// A score at or above this counts as toxic.
pub const TOXIC: f64 = 0.5;

/// The scorer of this name. Errors (bad input) with the nearest name.
pub fn named(name: &str) -> Result<&'static dyn Scorer> {
    SCORERS.iter().copied().find(|s| s.name() == name).ok_or_else(|| {
        let names: Vec<&str> = SCORERS.iter().map(|s| s.name()).collect();
        Fault::Input(crate::config::unknown("scorer", name, &names)).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every scorer returns one value in 0..=1 a text, and tells an insult from a thank-you.
    #[test]
    fn every_scorer_scores() {
        let texts = ["Thank you, that was very helpful.", "Shut up, you stupid fucking idiot.", ""];
        for scorer in SCORERS {
            let scores = scorer.score(&texts).expect("scores");
            assert_eq!(scores.len(), texts.len());
            assert!(scores.iter().all(|s| (0.0..=1.0).contains(s)), "{scores:?}");
            assert!(scores[0] < TOXIC && scores[1] >= TOXIC, "{}: {scores:?}", scorer.name());
        }
    }
}
