//! What a repair changed: which neurons, how far, and which tokens the most changed ones promote.
//!
//! A neuron *promotes* the tokens whose logits its output row raises most: the largest of the head
//! times that row (Geva et al., arXiv 2203.14680).

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::scope::ranked;
use crate::model::layers::Orientation;
use crate::model::weights::{Weights, Who};
use crate::model::{Mlp, Model};

/// A model whose neurons may have changed.
pub struct Repaired<'a> {
    pub model: &'a Model,
    pub weights: &'a Weights,
    pub mlp: Mlp,
}

/// Changed neurons, ascending, with ‖after − before‖₂ of their output rows, by block.
pub type Changed = BTreeMap<usize, Vec<(usize, f32)>>;

/// The neurons whose output rows differ from the base's, be it by the sign of a zero: it is written
/// to disk, too.
pub fn changed(repaired: &Repaired) -> Result<Changed> {
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut changed = Changed::new();
    for block in 0..repaired.model.sizes().blocks {
        let name = repaired.mlp.weight(block);
        if !repaired.weights.touched().any(|(touched, _)| touched == name) {
            continue;
        }
        let rows = |who| -> Result<Vec<Vec<f32>>> { Ok(rows(repaired, who, block)?.to_vec2()?) };
        let (before, after) = (rows(Who::Reference)?, rows(Who::Patient)?);
        let neurons: Vec<(usize, f32)> = (0..before.len())
            .filter(|&i| bits(&before[i]) != bits(&after[i]))
            .map(|i| (i, norm(after[i].iter().zip(&before[i]).map(|(a, b)| a - b))))
            .collect();
        if !neurons.is_empty() {
            changed.insert(block, neurons);
        }
    }
    Ok(changed)
}

/// A neuron and what its output row promoted and promotes, in ids or in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promoted<T> {
    pub block: usize,
    pub neuron: usize,
    /// ‖after − before‖₂ and ‖before‖₂ of the row.
    pub norm: f32,
    pub base_norm: f32,
    /// Tokens, that first whose logit the row raises most.
    pub before: Vec<T>,
    pub after: Vec<T>,
}

/// The most changed neurons, `many` of them, with `tokens` tokens each.
pub fn promoted(
    repaired: &Repaired,
    changed: &Changed,
    many: usize,
    tokens: usize,
) -> Result<Vec<Promoted<u32>>> {
    let neurons = changed
        .iter()
        .flat_map(|(block, neurons)| neurons.iter().map(|(i, norm)| (*block, *i, *norm)));
    let mut neurons: Vec<(usize, usize, f32)> = neurons.collect();
    neurons.sort_by(|a, b| b.2.total_cmp(&a.2));
    neurons.truncate(many);
    neurons
        .into_iter()
        .map(|(block, neuron, norm_of_change)| {
            let row = |who| -> Result<Tensor> {
                Ok(rows(repaired, who, block)?.narrow(0, neuron, 1)?.contiguous()?)
            };
            let promotes = |row: &Tensor| -> Result<Vec<u32>> {
                let view = repaired.weights.frozen(Who::Patient)?;
                let row = row.to_device(&repaired.weights.device())?;
                let logits = repaired.model.logits(&view, &row)?.flatten_all()?.to_vec1::<f32>()?;
                let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
                Ok(ranked(&logits).into_iter().take(tokens).map(|token| token as u32).collect())
            };
            let (before, after) = (row(Who::Reference)?, row(Who::Patient)?);
            Ok(Promoted {
                block,
                neuron,
                norm: norm_of_change,
                base_norm: norm(before.flatten_all()?.to_vec1::<f32>()?.into_iter()),
                before: promotes(&before)?,
                after: promotes(&after)?,
            })
        })
        .collect()
}

/// The output matrix of a block as (neurons, C), on the CPU.
fn rows(repaired: &Repaired, who: Who, block: usize) -> Result<Tensor> {
    let w = repaired.weights.tensor(who, &repaired.mlp.weight(block))?;
    let w = match repaired.mlp.orientation {
        Orientation::InOut => w,
        Orientation::OutIn => w.t()?,
    };
    Ok(w.to_device(&Device::Cpu)?)
}

fn norm(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32
}
