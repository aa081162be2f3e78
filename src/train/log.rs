//! The *log* of a run, `steps.jsonl`: a line a step, a validation, a trial, written as they happen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::bail_input;
use crate::base::files;
use crate::base::files::write_whole;
use crate::base::profile::operations;
use crate::eval::scoring::percent;
use crate::slice::Slice;

/// A line of `steps.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Trial(TrialLine),
    Round(RoundLine),
    Step(StepLine),
    Validation(ValidationLine),
}

/// The objective on the held-back rows after trial steps on these units alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialLine {
    pub trial: Vec<String>,
    /// `null` where the trial diverged.
    pub valid_loss: Option<f64>,
    /// What the trial's steps and its look at the held-back rows took.
    #[serde(flatten)]
    pub cost: Cost,
}

/// A round of an online repair: what was sampled before its first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundLine {
    /// Counted from 1.
    pub round: usize,
    /// Steps made before it.
    pub step: usize,
    /// Texts that have a score, and how many of them are toxic.
    pub texts: usize,
    pub toxic: usize,
    pub empty: usize,
    /// The greedy ones among them.
    pub greedy: usize,
    pub greedy_toxic: usize,
    /// Pairs of the pool so far.
    pub pairs: usize,
    /// Texts that the scorer was asked for in all rounds so far.
    pub asked: usize,
    /// What sampling and scoring took.
    #[serde(flatten)]
    pub cost: Cost,
}

impl RoundLine {
    /// What a progress line tells of the round.
    pub fn told(&self, rounds: usize) -> String {
        format!(
            "round {} of {rounds}: {} texts, {} toxic (greedy {}), {} empty; {} pairs; \
             the scorer was asked {} times in all",
            self.round,
            self.texts,
            percent(self.toxic, self.texts),
            percent(self.greedy_toxic, self.greedy),
            self.empty,
            self.pairs,
            self.asked
        )
    }
}

/// What a part of a run took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub seconds: f64,
    pub tokens: usize,
    /// Floating-point operations of products; 0 where they are not counted (other devices than the
    /// CPU).
    pub operations: u64,
}

impl Cost {
    /// What was taken since then.
    pub fn since(begun: Instant, counted: u64, tokens: usize) -> Self {
        Self { seconds: begun.elapsed().as_secs_f64(), tokens, operations: operations() - counted }
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.tokens += other.tokens;
        self.operations += other.operations;
    }
}

/// One step, counted from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLine {
    pub step: usize,
    /// The sliced block, 0-based; `null` where the slice is no single block.
    pub block: Option<usize>,
    /// The slice, where it is more or less than one whole block: blocks (`3`) and sublayers
    /// (`3.mlp`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slice: Vec<String>,
    /// The sensitivity of every block, where it was measured.
    pub sensitivity: Vec<f64>,
    pub loss: f64,
    pub nll_good: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll_bad: Option<f64>,
    pub kl: Option<f64>,
    /// The weight of the KL term, where a budget moves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_weight: Option<f64>,
    pub lr: f64,
    pub grad_norm: f64,
    pub seconds: f64,
    /// Tokens of the chosen and rejected sequences and the normal texts, all together.
    pub tokens: usize,
    /// Floating-point operations of the step's products; 0 where they are not counted (other
    /// devices than the CPU).
    pub operations: u64,
}

impl StepLine {
    pub fn cost(&self) -> Cost {
        Cost { seconds: self.seconds, tokens: self.tokens, operations: self.operations }
    }

    /// What a progress line tells of the step.
    pub fn figures(&self) -> String {
        let block = match self.slice.is_empty() {
            true => self.block.map_or("all".into(), |b| b.to_string()),
            false => self.slice.join("+"),
        };
        let kl = self.kl.map_or(String::new(), |kl| format!(" KL {kl:.4}"));
        let nll = self.nll_good.map_or(String::new(), |n| format!(" NLL {n:.3}"));
        format!("block {block} loss {:.4}{nll}{kl}", self.loss)
    }

    /// What the step changed. `None` for names that mean nothing.
    pub fn sliced(&self) -> Option<Slice> {
        match self.block {
            Some(block) if self.slice.is_empty() => Some(Slice::block(block)),
            None if self.slice.is_empty() => Some(Slice::Everything),
            _ => Slice::named(&self.slice),
        }
    }

    /// The blocks that the slice has a part of; none where it is the whole model.
    pub fn blocks(&self) -> BTreeSet<usize> {
        let named = self.slice.iter().filter_map(|name| name.split('.').next()?.parse().ok());
        named.chain(self.block).collect()
    }
}

/// The objective on the held-back rows after `step` steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationLine {
    pub step: usize,
    pub valid_loss: f64,
    /// Perplexity of the guard's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl: Option<f64>,
}

/// The log of a run, with what a run resumed after `step` steps and so many trials will write again
/// cut off. Errors (bad input) if lines of steps that were made are lost: what was sliced is
/// counted there.
pub fn open_log(dir: &Path, step: usize, to_validate: bool, trials: usize) -> Result<File> {
    let path = dir.join("steps.jsonl");
    // Bytes that are no text spoil their own line alone.
    let text = files::read_if_there(&path)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let (mut tried, mut made) = (0, BTreeSet::new());
    let stays = |line: &&str| match serde_json::from_str(line) {
        Ok(Line::Step(StepLine { step: of, .. })) => {
            let stays = (1..=step).contains(&of);
            stays && made.insert(of)
        }
        // A validation that is to be made again is told again.
        Ok(Line::Validation(ValidationLine { step: of, .. })) => {
            step > 0 && (of < step || of == step && !to_validate)
        }
        Ok(Line::Round(line)) => line.step < step,
        Ok(Line::Trial(_)) => {
            tried += 1;
            tried <= trials
        }
        Err(_) => false,
    };
    let kept: String = text.lines().filter(stays).map(|line| format!("{line}\n")).collect();
    if made.len() < step || tried < trials {
        bail_input!(
            "{}: {} of {step} steps and {} of {trials} trials are in it, but --resume goes on \
             after all of them; put the whole file back, or start again with --overwrite",
            path.display(),
            made.len(),
            tried.min(trials)
        );
    }
    write_whole(&path, kept.as_bytes())?;
    File::options().append(true).open(&path).with_context(|| format!("writing {}", path.display()))
}

pub fn write_line(log: &mut File, line: &Line) -> Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    log.write_all(text.as_bytes()).context("writing steps.jsonl")
}

/// The steps of a log; lines that can't be read are an error.
pub fn read_steps(path: &Path) -> Result<Vec<StepLine>> {
    Ok(read_log(path)?.0)
}

/// The steps of a log, and what the trials before them took.
pub fn read_log(path: &Path) -> Result<(Vec<StepLine>, Cost)> {
    let text = files::read_text(path)?;
    let (mut steps, mut trials) = (Vec::new(), Cost::default());
    for (index, line) in text.lines().enumerate() {
        match serde_json::from_str(line)
            .with_context(|| format!("{}:{}", path.display(), index + 1))?
        {
            Line::Step(line) => steps.push(line),
            Line::Trial(TrialLine { cost, .. }) | Line::Round(RoundLine { cost, .. }) => {
                trials += cost
            }
            Line::Validation(_) => {}
        }
    }
    Ok((steps, trials))
}

/// How often each block was in a slice.
pub fn count_blocks(steps: &[StepLine]) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for step in steps {
        for block in step.blocks() {
            *counts.entry(block).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// After an interrupt in the middle of a validation, or after a kill behind one that the state
    /// does not know of.
    #[test]
    fn a_validation_that_is_made_again_stands_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let step = json!({
            "step": 1, "block": null, "sensitivity": [], "loss": 1.0, "nll_good": null,
            "kl": null, "lr": 1.0, "grad_norm": 1.0, "seconds": 1.0, "tokens": 1, "operations": 1,
        });
        let validation = json!({"step": 1, "valid_loss": 1.0});
        let kept = |to_validate| {
            let path = folder.path().join("steps.jsonl");
            std::fs::write(&path, format!("{step}\n{validation}\n")).expect("a log");
            open_log(folder.path(), 1, to_validate, 0).map(drop).expect("opens");
            std::fs::read_to_string(&path).expect("a log").lines().count()
        };
        assert_eq!((kept(false), kept(true)), (2, 1));
    }
}
