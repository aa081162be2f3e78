//! The loop: batch → step → log line → validate → keep the best → save. Nothing in here knows a
//! method's name.

mod batches;
pub mod budget;
pub mod events;
pub mod log;
pub mod look;
pub mod online;
mod resume;
pub mod state;
mod trials;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Tensor;

use crate::base::interrupt;
use crate::base::profile::operations;
use crate::base::progress::Progress;
use crate::model::Model;
use crate::model::weights::{Weights, Who, squared_norms};
use crate::slice::Slice;
use crate::slice::input::StepInput;
use crate::slice::select::First;
use crate::slice::sensitivity::NotFinite;
use crate::step::Method;
use crate::step::optim::{Optimizer, Schedule, clip_factor, gradient_norm};
use crate::tokens::{LossOn, TokenPair};
use budget::Budget;
use events::EventFile;
use log::{Cost, Line, StepLine, ValidationLine, open_log, write_line};
use online::{Online, Round};
pub use resume::CHECKPOINTS;
use state::{ChangedSetting, Fingerprint};

/// How the loop goes.
#[derive(Debug, Clone)]
pub struct Regime {
    pub batch_size: usize,
    /// Batches a step.
    pub accumulation: usize,
    /// Steps of a trial.
    pub trial_steps: usize,
    pub max_steps: usize,
    pub learning_rate: f64,
    pub warmup: usize,
    pub schedule: Schedule,
    pub max_grad_norm: f64,
    /// 0 = never.
    pub eval_steps: usize,
    /// 0 = no early stop.
    pub patience: usize,
    pub save_steps: usize,
    /// 0 = none are kept.
    pub checkpoint_steps: usize,
    pub loss_on: LossOn,
    pub seed: u64,
}

/// The rows of a run, in tokens.
#[derive(Clone, Default)]
pub struct Rows {
    pub pairs: Vec<TokenPair>,
    pub valid_pairs: Vec<TokenPair>,
    pub normal: Vec<Vec<u32>>,
    pub valid_normal: Vec<Vec<u32>>,
}

/// Why a loop ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    AllSteps,
    /// The validation loss has not improved for `patience` validations.
    Patience,
    /// The user asked to stop; the state is saved.
    Interrupted,
    /// The guard tripped at this perplexity; the best weights within it are in place.
    Guarded(f64),
    /// An online repair found no toxic text any more.
    Clean,
}

/// Perplexity must not rise beyond a limit.
#[derive(Debug, Clone)]
pub struct Guard {
    pub text: Vec<u32>,
    pub limit: f64,
}

/// A loss, gradient or weight that is not finite.
#[derive(Debug, thiserror::Error)]
#[error("{what} is {value} at step {step}")]
pub struct Diverged {
    pub what: &'static str,
    pub value: f64,
    pub step: usize,
}

/// The best validation so far and the weights that gave it.
#[derive(Debug, Clone)]
pub struct Best {
    pub step: usize,
    pub loss: f64,
    pub touched: BTreeMap<String, Tensor>,
}

/// A run under way.
pub struct Trainer<'a> {
    pub model: &'a Model,
    pub weights: Weights,
    pub method: Method,
    pub optimizer: Optimizer,
    pub regime: Regime,
    pub rows: Rows,
    /// Steps made.
    pub step: usize,
    /// Whether the last one's validation is still to be made: it was interrupted.
    pub to_validate: bool,
    /// The step whose validation was made last.
    pub validated_at: Option<usize>,
    pub best: Option<Best>,
    /// Validations since the best one.
    pub stale: usize,
    /// What the selector's look at the pairs took.
    pub look: Cost,
    /// The trials made so far, in their order, with the held-back loss; none where it was not
    /// finite.
    pub trials: Vec<(Slice, Option<f64>)>,
    pub guard: Option<Guard>,
    /// Where the pairs come from, if they are the model's own texts.
    pub online: Option<Online<'a>>,
    pub budget: Option<Budget>,
    /// What the change was scaled by to be within the budget, if it was beyond.
    pub scaled: Option<f64>,
    /// The perplexity that the guard tripped at.
    pub tripped: Option<f64>,
    /// The curves, beside the log.
    pub curves: Option<EventFile>,
    /// `irepair/` of the unfinished output.
    pub dir: PathBuf,
    pub base_sha256: String,
    pub fingerprint: Fingerprint,
    /// Settings that were other ones before a divergence.
    pub changed: Vec<ChangedSetting>,
}

impl Trainer<'_> {
    /// Runs to the end, and leaves the best weights in place.
    pub fn run(&mut self, progress: &mut Progress) -> Result<End> {
        let validates = self.regime.eval_steps > 0 && !self.rows.valid_pairs.is_empty();
        let mut log = open_log(&self.dir, self.step, self.to_validate, self.trials.len())?;
        let mut end = self.run_logged(&mut log, progress, validates);
        if end.as_ref().is_ok_and(|end| *end != End::Interrupted) {
            match self.hold_budget() {
                // After a resume it is within the budget already, and was made so by this factor.
                Ok(scaled) => self.scaled = scaled.or(self.scaled),
                Err(error) => end = Err(error),
            }
        }
        // A state must not be ahead of the log: what was sliced is counted there.
        end.and_then(|end| log.sync_data().context("writing steps.jsonl").map(|()| end))
    }

    fn run_logged(
        &mut self,
        log: &mut File,
        progress: &mut Progress,
        validates: bool,
    ) -> Result<End> {
        let mut round = self.begin_round(log, progress)?;
        if !self.make_trials(log, progress)? {
            self.save()?;
            return Ok(End::Interrupted);
        }
        if self.step == 0 && self.method.recipe.first() == First::Look {
            // That took long, and a kill must not take it.
            self.save()?;
        }
        if validates && self.step == 0 {
            let Some(valid_loss) = self.validate(progress)? else {
                self.save()?;
                return Ok(End::Interrupted);
            };
            self.log(log, Line::Validation(ValidationLine { step: 0, valid_loss, ppl: None }))?;
        }
        let mut end = End::AllSteps;
        // A run that had ended by its guard or its patience and is resumed has still ended.
        if let Some(ppl) = self.tripped {
            return Ok(End::Guarded(ppl));
        }
        while self.step < self.regime.max_steps || self.to_validate {
            if !self.to_validate {
                if round == Round::Clean {
                    end = End::Clean;
                    // What was found clean is held against the best so far, too.
                    let is_validated = self.validated_at == Some(self.step);
                    if !validates || is_validated || self.is_validation() {
                        break;
                    }
                    self.to_validate = true;
                } else if self.regime.patience > 0 && self.stale >= self.regime.patience {
                    end = End::Patience;
                    break;
                } else {
                    if interrupt::asked() {
                        log.sync_data().context("writing steps.jsonl")?;
                        self.save()?;
                        return Ok(End::Interrupted);
                    }
                    self.logged_step(log, progress)?;
                }
            }
            let last = self.step == self.regime.max_steps;
            if validates && (self.to_validate || self.is_validation() || last) {
                self.to_validate = true;
                let Some(valid_loss) = self.validate(progress)? else {
                    // The round that was found clean is found again.
                    self.to_validate &= end != End::Clean;
                    log.sync_data().context("writing steps.jsonl")?;
                    self.save()?;
                    return Ok(End::Interrupted);
                };
                self.to_validate = false;
                self.validated_at = Some(self.step);
                if let Some(ppl) = self.validated(valid_loss, log)? {
                    return Ok(End::Guarded(ppl));
                }
                progress.validation(valid_loss);
            }
            if end == End::Clean {
                break;
            }
            if self.regime.checkpoint_steps > 0
                && self.step.is_multiple_of(self.regime.checkpoint_steps)
                && !last
            {
                self.keep()?;
            }
            if !last {
                round = self.begin_round(log, progress)?;
            }
            if self.step.is_multiple_of(self.regime.save_steps) && !last {
                log.sync_data().context("writing steps.jsonl")?;
                self.save()?;
            }
        }
        if end == End::AllSteps && self.regime.patience > 0 && self.stale >= self.regime.patience {
            end = End::Patience;
        }
        if let Some(best) = &self.best
            && best.step != self.step
        {
            self.weights.reset_to(&best.touched)?;
        }
        Ok(end)
    }

    /// Whether a validation follows the step before.
    fn is_validation(&self) -> bool {
        self.step.is_multiple_of(self.regime.eval_steps)
    }

    /// A step and its line. A divergence leaves the last good state.
    fn logged_step(&mut self, log: &mut File, progress: &mut Progress) -> Result<()> {
        let line = match self.one_step() {
            Ok(line) => line,
            Err(error) => {
                // What was reached before is good and stays.
                if error.downcast_ref::<Diverged>().is_some() {
                    self.keep_last_good(log);
                }
                return Err(error);
            }
        };
        progress.step(line.step, self.regime.max_steps, line.seconds, &line.figures());
        self.log(log, Line::Step(line))
    }

    /// Whether what was reached can be saved is of less interest than what went wrong.
    fn keep_last_good(&self, log: &File) {
        log.sync_data().ok();
        self.save_last_good().ok();
    }

    /// What comes of a validation: the best weights, or the perplexity at which the guard trips.
    fn validated(&mut self, valid_loss: f64, log: &mut File) -> Result<Option<f64>> {
        // The state has no word for infinity.
        let mut ppl = None;
        let mut wrong = (!valid_loss.is_finite()).then_some(("the validation loss", valid_loss));
        if wrong.is_none() {
            ppl = self.guarded_perplexity()?.map(|ppl| ppl.min(f64::MAX));
            // No limit is below NaN.
            wrong = ppl.filter(|ppl| ppl.is_nan()).map(|ppl| ("the guard's perplexity", ppl));
        }
        if let Some((what, value)) = wrong {
            self.keep_last_good(log);
            return Err(Diverged { what, value, step: self.step }.into());
        }
        self.log(log, Line::Validation(ValidationLine { step: self.step, valid_loss, ppl }))?;
        if let (Some(ppl), Some(guard)) = (ppl, &self.guard)
            && ppl > guard.limit
        {
            // What was within the limit and best so far; at first that is the base.
            let within = self.best.as_ref().map(|b| b.touched.clone()).unwrap_or_default();
            self.weights.reset_to(&within)?;
            self.tripped = Some(ppl);
            return Ok(Some(ppl));
        }
        if self.best.as_ref().is_none_or(|b| valid_loss < b.loss) {
            self.best =
                Some(Best { step: self.step, loss: valid_loss, touched: self.weights.snapshot()? });
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        Ok(None)
    }

    fn one_step(&mut self) -> Result<StepLine> {
        let (begun, counted) = (Instant::now(), operations());
        let regime = &self.regime;
        let rows = self.draw(self.step);
        let inputs = self.inputs(&rows);
        let tokens = inputs.iter().map(StepInput::tokens).sum();
        let report =
            self.method.step(&inputs).map_err(|error| match error.downcast_ref::<NotFinite>() {
                Some(found) => {
                    let step = self.step + 1;
                    Diverged { what: "the sensitivity of a block", value: found.value, step }.into()
                }
                None => error.context(format!("step {}", self.step + 1)),
            })?;
        let grad_norm = gradient_norm(&report.gradients)?;
        for (what, value) in [("the loss", report.terms.loss), ("the gradient norm", grad_norm)] {
            if !value.is_finite() {
                return Err(Diverged { what, value, step: self.step + 1 }.into());
            }
        }
        let lr = regime.learning_rate
            * regime.schedule.factor(self.step, regime.warmup, regime.max_steps);
        let scale = clip_factor(grad_norm, regime.max_grad_norm);
        self.optimizer.step(&mut self.weights, &report.gradients, lr, scale)?;
        self.step += 1;
        let used_weight = self.method.recipe.kl_weight;
        self.keep_budget(report.terms.kl);
        let tensors = report.gradients.keys().map(|name| self.weights.tensor(Who::Patient, name));
        let norms = squared_norms(tensors.collect::<Result<Vec<_>>>()?.iter())?;
        if let Some(value) = norms.into_iter().find(|norm| !norm.is_finite()) {
            return Err(Diverged { what: "a weight", value, step: self.step }.into());
        }
        self.method.learn(&report.selection);
        Ok(StepLine {
            step: self.step,
            block: report.selection.slice.only_block(),
            slice: match report.selection.slice.only_block() {
                Some(block) if report.selection.slice == Slice::block(block) => Vec::new(),
                _ => report.selection.slice.names(),
            },
            sensitivity: report.selection.sensitivity,
            loss: report.terms.loss,
            nll_good: report.terms.nll_good,
            nll_bad: report.selection.nll_rejected,
            kl: report.terms.kl,
            kl_weight: self.budget.map(|_| used_weight),
            lr,
            grad_norm,
            seconds: begun.elapsed().as_secs_f64(),
            tokens,
            operations: operations() - counted,
        })
    }

    fn log(&mut self, log: &mut File, line: Line) -> Result<()> {
        if let Some(curves) = &mut self.curves {
            curves.write(&line)?;
        }
        write_line(log, &line)
    }
}
