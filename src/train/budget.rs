//! A *budget* of KL on normal text: the weight of the KL term is moved to keep it, and what is
//! still beyond it at the end is taken back.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::Tensor;

use super::{Rows, Trainer};
use crate::model::loss;
use crate::model::precision::Precision;
use crate::model::weights::Who;
use crate::tokens::Packed;

/// Normal texts that a measurement at the end reads at most.
const TEXTS: usize = 256;
/// Normal texts a pass.
const BATCH: usize = 8;

/// KL that is kept, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    pub nats: f64,
    /// The weight of the KL term before the first step: by it validations are compared.
    pub first_weight: f64,
}

impl Trainer<'_> {
    /// Moves the weight of the KL term by what a step's KL is beyond the budget (dual ascent).
    pub(super) fn keep_budget(&mut self, kl: Option<f64>) {
        /// How fast the weight follows: by its own share of the distance, in budgets, a step.
        const RATE: f64 = 0.05;
        let (Some(Budget { nats, .. }), Some(kl)) = (self.budget, kl) else { return };
        let weight = &mut self.method.recipe.kl_weight;
        // In the logarithm, so that no scale of losses needs a rate of its own; never off for good.
        let beyond = ((kl - nats) / nats).clamp(-1.0, 1.0);
        *weight = (*weight * (RATE * beyond).exp()).clamp(1e-3, 1e4);
    }

    /// After the last step: if KL is beyond the budget, every change is made smaller by one factor
    /// until it is within. Gives the factor, if there is one.
    pub(super) fn hold_budget(&mut self) -> Result<Option<f64>> {
        /// KL goes with the square of a small change, so two or three of them are enough.
        const TRIES: usize = 40;
        let Some(Budget { nats, .. }) = self.budget else { return Ok(None) };
        // As the result is measured, whatever the steps were made in.
        let in_steps = self.weights.set_precision(Precision::F32);
        let touched = self.weights.snapshot()?;
        let (mut factor, mut tries) = (1.0, 0);
        let mut kl = self.measured_kl()?;
        while kl > nats && tries < TRIES {
            tries += 1;
            // A little further than the square root says, and never by less than that little.
            factor *= (nats / kl).sqrt().max(0.1) * 0.99;
            let scaled = self.scaled(&touched, factor)?;
            self.weights.reset_to(&scaled)?;
            kl = self.measured_kl()?;
        }
        self.weights.set_precision(in_steps);
        Ok((tries > 0).then_some(factor))
    }

    /// Each touched tensor on its way from the original, so far.
    fn scaled(
        &self,
        touched: &BTreeMap<String, Tensor>,
        factor: f64,
    ) -> Result<BTreeMap<String, Tensor>> {
        let scaled = touched.iter().map(|(name, tensor)| {
            let original = self.weights.tensor(Who::Reference, name)?;
            let change = (tensor - &original)?;
            Ok((name.clone(), (original + (change * factor)?)?))
        });
        scaled.collect()
    }

    /// KL from the base on held-back normal text, in nats a token; where none is held back, on that
    /// to learn from.
    fn measured_kl(&self) -> Result<f64> {
        let (patient, reference) =
            (self.weights.frozen(Who::Patient)?, self.weights.frozen(Who::Reference)?);
        let Rows { normal, valid_normal, .. } = &self.rows;
        let texts = if valid_normal.is_empty() { normal } else { valid_normal };
        let (mut nats, mut tokens) = (0f64, 0usize);
        for batch in texts[..texts.len().min(TEXTS)].chunks(BATCH) {
            let packed = Packed::new(batch.iter().map(Vec::as_slice));
            let h = self.model.hidden(&patient, &packed)?;
            let ref_h = self.model.hidden(&reference, &packed)?;
            let mean = loss::kl_of(self.model, &patient, &reference, &h, &ref_h, &packed)?;
            nats += f64::from(mean.to_scalar::<f32>()?) * packed.ids.len() as f64;
            tokens += packed.ids.len();
        }
        Ok(nats / tokens.max(1) as f64)
    }
}
