//! The selectors that rank units by their sensitivity to the rejected responses and take the first
//! `top_k`: on the batch at hand and the current model (IRepair and its ablation `min`), once
//! before the first step (its ablation `fixed`), or by what is specific to the error: the
//! sensitivity over that to the chosen responses or to normal text.

use anyhow::{Context, Result};

use super::{Extent, Learn, Memory, Normalize, Select, Selection, Slicing};
use crate::model::Model;
use crate::model::weights::Weights;
use crate::slice::input::{StepInput, Whole, share};
use crate::slice::sensitivity::{Squares, pick, squares};
use crate::slice::{Granularity, Slice, Unit};
use crate::tokens::{Batch, PairBatch};

/// Which end of the ranking is taken, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    Max,
    Min,
    /// The most sensitive on average over a sample, before the first step.
    Once,
}

/// What the sensitivity to the rejected responses is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Nothing,
    /// The same pairs' chosen responses.
    Chosen,
    /// The step's normal text.
    Normal,
}

pub struct Ranked {
    rank: Rank,
    over: Over,
    slicing: Slicing,
    /// Sensitivities before the first step, or scores of the steps made, where they are needed.
    memory: Memory,
}

impl Ranked {
    pub fn new(rank: Rank, over: Over, slicing: Slicing) -> Self {
        Self { rank, over, slicing, memory: Memory::default() }
    }

    fn units(&self, model: &Model) -> Vec<Unit> {
        self.slicing.units(model)
    }

    /// The first `top_k` units by this ranking. Errors if a score is not finite.
    fn take(&self, model: &Model, mut scores: Vec<f64>) -> Result<Slice> {
        let units = self.units(model);
        let last = match self.rank {
            Rank::Max | Rank::Once => f64::NEG_INFINITY,
            Rank::Min => f64::INFINITY,
        };
        let better = |a: f64, b: f64| if self.rank == Rank::Min { a < b } else { a > b };
        let mut taken = Vec::new();
        // Fails on a score that is not finite.
        pick(&scores, better)?;
        for _ in 0..self.slicing.top_k.min(units.len()) {
            let mut best = 0;
            for (index, &score) in scores.iter().enumerate() {
                if better(score, scores[best]) {
                    best = index;
                }
            }
            taken.push(units[best]);
            scores[best] = last;
        }
        taken.sort_unstable();
        Ok(Slice::Units(taken))
    }

    /// Mean sensitivity of each unit before the first step.
    fn start(&self) -> Result<Vec<f64>> {
        self.memory.means().context("the sensitivity before the first step was not measured")
    }

    /// Divides by what the ranking is normalized with.
    fn normalize(&self, model: &Model, scores: &mut [f64]) -> Result<()> {
        match self.slicing.normalize {
            Normalize::None => {}
            // A gradient's norm grows with the root of the number of its values.
            Normalize::Size => {
                let sizes = self.units(model).into_iter().map(|u| u.parameters(model) as f64);
                scores.iter_mut().zip(sizes).for_each(|(s, n)| *s /= n.sqrt());
            }
            Normalize::Start => {
                scores.iter_mut().zip(self.start()?).for_each(|(s, start)| *s /= start);
            }
            Normalize::Running => {
                // In the first step there is nothing to divide by.
                let means = self.memory.means().unwrap_or_else(|| vec![1.0; scores.len()]);
                scores.iter_mut().zip(means).for_each(|(s, mean)| *s /= mean);
            }
        }
        Ok(())
    }
}

impl Select for Ranked {
    fn select(&self, inputs: &[StepInput]) -> Result<Selection> {
        if self.rank == Rank::Once {
            let mut scores = self.start()?;
            if self.slicing.normalize == Normalize::Size {
                self.normalize(inputs[0].model, &mut scores)?;
            }
            let slice = self.take(inputs[0].model, scores)?;
            return Ok(Selection::unmeasured(slice));
        }
        let first = inputs.first().context("a step of no batches")?;
        let (model, blocks) =
            (first.model, Unit::all(first.model.sizes().blocks, Granularity::Block));
        let units = self.units(model);
        let whole = Whole::of(inputs);
        let mut sensitivity = vec![0f64; blocks.len()];
        let (mut scores, mut others) = (vec![0f64; units.len()], vec![0f64; units.len()]);
        let mut nll = 0.0;
        // A norm of the sum would need the gradients; the batches' own norms add up to no less.
        let add = |sum: &mut [f64], norms: Vec<f64>, share: f64| {
            sum.iter_mut().zip(norms).for_each(|(sum, norm)| *sum += norm * share);
        };
        for input in inputs {
            let (rejected, chosen) = (&input.pairs.rejected, &input.pairs.chosen);
            let own = share(rejected.rows.len(), whole.rejected);
            let found: Squares = squares(model, input.weights, rejected)?;
            add(&mut sensitivity, found.norms(model, &blocks)?, own);
            add(&mut scores, found.norms(model, &units)?, own);
            nll += found.nll * own;
            let (other, own) = match self.over {
                Over::Nothing => continue,
                Over::Chosen => {
                    (squares(model, input.weights, chosen)?, share(chosen.rows.len(), whole.chosen))
                }
                Over::Normal => {
                    let normal = input.normal.context("this selector compares with normal text")?;
                    let own = share(normal.ids.len(), whole.normal);
                    (squares(model, input.weights, &Batch::texts(normal.clone()))?, own)
                }
            };
            add(&mut others, other.norms(model, &units)?, own);
        }
        if self.over != Over::Nothing {
            scores.iter_mut().zip(others).for_each(|(score, other)| *score /= other);
        }
        // A broken gradient is reported as such, not as a broken score.
        pick(&sensitivity, |a, b| a > b)?;
        let mut normalized = scores.clone();
        self.normalize(model, &mut normalized)?;
        Ok(Selection {
            slice: self.take(model, normalized)?,
            sensitivity,
            scores,
            nll_rejected: Some(nll),
        })
    }

    fn extent(&self, model: &Model) -> Extent {
        Extent { parameters: self.slicing.largest(model), stays: self.rank == Rank::Once }
    }

    fn learner(&mut self) -> Option<&mut dyn Learn> {
        Some(self)
    }

    fn memory(&self) -> Memory {
        self.memory.clone()
    }
}

impl Learn for Ranked {
    fn look(
        &mut self,
        model: &Model,
        weights: &Weights,
        sample: &mut dyn Iterator<Item = PairBatch>,
    ) -> Result<()> {
        let units = self.units(model);
        for batch in sample {
            let found = squares(model, weights, &batch.rejected)?;
            self.memory.add(&found.norms(model, &units)?, batch.rejected.counts.len());
        }
        // A state has no word for what is not finite.
        pick(&self.memory.sums, |a, b| a > b)?;
        Ok(())
    }

    fn learn(&mut self, selection: &Selection) {
        if self.rank != Rank::Once && self.slicing.normalize == Normalize::Running {
            self.memory.add(&selection.scores, 1);
        }
    }

    fn remember(&mut self, memory: Memory) {
        self.memory = memory;
    }
}
