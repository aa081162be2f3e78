//! The batches of steps and of validations. Which rows they hold is a function of seed and step.

use anyhow::Result;

use super::Trainer;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::base::random::{Purpose, batch_indices};
use crate::eval::perplexity::perplexity;
use crate::model::precision::Precision;
use crate::model::weights::Who;
use crate::slice::input::StepInput;
use crate::step::objective::Terms;
use crate::tokens::{Packed, PairBatch, TokenPair};

/// Pairs, and normal texts, of a batch of a validation.
const VALID_BATCH: usize = 8;

impl Trainer<'_> {
    /// The batches of a step.
    pub(super) fn draw(&self, step: usize) -> Vec<(PairBatch, Option<Packed>)> {
        let regime = &self.regime;
        let draw =
            |purpose, n, batch| batch_indices(regime.seed, purpose, n, regime.batch_size, batch);
        let pairs = |batch| {
            let rows = draw(Purpose::Pairs, self.rows.pairs.len(), batch)
                .into_iter()
                .map(|i| &self.rows.pairs[i]);
            PairBatch::new(&rows.collect::<Vec<_>>(), regime.loss_on)
        };
        let normal = |batch| {
            let rows = &self.rows.normal;
            let texts =
                || draw(Purpose::Normal, rows.len(), batch).into_iter().map(|i| rows[i].as_slice());
            (!rows.is_empty() && self.method.recipe.needs_normal()).then(|| Packed::new(texts()))
        };
        let batches = step * regime.accumulation..(step + 1) * regime.accumulation;
        batches.map(|batch| (pairs(batch), normal(batch))).collect()
    }

    pub(super) fn inputs<'r>(
        &'r self,
        rows: &'r [(PairBatch, Option<Packed>)],
    ) -> Vec<StepInput<'r>> {
        let input = |(pairs, normal): &'r (PairBatch, Option<Packed>)| StepInput {
            model: self.model,
            weights: &self.weights,
            pairs,
            normal: normal.as_ref(),
        };
        rows.iter().map(input).collect()
    }

    /// The objective on the held-back rows: a mean over batches of 8 pairs, each with 8 of the
    /// held-back normal texts. `None`: the user asked to stop.
    pub(super) fn validate(&self, progress: &Progress) -> Result<Option<f64>> {
        let count = self.rows.valid_pairs.len().div_ceil(VALID_BATCH);
        let normals: Vec<&[Vec<u32>]> = self.rows.valid_normal.chunks(VALID_BATCH).collect();
        let (mut total, mut batches) = (0f64, 0usize);
        for (index, pairs) in self.rows.valid_pairs.chunks(VALID_BATCH).enumerate() {
            if interrupt::asked() {
                return Ok(None);
            }
            progress.doing(&format!("validating, {} of {count}", index + 1));
            let pairs = PairBatch::new(&pairs.iter().collect::<Vec<_>>(), self.regime.loss_on);
            let normal = normals
                .get(index % normals.len().max(1))
                .map(|texts| Packed::new(texts.iter().map(Vec::as_slice)));
            let input = StepInput {
                model: self.model,
                weights: &self.weights,
                pairs: &pairs,
                normal: normal.as_ref(),
            };
            let Terms { loss, kl, .. } = self.method.validate(&input)?;
            // A weight that moves would make losses of other steps something else.
            let moved = self.budget.map_or(0.0, |budget| {
                (budget.first_weight - self.method.recipe.kl_weight) * kl.unwrap_or(0.0)
            });
            total += loss + moved;
            batches += 1;
        }
        Ok(Some(total / batches.max(1) as f64))
    }

    /// Tokens that one validation reads.
    pub(super) fn validation_tokens(&self) -> usize {
        let pair = |p: &TokenPair| 2 * p.prompt.len() + p.chosen.len() + p.rejected.len();
        let pairs = self.rows.valid_pairs.iter().map(pair).sum::<usize>();
        let normals: Vec<usize> = self
            .rows
            .valid_normal
            .chunks(VALID_BATCH)
            .map(|texts| texts.iter().map(Vec::len).sum())
            .collect();
        let batches = self.rows.valid_pairs.len().div_ceil(VALID_BATCH);
        pairs
            + normals
                .iter()
                .cycle()
                .take(if normals.is_empty() { 0 } else { batches })
                .sum::<usize>()
    }

    /// Perplexity of the guard's text, if there is a guard.
    pub(super) fn guarded_perplexity(&mut self) -> Result<Option<f64>> {
        let Some(guard) = &self.guard else { return Ok(None) };
        // As the base's was measured, whatever the steps are made in.
        let in_steps = self.weights.set_precision(Precision::F32);
        let found = self
            .weights
            .frozen(Who::Patient)
            .and_then(|view| perplexity(self.model, &view, &guard.text));
        self.weights.set_precision(in_steps);
        Ok(Some(found?.value))
    }
}
