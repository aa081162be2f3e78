//! `nll`: the mean NLL of the chosen responses' tokens (IRepair, DAPT).

use anyhow::Result;
use candle_core::Tensor;

use super::Objective;
use crate::loss;
use crate::methods::StepInput;
use crate::weights::View;

pub struct Nll;

impl Objective for Nll {
    fn name(&self) -> &'static str {
        "nll"
    }

    fn loss(&self, input: &StepInput, view: &View) -> Result<(Tensor, Option<f64>)> {
        let loss = loss::nll(input.model, view, &input.pairs.chosen)?;
        let nll = f64::from(loss.to_scalar::<f32>()?);
        Ok((loss, Some(nll)))
    }
}
