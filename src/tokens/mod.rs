//! Tokens: records become *packed batches*, in which the sequences lie one after another and nothing is padded.

pub mod chat;
mod encoder;
mod packed;

pub use encoder::{Cut, Encoder, Lengths};
pub use packed::{Batch, FORK_ROWS, LossOn, Packed, PairBatch, Sequence, TokenEdit, TokenPair};
