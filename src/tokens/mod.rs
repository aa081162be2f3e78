//! From texts to *tokens*: records become packed batches.

pub mod chat;
mod encoder;
mod packed;

pub use encoder::{Cut, Encoder, Lengths};
pub use packed::{Batch, FORK_ROWS, LossOn, Packed, PairBatch, Sequence, TokenEdit, TokenPair};
