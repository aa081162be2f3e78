//! A *step* changes a slice of the model for an objective.
//!
//! A block-level *method* is a selector times an objective: which part of the model a step may
//! change, and what it is changed for. The names of the literature are names for pairs of them
//! ([`METHODS`]). [Neuron-level methods](neurons) are another family.

pub mod cost;
pub mod neurons;
pub mod objective;
pub mod optim;

use anyhow::Result;

use crate::base::error::{Error, unknown};
use crate::model::Model;
use crate::model::weights::Weights;
use crate::slice::Slice;
use crate::slice::input::StepInput;
use crate::slice::select::{self, Chosen, First, NamedSelector, Normalize, Select, Slicing};
use crate::slice::select::{ALL, FIXED, MAX, MIN, TRIAL};
use crate::tokens::PairBatch;
use objective::{DPO, DPO_UL, NLL};
use objective::{Gradients, NamedObjective, Objective, Terms};

/// A line of [`METHODS`].
pub struct NamedMethod {
    pub name: &'static str,
    pub select: &'static NamedSelector,
    pub objective: &'static NamedObjective,
    /// Factor on the objective: α of IRepair where there is one.
    pub weight: f64,
    /// Factor on the KL term on normal text; 0: no such term.
    pub kl_weight: f64,
    /// The learning rate that served it best in our studies (data/studies/patient.md); irepair's
    /// where none was searched for.
    pub rate: f64,
    /// Whether its pairs are the model's own texts, sampled on the way.
    pub online: bool,
    pub about: &'static str,
}

/// The learning rate of most methods.
pub const RATE: f64 = 3e-4;

const fn at(rate: f64, method: NamedMethod) -> NamedMethod {
    NamedMethod { rate, ..method }
}

const fn method(
    name: &'static str,
    select: &'static NamedSelector,
    objective: &'static NamedObjective,
    weight: f64,
    kl_weight: f64,
    about: &'static str,
) -> NamedMethod {
    NamedMethod { name, select, objective, weight, kl_weight, rate: RATE, online: false, about }
}

/// DPO on pairs of the model's own texts.
const fn online(
    name: &'static str,
    select: &'static NamedSelector,
    about: &'static str,
) -> NamedMethod {
    NamedMethod { online: true, ..method(name, select, &DPO, 1.0, 4.0, about) }
}

/// Every block-level method with a name. IRepair, its ablations and DAPT: Imtiaz et al.; DPO:
/// Rafailov et al. 2023; the trials: ours.
pub static METHODS: &[NamedMethod] = &[
    method(
        "irepair+kl",
        &MAX,
        &NLL,
        0.5,
        1.0,
        "most sensitive block; chosen responses, held by KL on normal text",
    ),
    method("irepair", &MAX, &NLL, 0.5, 0.0, "the same without the KL term"),
    method("irepair-min+kl", &MIN, &NLL, 0.5, 1.0, "ablation: the least sensitive block"),
    method("irepair-min", &MIN, &NLL, 0.5, 0.0, "the same without the KL term"),
    method(
        "irepair-fixed+kl",
        &FIXED,
        &NLL,
        0.5,
        1.0,
        "ablation: one block, the most sensitive before the first step",
    ),
    method("irepair-fixed", &FIXED, &NLL, 0.5, 0.0, "the same without the KL term"),
    at(
        1e-4,
        method(
            "dapt+kl",
            &ALL,
            &NLL,
            0.5,
            1.0,
            "baseline: all parameters; chosen responses, held by KL",
        ),
    ),
    at(1e-4, method("dapt", &ALL, &NLL, 1.0, 0.0, "baseline: all parameters; chosen responses")),
    at(
        3e-5,
        method(
            "dpo+kl",
            &ALL,
            &DPO,
            1.0,
            1.0,
            "direct preference optimization, held by KL on normal text",
        ),
    ),
    method(
        "trial-dpo+kl",
        &TRIAL,
        &DPO,
        1.0,
        2.0,
        "the block whose trial steps help most; DPO, held by KL on normal text",
    ),
    at(
        1e-4,
        method(
            "trial-dpo-ul+kl",
            &TRIAL,
            &DPO_UL,
            1.0,
            10.0,
            "the same, and the unlikelihood of the tokens that tell rejected from chosen",
        ),
    ),
    at(
        1e-5,
        method(
            "dpo",
            &ALL,
            &DPO,
            1.0,
            0.0,
            "baseline: direct preference optimization, all parameters",
        ),
    ),
    online(
        "online-dpo+kl",
        &ALL,
        "from prompts and a scorer: DPO in rounds on the model's own texts, held by KL",
    ),
    online("online-dpo-max+kl", &MAX, "the same on the block most sensitive to the rejected texts"),
    online("online-dpo-trial+kl", &TRIAL, "the same on the block whose trial steps help most"),
];

/// A method of either family, by its name.
#[derive(Clone, Copy)]
pub enum Named {
    Blocks(&'static NamedMethod),
    Neurons(&'static neurons::NamedMethod),
}

/// The learning rate of the method with these parts; the common one where none has a name.
pub fn rate(select: &NamedSelector, objective: &NamedObjective) -> f64 {
    let named = METHODS.iter().filter(|method| !method.online);
    let mut named =
        named.filter(|m| (m.select.name, m.objective.name) == (select.name, objective.name));
    named.next().map_or(RATE, |method| method.rate)
}

/// The names of all methods.
pub fn names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|m| m.name).chain(neurons::METHODS.iter().map(|m| m.name))
}

/// The method of this name. Errors (bad input) with the nearest names.
pub fn named(name: &str) -> Result<Named> {
    let blocks = || METHODS.iter().find(|m| m.name == name).map(Named::Blocks);
    let neurons = || neurons::METHODS.iter().find(|m| m.name == name).map(Named::Neurons);
    blocks().or_else(neurons).ok_or_else(|| {
        let names: Vec<&str> = names().collect();
        Error::Input(unknown("method", name, &names)).into()
    })
}

/// What a block-level method is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub select: &'static NamedSelector,
    pub objective: &'static NamedObjective,
    pub weight: f64,
    pub kl_weight: f64,
    /// β, where it is not the objective's own.
    pub beta: Option<f64>,
    pub slicing: Slicing,
    /// Whether its pairs are the model's own texts, sampled on the way.
    pub online: bool,
}

impl NamedMethod {
    /// The parts of this method.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            select: self.select,
            objective: self.objective,
            weight: self.weight,
            kl_weight: self.kl_weight,
            beta: None,
            slicing: Slicing::default(),
            online: self.online,
        }
    }
}

impl Recipe {
    /// A method of these parts. Its weight is that of the named method of the same parts, or of its
    /// like;
    /// what has no name weighs 1. The KL term has no weight yet.
    pub fn of(
        select: &'static NamedSelector,
        objective: &'static NamedObjective,
        with_kl: bool,
    ) -> Self {
        let like = |m: &&NamedMethod| m.objective == objective && (m.kl_weight != 0.0) == with_kl;
        let same = METHODS.iter().find(|m| like(m) && m.select == select);
        let weight = same.or_else(|| METHODS.iter().find(like)).map_or(1.0, |m| m.weight);
        let slicing = Slicing::default();
        Self { select, objective, weight, kl_weight: 0.0, beta: None, slicing, online: false }
    }

    /// What its selector asks for before the first step.
    pub fn first(&self) -> First {
        match (self.select.first, self.slicing.normalize) {
            // Trials rank by loss, so they have nothing to normalize.
            (First::Trials, _) => First::Trials,
            (_, Normalize::Start) => First::Look,
            (first, _) => first,
        }
    }

    /// Whether rejected texts are enough: nothing looks at chosen ones beside them.
    pub fn needs_no_chosen(&self) -> bool {
        !(self.objective.chosen || self.select.chosen)
    }

    /// Whether steps work with normal text.
    pub fn needs_normal(&self) -> bool {
        self.kl_weight != 0.0 || self.select.normal
    }

    /// Whether the frozen reference is asked, so that originals of touched tensors must be kept.
    pub fn needs_reference(&self) -> bool {
        self.kl_weight != 0.0 || self.objective.reference
    }

    /// The slices that are tried before the first step; none where nothing is.
    pub fn trials(&self, model: &Model) -> Vec<Slice> {
        match self.first() {
            First::Trials => self.slicing.single(model),
            _ => Vec::new(),
        }
    }

    /// The method, ready for its first step.
    pub fn build(self) -> Method {
        Method {
            select: self.select.build(self.slicing.clone()),
            objective: self.objective.build(self.beta),
            reference: Default::default(),
            recipe: self,
        }
    }
}

/// A selector and an objective at work.
pub struct Method {
    pub recipe: Recipe,
    pub select: Box<dyn Select>,
    pub objective: Box<dyn Objective>,
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
    /// The selector's look at a sample of the pairs, once, before the first step; nothing if it
    /// wants none.
    pub fn look(
        &mut self,
        model: &Model,
        weights: &Weights,
        sample: &mut dyn Iterator<Item = PairBatch>,
    ) -> Result<()> {
        let looks = self.recipe.first() == First::Look;
        match self.select.learner().filter(|_| looks) {
            Some(learner) => learner.look(model, weights, sample),
            None => Ok(()),
        }
    }

    /// After a step: what its selection tells the selector of later ones.
    pub fn learn(&mut self, selection: &select::Selection) {
        if let Some(learner) = self.select.learner() {
            learner.learn(selection);
        }
    }

    /// What the trials came to: from now on every step changes this slice.
    pub fn settle(&mut self, slice: Slice) {
        self.select = Box::new(Chosen::new(self.recipe.slicing.clone(), slice));
    }

    /// Slice, then the gradients of the objective by the slice: those of one batch of all that the
    /// step works on.
    pub fn step(&self, inputs: &[StepInput]) -> Result<StepReport> {
        let selection = self.select.select(inputs)?;
        let (terms, gradients) = objective::gradients(self, inputs, &selection.slice)?;
        Ok(StepReport { selection, terms, gradients })
    }

    /// The objective's value on held-back rows: no graph, nothing changed.
    pub fn validate(&self, input: &StepInput) -> Result<Terms> {
        objective::value(self, input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_with_a_kl_term_says_so_in_its_name() {
        for named in METHODS {
            assert_eq!(named.kl_weight != 0.0, named.name.ends_with("+kl"), "{}", named.name);
        }
    }
}
