//! *Selectors* say which part of the model a step may change. One file and one line of [`SELECTORS`] each.

mod all;
mod ranked;
mod trial;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::input::StepInput;
use super::{Granularity, Slice, Unit};
use crate::bail_input;
use crate::base::error::Error;
use crate::model::Model;
use crate::model::weights::Weights;
use crate::tokens::PairBatch;
use ranked::{Over, Rank, Ranked};

/// What a selector found.
#[derive(Debug, Clone)]
pub struct Selection {
    pub slice: Slice,
    /// Every block's sensitivity, where the selector measured it.
    pub sensitivity: Vec<f64>,
    /// Of the ranked units, before they are normalized, where they were measured.
    pub scores: Vec<f64>,
    /// NLL of the rejected responses in nats a token, which measuring brings along.
    pub nll_rejected: Option<f64>,
}

impl Selection {
    /// A slice that nothing was measured for.
    pub fn unmeasured(slice: Slice) -> Self {
        Self { slice, sensitivity: Vec::new(), scores: Vec::new(), nll_rejected: None }
    }
}

/// Which part of the model a step may change.
pub trait Select: Send + Sync {
    /// Once, before the first step: a look at a sample of the pairs under the untouched model.
    fn prepare(
        &mut self,
        _model: &Model,
        _weights: &Weights,
        _sample: &mut dyn Iterator<Item = PairBatch>,
    ) -> Result<()> {
        Ok(())
    }

    /// Whether it wants that look.
    fn looks_first(&self) -> bool {
        false
    }

    /// What it knows that seed and step do not say: kept in the state.
    fn memory(&self) -> Memory {
        Memory::default()
    }

    /// What it knew when the state was saved, instead of a look.
    fn remember(&mut self, _memory: Memory) {}

    /// Slices to try before the first step; none if there is nothing to try (any more).
    fn trials(&self, _model: &Model) -> Vec<Slice> {
        Vec::new()
    }

    /// How many of the tried slices make the slice.
    fn top_k(&self) -> usize {
        1
    }

    /// What the trials came to.
    fn settle(&mut self, _slice: Slice) {}

    /// What they came to, if they were made.
    fn settled(&self) -> Option<&Slice> {
        None
    }

    /// The slice of one step, from the batches that it works on together.
    fn select(&self, inputs: &[StepInput]) -> Result<Selection>;

    /// Once a step was made: what its selection tells of later ones.
    fn learn(&mut self, _selection: &Selection) {}

    /// How much a step may change at most.
    fn extent(&self, model: &Model) -> Extent;

    /// Whether it asks the step's normal text.
    fn needs_normal(&self) -> bool {
        false
    }
}

/// Scores of the ranked units, summed up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Of each unit; empty: nothing was seen.
    pub sums: Vec<f64>,
    /// How many are in a sum.
    pub count: usize,
}

impl Memory {
    /// Adds scores that stand for `count`.
    fn add(&mut self, scores: &[f64], count: usize) {
        self.sums.resize(scores.len(), 0.0);
        self.sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score * count as f64);
        self.count += count;
    }

    /// The mean score of each unit. `None` if nothing was seen.
    pub fn means(&self) -> Option<Vec<f64>> {
        (self.count > 0).then(|| self.sums.iter().map(|sum| sum / self.count as f64).collect())
    }
}

/// How much of a model the steps change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Parameters that one step changes at most.
    pub parameters: usize,
    /// Whether every step changes the same ones.
    pub stays: bool,
}

/// How the ranking of units is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slicing {
    pub granularity: Granularity,
    /// Units a slice.
    pub top_k: usize,
    pub normalize: Normalize,
    /// The blocks that are ranked; empty: all of them.
    pub blocks: Vec<usize>,
}

impl Slicing {
    /// The units that are ranked.
    fn units(&self, model: &Model) -> Vec<Unit> {
        let ranked = |unit: &Unit| self.blocks.is_empty() || self.blocks.contains(&unit.block);
        Unit::all(model.sizes().blocks, self.granularity).into_iter().filter(ranked).collect()
    }

    /// Errors (bad input) if a model does not have what is asked for.
    pub fn check(&self, model: &Model) -> Result<()> {
        let blocks = model.sizes().blocks;
        if let Some(block) = self.blocks.iter().find(|b| **b >= blocks) {
            bail_input!("--blocks {block}: this model has blocks 0 to {}", blocks - 1);
        }
        let units = self.units(model).len();
        if self.top_k > units {
            bail_input!("--top-k {}: there are {units} to choose from", self.top_k);
        }
        Ok(())
    }

    /// Parameters of the largest slice.
    fn largest(&self, model: &Model) -> usize {
        self.units(model).iter().map(|u| u.parameters(model)).max().unwrap_or(0) * self.top_k
    }
}

impl Default for Slicing {
    fn default() -> Self {
        Self {
            granularity: Granularity::Block,
            top_k: 1,
            normalize: Normalize::None,
            blocks: Vec::new(),
        }
    }
}

/// What sensitivities are divided by before they are ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Nothing.
    #[default]
    None,
    /// The root of the number of parameters.
    Size,
    /// The same unit's mean sensitivity before the first step.
    Start,
    /// The mean of the same unit's own scores in the steps before.
    Running,
}

/// What a selector asks for before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    Nothing,
    /// A look at a sample of the pairs.
    Look,
    /// Trial steps.
    Trials,
}

/// A line of [`SELECTORS`].
pub struct Entry {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether top-k, granularity and normalization mean anything to it.
    pub ranks: bool,
    /// Passes a step that measure sensitivities.
    pub looks: usize,
    pub first: First,
    build: fn(Slicing) -> Box<dyn Select>,
}

/// Every selector.
#[rustfmt::skip]
pub const SELECTORS: &[Entry] = &[
    Entry { name: "max", ranks: true, looks: 1, first: First::Nothing, about: "the block most sensitive to the batch's rejected responses", build: |s| ranked(Rank::Max, Over::Nothing, s) },
    Entry { name: "min", ranks: true, looks: 1, first: First::Nothing, about: "the least sensitive one", build: |s| ranked(Rank::Min, Over::Nothing, s) },
    Entry { name: "fixed", ranks: true, looks: 0, first: First::Look, about: "the most sensitive one on average before the first step", build: |s| ranked(Rank::Once, Over::Nothing, s) },
    Entry { name: "max-over-chosen", ranks: true, looks: 2, first: First::Nothing, about: "the largest sensitivity over that to the chosen responses", build: |s| ranked(Rank::Max, Over::Chosen, s) },
    Entry { name: "max-over-normal", ranks: true, looks: 2, first: First::Nothing, about: "the largest sensitivity over that to normal text", build: |s| ranked(Rank::Max, Over::Normal, s) },
    Entry { name: "trial", ranks: true, looks: 0, first: First::Trials, about: "the block whose trial steps lower the held-back loss most, once", build: |s| Box::new(trial::Trial::new(s)) },
    Entry { name: "all", ranks: false, looks: 0, first: First::Nothing, about: "the whole model", build: |_| Box::new(all::All) },
];

fn ranked(rank: Rank, over: Over, slicing: Slicing) -> Box<dyn Select> {
    Box::new(Ranked::new(rank, over, slicing))
}

impl Entry {
    /// The selector, for slices of this kind.
    pub fn build(&self, slicing: Slicing) -> Box<dyn Select> {
        (self.build)(slicing)
    }
}

/// The selector of this name. Errors (bad input) with the nearest name.
pub fn named(name: &str) -> Result<&'static Entry> {
    match SELECTORS.iter().find(|s| s.name == name) {
        Some(entry) => Ok(entry),
        None => {
            let names: Vec<&str> = SELECTORS.iter().map(|s| s.name).collect();
            Err(Error::Input(crate::base::error::unknown("selector", name, &names)).into())
        }
    }
}
