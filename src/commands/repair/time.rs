//! How long a repair takes: before it begins, a step, a few texts and a window are timed on the
//! model itself, and what there is to do is counted.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use super::Loaded;
use super::normal::WRITTEN_TOKENS;
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::weights::{Weights, Who};
use crate::scorers::Scorer;
use crate::tokens::{Batch, LossOn};

/// What a part of a repair takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    pub what: String,
    pub seconds: f64,
}

impl Phase {
    pub fn new(what: impl Into<String>, seconds: f64) -> Self {
        Self { what: what.into(), seconds }
    }
}

/// In a line for people; nothing if nothing is known.
pub fn line(phases: &[Phase]) -> Option<String> {
    let total: f64 = phases.iter().map(|phase| phase.seconds).sum();
    let parts: Vec<String> =
        phases.iter().map(|phase| format!("{} {}", phase.what, words(phase.seconds))).collect();
    (total > 0.0).then(|| format!("about {}: {}", words(total), parts.join(", ")))
}

/// A time of two digits at most.
fn words(seconds: f64) -> String {
    match seconds {
        ..1.0 => "1 s".into(),
        ..10.0 => format!("{seconds:.0} s"),
        ..90.0 => format!("{:.0} s", 5.0 * (seconds / 5.0).round()),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// What was timed on a model.
pub struct Pace {
    /// Seconds a token that is written, in a batch.
    written: f64,
    /// Seconds a token that is read, its prediction among the work.
    read: f64,
    /// Seconds a text that is scored; 0 where a server scores: it isn't asked for this.
    scored: f64,
}

impl Pace {
    /// Times a batch of short texts, and a window.
    pub fn of(loaded: &Loaded, weights: &Weights, scorer: &dyn Scorer) -> Result<Self> {
        const TEXTS: usize = 32;
        const TOKENS: usize = 6;
        let context = loaded.model.sizes().context;
        let end = loaded.end_of_text().unwrap_or(0);
        // The length that prompts have in the mean, about.
        let prompt = vec![end; 8.min(context / 2).max(1)];
        let jobs: Vec<Job> = (0..TEXTS as u64)
            .map(|prompt_number| Job::new(prompt.clone(), prompt_number, 0))
            .collect();
        let generation = Generation {
            sampling: Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.9 },
            max_new_tokens: TOKENS.min(context - prompt.len()),
            // None ends a text, so that all are as long.
            ends: Vec::new().into(),
            seed: 0,
            at_a_time: usize::MAX,
        };
        let view = weights.frozen(Who::Patient)?;
        let begun = Instant::now();
        let texts = generate(&loaded.model, &view, &jobs, &generation)?;
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let written = begun.elapsed().as_secs_f64() / tokens.max(1) as f64;
        let begun = Instant::now();
        let window = vec![end; context.min(128)];
        let batch = Batch::new([(&[][..], &window[..])], LossOn::All);
        crate::eval::nll::sequence_nll(&loaded.model, &view, &batch)?;
        let read = begun.elapsed().as_secs_f64() / window.len() as f64;
        Ok(Self { written, read, scored: scoring(loaded, scorer, &texts)? })
    }

    /// So many texts of at most so many tokens, written and scored.
    pub fn texts(&self, texts: usize, tokens: usize) -> f64 {
        texts as f64 * (tokens as f64 * self.written + self.scored)
    }

    /// The normal texts that the model writes.
    pub fn normal(&self, texts: usize) -> Phase {
        Phase::new(format!("{texts} normal texts"), self.texts(texts, WRITTEN_TOKENS))
    }

    /// Seconds that so many tokens take to be read.
    pub fn read(&self, tokens: usize) -> f64 {
        tokens as f64 * self.read
    }
}

/// Seconds a text takes to be scored.
fn scoring(loaded: &Loaded, scorer: &dyn Scorer, texts: &[Vec<u32>]) -> Result<f64> {
    if crate::scorers::sends(&scorer.name()) {
        return Ok(0.0);
    }
    let texts: Vec<String> =
        texts.iter().map(|ids| loaded.encoder.decode(ids)).collect::<Result<_>>()?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let begun = Instant::now();
    // What a scorer can't score it says when it matters.
    scorer.score(&texts).ok();
    Ok(begun.elapsed().as_secs_f64() / texts.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_digits_at_most() {
        for (seconds, text) in [
            (0.2, "1 s"),
            (7.4, "7 s"),
            (43.0, "45 s"),
            (89.0, "90 s"),
            (200.0, "3 min"),
            (5400.0, "1.5 h"),
            (200_000.0, "2.3 days"),
        ] {
            assert_eq!(words(seconds), text);
        }
        assert_eq!(line(&[]), None);
        let phases = [Phase::new("120 steps", 61.0), Phase::new("before and after", 30.0)];
        let want = "about 2 min: 120 steps 60 s, before and after 30 s";
        assert_eq!(line(&phases).as_deref(), Some(want));
    }
}
