//! The *sensitivity* of a block is the L2 norm of the gradient of the rejected responses' NLL over
//! all its parameters (IRepair, Algorithm 1): how much the block carries of what the model should
//! not say.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Granularity, Unit};
use crate::model::Model;
use crate::model::loss;
use crate::model::weights::{Place, TensorSpec, View, Want, Weights, Who};
use crate::tokens::Batch;

/// ‖∂NLL(batch)/∂θ_b‖₂ of every block b of the patient, and the NLL itself in nats a token. Squares
/// are accumulated in f64; embeddings, final norm and head belong to no block. Errors if a gradient
/// is missing.
pub fn sensitivity(model: &Model, weights: &Weights, batch: &Batch) -> Result<(Vec<f64>, f64)> {
    let found = squares(model, weights, batch)?;
    Ok((found.norms(model, &Unit::all(model.sizes().blocks, Granularity::Block))?, found.nll))
}

/// Σ g² of every tensor of the blocks, by name, and the NLL whose gradient g is.
pub struct Squares {
    squares: BTreeMap<String, f64>,
    /// Nats a token.
    pub nll: f64,
}

impl Squares {
    /// The L2 norm over each unit. Errors if a tensor's is missing.
    pub fn norms(&self, model: &Model, units: &[Unit]) -> Result<Vec<f64>> {
        let specs = model.specs();
        let square = |spec: &TensorSpec| {
            self.squares
                .get(&spec.name)
                .copied()
                .with_context(|| format!("no norm of {}", spec.name))
        };
        units
            .iter()
            .map(|unit| {
                Ok(specs
                    .iter()
                    .filter(|s| unit.contains(s))
                    .map(square)
                    .sum::<Result<f64>>()?
                    .sqrt())
            })
            .collect()
    }
}

/// One backward pass of the batch's NLL through the patient.
pub fn squares(model: &Model, weights: &Weights, batch: &Batch) -> Result<Squares> {
    let view: View = weights.view(Who::Patient, |spec| match spec.place {
        Place::Block(_) => Want::Norm,
        _ => Want::Nothing,
    })?;
    let loss = loss::nll(model, &view, batch)?;
    let nll = loss.detach();
    view.backward(loss)?;
    Ok(Squares { squares: view.harvest()?.squares, nll: f64::from(nll.to_scalar::<f32>()?) })
}

/// A sensitivity that is NaN or infinite: the weights or the batch are broken.
#[derive(Debug, thiserror::Error)]
#[error("the sensitivity of block {block} is {value}")]
pub struct NotFinite {
    pub block: usize,
    pub value: f64,
}

/// The block that `better(candidate, best)` prefers; the first of equals. Errors if a sensitivity
/// is not finite.
pub fn pick(sensitivity: &[f64], better: impl Fn(f64, f64) -> bool) -> Result<usize> {
    if let Some(block) = sensitivity.iter().position(|s| !s.is_finite()) {
        return Err(NotFinite { block, value: sensitivity[block] }.into());
    }
    let mut best = 0;
    for (block, &s) in sensitivity.iter().enumerate() {
        if better(s, sensitivity[best]) {
            best = block;
        }
    }
    Ok(best)
}

/// Error density of the most sensitive fifth of the blocks (rounded, at least one) against the rest
/// (IRepair, Figure 2).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Density {
    /// The blocks of the top 20 %, most sensitive first.
    pub top: Vec<usize>,
    /// Total sensitivity over number of blocks: of the top, of the others.
    pub top_density: f64,
    pub rest_density: f64,
    /// By how many percent the top's is above the others'.
    pub percent_above: f64,
}

/// `None` for a model of one block.
pub fn density(sensitivity: &[f64]) -> Option<Density> {
    let mut order: Vec<usize> = (0..sensitivity.len()).collect();
    order.sort_by(|&a, &b| sensitivity[b].total_cmp(&sensitivity[a]));
    let fifth = ((order.len() + 2) / 5).max(1);
    if fifth >= order.len() {
        return None;
    }
    let (top, rest) = order.split_at(fifth);
    let mean = |blocks: &[usize]| {
        blocks.iter().map(|&b| sensitivity[b]).sum::<f64>() / blocks.len() as f64
    };
    let (top_density, rest_density) = (mean(top), mean(rest));
    let percent_above = 100.0 * (top_density / rest_density - 1.0);
    Some(Density { top: top.to_vec(), top_density, rest_density, percent_above })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn density_of_the_top_fifth() {
        let d = density(&[1.0, 1.0, 6.0, 1.0, 1.0]).expect("five blocks");
        assert_eq!(d.top, [2]);
        assert_eq!((d.top_density, d.rest_density, d.percent_above), (6.0, 1.0, 500.0));
        assert_eq!(density(&[1.0]), None);
    }

    #[test]
    fn the_first_of_equals_is_picked_and_nan_is_an_error() {
        assert_eq!(pick(&[1.0, 3.0, 3.0], |a, b| a > b).expect("finite"), 1);
        assert_eq!(pick(&[2.0, 1.0, 1.0], |a, b| a < b).expect("finite"), 1);
        assert!(pick(&[1.0, f64::NAN], |a, b| a > b).is_err());
    }
}
