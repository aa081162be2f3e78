//! What an *architecture* says of itself: how it reads a `config.json`, what its tensors are
//! called, and the *decoder* that it makes of them.

use anyhow::Result;
use candle_core::Tensor;

use super::config::Config;
use super::layers::{AttentionShape, Logits, Orientation, Pass};
use super::weights::{TensorSpec, View};
use crate::tokens::Packed;
use crate::tokens::folder::Usual;

/// A line of [`ARCHES`](super::ARCHES).
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Reads a `config.json`; refuses by name what isn't implemented.
    pub parse: fn(&Config) -> Result<Box<dyn Decoder>>,
    pub names: Names,
    /// The class of its tokenizers in transformers.
    pub tokenizer: Usual,
    /// The key of the number of blocks in `config.json`.
    pub blocks: &'static str,
    /// Shapes of models that people know, for `bench`: a JSON object with what the `config.json` of
    /// each says, by its name.
    pub shapes: &'static str,
    /// A small `config.json` that every test can afford.
    pub tiny: &'static str,
}

/// What the tensors of an architecture are called in files.
#[derive(Debug)]
pub struct Names {
    /// What all names but the head's begin with; a file of the model without its head leaves it
    /// out.
    pub prefix: &'static str,
    /// The output head's weight where it is not the embedding: as we call it, and then what else it
    /// may be called.
    pub head: &'static [&'static str],
    /// How the names of masks and frequencies end that older versions of transformers stored in
    /// blocks. They are no parameters.
    pub buffers: &'static [&'static str],
}

impl Names {
    /// What files may call the tensor `name`, itself the first.
    pub fn in_files<'a>(&self, name: &'a str) -> Vec<&'a str> {
        if self.head.contains(&name) {
            let others = self.head.iter().copied().filter(|other| *other != name);
            return std::iter::once(name).chain(others).collect();
        }
        std::iter::once(name).chain(name.strip_prefix(self.prefix)).collect()
    }

    /// Whether a tensor of a block is no parameter, by its name in a file.
    pub fn is_buffer(&self, name: &str) -> bool {
        self.buffers.iter().any(|end| name.ends_with(end))
    }
}

/// The numbers every decoder has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// L
    pub blocks: usize,
    /// C
    pub channels: usize,
    /// V
    pub vocabulary: usize,
    /// The longest sequence the positions allow.
    pub context: usize,
}

/// One architecture with the settings of one `config.json`.
pub trait Decoder: Send + Sync {
    fn sizes(&self) -> Sizes;
    /// Values a row that the layers of one block put out, all together: what a graph keeps of it.
    fn activations(&self) -> usize;
    /// The heads of block `index`.
    fn attention(&self, index: usize) -> AttentionShape;
    /// Every tensor of the model: its name in transformers, its shape, its place.
    fn specs(&self) -> Vec<TensorSpec>;
    /// Ids → (N,C).
    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor>;
    /// Block `index`: (N,C) → (N,C). Each sublayer begins with [`View::enter_sublayer`].
    fn block(&self, index: usize, view: &View, h: &Tensor, pass: &Pass) -> Result<Tensor>;
    /// The norm after the last block: (N,C) → (N,C).
    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor>;
    /// Name of the output head's weight (V,C); the embedding's where they are tied.
    fn head(&self) -> &str;
    /// What is made of the head's products.
    fn logits(&self) -> Logits {
        Logits::PLAIN
    }
    /// The MLP, where what it puts out is one matrix times its hidden units (gated or not).
    fn mlp(&self) -> Option<Mlp> {
        None
    }
}

/// An MLP with one output matrix. Its hidden units are the model's *neurons*. What a neuron adds to
/// the residual stream is its row of the output matrix (a column where that lies as (out, in)).
#[derive(Debug, Clone, Copy)]
pub struct Mlp {
    /// Neurons of a block.
    pub neurons: usize,
    pub orientation: Orientation,
    pub(crate) output: fn(usize) -> String,
}

impl Mlp {
    /// The linear layer of a block whose input the neurons are.
    pub fn output(&self, block: usize) -> String {
        (self.output)(block)
    }

    /// The output matrix of a block.
    pub fn weight(&self, block: usize) -> String {
        format!("{}.weight", self.output(block))
    }
}
