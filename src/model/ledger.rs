//! A *ledger* holds what the passes of a view find out about parameters: the kernels write it while
//! the backward pass goes by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{D, DType, Tensor};

use super::fused;
use super::precision::Precision;

/// What a pass must find out about a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing: no graph is built for it.
    Nothing,
    /// Σ g² over the parameter.
    Norm,
    /// The gradient.
    Gradient,
}

/// A tensor and what its pass must find out about it.
#[derive(Debug, Clone)]
pub struct Param {
    /// As it is kept: a matrix that is not trained may be bf16 or f16.
    pub tensor: Tensor,
    pub name: Arc<str>,
    pub want: Want,
    /// What its products round their operands to.
    pub precision: Precision,
    pub(super) ledger: Arc<Ledger>,
}

/// The findings of one view.
#[derive(Debug, Default)]
pub struct Ledger {
    findings: Mutex<Findings>,
}

/// By the names of the parameters.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub squares: BTreeMap<String, f64>,
    pub gradients: BTreeMap<String, Vec<f32>>,
    /// The same of composed layers, where they are computed: scalars in f64, and tensors.
    pub squares_there: BTreeMap<String, Tensor>,
    pub gradients_there: BTreeMap<String, Tensor>,
    /// Names that the backward pass under way has come by.
    pub reached: BTreeSet<String>,
}

impl Ledger {
    pub(super) fn lock(&self) -> MutexGuard<'_, Findings> {
        // A poisoned ledger belongs to a pass that has already failed.
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Σ x² in f64, as a scalar on the device of x: a sum of millions of values in f32 is nonsense.
fn square(x: &Tensor) -> candle_core::Result<Tensor> {
    if fused::runs_on(x.device()) {
        return fused::many::sum_of_squares(&x.contiguous()?);
    }
    // Row by row first: a GPU gives one sum to one of its processors.
    x.to_dtype(DType::F64)?.sqr()?.sum(D::Minus1)?.sum_all()
}

impl Param {
    /// Record Σ g² of this parameter. Errors if it was recorded before: a norm of a sum is no sum
    /// of norms.
    pub fn add_square(&self, square: f64) -> candle_core::Result<()> {
        let mut findings = self.ledger.lock();
        findings.reached.insert(self.name.to_string());
        if findings.squares.insert(self.name.to_string(), square).is_some() {
            candle_core::bail!("{}: two norms in one pass", self.name);
        }
        Ok(())
    }

    /// Record what is wanted of a gradient that composed layers compute; they do only where it is.
    /// Errors as [`add_square`](Self::add_square).
    pub fn find(
        &self,
        gradient: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<()> {
        if self.want == Want::Nothing {
            return Ok(());
        }
        let (gradient, name) = (gradient()?, self.name.to_string());
        let mut findings = self.ledger.lock();
        findings.reached.insert(name.clone());
        if self.want == Want::Norm {
            let square = square(&gradient)?;
            if findings.squares_there.insert(name, square).is_some() {
                candle_core::bail!("{}: two norms in one pass", self.name);
            }
            return Ok(());
        }
        let sum = match findings.gradients_there.remove(&name) {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        findings.gradients_there.insert(name, sum);
        Ok(())
    }

    /// Add to the gradient of this parameter: `add(gradient so far, keep)`, where `keep` is 0 for a
    /// fresh buffer.
    pub fn add_gradient(&self, add: impl FnOnce(&mut [f32], f32)) {
        let mut findings = self.ledger.lock();
        findings.reached.insert(self.name.to_string());
        match findings.gradients.get_mut(&*self.name) {
            Some(sum) => add(sum, 1.0),
            None => {
                let mut fresh = vec![0.0; self.tensor.elem_count()];
                add(&mut fresh, 0.0);
                findings.gradients.insert(self.name.to_string(), fresh);
            }
        }
    }
}
