//! Saving and resuming: everything the rest of a run depends on, in one file that is replaced as a whole.
//!
//! Batches, samples and schedules are functions of (seed, step), so the step number stands for all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{Best, Trainer};
use crate::bail_input;
use crate::checkpoint::{Stored, write_tensors};
use crate::fault::Fault;
use crate::model::kernels::matmul::Precision;
use crate::optim::{Optimizer, TensorState};
use crate::slice::Slice;

const FORMAT_VERSION: u32 = 2;

/// What a state belongs to: another model, other data or other words on the command line are another run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub base_sha256: String,
    /// Of all token ids, in order.
    pub data_sha256: String,
    /// Selector, objective and their weights.
    pub method: String,
    pub optimizer: String,
    pub loss_on: String,
    pub seed: u64,
    pub batch_size: usize,
    /// Batches a step.
    pub accumulation: usize,
    pub dtype: Precision,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format_version: u32,
    fingerprint: Fingerprint,
    step: usize,
    stale: usize,
    best_step: Option<usize>,
    best_loss: Option<f64>,
    optimizer_steps: BTreeMap<String, u64>,
    /// The units that the trials came to.
    settled: Option<Vec<String>>,
    /// Perplexity at which the guard ended the run.
    tripped: Option<f64>,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("state").join("state.safetensors")
}

/// Where the weights along the way are kept.
pub const CHECKPOINTS: &str = "checkpoints";

impl Trainer<'_> {
    /// Keeps the tensors touched so far in `checkpoints/step-N.safetensors`, in f32 under the model's names.
    pub fn keep(&self) -> Result<()> {
        let dir = self.dir.join(CHECKPOINTS);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let tensors = self.weights.touched().map(|(n, t)| (n.to_owned(), Stored::values(t, Dtype::F32))).collect();
        let metadata = [("base_sha256", self.fingerprint.base_sha256.as_str()), ("step", &self.step.to_string())];
        write_tensors(&dir.join(format!("step-{:06}.safetensors", self.step)), &metadata, &tensors)
    }

    /// Saves the state; the one before stays until this one is whole.
    pub fn save(&self) -> Result<()> {
        self.save_as(self.step, self.stale, self.weights.touched(), Some(&self.optimizer))
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
        let header = Header {
            format_version: FORMAT_VERSION,
            fingerprint: self.fingerprint.clone(),
            step,
            stale,
            best_step: self.best.as_ref().map(|b| b.step),
            best_loss: self.best.as_ref().map(|b| b.loss),
            optimizer_steps,
            tripped: self.tripped,
            settled: self.method.select.settled().map(Slice::names),
        };
        let path = path(&self.dir);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        write_tensors(&path, &[("state", &serde_json::to_string(&header)?)], &tensors)
    }

    /// After a divergence: the weights of now are the broken ones, and so is a state of this very step. An earlier state
    /// on disk stays; else the best validated weights are saved, or the untouched base.
    pub(super) fn save_last_good(&self) -> Result<()> {
        let on_disk = std::fs::read(path(&self.dir)).ok().and_then(|bytes| {
            let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
            let text = metadata.metadata().as_ref()?.get("state")?.clone();
            serde_json::from_str::<Header>(&text).ok()
        });
        if on_disk.is_some_and(|header| header.step < self.step) {
            return Ok(());
        }
        match &self.best {
            Some(best) => self.save_as(best.step, 0, best.touched.iter().map(|(n, t)| (n.as_str(), t)), None),
            None => self.save_as(0, 0, std::iter::empty(), None),
        }
    }

    /// Goes on from the saved state. Errors (bad input) name what does not fit.
    pub fn resume(&mut self) -> Result<()> {
        let path = path(&self.dir);
        let bytes = std::fs::read(&path).map_err(|e| {
            Fault::Input(format!("--resume: no state to go on from ({}: {e}); run without --resume", path.display()))
        })?;
        let broken = |e: String| Fault::Input(format!("{}: a broken state: {e}", path.display()));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let text = metadata.metadata().as_ref().and_then(|m| m.get("state")).context("no state in it");
        let text = text.map_err(|e| broken(e.to_string()))?;
        let version = serde_json::from_str::<serde_json::Value>(text).map_err(|e| broken(e.to_string()))?;
        if version["format_version"] != FORMAT_VERSION {
            bail_input!(
                "{}: format version {}, this program reads {FORMAT_VERSION}",
                path.display(),
                version["format_version"]
            );
        }
        let header: Header = serde_json::from_str(text).map_err(|e| broken(e.to_string()))?;
        self.check(&header.fingerprint)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
        let device = self.weights.device();
        let mut best = BTreeMap::new();
        let mut averages = BTreeMap::new();
        for (name, view) in tensors.tensors() {
            let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let tensor = Tensor::from_vec(values, view.shape(), &Device::Cpu)?.to_device(&device)?;
            match name.split_once('.') {
                Some(("patient", name)) => self.weights.restore(name, tensor)?,
                Some(("best", name)) => drop(best.insert(name.to_owned(), tensor)),
                Some(("average", name)) => drop(averages.insert(name.to_owned(), tensor)),
                Some(("squares", name)) => {
                    let steps = header.optimizer_steps.get(name).copied().unwrap_or(0);
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
        if let (Some(step), Some(loss)) = (header.best_step, header.best_loss) {
            self.best = Some(Best { step, loss, touched: best });
        }
        if let Some(names) = &header.settled {
            let slice = Slice::named(names).ok_or_else(|| broken(format!("a slice of {names:?}")))?;
            self.method.select.settle(slice);
        }
        self.tripped = header.tripped;
        self.step = header.step;
        self.stale = header.stale;
        Ok(())
    }

    fn check(&self, saved: &Fingerprint) -> Result<()> {
        let now = &self.fingerprint;
        let differences = [
            ("model", saved.base_sha256 != now.base_sha256),
            ("data", saved.data_sha256 != now.data_sha256),
            ("method", saved.method != now.method),
            ("--optimizer", saved.optimizer != now.optimizer),
            ("--loss-on", saved.loss_on != now.loss_on),
            ("--seed", saved.seed != now.seed),
            ("--batch-size", saved.batch_size != now.batch_size),
            ("--gradient-accumulation-steps", saved.accumulation != now.accumulation),
            ("--dtype", saved.dtype != now.dtype),
        ];
        if let Some((what, _)) = differences.iter().find(|(_, differs)| *differs) {
            bail_input!("--resume: the saved state is of another {what}; run with the same one, or with --overwrite");
        }
        Ok(())
    }
}
