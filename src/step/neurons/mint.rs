//! MINT: a few neurons a wrong token, one small move of an output row after another, each time the
//! one that helps most.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::Tensor;

use super::scope::{attribution, ranked};
use super::{Lap, NeuronMethod, Patient, Position, Step, Watch, batch, single_tokens};
use crate::model::layers::Orientation;
use crate::model::weights::Who;
use crate::tokens::{Batch, TokenEdit};

/// Neurons that are tried for a token.
const CANDIDATES: usize = 10;
/// Moves after which a token is given up.
const MOVES: usize = 10;
/// How far a move goes: w ← (w + f·t) / (1 + f).
const FRACTION: f64 = 0.01;

pub struct Mint;

/// A block and the number of one of its neurons.
type Neuron = (usize, usize);

impl NeuronMethod for Mint {
    fn pass(
        &self,
        patient: &mut Patient,
        rows: &[TokenEdit],
        at: &mut Position,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        for row in single_tokens(rows).skip(at.done) {
            let repaired = repair(patient, &batch(&[row]), watch)?;
            at.pass.tried += usize::from(repaired.is_some());
            at.pass.given_up += usize::from(repaired == Some(false));
            at.done += 1;
            watch.rest(patient, at)?;
        }
        Ok(())
    }
}

/// What the model makes of one target token.
struct Answer {
    likeliest: u32,
    /// p(likeliest) − p(target)
    gap: f64,
    /// −ln p(target)
    nats: f64,
}

/// The hidden states that enter the upper half of the blocks: nothing below is ever moved.
struct Lower {
    batch: Batch,
    begin: usize,
    h: Tensor,
}

impl Lower {
    fn new(patient: &Patient, batch: &Batch) -> Result<Self> {
        let begin = patient.model.sizes().blocks / 2;
        let view = patient.weights.frozen(Who::Patient)?;
        let h = patient.model.embed(&view, &batch.packed)?;
        let h = patient.model.blocks(&view, &batch.packed, h, 0..begin)?;
        Ok(Self { batch: batch.clone(), begin, h })
    }

    /// What the model says now.
    fn answer(&self, patient: &Patient) -> Result<Answer> {
        let Patient { model, weights, .. } = patient;
        let view = weights.frozen(Who::Patient)?;
        let h = model.blocks(
            &view,
            &self.batch.packed,
            self.h.clone(),
            self.begin..model.sizes().blocks,
        )?;
        let h = super::scope::at_rows(&model.finish(&view, h)?, &self.batch.rows)?
            .to_device(&weights.device())?;
        let logits = model.logits(&view, &h)?.flatten_all()?.to_vec1::<f32>()?;
        let likeliest = ranked_first(&logits);
        let top = f64::from(logits[likeliest]);
        let total: f64 = logits.iter().map(|x| (f64::from(*x) - top).exp()).sum();
        let target = f64::from(logits[self.batch.targets[0] as usize]) - top;
        Ok(Answer {
            likeliest: likeliest as u32,
            gap: (1.0 - target.exp()) / total,
            nats: total.ln() - target,
        })
    }
}

/// The largest; the first of equals.
fn ranked_first(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// Whether a failing token was repaired; `None` if it doesn't fail.
fn repair(patient: &mut Patient, batch: &Batch, watch: &mut dyn Watch) -> Result<Option<bool>> {
    let right = batch.targets[0];
    let lower = Lower::new(patient, batch)?;
    let mut now = lower.answer(patient)?;
    if now.likeliest == right {
        return Ok(None);
    }
    let candidates = candidates(patient, batch, lower.begin)?;
    let traction = traction(patient, right, now.likeliest)?;
    let mut before: BTreeMap<Neuron, Tensor> = BTreeMap::new();
    let mut lap = Lap::begin();
    for _ in 0..MOVES {
        let mut best: Option<(f64, Neuron)> = None;
        for &neuron in &candidates {
            let row = row(patient, neuron)?;
            set(patient, neuron, &moved(&row, &traction)?)?;
            let gap = lower.answer(patient)?.gap;
            set(patient, neuron, &row)?;
            if best.is_none_or(|(least, _)| gap < least) {
                best = Some((gap, neuron));
            }
        }
        let (_, neuron) = best.context("an MLP without neurons")?;
        let row = row(patient, neuron)?;
        set(patient, neuron, &moved(&row, &traction)?)?;
        before.entry(neuron).or_insert(row);
        let nats = now.nats;
        now = lower.answer(patient)?;
        let (seconds, operations) = lap.end();
        watch.step(Step {
            blocks: vec![neuron.0],
            loss: nats,
            gradient_norm: 0.0,
            learning_rate: FRACTION,
            residual: 0.0,
            tokens: batch.packed.ids.len(),
            seconds,
            operations,
        })?;
        if now.likeliest == right {
            return Ok(Some(true));
        }
    }
    for (neuron, row) in before {
        set(patient, neuron, &row)?;
    }
    Ok(Some(false))
}

/// The neurons of the upper half of the blocks with the highest attribution.
pub fn candidates(patient: &Patient, batch: &Batch, begin: usize) -> Result<Vec<Neuron>> {
    let scores: Vec<f64> =
        attribution(patient, batch, begin..patient.model.sizes().blocks)?.concat();
    let width = patient.mlp.neurons;
    Ok(ranked(&scores)
        .into_iter()
        .take(CANDIDATES)
        .map(|i| (begin + i / width, i % width))
        .collect())
}

/// t (C): `B[right] − B[wrong]` divided by (max − min) of itself. The paper's factor (block + 1)/L
/// cancels in this.
fn traction(patient: &Patient, right: u32, wrong: u32) -> Result<Vec<f32>> {
    let toward = patient.basis.toward(right, wrong)?;
    let range = toward.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        - toward.iter().copied().fold(f64::INFINITY, f64::min);
    // Two tokens of one embedding can't be told apart, and nothing is moved.
    Ok(toward.iter().map(|x| if range > 0.0 { (x / range) as f32 } else { 0.0 }).collect())
}

/// (w + f·t) / (1 + f)
fn moved(row: &Tensor, traction: &[f32]) -> Result<Tensor> {
    let traction = Tensor::from_slice(traction, row.shape(), row.device())?;
    Ok(((row + (traction * FRACTION)?)? / (1.0 + FRACTION))?)
}

/// A neuron's output row, as it lies in the matrix.
fn row(patient: &Patient, (block, neuron): Neuron) -> Result<Tensor> {
    let w = patient.weights.tensor(Who::Patient, &patient.mlp.weight(block))?;
    Ok(w.narrow(axis(patient), neuron, 1)?.contiguous()?.copy()?)
}

fn set(patient: &mut Patient, (block, neuron): Neuron, row: &Tensor) -> Result<()> {
    let axis = axis(patient);
    Ok(patient.weights.touch(&patient.mlp.weight(block))?.slice_set(row, axis, neuron)?)
}

/// Along which the neurons lie.
fn axis(patient: &Patient) -> usize {
    match patient.mlp.orientation {
        Orientation::InOut => 0,
        Orientation::OutIn => 1,
    }
}
