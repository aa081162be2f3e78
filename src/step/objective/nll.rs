//! `nll`: the mean NLL of the chosen responses' tokens (IRepair, DAPT).

use anyhow::Result;

use super::{Evaluated, Objective, Take};
use crate::model::loss;
use crate::model::weights::View;
use crate::slice::input::{StepInput, Whole, share};

pub struct Nll;

impl Objective for Nll {
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated> {
        let chosen = &input.pairs.chosen;
        let graph =
            (loss::nll(input.model, view, chosen)? * share(chosen.rows.len(), whole.chosen))?;
        let value = graph.detach();
        take(graph)?;
        let value = f64::from(value.to_scalar::<f32>()?);
        Ok(Evaluated { value, nll_good: Some(value) })
    }
}
