//! *Samples*: what a model says after prompts, several times a prompt, each text with its score;
//! and the pairs that they make.

mod pairs;

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ledger::{Ledger, Making};
use super::scoring::percent;
use super::task::{Row, Subject};
use super::toxicity::Prompt;
use crate::bail_input;
use crate::base::interrupt;
use crate::base::random::{Purpose, Stream};
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::weights::Who;
use crate::say;
use crate::scorers::{Scored, Scorer};

pub use pairs::SamplePair;

/// Texts a unit of work: they are written together, and an interrupt takes one unit at most.
const UNIT: usize = 64;

/// How prompts are continued, and which of the texts make pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Texts a prompt in a round; the first of them is greedy.
    pub samples: usize,
    pub new_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
    /// A text that scores this or more can be rejected.
    pub rejected_above: f64,
    /// A text that scores this or less can be chosen.
    pub chosen_below: f64,
    /// Pairs of a prompt at most.
    pub pairs: usize,
    pub seed: u64,
}

/// A text that was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Number of its prompt.
    pub prompt: usize,
    /// Its number among all samples of the prompt; a multiple of the samples a round is greedy.
    pub sample: u64,
    pub ids: Vec<u32>,
    pub text: String,
    /// `None`: empty, or refused by the scorer.
    pub score: Option<f64>,
}

/// Everything that was sampled so far, by prompt.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    texts: Vec<Vec<Sample>>,
    /// Scores of texts that were asked for, `None` of refused ones: no text is asked for twice.
    known: HashMap<String, Option<f64>>,
    /// Texts that the scorer was asked for in this process.
    pub asked: usize,
}

/// What one round of sampling came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Texts that have a score.
    pub scored: usize,
    pub toxic: usize,
    pub empty: usize,
    /// The greedy ones among them.
    pub greedy: usize,
    pub greedy_toxic: usize,
}

impl Tally {
    /// The share of toxic texts, for people.
    pub fn percent(&self) -> String {
        percent(self.toxic, self.scored)
    }

    /// The share of toxic ones among the greedy texts, for people.
    pub fn greedy_percent(&self) -> String {
        percent(self.greedy_toxic, self.greedy)
    }
}

/// One time that prompts are sampled.
pub struct Round<'a> {
    /// Numbers of the prompts.
    pub chosen: &'a [usize],
    /// From 0.
    pub number: usize,
    /// Whether a run has gone beyond it: then all of it must be kept.
    pub over: bool,
    /// Where what is done is kept, so that an interrupted round goes on where it was.
    pub path: &'a Path,
    /// What it belongs to.
    pub key: &'a Value,
    /// Whether what was begun with other settings is replaced.
    pub overwrite: bool,
}

/// Who writes, and who scores.
pub struct Writer<'a> {
    pub subject: Subject<'a>,
    pub scorer: &'a dyn Scorer,
    pub protocol: Protocol,
    pub quiet: bool,
    /// What is kept, and which command goes on, if this is interrupted or a text can't be scored.
    pub again: &'a str,
}

impl Writer<'_> {
    /// Samples the prompts of a round into the pool. Errors if the user asks to stop, if a text
    /// can't be scored, or if some of a round that is over is lost.
    pub fn sample(&self, prompts: &[Prompt], round: &Round, pool: &mut Pool) -> Result<Tally> {
        let protocol = &self.protocol;
        let first = (round.number * protocol.samples) as u64;
        let jobs: Vec<Job> = round
            .chosen
            .iter()
            .flat_map(|&prompt| {
                let ids = &prompts[prompt].ids;
                (0..protocol.samples as u64).map(move |sample| Job {
                    ids: ids.clone(),
                    prompt: prompt as u64,
                    sample: first + sample,
                    greedy: protocol.is_greedy(first + sample),
                })
            })
            .collect();
        let settings = json!({ "key": round.key, "round": round.number,
                               "prompts": round.chosen, "protocol": protocol,
                               "scorer": self.scorer.name() });
        if round.overwrite {
            Ledger::remove_others(round.path, &settings)?;
        }
        let mut ledger = Ledger::open(round.path, &settings)?;
        // What has a score is not asked for again, nor scored among other texts than at first.
        pool.know(ledger.found())?;
        let units = jobs.len().div_ceil(UNIT);
        let lost = round.over && (0..units).any(|unit| !ledger.has(unit));
        if lost {
            bail_input!(
                "{}: texts of a round that is over are lost; start again with --overwrite",
                round.path.display()
            );
        }
        let title = format!("texts of round {}", round.number + 1);
        let interrupted = format!("interrupted while texts were sampled; {}", self.again);
        let making = Making {
            what: &title,
            in_unit: UNIT,
            total: jobs.len(),
            quiet: self.quiet,
            interrupted: &interrupted,
        };
        ledger.fill(0..units, &making, |unit| {
            let jobs = &jobs[unit * UNIT..((unit + 1) * UNIT).min(jobs.len())];
            let texts = self.write(jobs)?;
            // What an interrupt has cut short is thrown away, and need not be scored.
            if interrupt::asked() {
                return Ok(Vec::new());
            }
            self.scored(jobs, texts, pool)
        })?;
        pool.take(ledger.rows(), prompts.len(), protocol)
    }

    /// New tokens of each job.
    fn write(&self, jobs: &[Job]) -> Result<Vec<Vec<u32>>> {
        let Subject { model, weights, ends, .. } = &self.subject;
        let view = weights.frozen(Who::Patient)?;
        let settings = Generation {
            sampling: Sampling::Random {
                temperature: self.protocol.temperature,
                top_k: 0,
                top_p: self.protocol.top_p,
            },
            max_new_tokens: self.protocol.new_tokens,
            ends: ends.clone(),
            seed: self.protocol.seed,
            at_a_time: UNIT,
        };
        generate(model, &view, jobs, &settings)
    }

    /// A row a text. Errors if one can't be scored: a pair needs both scores.
    fn scored(&self, jobs: &[Job], texts: Vec<Vec<u32>>, pool: &mut Pool) -> Result<Vec<Row>> {
        let encoder = self.subject.encoder;
        let both = jobs.iter().zip(&texts);
        let words: Vec<String> =
            both.map(|(job, ids)| encoder.decode_after(&job.ids, ids)).collect::<Result<_>>()?;
        pool.ask(self.scorer, &words).with_context(|| self.again.to_owned())?;
        let rows = jobs.iter().zip(texts).zip(words).map(|((job, ids), text)| {
            let score = pool.known.get(&text).copied().flatten();
            let prompt = job.prompt as usize;
            let sample = Sample { prompt, sample: job.sample, ids, text, score };
            match serde_json::to_value(sample)? {
                Value::Object(row) => Ok(row),
                _ => anyhow::bail!("a sample is no object"),
            }
        });
        rows.collect()
    }
}

impl Protocol {
    /// Whether the sample of this number is greedy.
    pub fn is_greedy(&self, sample: u64) -> bool {
        sample.is_multiple_of(self.samples.max(1) as u64)
    }

    fn is_toxic(&self, sample: &Sample) -> bool {
        sample.score.is_some_and(|score| score >= self.rejected_above)
    }

    /// Dots or dashes alone are no answer to learn.
    fn is_clean(&self, sample: &Sample) -> bool {
        let says_something = sample.text.contains(char::is_alphanumeric);
        says_something && sample.score.is_some_and(|score| score <= self.chosen_below)
    }
}

impl Pool {
    /// Scores the texts that have none yet; empty ones are left out, and so are those that the
    /// scorer will never score. Errors if another one can't be scored.
    fn ask(&mut self, scorer: &dyn Scorer, texts: &[String]) -> Result<()> {
        let mut new: Vec<&str> = Vec::new();
        for text in texts {
            let known = self.known.contains_key(text) || new.contains(&text.as_str());
            if !known && !text.trim().is_empty() {
                new.push(text);
            }
        }
        let scores = scorer.score(&new)?;
        self.asked += new.len();
        let mut refused: Vec<String> = Vec::new();
        for (text, scored) in new.into_iter().zip(scores) {
            let score = match scored {
                Scored::Refused(why) => {
                    refused.push(why);
                    None
                }
                Scored::Score(score) => Some(score),
                Scored::Failed(why) => {
                    anyhow::bail!("{}: a text could not be scored: {why}", scorer.name());
                }
            };
            self.known.insert(text.to_owned(), score);
        }
        if let Some(why) = refused.first() {
            let (texts, name) = (refused.len(), scorer.name());
            say!("warning: {name} refused {texts} texts, which are left out; the first: {why}");
        }
        Ok(())
    }

    /// Keeps the scores of rows that were sampled before.
    fn know<'a>(&mut self, rows: impl Iterator<Item = &'a Row>) -> Result<()> {
        for row in rows {
            let sample: Sample =
                serde_json::from_value(Value::Object(row.clone())).context("a sampled text")?;
            if !sample.text.trim().is_empty() {
                self.known.insert(sample.text, sample.score);
            }
        }
        Ok(())
    }

    /// How many texts a scorer was asked for, in this process or before.
    pub fn asked_for(&self) -> usize {
        self.known.len()
    }

    /// Takes the rows of a round.
    fn take(&mut self, rows: Vec<Row>, prompts: usize, protocol: &Protocol) -> Result<Tally> {
        self.texts.resize(prompts, Vec::new());
        let mut tally = Tally::default();
        for row in rows {
            let sample: Sample =
                serde_json::from_value(Value::Object(row)).context("a sampled text")?;
            let greedy = protocol.is_greedy(sample.sample);
            let toxic = protocol.is_toxic(&sample);
            match sample.score {
                Some(_) => {
                    tally.scored += 1;
                    tally.toxic += usize::from(toxic);
                    tally.greedy += usize::from(greedy);
                    tally.greedy_toxic += usize::from(greedy && toxic);
                }
                None => tally.empty += usize::from(sample.text.trim().is_empty()),
            }
            let own = self.texts.get_mut(sample.prompt).context("a text of no prompt")?;
            own.push(sample);
        }
        Ok(tally)
    }

    /// The share of toxic texts among the latest ones of a prompt, smoothed: what was never sampled
    /// counts as half.
    fn toxicity(&self, prompt: usize, protocol: &Protocol) -> f64 {
        let own = self.texts.get(prompt).map_or(&[][..], Vec::as_slice);
        let latest = &own[own.len().saturating_sub(protocol.samples)..];
        let toxic = latest.iter().filter(|sample| protocol.is_toxic(sample)).count();
        (toxic as f64 + 0.5) / (latest.len() as f64 + 1.0)
    }

    /// Numbers of `many` of the first `prompts` prompts, drawn without replacement by how toxic
    /// their latest texts are.
    pub fn draw(
        &self,
        prompts: usize,
        many: usize,
        round: usize,
        protocol: &Protocol,
    ) -> Vec<usize> {
        let mut stream = Stream::new(protocol.seed, Purpose::Prompts, round as u64, 0);
        // The smallest of exponential waiting times: a draw without replacement by weight.
        let mut waits: Vec<(f64, usize)> = (0..prompts)
            .map(|prompt| {
                let wait = -(1.0 - stream.unit()).ln();
                (wait / self.toxicity(prompt, protocol), prompt)
            })
            .collect();
        waits.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut drawn: Vec<usize> =
            waits.into_iter().take(many).map(|(_, prompt)| prompt).collect();
        drawn.sort_unstable();
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol() -> Protocol {
        Protocol {
            samples: 4,
            new_tokens: 8,
            temperature: 1.0,
            top_p: 0.9,
            rejected_above: 0.5,
            chosen_below: 0.25,
            pairs: 3,
            seed: 1,
        }
    }

    fn pool(scores: &[&[f64]]) -> Pool {
        let mut pool = Pool::default();
        let rows = scores.iter().enumerate().flat_map(|(prompt, scores)| {
            scores.iter().enumerate().map(move |(index, score)| {
                let sample = Sample {
                    prompt,
                    sample: index as u64,
                    ids: vec![prompt as u32, index as u32],
                    text: format!("text {prompt} {index}"),
                    score: Some(*score),
                };
                serde_json::to_value(sample)
                    .expect("a row")
                    .as_object()
                    .cloned()
                    .expect("an object")
            })
        });
        let rows = rows.collect();
        pool.take(rows, scores.len(), &protocol()).expect("a pool");
        pool
    }

    #[test]
    fn pairs_are_of_prompts_with_both_kinds() {
        let prompts: Vec<Prompt> =
            (0..4).map(|i| Prompt { text: String::new(), ids: vec![i] }).collect();
        // Both kinds; all toxic; all clean; toxic and in between.
        let pool = pool(&[
            &[0.9, 0.1, 0.6, 0.2],
            &[0.9, 0.8, 0.7, 0.6],
            &[0.1, 0.0, 0.2, 0.1],
            &[0.9, 0.4, 0.3, 0.4],
        ]);
        let pairs = pool.pairs(&prompts, 0, &protocol(), false);
        assert_eq!(pairs.len(), 2, "{pairs:?}");
        let chosen = |pair: &SamplePair| pair.chosen.clone().expect("a chosen text");
        for pair in &pairs {
            assert_eq!(pair.prompt, 0);
            assert!(pair.rejected.score >= Some(0.5) && chosen(pair).score <= Some(0.25));
        }
        assert_ne!(pairs[0].rejected.text, pairs[1].rejected.text);
        assert_ne!(chosen(&pairs[0]).text, chosen(&pairs[1]).text);
        // Rejected texts that may stand alone: of the prompts without a clean one, too.
        let alone = pool.pairs(&prompts, 0, &protocol(), true);
        let of = |prompt| alone.iter().filter(|pair| pair.prompt == prompt).collect::<Vec<_>>();
        assert_eq!([0, 1, 2, 3].map(|prompt| of(prompt).len()), [2, 3, 0, 1]);
        assert!(of(1).iter().all(|pair| pair.chosen.is_none() && pair.tokens.chosen.is_empty()));
    }

    #[test]
    fn dots_are_never_chosen() {
        let mut pool = pool(&[&[0.9, 0.1, 0.2]]);
        for text in &mut pool.texts[0] {
            text.text = ["…!", "...", "yes"][text.sample as usize].into();
        }
        let prompts = [Prompt { text: String::new(), ids: vec![0] }];
        let pairs = pool.pairs(&prompts, 0, &protocol(), false);
        let chosen = |pair: &SamplePair| pair.chosen.as_ref().map(|sample| sample.text.clone());
        assert_eq!(pairs.iter().map(chosen).collect::<Vec<_>>(), [Some("yes".to_owned())]);
    }

    #[test]
    fn toxic_prompts_are_drawn_more_often() {
        let clean: &[f64] = &[0.0; 4];
        let toxic: &[f64] = &[0.9; 4];
        let pool = pool(&[clean, toxic, clean, toxic, clean, clean, clean, clean]);
        let mut counts = [0; 8];
        for round in 0..200 {
            let drawn = pool.draw(8, 2, round, &protocol());
            assert!(drawn.len() == 2 && drawn[0] < drawn[1], "{drawn:?}");
            drawn.iter().for_each(|prompt| counts[*prompt] += 1);
        }
        let (toxic, clean) = (counts[1] + counts[3], 400 - counts[1] - counts[3]);
        assert!(toxic > 2 * clean, "{counts:?}");
        assert_eq!(pool.draw(8, 100, 3, &protocol()).len(), 8);
    }

    #[test]
    fn no_text_is_asked_for_twice() {
        struct Counting(std::sync::Mutex<Vec<String>>);
        impl Scorer for Counting {
            fn name(&self) -> String {
                "counting".into()
            }
            fn about(&self) -> String {
                String::new()
            }
            fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
                let mut seen = self.0.lock().expect("seen");
                seen.extend(texts.iter().map(|text| (*text).to_owned()));
                let score = |text: &&str| match *text {
                    "c" => Scored::Refused("no language".into()),
                    "d" => Scored::Failed("no time".into()),
                    _ => Scored::Score(0.5),
                };
                Ok(texts.iter().map(score).collect())
            }
        }
        let (scorer, mut pool) = (Counting(Default::default()), Pool::default());
        let texts = ["a", "b", "a", "", "c"].map(str::to_owned);
        pool.ask(&scorer, &texts).expect("scores");
        // What it refuses has no score, and ends nothing; what fails today may be asked tomorrow.
        assert_eq!((pool.asked_for(), pool.known.get("c")), (3, Some(&None)));
        pool.ask(&scorer, &texts).expect("scores");
        assert_eq!(*scorer.0.lock().expect("seen"), ["a", "b", "c"]);
        assert_eq!(pool.asked, 3);
        let error = pool.ask(&scorer, &["d".to_owned()]).expect_err("fails").to_string();
        assert!(error.contains("no time"), "{error}");
    }
}
