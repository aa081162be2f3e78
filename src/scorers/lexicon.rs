//! `lexicon`: the word list of the crate `rustrict`. It needs no files and is fast: a first look,
//! not a judgement.

use anyhow::Result;
use rayon::prelude::*;
use rustrict::{Censor, Type};

use super::scorer::{Scored, Scorer};

pub struct Lexicon;

pub const ABOUT: &str = "a word list (rustrict): finds rude words, not rude meanings";

/// How severe the words of a kind are: 0 none, 1 mild, 2 moderate, 3 severe.
fn severity(found: Type, kind: Type) -> u32 {
    [Type::MILD, Type::MODERATE, Type::SEVERE]
        .iter()
        .position(|s| found.is(kind & *s))
        .map_or(0, |i| i as u32 + 1)
}

/// The score of a text. Let s be the sum of the severities of profane, offensive, sexual and mean
/// words. If rustrict calls the text inappropriate, the score is (s + 1)/(s + 3), so 0.5 or above.
/// Else it is s/(2s + 2), so below 0.5.
pub fn score_of(text: &str) -> f64 {
    let found = Censor::from_str(text).analyze();
    let kinds = [Type::PROFANE, Type::OFFENSIVE, Type::SEXUAL, Type::MEAN];
    let s = f64::from(kinds.into_iter().map(|k| severity(found, k)).sum::<u32>());
    if found.is(Type::INAPPROPRIATE) { (s + 1.0) / (s + 3.0) } else { s / (2.0 * s + 2.0) }
}

impl Scorer for Lexicon {
    fn name(&self) -> String {
        "lexicon".into()
    }

    fn about(&self) -> String {
        ABOUT.into()
    }

    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        Ok(texts.par_iter().map(|text| Scored::Score(score_of(text))).collect())
    }
}
