//! A block-level *method* is a selector times an objective: which part of the model a step may change, and what it is
//! changed for. The names of the literature are names for pairs of them ([`METHODS`]). [Neuron-level methods](neuron)
//! are another family.

pub mod cost;
pub mod neurons;
pub mod objective;
pub mod optim;

use anyhow::Result;

use crate::base::error::Error;
use crate::slice::input::StepInput;
use crate::slice::select::{self, Select, Slicing};
use objective::{Gradients, Objective, Terms};

/// A line of [`METHODS`].
pub struct NamedMethod {
    pub name: &'static str,
    pub select: &'static str,
    pub objective: &'static str,
    /// Factor on the objective: α of IRepair where there is one.
    pub weight: f64,
    /// Factor on the KL term on normal text; 0: no such term.
    pub kl_weight: f64,
    pub about: &'static str,
}

const fn named_method(
    name: &'static str,
    select: &'static str,
    objective: &'static str,
    weight: f64,
    kl_weight: f64,
    about: &'static str,
) -> NamedMethod {
    NamedMethod { name, select, objective, weight, kl_weight, about }
}

/// Every method with a name. IRepair, its ablations and DAPT: Imtiaz et al.; DPO: Rafailov et al. 2023; the trial: ours.
#[rustfmt::skip]
pub const METHODS: &[NamedMethod] = &[
    named_method("irepair+kl", "max", "nll", 0.5, 1.0, "most sensitive block; chosen responses, held by KL on normal text"),
    named_method("irepair", "max", "nll", 0.5, 0.0, "the same without the KL term"),
    named_method("irepair-min+kl", "min", "nll", 0.5, 1.0, "ablation: the least sensitive block"),
    named_method("irepair-min", "min", "nll", 0.5, 0.0, "the same without the KL term"),
    named_method("irepair-fixed+kl", "fixed", "nll", 0.5, 1.0, "ablation: one block, the most sensitive before the first step"),
    named_method("irepair-fixed", "fixed", "nll", 0.5, 0.0, "the same without the KL term"),
    named_method("dapt+kl", "all", "nll", 0.5, 1.0, "baseline: all parameters; chosen responses, held by KL"),
    named_method("dapt", "all", "nll", 1.0, 0.0, "baseline: all parameters; chosen responses"),
    named_method("dpo+kl", "all", "dpo", 1.0, 1.0, "direct preference optimization, held by KL on normal text"),
    named_method("trial-dpo+kl", "trial", "dpo", 1.0, 2.0, "the block whose trial steps help most; DPO, held by KL on normal text"),
    named_method("trial-dpo-ul+kl", "trial", "dpo-ul", 1.0, 10.0, "the same, and the unlikelihood of the tokens that tell rejected from chosen"),
    named_method("dpo", "all", "dpo", 1.0, 0.0, "baseline: direct preference optimization, all parameters"),
];

/// The block-level method of this name. Errors (bad input) with the nearest names.
pub fn named(name: &str) -> Result<&'static NamedMethod> {
    METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
        if neurons::named(name).is_some() {
            return Error::Input(format!(
                "{name} changes neurons, not blocks; here a block-level method is wanted"
            ))
            .into();
        }
        let names: Vec<&str> =
            METHODS.iter().map(|m| m.name).chain(neurons::METHODS.iter().map(|m| m.name)).collect();
        Error::Input(crate::base::error::unknown("method", name, &names)).into()
    })
}

/// The weight of an objective where none is given: that of the named method of the same parts, else of its like; what has
/// no name weighs 1.
pub fn default_weight(select: &str, objective: &str, with_kl: bool) -> f64 {
    let like = |m: &&NamedMethod| m.objective == objective && (m.kl_weight != 0.0) == with_kl;
    let same = METHODS.iter().find(|m| like(m) && m.select == select);
    same.or_else(|| METHODS.iter().find(like)).map_or(1.0, |m| m.weight)
}

/// What a method is made of, by name and number.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub select: String,
    pub objective: String,
    pub weight: f64,
    pub kl_weight: f64,
    /// β, where it is not the objective's own.
    pub beta: Option<f64>,
    pub slicing: Slicing,
}

impl NamedMethod {
    /// The parts of this method.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            select: self.select.into(),
            objective: self.objective.into(),
            weight: self.weight,
            kl_weight: self.kl_weight,
            beta: None,
            slicing: Slicing::default(),
        }
    }
}

/// A selector and an objective, with their weights.
pub struct Method {
    pub select: Box<dyn Select>,
    pub objective: Box<dyn Objective>,
    pub weight: f64,
    pub kl_weight: f64,
    /// What the frozen reference makes of the normal texts.
    pub reference: objective::reference::Known,
}

/// What one step found and computed, before the optimizer moves anything.
pub struct StepReport {
    pub selection: select::Selection,
    pub terms: Terms,
    pub gradients: Gradients,
}

impl Method {
    /// Errors (bad input) if a part has no such name.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        Ok(Self {
            select: select::named(&recipe.select)?.build(recipe.slicing.clone()),
            objective: objective::named(&recipe.objective)?.build(recipe.beta),
            weight: recipe.weight,
            kl_weight: recipe.kl_weight,
            reference: Default::default(),
        })
    }

    /// Slice, then the gradients of the objective by the slice: those of one batch of all that the step works on.
    pub fn step(&self, inputs: &[StepInput]) -> Result<StepReport> {
        let selection = self.select.select(inputs)?;
        let (terms, gradients) = objective::gradients(self, inputs, &selection.slice)?;
        Ok(StepReport { selection, terms, gradients })
    }

    /// The objective's value on held-back rows: no graph, nothing changed.
    pub fn validate(&self, input: &StepInput) -> Result<Terms> {
        objective::value(self, input)
    }

    /// Whether steps work with normal text.
    pub fn needs_normal(&self) -> bool {
        self.kl_weight != 0.0 || self.select.needs_normal()
    }

    /// Whether the frozen reference is asked (and the originals of touched tensors must be kept).
    pub fn needs_reference(&self) -> bool {
        self.kl_weight != 0.0 || self.objective.needs_reference()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_method_is_a_pair_that_exists() {
        for named in METHODS {
            assert!(Method::new(&named.recipe()).is_ok(), "{}", named.name);
            assert_eq!(named.kl_weight != 0.0, named.name.ends_with("+kl"), "{}", named.name);
        }
    }
}
