//! `dpo`: −log σ(β·[(log π(y⁺|x) − log π(y⁻|x)) − (log ref(y⁺|x) − log ref(y⁻|x))]),
//! log-probabilities summed over the counted tokens, mean over the pairs (Rafailov et al. 2023).
//! `dpo-norm`: log-probabilities divided by the number of counted tokens (length-normalized DPO of
//! Tülu 3, Lambert et al. 2024; TRL's `sigmoid_norm`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use super::reference::Reference;
use super::{Evaluated, Objective, Take};
use crate::model::Model;
use crate::model::loss;
use crate::model::weights::{Kernels, View};
use crate::slice::input::{StepInput, Whole};
use crate::tokens::Batch;

/// What becomes of β times the margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// −log σ(βm)
    Sigmoid,
    /// (m − 1/(2β))²
    Square,
    /// max(0, 1 − βm): the slope is that of a policy gradient until the margin is reached.
    Hinge,
}

impl Curve {
    /// Value and derivative at a margin.
    fn at(self, beta: f64, margin: f64) -> (f64, f64) {
        match self {
            Curve::Sigmoid => {
                (loss::softplus(-beta * margin), -beta * loss::sigmoid(-beta * margin))
            }
            Curve::Square => {
                let short = margin - 0.5 / beta;
                (short * short, 2.0 * short)
            }
            Curve::Hinge if beta * margin < 1.0 => (1.0 - beta * margin, -beta),
            Curve::Hinge => (0.0, 0.0),
        }
    }
}

/// A pair: ids of prompt, chosen and rejected, where the chosen ones lie, and how many of each
/// response count.
type Fork = (Vec<u32>, Range<usize>, [usize; 2]);

pub struct Dpo {
    beta: f64,
    /// Whether log-probabilities are means over a response's tokens instead of sums.
    normalized: bool,
    curve: Curve,
    /// log ref(y|x) of the chosen and the rejected response of each pair seen: the reference never
    /// moves, so on the CPU each is computed once (on other devices what batch it is read in would
    /// show).
    reference: Mutex<HashMap<Fork, [f64; 2]>>,
}

impl Dpo {
    pub fn new(beta: f64, normalized: bool, curve: Curve) -> Self {
        Self { beta, normalized, curve, reference: Mutex::new(HashMap::new()) }
    }

    /// log ref(y|x) of each ending of the batch's forks, chosen and rejected in turn.
    fn reference_logps(
        &self,
        reference: &Reference,
        batch: &Batch,
        begun: Option<&Tensor>,
    ) -> Result<Vec<f64>> {
        let view = &reference.view;
        let values =
            |batch: &Batch, h: &Tensor| numbers(&sequence_logps(reference.model, view, batch, h)?);
        if view.kernels() == Kernels::Composed {
            return values(batch, &reference.go_on(view, &batch.packed, begun)?);
        }
        let mut known = self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        let mut logps = Vec::with_capacity(batch.counts.len());
        for (index, sequence) in batch.packed.sequences.iter().enumerate() {
            let counts = [batch.counts[2 * index], batch.counts[2 * index + 1]];
            let key =
                (batch.packed.ids[sequence.rows.clone()].to_vec(), sequence.hidden.clone(), counts);
            let pair = match known.get(&key) {
                Some(pair) => *pair,
                None => {
                    let h = reference.finish_one(&batch.packed, index, begun)?;
                    let pair = values(&batch.only_fork(index), &h)?;
                    *known.entry(key).or_insert([pair[0], pair[1]])
                }
            };
            logps.extend(pair);
        }
        Ok(logps)
    }
}

/// Summed log-probability of each ending's counted tokens (2 · pairs) from final hidden states
/// (N,C).
pub(super) fn sequence_logps(
    model: &Model,
    view: &View,
    batch: &Batch,
    h: &Tensor,
) -> Result<Tensor> {
    let logp = model.token_logp(view, h, &batch.rows, &batch.targets)?;
    let mut sums = Vec::with_capacity(batch.counts.len());
    let mut first = 0;
    for &count in &batch.counts {
        sums.push(logp.narrow(0, first, count)?.sum_all()?);
        first += count;
    }
    Ok(Tensor::stack(&sums, 0)?)
}

/// What the patient makes of the responses of a batch, beside the reference.
pub(super) struct Ratios {
    /// log π(y|x) of each response, on the view's graph.
    pub logps: Tensor,
    /// log π(y|x) − log ref(y|x) of each.
    pub values: Vec<f64>,
}

/// The log-ratios of the responses of a batch without forks.
pub(super) fn ratios(input: &StepInput, view: &View, batch: &Batch) -> Result<Ratios> {
    let frozen = Reference::beside(input.model, input.weights, view)?;
    let begun = frozen.begin(&batch.packed)?;
    // The reference first: it needs no graph.
    let ref_h = frozen.go_on(&frozen.view, &batch.packed, begun.as_ref())?;
    let reference = numbers(&sequence_logps(input.model, &frozen.view, batch, &ref_h)?)?;
    drop(ref_h);
    let h = frozen.go_on(view, &batch.packed, begun.as_ref())?;
    let logps = sequence_logps(input.model, view, batch, &h)?;
    let values = numbers(&logps)?.into_iter().zip(reference).map(|(own, base)| own - base);
    Ok(Ratios { values: values.collect(), logps })
}

/// In one copy from the device.
pub(super) fn numbers(values: &Tensor) -> Result<Vec<f64>> {
    Ok(values.detach().to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

impl Dpo {
    /// As [`Objective::evaluate`]; `also` adds a scalar of its own from the final hidden states
    /// (N,C) of each part of the batch.
    pub fn evaluate_with(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
        also: impl Fn(&Batch, &Tensor) -> Result<Option<Tensor>>,
    ) -> Result<Evaluated> {
        let pairs = whole.pairs as f64;
        let frozen = Reference::beside(input.model, input.weights, view)?;
        let (mut value, mut good_total) = (0f64, 0f64);
        for part in &input.pairs.forks {
            let begun = frozen.begin(&part.packed)?;
            let reference = self.reference_logps(&frozen, part, begun.as_ref())?;
            let h = frozen.go_on(view, &part.packed, begun.as_ref())?;
            let logps = sequence_logps(input.model, view, part, &h)?;
            let mut slopes = Vec::with_capacity(part.counts.len());
            let found = numbers(&logps)?;
            let sequences = found
                .chunks_exact(2)
                .zip(reference.chunks_exact(2))
                .zip(part.counts.chunks_exact(2));
            for ((logps, reference), counts) in sequences {
                let share =
                    |count: usize| if self.normalized { 1.0 / count.max(1) as f64 } else { 1.0 };
                let (share_good, share_bad) = (share(counts[0]), share(counts[1]));
                good_total += logps[0];
                let margin =
                    (logps[0] - reference[0]) * share_good - (logps[1] - reference[1]) * share_bad;
                let (height, slope) = self.curve.at(self.beta, margin);
                value += height / pairs;
                slopes.extend(
                    [slope / pairs * share_good, -slope / pairs * share_bad]
                        .map(|slope| slope as f32),
                );
            }
            // The slopes are put in as factors: −log σ composed of relu and |z| would have none at
            // z = 0, where every run begins.
            let slopes = Tensor::from_vec(slopes, part.counts.len(), logps.device())?;
            let mut graph = (logps * slopes)?.sum_all()?;
            let mut told = None;
            if let Some(more) = also(part, &h)? {
                told = Some(more.detach());
                graph = (graph + more)?;
            }
            take(graph)?;
            // Read last: a GPU is asked for the backward pass before it has this.
            if let Some(told) = told {
                value += f64::from(told.to_scalar::<f32>()?);
            }
        }
        Ok(Evaluated { value, nll_good: Some(-good_total / whole.chosen.max(1) as f64) })
    }
}

impl Objective for Dpo {
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated> {
        self.evaluate_with(input, whole, view, take, |_, _| Ok(None))
    }
}
