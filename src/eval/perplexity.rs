//! Perplexity, protocol `paper`: the text encoded once, without BOS, windows of 1,024 tokens (or the model's context if
//! that is smaller) without overlap; exp(total nats / predicted tokens).

use anyhow::Result;
use serde::Serialize;

use crate::Nats;
use crate::bail_input;
use crate::model::Model;
use crate::tokens::{Batch, LossOn};
use crate::weights::View;

/// A perplexity and what it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    pub value: f64,
    pub nats_per_token: Nats,
    pub window: usize,
    /// Predicted tokens: the first of each window is not.
    pub tokens: usize,
}

/// Perplexity of a text in tokens. Errors (bad input) if it is shorter than two tokens.
pub fn perplexity(model: &Model, view: &View, ids: &[u32]) -> Result<Perplexity> {
    let window = model.sizes().context.min(1024);
    let (mut nats, mut tokens) = (0f64, 0usize);
    // Short windows go together, so that a small context does not mean small matrix products.
    let together = (1024 / window).max(1);
    for ids in ids.chunks(window * together) {
        let batch = Batch::new(ids.chunks(window).map(|w| (&w[..0], w)), LossOn::All);
        if batch.rows.is_empty() {
            continue;
        }
        let h = model.hidden(view, &batch.packed)?;
        let logp = model.token_logp(view, &h, &batch.rows, &batch.targets)?.to_vec1::<f32>()?;
        nats -= logp.iter().map(|x| f64::from(*x)).sum::<f64>();
        tokens += logp.len();
    }
    if tokens == 0 {
        bail_input!("a text of {} tokens has no perplexity", ids.len());
    }
    let nats_per_token = nats / tokens as f64;
    Ok(Perplexity { value: nats_per_token.exp(), nats_per_token, window, tokens })
}
