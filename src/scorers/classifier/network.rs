//! A *network* is a model with its classification head, as every architecture builds it.

use candle_core::{Result, Tensor};

pub trait Network: Send + Sync {
    /// Logits (B, labels) of token ids (B, T). `attend` (B, T) is 1 at tokens and 0 at padding.
    fn logits(&self, ids: &Tensor, attend: &Tensor) -> Result<Tensor>;
}
