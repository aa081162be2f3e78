//! Saving and resuming: everything the rest of a run depends on, in one file that is replaced as a
//! whole.
//!
//! Batches, samples and schedules are functions of (seed, step), so the step number stands for all
//! of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::Tensor;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::log::Cost;
use super::state::{self, ChangedSetting, Saved};
use super::{Best, Trainer};
use crate::base::files::write_whole;
use crate::base::tensors::{Stored, write_tensors};
use crate::slice::Slice;
use crate::slice::select::{First, Memory};
use crate::step::optim::{Optimizer, TensorState};

/// How far a run has come, beside its tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reached {
    step: usize,
    /// Whether that step's validation is still to be made.
    #[serde(default)]
    to_validate: bool,
    #[serde(default)]
    validated_at: Option<usize>,
    stale: usize,
    best_step: Option<usize>,
    best_loss: Option<f64>,
    optimizer_steps: BTreeMap<String, u64>,
    /// The trials made so far.
    trials: Vec<Tried>,
    /// What the selector knows.
    memory: Memory,
    /// What its look at the pairs took.
    look: Cost,
    /// Perplexity at which the guard ended the run.
    tripped: Option<f64>,
    /// What the change was scaled by to be within the budget, if it was.
    #[serde(default)]
    scaled: Option<f64>,
    /// The weight of the KL term, which a budget moves.
    kl_weight: f64,
    /// Settings that were other ones before a divergence.
    #[serde(default)]
    changed: Vec<ChangedSetting>,
}

/// A trial: its units and the held-back loss, none where that was not finite.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tried {
    slice: Vec<String>,
    valid_loss: Option<f64>,
}

/// Where the weights along the way are kept.
pub const CHECKPOINTS: &str = "checkpoints";

impl Trainer<'_> {
    /// Keeps the tensors touched so far in `checkpoints/step-N.safetensors`, in f32 under the
    /// model's names.
    pub fn keep(&self) -> Result<()> {
        let dir = self.dir.join(CHECKPOINTS);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let tensors = self
            .weights
            .touched()
            .map(|(n, t)| (n.to_owned(), Stored::values(t, Dtype::F32)))
            .collect();
        let metadata =
            [("base_sha256", self.base_sha256.as_str()), ("step", &self.step.to_string())];
        write_tensors(&dir.join(format!("step-{:06}.safetensors", self.step)), &metadata, &tensors)
    }

    /// Saves the state; the one before stays until this one is whole.
    pub fn save(&self) -> Result<()> {
        self.save_as(self.step, self.stale, self.weights.touched(), Some(&self.optimizer))?;
        let diverged = state::diverged(&self.dir);
        if diverged.exists() {
            std::fs::remove_file(&diverged).with_context(|| diverged.display().to_string())?;
        }
        Ok(())
    }

    fn save_as<'t>(
        &self,
        step: usize,
        stale: usize,
        patient: impl Iterator<Item = (&'t str, &'t Tensor)>,
        optimizer: Option<&Optimizer>,
    ) -> Result<()> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, tensor: &Tensor| {
            tensors.insert(name, Stored::values(tensor, Dtype::F32));
        };
        for (name, tensor) in patient {
            add(format!("patient.{name}"), tensor);
        }
        let mut optimizer_steps = BTreeMap::new();
        for (name, state) in optimizer.iter().flat_map(|o| &o.states) {
            optimizer_steps.insert(name.clone(), state.steps);
            add(format!("squares.{name}"), &state.squares);
            if let Some(average) = &state.average {
                add(format!("average.{name}"), average);
            }
        }
        for (name, tensor) in self.best.iter().flat_map(|b| &b.touched) {
            add(format!("best.{name}"), tensor);
        }
        let reached = Reached {
            step,
            to_validate: self.to_validate && step == self.step,
            validated_at: self.validated_at.filter(|validated| *validated <= step),
            stale,
            best_step: self.best.as_ref().map(|b| b.step),
            best_loss: self.best.as_ref().map(|b| b.loss),
            optimizer_steps,
            tripped: self.tripped,
            scaled: self.scaled,
            kl_weight: self.method.recipe.kl_weight,
            trials: self
                .trials
                .iter()
                .map(|(slice, loss)| Tried { slice: slice.names(), valid_loss: *loss })
                .collect(),
            // What was learned in steps that a divergence took back is not known.
            memory: match optimizer.is_some() || self.method.recipe.first() == First::Look {
                true => self.method.select.memory(),
                false => Memory::default(),
            },
            look: self.look,
            changed: self.changed.clone(),
        };
        state::save(&self.dir, &self.fingerprint, &reached, &tensors)
    }

    /// After a divergence: the weights of now are the broken ones, and so is a state of this very
    /// step. An earlier state on disk stays; else the best validated weights are saved, or the
    /// untouched base.
    pub(super) fn save_last_good(&self) -> Result<()> {
        self.save_last_good_weights()?;
        let diverged = state::diverged(&self.dir);
        write_whole(&diverged, format!("{}\n", self.step).as_bytes())
    }

    fn save_last_good_weights(&self) -> Result<()> {
        // One of before the first step says less than the best weights.
        if state::progress::<Reached>(&self.dir)
            .is_some_and(|reached| reached.step > 0 && reached.step < self.step)
        {
            return Ok(());
        }
        match &self.best {
            Some(best) => {
                self.save_as(best.step, 0, best.touched.iter().map(|(n, t)| (n.as_str(), t)), None)
            }
            None => self.save_as(0, 0, std::iter::empty(), None),
        }
    }

    /// Goes on from the saved state. Errors (bad input) name what does not fit. After a divergence
    /// what overcomes it may be another setting, and the record says so.
    pub fn resume(&mut self) -> Result<()> {
        let may_change = match state::diverged(&self.dir).exists() {
            true => &state::MAY_BE_TAMED[..],
            false => &[],
        };
        let device = self.weights.device();
        let Saved { progress: reached, tensors, changed } =
            state::load::<Reached>(&self.dir, &self.fingerprint, &device, may_change)?;
        self.changed = reached.changed.iter().cloned().chain(changed).collect();
        let broken = |why: String| state::broken(&self.dir, &why);
        let mut best = BTreeMap::new();
        let mut averages = BTreeMap::new();
        for (name, tensor) in tensors {
            match name.split_once('.') {
                Some(("patient", name)) => self.weights.restore(name, tensor)?,
                Some(("best", name)) => drop(best.insert(name.to_owned(), tensor)),
                Some(("average", name)) => drop(averages.insert(name.to_owned(), tensor)),
                Some(("squares", name)) => {
                    let steps = reached.optimizer_steps.get(name).copied().unwrap_or(0);
                    let state = TensorState { steps, squares: tensor, average: None };
                    self.optimizer.states.insert(name.to_owned(), state);
                }
                _ => return Err(broken(format!("tensor {name}")).into()),
            }
        }
        for (name, average) in averages {
            if let Some(state) = self.optimizer.states.get_mut(&name) {
                state.average = Some(average);
            }
        }
        if let (Some(step), Some(loss)) = (reached.best_step, reached.best_loss) {
            self.best = Some(Best { step, loss, touched: best });
        }
        let named = |names: &[String]| {
            Slice::named(names).ok_or_else(|| broken(format!("a slice of {names:?}")))
        };
        self.trials = reached
            .trials
            .iter()
            .map(|tried| Ok((named(&tried.slice)?, tried.valid_loss)))
            .collect::<Result<_>>()?;
        let looks = self.method.recipe.first() == First::Look;
        // An online repair looks at the pairs of its first round.
        let before_the_look = self.online.is_some() && reached.step == 0;
        if looks && !before_the_look && reached.memory.means().is_none() {
            return Err(broken("no look at the pairs".into()).into());
        }
        if let Some(learner) = self.method.select.learner() {
            learner.remember(reached.memory);
        }
        self.look = reached.look;
        self.tripped = reached.tripped;
        self.scaled = reached.scaled;
        self.validated_at = reached.validated_at;
        self.method.recipe.kl_weight = reached.kl_weight;
        self.step = reached.step;
        self.to_validate = reached.to_validate;
        self.stale = reached.stale;
        self.forget_later_rounds()?;
        Ok(())
    }
}
