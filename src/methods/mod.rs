//! A block-level *method* is a selector times an objective: which part of the model a step may change, and what it is
//! changed for. The names of the literature are names for pairs of them ([`METHODS`]).

pub mod objective;
pub mod select;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::model::Model;
use crate::tokens::{Packed, PairBatch};
use crate::weights::Weights;
use objective::{Gradients, Objective, Terms};
use select::Select;

/// What one step works on.
pub struct StepInput<'a> {
    pub model: &'a Model,
    pub weights: &'a Weights,
    pub pairs: &'a PairBatch,
    /// A random batch of normal text, where the objective has a KL term.
    pub normal: Option<&'a Packed>,
}

/// A line of [`METHODS`].
pub struct NamedMethod {
    pub name: &'static str,
    pub select: &'static str,
    pub objective: &'static str,
    /// Whether a KL term on normal text belongs to it.
    pub kl: bool,
    pub about: &'static str,
}

/// Every method with a name.
pub const METHODS: &[NamedMethod] = &[
    NamedMethod {
        name: "irepair+kl",
        select: "max",
        objective: "nll",
        kl: true,
        about: "the most sensitive block, chosen responses, held by KL on normal text",
    },
    NamedMethod { name: "irepair", select: "max", objective: "nll", kl: false, about: "the same without the KL term" },
];

impl NamedMethod {
    /// The pair of selector and objective, with these weights.
    pub fn method(&self, weights: ObjectiveWeights) -> Method {
        // The names in the table are tested to be there.
        let select = select::SELECTORS.iter().copied().find(|s| s.name() == self.select);
        let objective = objective::OBJECTIVES.iter().copied().find(|o| o.name() == self.objective);
        Method {
            select: select.unwrap_or(select::SELECTORS[0]),
            objective: objective.unwrap_or(objective::OBJECTIVES[0]),
            weights,
        }
    }
}

/// The method of this name. Errors (bad input) with the nearest names.
pub fn named(name: &str) -> Result<&'static NamedMethod> {
    METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
        let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
        Fault::Input(crate::config::unknown("method", name, &names)).into()
    })
}

/// A selector and an objective, with their weights.
pub struct Method {
    pub select: &'static dyn Select,
    pub objective: &'static dyn Objective,
    pub weights: ObjectiveWeights,
}

/// Factors of an objective's terms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ObjectiveWeights {
    /// α, on the objective itself.
    pub nll: f64,
    /// On the KL term; 0 leaves it out.
    pub kl: f64,
}

/// What one step found and computed, before the optimizer moves anything.
pub struct StepReport {
    pub selection: select::Selection,
    pub terms: Terms,
    pub gradients: Gradients,
}

impl Method {
    /// Slice, then the gradients of the objective by the slice.
    pub fn step(&self, input: &StepInput) -> Result<StepReport> {
        let selection = self.select.select(input)?;
        let (terms, gradients) = objective::gradients(self.objective, self.weights, input, selection.slice)?;
        Ok(StepReport { selection, terms, gradients })
    }

    /// The objective's value on held-back rows: no graph, nothing changed.
    pub fn validate(&self, input: &StepInput) -> Result<Terms> {
        objective::value(self.objective, self.weights, input)
    }

    /// Whether the frozen reference is asked (and the originals of touched tensors must be kept).
    pub fn needs_reference(&self) -> bool {
        self.weights.kl != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_method_is_a_pair_that_exists() {
        for named in METHODS {
            let method = named.method(ObjectiveWeights { nll: 0.5, kl: 0.0 });
            assert_eq!((method.select.name(), method.objective.name()), (named.select, named.objective));
        }
    }
}
