//! `dpo`: −log σ(β·[(log π(y⁺|x) − log π(y⁻|x)) − (log ref(y⁺|x) − log ref(y⁻|x))]), log-probabilities summed over the
//! counted tokens, mean over the pairs (Rafailov et al. 2023).

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

pub struct Dpo {
    beta: f64,
    /// log ref(y|x) of each sequence seen, by its ids and the number of them that count: the reference never moves, so
    /// each is computed once.
    reference: Mutex<HashMap<(Vec<u32>, usize), f64>>,
}

impl Dpo {
    pub fn new(beta: f64) -> Self {
        Self { beta, reference: Mutex::new(HashMap::new()) }
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
            for (logps, reference) in logps.chunks_exact(2).zip(reference.chunks_exact(2)) {
                let (good, bad) = (&logps[0], &logps[1]);
                good_total += f64::from(good.to_scalar::<f32>()?);
                let margin = (good - bad)?;
                let z = self.beta * (f64::from(margin.to_scalar::<f32>()?) - (reference[0] - reference[1]));
                value += loss::softplus(-z) / pairs;
                // ∂(−log σ(z))/∂margin = −β·σ(−z): put in as a factor, since composed of relu and |z| its gradient at
                // z = 0, where every run begins, would be 0.
                terms.push((margin * (-self.beta * loss::sigmoid(-z) / pairs))?);
            }
            take(Tensor::stack(&terms, 0)?.sum_all()?)?;
        }
        Ok(Evaluated { value, nll_good: -good_total / input.pairs.chosen.rows.len().max(1) as f64 })
    }

    fn needs_reference(&self) -> bool {
        true
    }
}
