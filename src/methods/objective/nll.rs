//! `nll`: the mean NLL of the chosen responses' tokens (IRepair, DAPT).

use anyhow::Result;

use super::{Evaluated, Objective, Take};
use crate::loss;
use crate::methods::StepInput;
use crate::weights::View;

pub struct Nll;

impl Objective for Nll {
    fn evaluate(&self, input: &StepInput, view: &View, take: &mut Take) -> Result<Evaluated> {
        let graph = loss::nll(input.model, view, &input.pairs.chosen)?;
        let value = f64::from(graph.to_scalar::<f32>()?);
        take(graph)?;
        Ok(Evaluated { value, nll_good: value })
    }
}
