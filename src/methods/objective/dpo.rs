//! `dpo`: −log σ(β·[(log π(y⁺|x) − log π(y⁻|x)) − (log ref(y⁺|x) − log ref(y⁻|x))]), log-probabilities summed over the
//! counted tokens, mean over the pairs (Rafailov et al. 2023). `dpo-norm`: log-probabilities divided by the number of
//! counted tokens (length-normalized DPO of Tülu 3, Lambert et al. 2024; TRL's `sigmoid_norm`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use super::{Evaluated, Objective, Take};
use crate::loss;
use crate::methods::StepInput;
use crate::model::Model;
use crate::tokens::Batch;
use crate::weights::{View, Who};

/// What becomes of β times the margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// −log σ(βm)
    Sigmoid,
    /// (m − 1/(2β))²
    Square,
}

impl Curve {
    /// Value and derivative at a margin.
    fn at(self, beta: f64, margin: f64) -> (f64, f64) {
        match self {
            Curve::Sigmoid => (loss::softplus(-beta * margin), -beta * loss::sigmoid(-beta * margin)),
            Curve::Square => {
                let short = margin - 0.5 / beta;
                (short * short, 2.0 * short)
            }
        }
    }
}

pub struct Dpo {
    beta: f64,
    /// Whether log-probabilities are means over a response's tokens instead of sums.
    normalized: bool,
    curve: Curve,
    /// log ref(y|x) of each sequence seen, by its ids and the number of them that count: the reference never moves, so
    /// each is computed once.
    reference: Mutex<HashMap<(Vec<u32>, usize), f64>>,
}

impl Dpo {
    pub fn new(beta: f64, normalized: bool, curve: Curve) -> Self {
        Self { beta, normalized, curve, reference: Mutex::new(HashMap::new()) }
    }

    /// Of each ending of the batch's forks, chosen and rejected in turn.
    fn reference_logps(&self, input: &StepInput, batch: &Batch) -> Result<Vec<f64>> {
        let ids = &batch.packed.ids;
        let endings = batch.packed.sequences.iter().flat_map(|s| {
            let (start, end) = (s.rows.start, s.rows.end);
            let (from, to) = (start + s.hidden.start, start + s.hidden.end);
            [ids[start..to].to_vec(), [&ids[start..from], &ids[to..end]].concat()]
        });
        let keys: Vec<(Vec<u32>, usize)> = endings.zip(batch.counts.iter().copied()).collect();
        let mut known = self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.iter().any(|k| !known.contains_key(k)) {
            let view = input.weights.frozen(Who::Reference)?;
            for (key, logp) in keys.iter().zip(sequence_logps(input.model, &view, batch)?) {
                known.insert(key.clone(), f64::from(logp.to_scalar::<f32>()?));
            }
        }
        Ok(keys.iter().map(|k| known[k]).collect())
    }
}

/// Summed log-probability of each ending's counted tokens, as scalars.
fn sequence_logps(model: &Model, view: &View, batch: &Batch) -> Result<Vec<Tensor>> {
    let h = model.hidden(view, &batch.packed)?;
    let logp = model.token_logp(view, &h, &batch.rows, &batch.targets)?;
    let mut sums = Vec::with_capacity(batch.counts.len());
    let mut first = 0;
    for &count in &batch.counts {
        sums.push(logp.narrow(0, first, count)?.sum_all()?);
        first += count;
    }
    Ok(sums)
}

impl Objective for Dpo {
    fn evaluate(&self, input: &StepInput, view: &View, take: &mut Take) -> Result<Evaluated> {
        let pairs = input.pairs.forks.iter().map(|part| part.counts.len() / 2).sum::<usize>() as f64;
        let (mut value, mut good_total) = (0f64, 0f64);
        for part in &input.pairs.forks {
            let reference = self.reference_logps(input, part)?;
            let logps = sequence_logps(input.model, view, part)?;
            let mut terms = Vec::with_capacity(logps.len() / 2);
            let sequences = logps.chunks_exact(2).zip(reference.chunks_exact(2)).zip(part.counts.chunks_exact(2));
            for ((logps, reference), counts) in sequences {
                let share = |count: usize| if self.normalized { 1.0 / count.max(1) as f64 } else { 1.0 };
                let (share_good, share_bad) = (share(counts[0]), share(counts[1]));
                good_total += f64::from(logps[0].to_scalar::<f32>()?);
                let margin = ((&logps[0] * share_good)? - (&logps[1] * share_bad)?)?;
                let reference = reference[0] * share_good - reference[1] * share_bad;
                // The slope is put in as a factor: −log σ composed of relu and |z| would have none at z = 0, where every
                // run begins.
                let (height, slope) = self.curve.at(self.beta, f64::from(margin.to_scalar::<f32>()?) - reference);
                value += height / pairs;
                terms.push((margin * (slope / pairs))?);
            }
            take(Tensor::stack(&terms, 0)?.sum_all()?)?;
        }
        Ok(Evaluated { value, nll_good: -good_total / input.pairs.chosen.rows.len().max(1) as f64 })
    }

    fn needs_reference(&self) -> bool {
        true
    }
}
