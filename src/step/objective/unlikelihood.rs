//! `unlikelihood`: the mean NLL of the chosen responses' tokens and the mean of −log(1 − p) over
//! the rejected responses' tokens (Welleck et al. 2020).

use anyhow::Result;

use super::{Evaluated, Objective, Take};
use crate::model::weights::View;
use crate::slice::input::{StepInput, Whole};

pub struct Unlikelihood;

impl Objective for Unlikelihood {
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated> {
        let (good, bad) = (whole.chosen.max(1) as f64, whole.rejected.max(1) as f64);
        let (mut value, mut nll_good) = (0f64, 0f64);
        for part in &input.pairs.forks {
            let h = input.model.hidden(view, &part.packed)?;
            let logp = input.model.token_logp(view, &h, &part.rows, &part.targets)?;
            let mut terms = Vec::with_capacity(part.counts.len());
            let mut first = 0;
            for (index, &count) in part.counts.iter().enumerate() {
                let logp = logp.narrow(0, first, count)?;
                first += count;
                let term = if index % 2 == 0 {
                    (logp.sum_all()?.neg()? / good)?
                } else {
                    // A token that is certain would have an infinite loss.
                    let p = logp.exp()?.clamp(0.0, 0.9999)?;
                    (p.affine(-1.0, 1.0)?.log()?.sum_all()?.neg()? / bad)?
                };
                terms.push(term);
            }
            let terms = candle_core::Tensor::stack(&terms, 0)?;
            // In one copy from the device.
            for (index, term) in
                terms.detach().to_vec1::<f32>()?.into_iter().map(f64::from).enumerate()
            {
                value += term;
                nll_good += if index % 2 == 0 { term } else { 0.0 };
            }
            take(terms.sum_all()?)?;
        }
        Ok(Evaluated { value, nll_good: Some(nll_good) })
    }
}
