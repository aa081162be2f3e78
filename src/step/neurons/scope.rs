//! The *scope* of an optimization: which neurons of which blocks it may change.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Patient;
use crate::model::loss;
use crate::model::weights::Who;
use crate::tokens::Batch;

/// A share of the blocks, or of a block's neurons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Share {
    All,
    One,
    /// `.0` of `.1` of them, rounded, at least one.
    Part(usize, usize),
}

impl Share {
    /// How many of `n` it is.
    pub fn of(self, n: usize) -> usize {
        match self {
            Share::All => n,
            Share::One => 1.min(n),
            Share::Part(part, of) => ((2 * n * part + of) / (2 * of)).clamp(1.min(n), n),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let part =
            || text.split_once('/').and_then(|(p, of)| Some((p.parse().ok()?, of.parse().ok()?)));
        match (text, part()) {
            ("all", _) => Ok(Share::All),
            ("one", _) => Ok(Share::One),
            (_, Some((part, of))) if part > 0 && part <= of && of < 1 << 31 => {
                Ok(Share::Part(part, of))
            }
            _ => Err("expected all, one, or a fraction like 1/4".into()),
        }
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::All => f.write_str("all"),
            Share::One => f.write_str("one"),
            Share::Part(part, of) => write!(f, "{part}/{of}"),
        }
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

/// Neurons, ascending, by block.
pub type Scope = BTreeMap<usize, Vec<usize>>;

/// The neurons that an optimization of this batch's targets may change.
pub fn scope(patient: &Patient, batch: &Batch, blocks: Share, neurons: Share) -> Result<Scope> {
    let all = patient.model.sizes().blocks;
    let mut kept: Vec<usize> = match blocks {
        Share::All => (0..all).collect(),
        share => block_order(patient, batch)?
            .into_iter()
            .take(share.of(all))
            .map(|(block, _)| block)
            .collect(),
    };
    kept.sort_unstable();
    let number = neurons.of(patient.mlp.neurons);
    if neurons == Share::All {
        return Ok(kept.into_iter().map(|block| (block, (0..number).collect())).collect());
    }
    let scores = attribution(patient, batch, 0..all)?;
    let best = |block: usize| {
        let mut best = ranked(&scores[block]);
        best.truncate(number);
        best.sort_unstable();
        best
    };
    Ok(kept.into_iter().map(|block| (block, best(block))).collect())
}

/// Numbers of the scores, highest first; of equals the first.
pub fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// Blocks and the NLL of the targets (nats a token) while their MLP is skipped, the highest first.
pub fn block_order(patient: &Patient, batch: &Batch) -> Result<Vec<(usize, f64)>> {
    let Patient { model, weights, mlp, .. } = patient;
    let losses = (0..model.sizes().blocks)
        .map(|block| {
            let view = weights.frozen(Who::Patient)?.skipping(mlp.output(block));
            Ok(f64::from(loss::nll(model, &view, batch)?.to_scalar::<f32>()?))
        })
        .collect::<Result<Vec<f64>>>()?;
    Ok(ranked(&losses).into_iter().map(|block| (block, losses[block])).collect())
}

/// ‖∂p/∂a ∘ a‖₂ over the target positions of every neuron of the blocks, where a is its activation
/// and p the sum of the targets' probabilities.
pub fn attribution(
    patient: &Patient,
    batch: &Batch,
    blocks: Range<usize>,
) -> Result<Vec<Vec<f64>>> {
    let Patient { model, weights, mlp, .. } = patient;
    let view = weights.frozen(Who::Patient)?.probing(blocks.clone().map(|block| mlp.output(block)));
    let h = model.hidden(&view, &batch.packed)?;
    view.backward(model.token_logp(&view, &h, &batch.rows, &batch.targets)?.exp()?.sum_all()?)?;
    let readings = view.harvest()?.readings;
    blocks
        .map(|block| {
            let read = &readings[&mlp.output(block)];
            let gradient = read
                .gradient
                .as_ref()
                .map_or_else(|| read.input.zeros_like(), |g| Ok(g.clone()))?;
            let product = at_rows(&(&read.input * gradient)?, &batch.rows)?;
            Ok(product.to_dtype(DType::F64)?.sqr()?.sum(0)?.sqrt()?.to_vec1()?)
        })
        .collect()
}

/// Some rows of a tensor, on the CPU.
pub fn at_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
    Ok(x.index_select(&rows, 0)?.to_device(&Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_counted() {
        for (text, of_three, of_64) in
            [("all", 3, 64), ("one", 1, 1), ("1/2", 2, 32), ("1/16", 1, 4), ("3/4", 2, 48)]
        {
            let share: Share = text.parse().expect(text);
            assert_eq!(
                (share.of(3), share.of(64), share.to_string().as_str()),
                (of_three, of_64, text)
            );
        }
        for wrong in ["", "half", "0/4", "5/4", "1/0", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
