//! `dpo-ul`: DPO, and over every counted token of both responses the unlikelihood of the [marker
//! tokens](super::marker_tokens) coming next, −ln(1 − Σ_v w_v p_v), summed over a pair as DPO's
//! log-probabilities are, mean over the pairs.
//!
//! DPO moves the model from the rejected manner to the chosen one, but every token of a rejected
//! response pays for it alike. Unlikelihood of negative candidates (Welleck et al. 2020, there
//! those of the context, here those that the data tell) goes to the few tokens that carry the
//! error, wherever they would come.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

use super::dpo::{Curve, Dpo};
use super::marker_tokens::{MarkerToken, marker_tokens, weights};
use super::{Artefact, Evaluated, Objective, Take};
use crate::base::error::Error;
use crate::model::weights::View;
use crate::slice::input::{StepInput, Whole};
use crate::tokens::TokenPair;

pub struct DpoUl {
    dpo: Dpo,
    /// w_v of every token (V), once the pairs were seen.
    weights: Option<Tensor>,
}

impl DpoUl {
    pub fn new(beta: f64) -> Self {
        Self { dpo: Dpo::new(beta, false, Curve::Sigmoid), weights: None }
    }
}

impl Objective for DpoUl {
    fn learn(&mut self, pairs: &[TokenPair], vocabulary: usize) -> Result<Option<Artefact>> {
        let found = marker_tokens(pairs, vocabulary);
        if found.is_empty() {
            return Err(Error::Input(format!(
                "no token of {} pairs marks the rejected responses, so --objective dpo-ul has \
                 nothing beyond dpo; take that, or give more pairs",
                pairs.len()
            ))
            .into());
        }
        self.weights = Some(weights(&found, vocabulary, &Device::Cpu)?);
        let facts = |of: &MarkerToken| {
            let MarkerToken { chosen, rejected, weight, .. } = *of;
            let facts = [("chosen", chosen.into()), ("rejected", rejected.into())];
            let facts = facts.into_iter().chain([("weight", weight.into())]);
            (of.token, facts.map(|(name, value)| (name.to_owned(), value)).collect())
        };
        Ok(Some(Artefact { file: "marker_tokens.jsonl", rows: found.iter().map(facts).collect() }))
    }

    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated> {
        let weights = self.weights.as_ref().context("dpo-ul has not seen the pairs")?;
        self.dpo.evaluate_with(input, whole, view, take, |part, h| {
            let none_comes =
                input.model.absent_logp(view, h, &part.rows, &weights.to_device(h.device())?)?;
            Ok(Some((none_comes.sum_all()? * (-1.0 / whole.pairs as f64))?))
        })
    }
}
