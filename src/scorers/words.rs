//! `words`: a linear model over words and the score of the lexicon, which knows odd spellings of
//! words. It needs no files. `scripts/make_words.py` makes and measures it; its source and licence
//! are in `data/scorer/README.md`.

use std::collections::HashMap;
use std::io::Read;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use rayon::prelude::*;

use super::lexicon;
use super::scorer::{Scored, Scorer};

pub const ABOUT: &str =
    "weighted words and the word list: AUC 0.958 against Perspective; blind to context";

/// Lines of fields between tabs. The first line has the bias and the weight of the lexicon, every
/// other one a word, its idf and its weight. Weights are in log-odds.
const FILE: &[u8] = include_bytes!("../../data/scorer/words.tsv.gz");

struct Word {
    idf: f64,
    weight: f64,
}

pub struct Words {
    bias: f64,
    lexicon: f64,
    words: HashMap<String, Word>,
}

/// The two numbers that end a line.
fn numbers(line: &str) -> Result<(&str, f64, f64)> {
    let mut fields = line.rsplitn(3, '\t');
    let mut number = || -> Result<f64> { Ok(fields.next().context("too few fields")?.parse()?) };
    let (second, first) = (number()?, number()?);
    Ok((fields.next().unwrap_or_default(), first, second))
}

impl Words {
    /// Unpacks the weights, which are embedded in the program.
    pub fn open() -> Result<Self> {
        let mut text = String::new();
        GzDecoder::new(FILE).read_to_string(&mut text)?;
        let (first, rest) = text.split_once('\n').context("words.tsv.gz is empty")?;
        let (_, bias, lexicon) = numbers(first)?;
        let word =
            |line| numbers(line).map(|(word, idf, weight)| (word.to_owned(), Word { idf, weight }));
        Ok(Self { bias, lexicon, words: rest.lines().map(word).collect::<Result<_>>()? })
    }

    /// The score of a text: 1/(1 + exp(−(bias + Σ weight · x + lexicon's weight · lexicon's
    /// score))). Here x is the count · idf of each word of the text, divided by the Euclidean norm
    /// of them all.
    fn score_of(&self, text: &str) -> f64 {
        let lower = text.to_lowercase();
        let tokens = lower.split(|c: char| !c.is_alphanumeric() && c != '_');
        // Words of one letter and stop words have no weight: they are not in the file.
        let mut found: Vec<(&str, &Word)> =
            tokens.filter_map(|t| Some((t, self.words.get(t)?))).collect();
        found.sort_unstable_by_key(|(token, _)| *token);
        let (mut sum, mut square) = (0.0, 0.0);
        for same in found.chunk_by(|a, b| a.0 == b.0) {
            let word = same[0].1;
            let x = same.len() as f64 * word.idf;
            (sum, square) = (sum + x * word.weight, square + x * x);
        }
        let words = if square > 0.0 { sum / square.sqrt() } else { 0.0 };
        1.0 / (1.0 + (-(self.bias + words + self.lexicon * lexicon::score_of(text))).exp())
    }
}

impl Scorer for Words {
    fn name(&self) -> String {
        "words".into()
    }

    fn about(&self) -> String {
        ABOUT.into()
    }

    /// A score of 0.5 and above means: more likely toxic than not. Platt scaling on pairs of rude
    /// and polite texts made it so.
    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        Ok(texts.par_iter().map(|text| Scored::Score(self.score_of(text))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_python() {
        let expected = [
            // From scripts/make_words.py, with alt-profanity-check 1.9.1 and scikit-learn 1.9.1.
            ("", 0.062690712),
            ("Thank you, that was very helpful.", 0.013216687),
            ("You are such an idiot.", 0.999922674),
            ("Shut up, you stupid fucking idiot.", 0.999999999),
            ("The committee met on Tuesday to discuss the budget of the library.", 0.067057852),
            ("What a shitty, SHITTY day; nobody_cares about 7 of 9.", 0.996567384),
            ("go to hell, you scum", 0.998814224),
            ("Ça va? Straße, naïve café 你好", 0.459166147),
        ];
        let words = Words::open().expect("weights");
        for (text, score) in expected {
            let ours = words.score_of(text);
            assert!((ours - score).abs() < 1e-6, "{text:?}: {ours}, Python {score}");
        }
    }
}
