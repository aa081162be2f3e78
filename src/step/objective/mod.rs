//! *Objectives* say what the slice is changed for; the KL term that holds the model to what it was can go with any of
//! them. One file and one line of [`OBJECTIVES`] each.

mod dpo;
mod dpo_ul;
mod nll;
pub mod reference;
pub mod telltale;
mod unlikelihood;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::Tensor;

use super::Method;
use crate::base::error::Error;
use crate::model::loss;
use crate::model::weights::{View, Want, Who};
use crate::slice::Slice;
use crate::slice::input::{StepInput, Whole, share};
use crate::tokens::TokenPair;
use dpo::{Curve, Dpo};
use dpo_ul::DpoUl;
use reference::Reference;
use telltale::Telltale;

/// Gradients of a step, by tensor name: exactly the tensors of its slice.
pub type Gradients = BTreeMap<String, Tensor>;

/// The values of an objective's terms, in nats a token (DPO: nats).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// weight · objective + kl_weight · KL.
    pub loss: f64,
    /// NLL of the chosen responses.
    pub nll_good: Option<f64>,
    /// KL(reference ‖ patient) on the normal batch.
    pub kl: Option<f64>,
}

impl Terms {
    /// Adds the KL term, a scalar in nats a token, with this weight.
    fn hold(&mut self, kl: &Tensor, weight: f64) -> Result<()> {
        let nats = f64::from(kl.to_scalar::<f32>()?);
        self.kl = Some(nats);
        self.loss += weight * nats;
        Ok(())
    }

    /// Adds another batch's share.
    fn add(&mut self, other: &Terms) {
        self.loss += other.loss;
        for (sum, value) in [(&mut self.nll_good, other.nll_good), (&mut self.kl, other.kl)] {
            if let Some(value) = value {
                *sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
    }
}

/// One batch's share of an objective.
pub struct Evaluated {
    /// The objective's value.
    pub value: f64,
    /// NLL of the chosen responses in nats a token.
    pub nll_good: f64,
}

/// What an objective gives its graphs to.
pub type Take<'a> = dyn FnMut(Tensor) -> Result<()> + 'a;

/// What a slice is changed for.
pub trait Objective: Send + Sync {
    /// Once, before anything else: a look at the pairs to learn from, in a vocabulary of so many tokens. Returns the tokens
    /// that it works against, if it does. Errors (bad input) if there is nothing to learn from them.
    fn learn(&mut self, _pairs: &[TokenPair], _vocabulary: usize) -> Result<Vec<Telltale>> {
        Ok(Vec::new())
    }

    /// Gives `take` scalars on the view's graph whose gradients add up, over the batches of the whole step, to the
    /// objective's: one, or several where that keeps less of the graph at a time.
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated>;

    /// Whether it asks the frozen reference.
    fn needs_reference(&self) -> bool {
        false
    }
}

/// A line of [`OBJECTIVES`].
pub struct Entry {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether it looks at the rejected responses, too.
    pub contrasts: bool,
    /// Whether its weight is α, that of the NLL.
    pub alpha: bool,
    /// How often the head is asked at a counted token.
    pub heads: usize,
    /// β where nothing else is said; `None`: the objective has none.
    pub beta: Option<f64>,
    /// Made with β.
    build: fn(f64) -> Box<dyn Objective>,
}

/// Every objective. β of DPO is Lee et al.'s, that of its length-normalized form Lambert et al.'s.
#[rustfmt::skip]
pub const OBJECTIVES: &[Entry] = &[
    Entry { name: "nll", contrasts: false, alpha: true, heads: 1, beta: None, about: "NLL of the chosen responses", build: |_| Box::new(nll::Nll) },
    Entry { name: "dpo", contrasts: true, alpha: false, heads: 1, beta: Some(0.1), about: "chosen over rejected, against the reference", build: |beta| Box::new(Dpo::new(beta, false, Curve::Sigmoid)) },
    Entry { name: "dpo-ul", contrasts: true, alpha: false, heads: 2, beta: Some(0.1), about: "dpo, and unlikelihood of the tokens that tell rejected from chosen", build: |beta| Box::new(DpoUl::new(beta)) },
    Entry { name: "dpo-norm", contrasts: true, alpha: false, heads: 1, beta: Some(5.0), about: "the same with log-probabilities per token", build: |beta| Box::new(Dpo::new(beta, true, Curve::Sigmoid)) },
    Entry { name: "ipo", contrasts: true, alpha: false, heads: 1, beta: Some(0.5), about: "chosen over rejected by 1/(2β) nats a token, no more and no less", build: |beta| Box::new(Dpo::new(beta, true, Curve::Square)) },
    Entry { name: "unlikelihood", contrasts: true, alpha: false, heads: 1, beta: None, about: "NLL of the chosen tokens and unlikelihood of the rejected", build: |_| Box::new(unlikelihood::Unlikelihood) },
];

/// The objective of this name. Errors (bad input) with the nearest name.
pub fn named(name: &str) -> Result<&'static Entry> {
    OBJECTIVES.iter().find(|o| o.name == name).ok_or_else(|| {
        let names: Vec<&str> = OBJECTIVES.iter().map(|o| o.name).collect();
        Error::Input(crate::base::error::unknown("objective", name, &names)).into()
    })
}

impl Entry {
    /// The objective, with this β or its own.
    pub fn build(&self, beta: Option<f64>) -> Box<dyn Objective> {
        (self.build)(beta.or(self.beta).unwrap_or_default())
    }
}

/// Value and gradients of weight·objective + kl_weight·KL by the slice.
pub fn gradients(
    method: &Method,
    inputs: &[StepInput],
    slice: &Slice,
) -> Result<(Terms, Gradients)> {
    let first = inputs.first().context("a step of no batches")?;
    let whole = Whole::of(inputs);
    let view = first.weights.view(Who::Patient, |spec| slice.want(spec))?;
    // One graph at a time: the objective's activations are freed before the KL term's exist.
    let mut sum = Terms::default();
    for input in inputs {
        let mut terms =
            objective_term(method, input, &whole, &view, &mut |graph| match method.weight {
                0.0 => Ok(()),
                weight => view.backward((graph * weight)?),
            })?;
        if method.kl_weight != 0.0
            && method.weight != 0.0
            && input.weights.lowest_touched().is_none()
        {
            // Patient and reference are one: no divergence, and no slope. Asked for, its rounding would be the whole gradient of
            // what the objective does not reach (rows of an embedding), and RMSProp makes full steps of the smallest.
            terms.kl = Some(0.0);
        } else if method.kl_weight != 0.0 {
            let kl = kl_term(method, input, &whole, &view)?;
            // Read after the backward pass was asked for: a GPU has it at hand when it has the value.
            let nats = kl.detach();
            view.backward((kl * method.kl_weight)?)?;
            terms.hold(&nats, method.kl_weight)?;
        }
        sum.add(&terms);
    }
    Ok((sum, view.harvest()?.gradients))
}

/// Value of weight·objective + kl_weight·KL, without a graph.
pub fn value(method: &Method, input: &StepInput) -> Result<Terms> {
    let view = input.weights.view(Who::Patient, |_| Want::Nothing)?;
    let whole = Whole::of(std::slice::from_ref(input));
    let mut terms = objective_term(method, input, &whole, &view, &mut |_| Ok(()))?;
    if method.kl_weight != 0.0 {
        terms.hold(&kl_term(method, input, &whole, &view)?, method.kl_weight)?;
    }
    Ok(terms)
}

fn objective_term(
    method: &Method,
    input: &StepInput,
    whole: &Whole,
    view: &View,
    take: &mut Take,
) -> Result<Terms> {
    let Evaluated { value, nll_good } = method.objective.evaluate(input, whole, view, take)?;
    Ok(Terms { loss: method.weight * value, nll_good: Some(nll_good), kl: None })
}

/// The batch's share of the KL term in nats a token, a scalar on the view's graph.
fn kl_term(method: &Method, input: &StepInput, whole: &Whole, view: &View) -> Result<Tensor> {
    let packed = input.normal.context("a KL term needs normal text")?;
    let reference = Reference::beside(input.model, input.weights, view)?;
    let begun = reference.begin(packed)?;
    // Reference first: it needs no graph, so its activations are freed before the patient's are made.
    let ref_h = method.reference.hidden(&reference, packed, begun.as_ref())?;
    let h = reference.go_on(view, packed, begun.as_ref())?;
    let kl = loss::kl_of(input.model, view, &reference.view, &h, &ref_h, packed)?;
    Ok((kl * share(packed.ids.len(), whole.normal))?)
}
