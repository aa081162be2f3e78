//! From texts to *tokens*: records become packed batches.

mod boundary;
pub mod chat;
mod encoder;
pub mod folder;
mod packed;
mod rows;

pub use boundary::Boundary;
pub use encoder::Encoder;
pub use packed::{Batch, FORK_ROWS, LossOn, Packed, PairBatch, Sequence, TokenEdit, TokenPair};
pub use rows::{Cut, Lengths};
