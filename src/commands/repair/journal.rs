//! The *journal* of a neuron-level repair: its log as it goes on, and the state that `--resume`
//! goes on from.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::output::Output;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::base::tensors::Stored;
use crate::cli::Repair;
use crate::settings::RepairSettings;
use crate::step::neurons::{Patient, Position, Recipe, Step, Watch};
use crate::train::log::{Line, StepLine, open_log, write_line};
use crate::train::state;
use crate::train::state::Fingerprint;

pub struct Journal<'a> {
    out: &'a Output,
    fingerprint: Fingerprint,
    save_steps: usize,
    log: File,
    progress: Progress,
    reached: Reached,
    /// The step of the last state.
    saved: usize,
    begun: Instant,
}

/// How far a repair has come, beside its tensors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    pub position: Position,
    pub steps: usize,
    /// The worst ‖ZΔ − S‖ / ‖S‖ so far.
    pub worst_residual: f64,
    /// Seconds of the repair alone.
    pub seconds: f64,
}

impl<'a> Journal<'a> {
    /// Begins, or goes on from the saved state, which is put into the patient.
    pub fn open(
        args: &Repair,
        settings: &RepairSettings,
        recipe: &Recipe,
        out: &'a Output,
        fingerprint: Fingerprint,
        patient: &mut Patient,
    ) -> Result<Self> {
        let mut reached = Reached::default();
        if args.resume {
            let device = patient.weights.device();
            let saved = state::load::<Reached>(&out.dir, &fingerprint, &device, &[])?;
            reached = saved.progress;
            saved
                .tensors
                .into_iter()
                .try_for_each(|(name, tensor)| patient.weights.restore(&name, tensor))?;
        }
        let expected = recipe.steps.saturating_mul(recipe.rounds);
        Ok(Self {
            out,
            fingerprint,
            save_steps: settings.save_steps,
            log: open_log(&out.dir, reached.steps, false, 0)?,
            progress: Progress::new("repair", reached.steps, expected, args.output.quiet),
            saved: reached.steps,
            reached,
            begun: Instant::now(),
        })
    }

    pub fn reached(&self) -> &Reached {
        &self.reached
    }

    /// Saves the state.
    fn save(&mut self, patient: &Patient, at: &Position) -> Result<()> {
        self.reached.position = at.clone();
        self.reached.seconds +=
            std::mem::replace(&mut self.begun, Instant::now()).elapsed().as_secs_f64();
        self.saved = self.reached.steps;
        let tensors = patient
            .weights
            .touched()
            .map(|(n, t)| (n.to_owned(), Stored::values(t, Dtype::F32)))
            .collect();
        // A state must not be ahead of the log: what was sliced is counted there.
        self.log.sync_data().context("writing steps.jsonl")?;
        state::save(&self.out.dir, &self.fingerprint, &self.reached, &tensors)
    }

    /// Saves the state of a repair that is over: finished work is safe before anything else is
    /// tried.
    pub fn finish(mut self, patient: &Patient, at: &Position) -> Result<Reached> {
        self.progress.finish();
        self.save(patient, at)?;
        Ok(self.reached)
    }
}

impl Watch for Journal<'_> {
    fn step(&mut self, step: Step) -> Result<()> {
        self.reached.steps += 1;
        self.reached.worst_residual = self.reached.worst_residual.max(step.residual);
        self.progress.advance(1);
        write_line(&mut self.log, &Line::Step(line(self.reached.steps, step)))
    }

    fn rest(&mut self, patient: &Patient, at: &Position) -> Result<()> {
        if interrupt::asked() {
            self.save(patient, at)?;
            return Err(self.out.interrupted(self.reached.steps));
        }
        if self.reached.steps - self.saved >= self.save_steps {
            self.save(patient, at)?;
        }
        Ok(())
    }
}

fn line(number: usize, step: Step) -> StepLine {
    StepLine {
        step: number,
        block: match step.blocks.as_slice() {
            [only] => Some(*only),
            _ => None,
        },
        slice: step.blocks.iter().map(|block| format!("{block}.mlp")).collect(),
        sensitivity: Vec::new(),
        loss: step.loss,
        nll_good: Some(step.loss),
        nll_bad: None,
        kl: None,
        kl_weight: None,
        lr: step.learning_rate,
        grad_norm: step.gradient_norm,
        seconds: step.seconds,
        tokens: step.tokens,
        operations: step.operations,
    }
}
