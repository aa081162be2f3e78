//! A *slice* is the part of a model that one repair step may change.

use crate::weights::{Place, TensorSpec, Want};

/// Which tensors a step may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// The tensors of one block, 0-based.
    Block(usize),
    /// The whole model: blocks, embeddings, final norm and head.
    Everything,
}

impl Slice {
    /// Whether a tensor is in the slice.
    pub fn contains(&self, spec: &TensorSpec) -> bool {
        match self {
            Slice::Block(b) => spec.place == Place::Block(*b),
            Slice::Everything => true,
        }
    }

    /// What a training pass wants of a tensor: its gradient if it is in the slice, nothing if not.
    pub fn want(&self, spec: &TensorSpec) -> Want {
        if self.contains(spec) { Want::Gradient } else { Want::Nothing }
    }

    /// The lowest place in the slice: below it no gradient is needed.
    pub fn lowest(&self) -> Place {
        match self {
            Slice::Block(b) => Place::Block(*b),
            Slice::Everything => Place::Embedding,
        }
    }
}
