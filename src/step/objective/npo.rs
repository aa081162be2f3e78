//! `npo`: −(2/β)·log σ(−β·(log π(y⁻|x) − log ref(y⁻|x))), log-probabilities summed over the counted
//! tokens, mean over the rows (negative preference optimization, Zhang et al. 2024). It needs no
//! chosen response. What is already far less likely than under the reference is left alone.

use anyhow::Result;
use candle_core::Tensor;

use super::dpo::{Ratios, ratios};
use super::{Evaluated, Objective, Take};
use crate::model::loss;
use crate::model::weights::View;
use crate::slice::input::{StepInput, Whole};

pub struct Npo {
    beta: f64,
}

impl Npo {
    pub fn new(beta: f64) -> Self {
        Self { beta }
    }
}

impl Objective for Npo {
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated> {
        let (beta, rows) = (self.beta, whole.pairs as f64);
        let Ratios { logps, values } = ratios(input, view, &input.pairs.rejected)?;
        let (mut value, mut slopes) = (0f64, Vec::with_capacity(values.len()));
        for ratio in values {
            let above = beta * ratio;
            value += 2.0 / beta * loss::softplus(above) / rows;
            slopes.push((2.0 * loss::sigmoid(above) / rows) as f32);
        }
        let slopes = Tensor::from_vec(slopes, logps.elem_count(), logps.device())?;
        take((logps * slopes)?.sum_all()?)?;
        Ok(Evaluated { value, nll_good: None })
    }
}
