//! A *tap* on a linear layer reads what the layer takes in and, after a backward pass, the gradient that arrived there.
//! Any layer of any architecture can be tapped by its name.
//!
//! candle keeps the gradients of variables only, so a zero variable is added to the input; where nothing is tapped,
//! nothing is added.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// What a tap has read.
#[derive(Debug, Clone)]
pub struct Tapped {
    /// (N,in)
    pub input: Tensor,
    /// Of the same shape; `None` without a backward pass.
    pub gradient: Option<Tensor>,
}

/// The taps of one view.
#[derive(Debug, Default)]
pub struct Taps {
    layers: BTreeSet<String>,
    placed: RefCell<BTreeMap<String, (Var, Tapped)>>,
}

impl Taps {
    /// On the layers of these names.
    pub fn on(layers: impl IntoIterator<Item = String>) -> Self {
        Self { layers: layers.into_iter().collect(), placed: RefCell::default() }
    }

    /// The input that a tapped layer must take in. Errors if the layer runs twice: a tap reads one pass.
    pub fn place(&self, layer: &str, x: &Tensor) -> Result<Option<Tensor>> {
        if !self.layers.contains(layer) {
            return Ok(None);
        }
        let zero = Var::zeros(x.shape(), x.dtype(), x.device())?;
        let tapped = (x + zero.as_tensor())?;
        let read = Tapped { input: x.detach(), gradient: None };
        if self.placed.borrow_mut().insert(layer.to_owned(), (zero, read)).is_some() {
            bail!("{layer}: tapped in two passes of one view");
        }
        Ok(Some(tapped))
    }

    /// Takes the gradients of a backward pass. Errors if one is missing: that is a broken graph, never a zero.
    pub fn collect(&self, store: &mut GradStore) -> Result<()> {
        for (layer, (zero, read)) in self.placed.borrow_mut().iter_mut() {
            let gradient = store
                .remove(zero)
                .with_context(|| format!("no gradient reached the input of {layer}"))?;
            read.gradient = Some(gradient);
        }
        Ok(())
    }

    /// What was read, by layer.
    pub fn into_tapped(self) -> BTreeMap<String, Tapped> {
        self.placed.into_inner().into_iter().map(|(layer, (_, read))| (layer, read)).collect()
    }
}
