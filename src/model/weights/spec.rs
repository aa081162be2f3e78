//! What an architecture says of a tensor.

/// Where a tensor stands in the model. Only [`Place::Block`] tensors can be in the slice of a
/// block-level repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Token and position embeddings (and with a tied head, the head).
    Embedding,
    /// Block `0..L`: attention, MLP, both norms, weights and biases.
    Block(usize),
    /// The norm after the last block.
    FinalNorm,
    /// The output head, where it is not tied to the embedding.
    Head,
}

/// A half of a block, with the norm before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sublayer {
    Attention,
    Mlp,
}

/// What an architecture expects of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub place: Place,
    /// `None` outside the blocks.
    pub sublayer: Option<Sublayer>,
}

impl TensorSpec {
    /// A tensor of a block.
    pub fn of_block(
        name: impl Into<String>,
        shape: &[usize],
        block: usize,
        sublayer: Sublayer,
    ) -> Self {
        let (place, sublayer) = (Place::Block(block), Some(sublayer));
        Self { name: name.into(), shape: shape.to_vec(), place, sublayer }
    }

    /// A tensor of an embedding, the final norm or the head.
    pub fn outside(name: impl Into<String>, shape: &[usize], place: Place) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), place, sublayer: None }
    }

    /// Whether it may stay in the dtype it is stored in: vectors (norms, biases) are too small to
    /// gain by it.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}
