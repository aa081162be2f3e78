//! *Losses* are small expressions over the values that the head gives a counted position.

use anyhow::{Result, bail};
use candle_core::Tensor;

use super::Model;
use super::weights::View;
use crate::tokens::{Batch, Packed};

/// Mean NLL in nats over the batch's counted tokens: not a mean of sequence means (IRepair,
/// Algorithm 1). A scalar. Errors if nothing counts.
pub fn nll(model: &Model, view: &View, batch: &Batch) -> Result<Tensor> {
    let h = model.hidden(view, &batch.packed)?;
    nll_of(model, view, &h, batch)
}

/// [`nll`] from final hidden states (N,C).
pub fn nll_of(model: &Model, view: &View, h: &Tensor, batch: &Batch) -> Result<Tensor> {
    if batch.rows.is_empty() {
        bail!("no token of this batch counts");
    }
    Ok(model.token_logp(view, h, &batch.rows, &batch.targets)?.mean_all()?.neg()?)
}

/// Mean KL(reference ‖ patient) in nats over all positions, from both models' final hidden states
/// (N,C). A scalar; only the patient's states are differentiated.
pub fn kl_of(
    model: &Model,
    view: &View,
    reference: &View,
    h: &Tensor,
    ref_h: &Tensor,
    packed: &Packed,
) -> Result<Tensor> {
    Ok(model.kl(view, reference, h, ref_h, &packed.all_rows())?.mean_all()?)
}

/// log(1 + eˣ) = −log σ(−x), without overflow.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// 1/(1 + e⁻ˣ)
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}
