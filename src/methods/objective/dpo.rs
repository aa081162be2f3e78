//! `dpo`: −log σ(β·[(log π(y⁺|x) − log π(y⁻|x)) − (log ref(y⁺|x) − log ref(y⁻|x))]), log-probabilities summed over the
//! counted tokens, mean over the pairs (Rafailov et al. 2023).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use super::{Evaluated, Objective};
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

    fn reference_logps(&self, input: &StepInput, batch: &Batch) -> Result<Vec<f64>> {
        let keys: Vec<(Vec<u32>, usize)> = batch
            .packed
            .sequences
            .iter()
            .zip(&batch.counts)
            .map(|(rows, count)| (batch.packed.ids[rows.clone()].to_vec(), *count))
            .collect();
        let mut known = self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.iter().any(|k| !known.contains_key(k)) {
            let view = input.weights.frozen(Who::Reference)?;
            let (logps, _) = sequence_logps(input.model, &view, batch)?;
            for (key, logp) in keys.iter().zip(logps) {
                known.insert(key.clone(), f64::from(logp.to_scalar::<f32>()?));
            }
        }
        Ok(keys.iter().map(|k| known[k]).collect())
    }
}

/// Summed log-probability of each sequence's counted tokens, as scalars; and their sum over all, in nats.
fn sequence_logps(model: &Model, view: &View, batch: &Batch) -> Result<(Vec<Tensor>, f64)> {
    let h = model.hidden(view, &batch.packed)?;
    let logp = model.token_logp(view, &h, &batch.rows, &batch.targets)?;
    let mut sums = Vec::with_capacity(batch.counts.len());
    let (mut first, mut total) = (0, 0f64);
    for &count in &batch.counts {
        let sum = logp.narrow(0, first, count)?.sum_all()?;
        total += f64::from(sum.to_scalar::<f32>()?);
        sums.push(sum);
        first += count;
    }
    Ok((sums, total))
}

impl Objective for Dpo {
    fn evaluate(&self, input: &StepInput, view: &View) -> Result<Evaluated> {
        let (chosen, rejected) = (&input.pairs.chosen, &input.pairs.rejected);
        let (ref_chosen, ref_rejected) = (self.reference_logps(input, chosen)?, self.reference_logps(input, rejected)?);
        let (good, good_total) = sequence_logps(input.model, view, chosen)?;
        let (bad, _) = sequence_logps(input.model, view, rejected)?;
        let pairs = good.len() as f64;
        let mut value = 0f64;
        let mut terms = Vec::with_capacity(good.len());
        for (index, (good, bad)) in good.iter().zip(&bad).enumerate() {
            let margin = (good - bad)?;
            let reference = ref_chosen[index] - ref_rejected[index];
            let z = self.beta * (f64::from(margin.to_scalar::<f32>()?) - reference);
            value += loss::softplus(-z) / pairs;
            // ∂(−log σ(z))/∂margin = −β·σ(−z): put in as a factor, since composed of relu and |z| its gradient at
            // z = 0, where every run begins, would be 0.
            terms.push((margin * (-self.beta * loss::sigmoid(-z) / pairs))?);
        }
        let graph = Tensor::stack(&terms, 0)?.sum_all()?;
        Ok(Evaluated { graph, value, nll_good: -good_total / chosen.rows.len().max(1) as f64 })
    }

    fn needs_reference(&self) -> bool {
        true
    }
}
