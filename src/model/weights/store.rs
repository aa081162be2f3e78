//! The store: every tensor once, and of those that the repair has changed the original, too.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};

use super::spec::{Place, TensorSpec};
use crate::model::precision::Precision;

/// Which implementation of the layers runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Our CPU kernels; gradients of parameters go to the [`Ledger`](crate::model::ledger::Ledger).
    Cpu,
    /// Composed of candle's own operations, on any device; the plain path that the kernels are
    /// tested against.
    Composed,
}

impl Kernels {
    /// Those of a device.
    pub fn on(device: &Device) -> Self {
        if device.is_cpu() { Self::Cpu } else { Self::Composed }
    }
}

/// All tensors of a model, and which of them the repair has changed so far. They are on one device
/// and f32; but matrices that it does not train may be bf16 or f16.
#[derive(Debug)]
pub struct Weights {
    pub(super) specs: BTreeMap<String, TensorSpec>,
    original: BTreeMap<String, Tensor>,
    touched: BTreeMap<String, Tensor>,
    pub(super) kernels: Kernels,
    pub(super) precision: Precision,
    pub(super) recompute: bool,
    keep_originals: bool,
}

/// Whose weights a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The model under repair.
    Patient,
    /// The model before repair, never trained.
    Reference,
}

impl Weights {
    /// Takes the tensors an architecture asked for. Errors if one is missing, of another shape, or
    /// not f32 (a matrix may also be bf16 or f16).
    pub fn new(specs: Vec<TensorSpec>, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        for spec in &specs {
            let tensor =
                tensors.get(&spec.name).with_context(|| format!("no tensor {}", spec.name))?;
            let kept = match tensor.dtype() {
                DType::F32 => true,
                DType::BF16 | DType::F16 => spec.is_matrix(),
                _ => false,
            };
            if tensor.dims() != spec.shape || !kept {
                bail!(
                    "{}: expected f32 {:?}, got {:?} {:?}",
                    spec.name,
                    spec.shape,
                    tensor.dtype(),
                    tensor.dims()
                );
            }
        }
        let on_cpu = tensors.values().all(|t| t.device().is_cpu());
        Ok(Self {
            specs: specs.into_iter().map(|s| (s.name.clone(), s)).collect(),
            original: tensors,
            touched: BTreeMap::new(),
            kernels: if on_cpu { Kernels::Cpu } else { Kernels::Composed },
            precision: Precision::F32,
            recompute: false,
            keep_originals: true,
        })
    }

    /// Choose the implementation of the layers; [`Kernels::Cpu`] only where all tensors are on the
    /// CPU.
    pub fn with_kernels(mut self, kernels: Kernels) -> Self {
        if kernels == Kernels::Composed || self.device().is_cpu() {
            self.kernels = kernels;
        }
        self
    }

    /// Choose what the operands of the large products are rounded to. The weights themselves stay
    /// f32. Returns what they were rounded to before.
    pub fn set_precision(&mut self, precision: Precision) -> Precision {
        std::mem::replace(&mut self.precision, precision)
    }

    /// Whether passes keep the inputs of blocks in place of their graphs, and make the graphs again
    /// on the way back: less memory for one more forward pass, the same gradients.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Whether a touched tensor's original is kept for the reference. Without an objective that
    /// asks the reference (no KL, no DPO) it need not be, and a step takes no memory for it.
    pub fn keep_originals(&mut self, keep: bool) {
        self.keep_originals = keep;
    }

    /// The device all tensors are on.
    pub fn device(&self) -> Device {
        self.original
            .values()
            .chain(self.touched.values())
            .next()
            .map_or(Device::Cpu, |t| t.device().clone())
    }

    /// The implementation of the layers in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// What the architecture said of each tensor, by name.
    pub fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.specs.values()
    }

    /// The tensor as the patient or the reference has it now, in f32.
    pub fn tensor(&self, who: Who, name: &str) -> Result<Tensor> {
        Ok(self.kept(who, name)?.to_dtype(DType::F32)?)
    }

    /// The tensor as it is kept.
    pub(super) fn kept(&self, who: Who, name: &str) -> Result<&Tensor> {
        let touched = || self.touched.get(name);
        match who {
            Who::Patient => touched().or_else(|| self.original.get(name)),
            Who::Reference => self.original.get(name),
        }
        .with_context(|| format!("no tensor {name} for the {who:?}"))
    }

    /// Names and tensors changed by the repair so far, sorted.
    pub fn touched(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.touched.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// The lowest place where patient and reference may differ; `None` while they are the same.
    pub fn lowest_touched(&self) -> Option<Place> {
        self.touched.keys().filter_map(|n| self.specs.get(n)).map(|s| s.place).min()
    }

    /// Before a step writes into it: gives the patient a tensor of its own, in f32.
    pub fn touch(&mut self, name: &str) -> Result<&Tensor> {
        if !self.touched.contains_key(name) {
            let original = if self.keep_originals {
                self.original.get(name).cloned()
            } else {
                self.original.remove(name)
            };
            let original = original.with_context(|| format!("no tensor {name}"))?;
            let own = match original.dtype() {
                DType::F32 if self.keep_originals => original.copy()?,
                _ => original.to_dtype(DType::F32)?,
            };
            self.touched.insert(name.to_owned(), own);
        }
        Ok(&self.touched[name])
    }

    /// Another model of the same base, of which nothing is touched. Both share the base's tensors,
    /// so neither may train without keeping them.
    pub fn sibling(&self) -> Result<Self> {
        if !self.keep_originals {
            bail!("the originals were not kept");
        }
        Ok(Self {
            specs: self.specs.clone(),
            original: self.original.clone(),
            touched: BTreeMap::new(),
            ..*self
        })
    }

    /// Put back the values of a snapshot or a saved state; they become touched.
    pub fn restore(&mut self, name: &str, values: Tensor) -> Result<()> {
        let spec = self.specs.get(name).with_context(|| format!("no tensor {name}"))?;
        if values.dims() != spec.shape {
            bail!("{name}: {:?} does not fit {:?}", values.dims(), spec.shape);
        }
        self.touched.insert(name.to_owned(), values);
        Ok(())
    }

    /// Copies of all touched tensors as they are now.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.touched.iter().map(|(n, t)| Ok((n.clone(), t.copy()?.detach()))).collect()
    }

    /// Make the touched tensors exactly these; the others are the original again.
    /// Errors if an original is needed that was not kept.
    pub fn reset_to(&mut self, touched: &BTreeMap<String, Tensor>) -> Result<()> {
        let lost = self
            .touched
            .keys()
            .find(|n| !touched.contains_key(*n) && !self.original.contains_key(*n));
        if let Some(name) = lost {
            bail!("the original of {name} was not kept");
        }
        self.touched = touched
            .iter()
            .map(|(n, t)| Ok((n.clone(), t.copy()?.detach())))
            .collect::<Result<_>>()?;
        Ok(())
    }
}
