//! A *probe* on a linear layer reads what the layer takes in and, after a backward pass, the
//! gradient that arrived there. Any layer of any architecture can have one, by its name.
//!
//! candle keeps the gradients of variables only, so a zero variable is added to the input; where
//! there is no probe, nothing is added.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// What a probe has read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// (N,in)
    pub input: Tensor,
    /// In the same shape; `None` without a backward pass.
    pub gradient: Option<Tensor>,
}

/// The probes of one view.
#[derive(Debug, Default)]
pub struct Probes {
    layers: BTreeSet<String>,
    placed: RefCell<BTreeMap<String, (Var, Reading)>>,
}

impl Probes {
    /// On the layers of these names.
    pub fn on(layers: impl IntoIterator<Item = String>) -> Self {
        Self { layers: layers.into_iter().collect(), placed: RefCell::default() }
    }

    /// Whether no layer has one.
    pub fn none(&self) -> bool {
        self.layers.is_empty()
    }

    /// The input that a layer with a probe must take in. Errors if the layer runs twice: a probe
    /// reads one pass.
    pub fn place(&self, layer: &str, x: &Tensor) -> Result<Option<Tensor>> {
        if !self.layers.contains(layer) {
            return Ok(None);
        }
        let zero = Var::zeros(x.shape(), x.dtype(), x.device())?;
        let probed = (x + zero.as_tensor())?;
        let reading = Reading { input: x.detach(), gradient: None };
        if self.placed.borrow_mut().insert(layer.to_owned(), (zero, reading)).is_some() {
            bail!("{layer}: probed in two passes of one view");
        }
        Ok(Some(probed))
    }

    /// Takes the gradients of a backward pass. Errors if one is missing: that is a broken graph,
    /// never a zero.
    pub fn collect(&self, store: &mut GradStore) -> Result<()> {
        for (layer, (zero, reading)) in self.placed.borrow_mut().iter_mut() {
            let gradient = store
                .remove(zero)
                .with_context(|| format!("no gradient reached the input of {layer}"))?;
            reading.gradient = Some(gradient);
        }
        Ok(())
    }

    /// What was read, by layer.
    pub fn into_readings(self) -> BTreeMap<String, Reading> {
        let placed = self.placed.into_inner();
        placed.into_iter().map(|(layer, (_, reading))| (layer, reading)).collect()
    }
}
