//! *Trials*: before the first step, a few steps on each slice alone; the best ones are the slice.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result};

use super::log::{Cost, Line, TrialLine};
use super::{Diverged, Trainer};
use crate::base::interrupt;
use crate::base::profile::operations;
use crate::base::progress::Progress;
use crate::slice::Slice;
use crate::slice::input::StepInput;
use crate::step::objective;
use crate::step::optim::{Optimizer, clip_factor, gradient_norm};

impl Trainer<'_> {
    /// What the selector wants tried before the first step: a few steps on each slice alone, from
    /// the base, with the run's first batches; the best ones are its slice. Each is saved, so that
    /// a kill takes one at most. False if the user asked to stop.
    pub(super) fn make_trials(&mut self, log: &mut File, progress: &mut Progress) -> Result<bool> {
        let slices = self.method.recipe.trials(self.model);
        for slice in slices.iter().skip(self.trials.len()) {
            let mut optimizer = Optimizer::new(self.optimizer.kind);
            let (begun, counted, mut tokens) = (Instant::now(), operations(), 0);
            for step in 0..self.regime.trial_steps {
                if interrupt::asked() {
                    self.weights.reset_to(&BTreeMap::new())?;
                    return Ok(false);
                }
                let rows = self.draw(step);
                let inputs = self.inputs(&rows);
                tokens += inputs.iter().map(StepInput::tokens).sum::<usize>();
                let (_, gradients) = objective::gradients(&self.method, &inputs, slice)?;
                let scale = clip_factor(gradient_norm(&gradients)?, self.regime.max_grad_norm);
                optimizer.step(&mut self.weights, &gradients, self.regime.learning_rate, scale)?;
            }
            let Some(valid_loss) = self.validate(progress)? else {
                self.weights.reset_to(&BTreeMap::new())?;
                return Ok(false);
            };
            tokens += self.validation_tokens();
            self.weights.reset_to(&BTreeMap::new())?;
            progress.before_steps(format!(
                "trial of block {}: held-back loss {valid_loss:.4}",
                slice.names().join(", ")
            ));
            let known = Some(valid_loss).filter(|loss| loss.is_finite());
            let cost = Cost::since(begun, counted, tokens);
            self.log(
                log,
                Line::Trial(TrialLine { trial: slice.names(), valid_loss: known, cost }),
            )?;
            log.sync_data().context("writing steps.jsonl")?;
            self.trials.push((slice.clone(), known));
            self.save()?;
        }
        if !slices.is_empty() {
            // A trial that diverged is the worst there is. Stable: of equals, the lowest comes
            // first.
            let mut results = self.trials.clone();
            results.sort_by(|a, b| {
                a.1.unwrap_or(f64::INFINITY).total_cmp(&b.1.unwrap_or(f64::INFINITY))
            });
            if results[0].1.is_none() {
                // Another rate is to make them again.
                self.trials.clear();
                self.save_last_good().ok();
                return Err(Diverged {
                    what: "the loss of every trial",
                    value: f64::INFINITY,
                    step: 0,
                }
                .into());
            }
            let top_k = self.method.recipe.slicing.top_k;
            let best: Vec<Slice> =
                results.into_iter().take(top_k).map(|(slice, _)| slice).collect();
            let slice = Slice::union(&best).context("a trial of the whole model")?;
            self.method.settle(slice);
        }
        Ok(true)
    }
}
