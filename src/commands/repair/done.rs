//! A repair between its last step and its record.

use std::path::Path;

use anyhow::Result;

use crate::base::error::Error;
use crate::model::weights::Weights;
use crate::train::log::{Cost, StepLine};
use crate::train::state::ChangedSetting;

/// A repair whose steps are made.
pub struct Done {
    pub weights: Weights,
    pub steps: Vec<StepLine>,
    /// Steps, and what was looked at or tried before them.
    pub cost: Cost,
    /// The step whose weights were kept.
    pub kept_step: usize,
    pub stopped: String,
    /// The perplexity that the guard tripped at.
    pub guarded: Option<f64>,
    /// Settings that were other ones before a divergence.
    pub changed_settings: Vec<ChangedSetting>,
}

impl Done {
    /// Errors (a failed check) if the guard ended the run: its output is kept all the same.
    pub fn check(&self, out: &Path) -> Result<()> {
        let Some(ppl) = self.guarded else { return Ok(()) };
        Err(Error::Check(format!(
            "the guard tripped: perplexity {ppl:.3} is more than --max-ppl-increase above the \
             base's; the weights of step {} are kept in {}",
            self.kept_step,
            out.display()
        ))
        .into())
    }
}
