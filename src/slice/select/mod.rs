//! *Selectors* say which part of the model a step may change. One file and one line of
//! [`SELECTORS`] each.

mod all;
mod chosen;
mod ranked;

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::input::StepInput;
use super::{Granularity, Slice, Unit};
use crate::bail_input;
use crate::base::error::{Error, unknown};
use crate::model::Model;
use crate::model::weights::Weights;
use crate::tokens::PairBatch;
pub use chosen::Chosen;
use ranked::{Over, Rank, Ranked};

/// What a selector found.
#[derive(Debug, Clone)]
pub struct Selection {
    pub slice: Slice,
    /// Every block's sensitivity, where the selector measured it.
    pub sensitivity: Vec<f64>,
    /// Scores of the ranked units before they are normalized, where they were measured.
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
    /// The slice of one step, from the batches that it works on together.
    fn select(&self, inputs: &[StepInput]) -> Result<Selection>;

    /// How much a step may change at most.
    fn extent(&self, model: &Model) -> Extent;

    /// What it learns before the first step and from the steps made, if it learns.
    fn learner(&mut self) -> Option<&mut dyn Learn> {
        None
    }

    /// What it has learned that seed and step do not tell: kept in the state.
    fn memory(&self) -> Memory {
        Memory::default()
    }
}

/// How a selector learns.
pub trait Learn {
    /// Once, before the first step: a look at a sample of the pairs under the untouched model.
    fn look(
        &mut self,
        model: &Model,
        weights: &Weights,
        sample: &mut dyn Iterator<Item = PairBatch>,
    ) -> Result<()>;

    /// After each step: what its selection tells of later ones.
    fn learn(&mut self, selection: &Selection);

    /// What it had learned when the state was saved, instead of a look.
    fn remember(&mut self, memory: Memory);
}

/// Scores of the ranked units, summed up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The sum of each unit; empty: nothing was seen.
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
    /// The slices of one unit each.
    pub fn single(&self, model: &Model) -> Vec<Slice> {
        self.units(model).into_iter().map(|unit| Slice::Units(vec![unit])).collect()
    }

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
    /// Trial steps on each slice alone.
    Trials,
}

/// A line of [`SELECTORS`].
pub struct NamedSelector {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether it ranks units, so that top-k, granularity and normalization mean anything to it.
    pub ranks: bool,
    /// Passes a step that measure sensitivities.
    pub looks: usize,
    /// Whether it asks the step's normal text.
    pub normal: bool,
    /// Whether it looks at the chosen responses.
    pub chosen: bool,
    pub first: First,
    build: fn(Slicing) -> Box<dyn Select>,
}

impl fmt::Debug for NamedSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for NamedSelector {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A selector that ranks by sensitivity on each step's own batch.
const fn ranking(
    name: &'static str,
    about: &'static str,
    build: fn(Slicing) -> Box<dyn Select>,
) -> NamedSelector {
    NamedSelector {
        name,
        about,
        ranks: true,
        looks: 1,
        normal: false,
        chosen: false,
        first: First::Nothing,
        build,
    }
}

/// The block most sensitive to the rejected responses (IRepair).
pub static MAX: NamedSelector =
    ranking("max", "the block most sensitive to the batch's rejected responses", |slicing| {
        ranked(Rank::Max, Over::Nothing, slicing)
    });
/// The least sensitive block (IRepair's ablation).
pub static MIN: NamedSelector =
    ranking("min", "the least sensitive one", |slicing| ranked(Rank::Min, Over::Nothing, slicing));
/// One block, the most sensitive before the first step (IRepair's ablation).
pub static FIXED: NamedSelector = NamedSelector {
    looks: 0,
    first: First::Look,
    ..ranking("fixed", "the most sensitive one on average before the first step", |slicing| {
        ranked(Rank::Once, Over::Nothing, slicing)
    })
};
static MAX_OVER_CHOSEN: NamedSelector = NamedSelector {
    looks: 2,
    chosen: true,
    ..ranking(
        "max-over-chosen",
        "the largest sensitivity over that to the chosen responses",
        |slicing| ranked(Rank::Max, Over::Chosen, slicing),
    )
};
static MAX_OVER_NORMAL: NamedSelector = NamedSelector {
    looks: 2,
    normal: true,
    ..ranking("max-over-normal", "the largest sensitivity over that to normal text", |slicing| {
        ranked(Rank::Max, Over::Normal, slicing)
    })
};
/// The unit whose trial steps help most.
pub static TRIAL: NamedSelector = NamedSelector {
    looks: 0,
    first: First::Trials,
    ..ranking(
        "trial",
        "the block whose trial steps lower the held-back loss most, once",
        |slicing| Box::new(Chosen::untried(slicing)),
    )
};
/// Every parameter.
pub static ALL: NamedSelector = NamedSelector {
    ranks: false,
    looks: 0,
    ..ranking("all", "the whole model", |_| Box::new(all::All))
};

/// Every selector.
pub static SELECTORS: &[&NamedSelector] =
    &[&MAX, &MIN, &FIXED, &MAX_OVER_CHOSEN, &MAX_OVER_NORMAL, &TRIAL, &ALL];

fn ranked(rank: Rank, over: Over, slicing: Slicing) -> Box<dyn Select> {
    Box::new(Ranked::new(rank, over, slicing))
}

impl NamedSelector {
    /// Whether it looks at the rejected responses.
    pub fn rejected(&self) -> bool {
        self.looks > 0 || self.first == First::Look
    }

    /// The selector, for slices of this kind.
    pub fn build(&self, slicing: Slicing) -> Box<dyn Select> {
        (self.build)(slicing)
    }
}

/// The selector of this name. Errors (bad input) with the nearest name.
pub fn named(name: &str) -> Result<&'static NamedSelector> {
    SELECTORS.iter().copied().find(|s| s.name == name).ok_or_else(|| {
        let names: Vec<&str> = SELECTORS.iter().map(|s| s.name).collect();
        Error::Input(unknown("selector", name, &names)).into()
    })
}
