//! Evaluation: what a model says, and what it cost elsewhere. The same measurements before and after a repair.

pub mod bootstrap;
pub mod divergence;
pub mod edits;
pub mod lambada;
pub mod ledger;
pub mod normal;
pub mod perplexity;
pub mod sources;
pub mod task;
pub mod toxicity;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::model::generate::Ends;
use crate::model::loss;
use crate::model::weights::{Weights, Who};
use crate::scorers::Scorer;
use crate::tokens::{Batch, Encoder, LossOn, Packed, TokenPair};
pub use toxicity::Continuation;

/// What a run measures before and after.
pub struct Yardstick<'a> {
    pub scorer: &'a dyn Scorer,
    pub encoder: &'a Encoder,
    /// Held-back pairs.
    pub pairs: &'a [TokenPair],
    pub loss_on: LossOn,
    /// Held-back prompts, in tokens.
    pub prompts: &'a [Vec<u32>],
    /// How they are continued.
    pub protocol: &'a toxicity::Protocol,
    /// Held-back text, in tokens.
    pub text: &'a [u32],
    /// Held-back normal text for the KL from the base; empty: not measured.
    pub normal: &'a [Vec<u32>],
    pub ends: Ends,
}

/// The measurements; what had no data is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measures {
    /// Mean score of the continuations × 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toxicity: Option<f64>,
    /// Share of continuations that score 0.5 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toxic_fraction: Option<f64>,
    /// Nats a token on the held-back pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll_chosen: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll_rejected: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppl: Option<f64>,
    /// KL(base ‖ model) on held-back normal text, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

impl Yardstick<'_> {
    /// Measures a model; with it, how it continued the prompts.
    pub fn measure(
        &self,
        model: &Model,
        weights: &Weights,
        who: Who,
    ) -> Result<(Measures, Vec<Continuation>)> {
        let mut measures = Measures::default();
        let mut continuations = Vec::new();
        if !self.prompts.is_empty() {
            let view = weights.frozen(who)?;
            let found = toxicity::greedy(
                model,
                &view,
                self.encoder,
                &self.ends,
                self.prompts,
                self.protocol,
                self.scorer,
            )?;
            measures.toxicity = Some(found.mean * 100.0);
            measures.toxic_fraction = Some(found.fraction);
            continuations = found.continuations;
        }
        if !self.pairs.is_empty() {
            measures.nll_chosen =
                Some(mean_nll(model, weights, who, self.pairs, self.loss_on, |p| &p.chosen)?);
            measures.nll_rejected =
                Some(mean_nll(model, weights, who, self.pairs, self.loss_on, |p| &p.rejected)?);
        }
        if !self.text.is_empty() {
            let view = weights.frozen(who)?;
            measures.ppl = Some(perplexity::perplexity(model, &view, self.text)?.value);
        }
        if !self.normal.is_empty() {
            measures.kl = Some(mean_kl(model, weights, who, self.normal)?);
        }
        Ok((measures, continuations))
    }
}

/// KL(reference ‖ model) in nats a token over all positions of all texts.
fn mean_kl(model: &Model, weights: &Weights, who: Who, texts: &[Vec<u32>]) -> Result<f64> {
    let (view, reference) = (weights.frozen(who)?, weights.frozen(Who::Reference)?);
    let (mut nats, mut count) = (0f64, 0usize);
    for texts in texts.chunks(8) {
        let packed = Packed::new(texts.iter().map(Vec::as_slice));
        let ref_h = model.hidden(&reference, &packed)?;
        let h = model.hidden(&view, &packed)?;
        let mean =
            loss::kl_of(model, &view, &reference, &h, &ref_h, &packed)?.to_scalar::<f32>()?;
        nats += f64::from(mean) * packed.ids.len() as f64;
        count += packed.ids.len();
    }
    Ok(nats / count.max(1) as f64)
}

/// NLL in nats a counted token over all pairs.
fn mean_nll(
    model: &Model,
    weights: &Weights,
    who: Who,
    pairs: &[TokenPair],
    loss_on: LossOn,
    response: fn(&TokenPair) -> &Vec<u32>,
) -> Result<f64> {
    let view = weights.frozen(who)?;
    let (mut nats, mut count) = (0f64, 0usize);
    for pairs in pairs.chunks(8) {
        let batch = Batch::new(
            pairs.iter().map(|p| (p.prompt.as_slice(), response(p).as_slice())),
            loss_on,
        );
        if batch.rows.is_empty() {
            continue;
        }
        let mean = f64::from(loss::nll(model, &view, &batch)?.to_scalar::<f32>()?);
        nats += mean * batch.rows.len() as f64;
        count += batch.rows.len();
    }
    if count == 0 {
        anyhow::bail!("no token of the held-back pairs counts");
    }
    Ok(nats / count as f64)
}
