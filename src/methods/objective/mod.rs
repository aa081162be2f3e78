//! *Objectives* say what the slice is changed for; the KL term that holds the model to what it was can go with any of
//! them. One file and one line of [`OBJECTIVES`] each.

mod nll;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::Tensor;

use super::{ObjectiveWeights, StepInput};
use crate::loss;
use crate::slice::Slice;
use crate::weights::{Place, View, Want, Who};

/// Gradients of a step, by tensor name: exactly the tensors of its slice.
pub type Gradients = BTreeMap<String, Tensor>;

/// The values of an objective's terms, in nats a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// α · objective + kl_weight · KL.
    pub loss: f64,
    /// NLL of the chosen responses.
    pub nll_good: Option<f64>,
    /// KL(reference ‖ patient) on the normal batch.
    pub kl: Option<f64>,
}

/// What a slice is changed for.
pub trait Objective: Send + Sync {
    fn name(&self) -> &'static str;
    /// The objective as a scalar on the view's graph, and its value as the NLL of the chosen where it is one.
    fn loss(&self, input: &StepInput, view: &View) -> Result<(Tensor, Option<f64>)>;
}

/// Every objective.
pub const OBJECTIVES: &[&dyn Objective] = &[&nll::Nll];

/// Value and gradients of α·objective + kl_weight·KL by the slice.
pub fn gradients(
    objective: &dyn Objective,
    weights: ObjectiveWeights,
    input: &StepInput,
    slice: Slice,
) -> Result<(Terms, Gradients)> {
    let mut view = input.weights.view(Who::Patient, |spec| slice.want(spec))?;
    // One graph at a time: the objective's activations are freed before the KL term's exist.
    let (loss, mut terms) = objective_term(objective, weights, input, &view)?;
    view.backward(loss)?;
    if weights.kl != 0.0 {
        let loss = kl_term(weights, input, &view, slice.lowest(), &mut terms)?;
        view.backward(loss)?;
    }
    Ok((terms, view.harvest()?.gradients))
}

/// Value of α·objective + kl_weight·KL, without a graph.
pub fn value(objective: &dyn Objective, weights: ObjectiveWeights, input: &StepInput) -> Result<Terms> {
    let view = input.weights.view(Who::Patient, |_| Want::Nothing)?;
    let (_, mut terms) = objective_term(objective, weights, input, &view)?;
    if weights.kl != 0.0 {
        kl_term(weights, input, &view, Place::Head, &mut terms)?;
    }
    Ok(terms)
}

fn objective_term(
    objective: &dyn Objective,
    weights: ObjectiveWeights,
    input: &StepInput,
    view: &View,
) -> Result<(Tensor, Terms)> {
    let (loss, nll_good) = objective.loss(input, view)?;
    let loss = (loss * weights.nll)?;
    let terms = Terms { loss: f64::from(loss.to_scalar::<f32>()?), nll_good, kl: None };
    Ok((loss, terms))
}

/// Adds the KL term to `terms` and returns it, weighted, as a scalar on the view's graph.
fn kl_term(
    weights: ObjectiveWeights,
    input: &StepInput,
    view: &View,
    slice_begins: Place,
    terms: &mut Terms,
) -> Result<Tensor> {
    let StepInput { model, weights: store, .. } = input;
    let packed = input.normal.context("a KL term needs normal text")?;
    let reference = store.frozen(Who::Reference)?;
    let blocks = model.sizes().blocks;
    // Below the lowest tensor that was or will be changed, patient and reference are the same function: run it once.
    let shared = match store.lowest_touched().map_or(slice_begins, |t| t.min(slice_begins)) {
        Place::Embedding => None,
        Place::Block(b) => Some(b),
        Place::FinalNorm | Place::Head => Some(blocks),
    };
    let (h, ref_h, from) = match shared {
        Some(block) => {
            let h = model.blocks(&reference, packed, model.embed(&reference, packed)?, 0..block)?;
            (h.clone(), h, block)
        }
        None => (model.embed(view, packed)?, model.embed(&reference, packed)?, 0),
    };
    // Reference first: it needs no graph, so its activations are freed before the patient's are made.
    let ref_h = model.finish(&reference, model.blocks(&reference, packed, ref_h, from..blocks)?)?;
    let h = model.finish(view, model.blocks(view, packed, h, from..blocks)?)?;
    let kl = loss::kl_of(model, view, &reference, &h, &ref_h, packed)?;
    let nats = f64::from(kl.to_scalar::<f32>()?);
    terms.kl = Some(nats);
    terms.loss += weights.kl * nats;
    Ok((kl * weights.kl)?)
}
