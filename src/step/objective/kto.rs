//! `kto`: 1 − σ(β·(r − z)) of a chosen response and 1 − σ(β·(z − r)) of a rejected one, mean over
//! the responses, with r = log π(y|x) − log ref(y|x) summed over the counted tokens
//! (Kahneman-Tversky optimization, Ethayarajh et al. 2024). A response needs no partner.
//!
//! z stands for KL(π ‖ ref): the mean of r over prompts with responses to other prompts of the
//! batch, at least 0, without a slope; 0 where there are none. Each of accumulated batches has a z
//! of its own, as in TRL.

use anyhow::Result;
use candle_core::Tensor;

use super::dpo::{Ratios, numbers, ratios};
use super::{Evaluated, Objective, Take};
use crate::model::loss;
use crate::model::weights::{View, Who};
use crate::slice::input::{StepInput, Whole};

pub struct Kto {
    beta: f64,
}

impl Kto {
    pub fn new(beta: f64) -> Self {
        Self { beta }
    }
}

impl Objective for Kto {
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated> {
        let (beta, all) = (self.beta, whole.responses as f64);
        let strangers = &input.pairs.strangers;
        let z = match strangers.counts.len() {
            0 => 0.0,
            n => {
                let still = input.weights.frozen(Who::Patient)?;
                let found = ratios(input, &still, strangers)?.values;
                (found.iter().sum::<f64>() / n as f64).max(0.0)
            }
        };
        let (mut value, mut nll) = (0.0, None);
        // The sign of the reward, and the responses of this kind.
        for (sign, batch) in [(1.0, &input.pairs.chosen), (-1.0, &input.pairs.rejected)] {
            if batch.counts.is_empty() {
                continue;
            }
            let Ratios { logps, values } = ratios(input, view, batch)?;
            if sign > 0.0 {
                let sum = numbers(&logps)?.iter().sum::<f64>();
                nll = Some(-sum / whole.chosen.max(1) as f64);
            }
            let slopes = values.iter().map(|ratio| {
                // 1 − σ(x) = σ(−x), whose slope by x is −σ(x)·σ(−x).
                let above = beta * sign * (ratio - z);
                value += loss::sigmoid(-above) / all;
                (-beta * sign * loss::sigmoid(above) * loss::sigmoid(-above) / all) as f32
            });
            let slopes: Vec<f32> = slopes.collect();
            let slopes = Tensor::from_vec(slopes, logps.elem_count(), logps.device())?;
            take((logps * slopes)?.sum_all()?)?;
        }
        Ok(Evaluated { value, nll_good: nll })
    }
}
