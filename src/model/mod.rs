//! A *model* turns the ids of a packed batch into hidden states (N,C), block after block, and those into
//! log-probabilities at the positions that count.
//!
//! An architecture is one file and one line in [`ARCHES`].

pub mod device;
pub mod generate;
pub mod gpt2;
pub mod gpt_neo;
pub mod kernels;
pub mod layers;
pub mod llama;
pub mod loss;
pub mod memory;
mod padded;
pub mod precision;
pub mod probes;
pub mod qwen;
mod settings;
pub mod shapes;
pub mod weights;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use candle_core::Tensor;
use serde_json::Value;

use crate::bail_input;
use crate::tokens::Packed;
use layers::{Cache, Orientation, Rows};
pub use settings::Settings;
use weights::{Place, TensorSpec, View};

/// The numbers every architecture has.
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
pub trait Arch: Send + Sync {
    fn sizes(&self) -> Sizes;
    /// Values a row that the layers of one block put out, all together: what a graph keeps of it.
    fn activations(&self) -> usize;
    /// Values a position that one block keeps in a cache: a key and a value.
    fn cached(&self) -> usize {
        2 * self.sizes().channels
    }
    /// Every tensor of the model: its name in transformers, its shape, its place.
    fn specs(&self) -> Vec<TensorSpec>;
    /// Ids → (N,C).
    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor>;
    /// Block `index`: (N,C) → (N,C).
    fn block(&self, index: usize, view: &View, h: &Tensor, rows: &Rows) -> Result<Tensor>;
    /// The norm after the last block: (N,C) → (N,C).
    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor>;
    /// Name of the output head's weight (V,C); the embedding's where they are tied.
    fn head(&self) -> &str;
    /// The MLP, where what it puts out is one matrix times its hidden units (gated or not).
    fn mlp(&self) -> Option<Mlp> {
        None
    }
}

/// An MLP with one output matrix. Its hidden units are the model's *neurons*; what a neuron adds to the residual stream is its
/// row of the output matrix (a column where that lies as (out, in)).
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

/// A line of [`ARCHES`].
pub struct ArchEntry {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Reads the settings; refuses by name what isn't implemented.
    pub parse: fn(&Settings) -> Result<Box<dyn Arch>>,
    /// A small `config.json` that every test can afford.
    pub tiny: &'static str,
}

/// Every architecture we have.
pub const ARCHES: &[ArchEntry] =
    &[gpt2::ENTRY, gpt_neo::ENTRY, llama::LLAMA, llama::MISTRAL, qwen::QWEN2, qwen::QWEN3];

/// An architecture together with the passes that are the same for all of them.
pub struct Model {
    model_type: &'static str,
    arch: Box<dyn Arch>,
    sizes: Sizes,
}

impl Model {
    /// The model that a `config.json` describes. Errors (bad input) name the setting that isn't implemented.
    pub fn from_config(config: &Value) -> Result<Self> {
        let settings = Settings::new(config);
        let model_type = settings.text("model_type")?;
        let Some(entry) = ARCHES.iter().find(|a| a.model_type == model_type) else {
            let known: Vec<_> = ARCHES.iter().map(|a| a.model_type).collect();
            bail_input!(
                "config.json: architecture {model_type:?} is not implemented (have: {})",
                known.join(", ")
            );
        };
        if let Some(quantized) = settings.get("quantization_config") {
            let by = quantized
                .get("quant_method")
                .and_then(Value::as_str)
                .unwrap_or("a method without a name");
            bail_input!(
                "config.json: weights quantized by {by} are not implemented; in transformers: model.dequantize(), then \
                 model.save_pretrained(…), and no \"quantization_config\" in what is saved"
            );
        }
        let arch = (entry.parse)(&settings)?;
        let sizes = arch.sizes();
        for (name, size) in [
            ("blocks", sizes.blocks),
            ("channels", sizes.channels),
            ("vocabulary", sizes.vocabulary),
        ] {
            if size == 0 {
                bail_input!("config.json: a {model_type} with no {name}");
            }
        }
        Ok(Self { model_type: entry.model_type, arch, sizes })
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Every tensor of the model.
    pub fn specs(&self) -> Vec<TensorSpec> {
        self.arch.specs()
    }

    /// Values a row that the layers of one block put out, all together.
    pub fn activations(&self) -> usize {
        self.arch.activations()
    }

    /// Values a position that one block keeps in a cache.
    pub fn cached(&self) -> usize {
        self.arch.cached()
    }

    /// The MLPs of the blocks. Errors (bad input) on an architecture whose MLP has no output matrix (several experts).
    pub fn mlp(&self) -> Result<Mlp> {
        match self.arch.mlp() {
            Some(mlp) => Ok(mlp),
            None => bail_input!(
                "architecture {:?}: its MLP has not one output matrix, so that a neuron's output is no row of it",
                self.model_type
            ),
        }
    }

    /// Name of the output head's weight (V,C).
    pub fn head(&self) -> &str {
        self.arch.head()
    }

    /// Number of all parameters.
    pub fn parameters(&self) -> usize {
        self.specs().iter().map(|s| s.shape.iter().product::<usize>()).sum()
    }

    /// Number of parameters in each block.
    pub fn block_parameters(&self) -> Vec<usize> {
        let mut counts = vec![0; self.sizes.blocks];
        for spec in self.specs() {
            if let Place::Block(b) = spec.place {
                counts[b] += spec.shape.iter().product::<usize>();
            }
        }
        counts
    }

    /// The input of block 0: (N,C).
    pub fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        self.arch.embed(view, packed)
    }

    /// Blocks `range` over their input h: (N,C) → (N,C). Below the first block that a view wants something of, no graph
    /// is built and no activation kept.
    pub fn blocks(
        &self,
        view: &View,
        packed: &Packed,
        h: Tensor,
        range: Range<usize>,
    ) -> Result<Tensor> {
        self.blocks_with(view, packed, h, range, None)
    }

    fn blocks_with(
        &self,
        view: &View,
        packed: &Packed,
        mut h: Tensor,
        range: Range<usize>,
        caches: Option<&Caches>,
    ) -> Result<Tensor> {
        let mut rows = Rows::new(packed);
        for index in range {
            h = view.enter(Place::Block(index), h)?;
            rows.cache = caches.map(|c| c.layers[index].clone());
            h = self.arch.block(index, view, &h, &rows)?;
        }
        Ok(h)
    }

    /// The final hidden states from those after the last block: (N,C) → (N,C).
    pub fn finish(&self, view: &View, h: Tensor) -> Result<Tensor> {
        let h = view.enter(Place::FinalNorm, h)?;
        let h = self.arch.finish(view, &h)?;
        view.enter(Place::Head, h)
    }

    /// Final hidden states of a packed batch: (N,C).
    pub fn hidden(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        let h = self.embed(view, packed)?;
        let h = self.blocks(view, packed, h, 0..self.sizes.blocks)?;
        self.finish(view, h)
    }

    /// log p(target) in nats at the given rows of the final hidden states: (n).
    pub fn token_logp(
        &self,
        view: &View,
        h: &Tensor,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<Tensor> {
        layers::token_logp(view, self.arch.head(), h, rows, targets)
    }

    /// ln(1 − Σ_v w_v p_v) in nats at the given rows of final hidden states, each token v weighing w_v (V) in 0..=1: (n).
    pub fn absent_logp(
        &self,
        view: &View,
        h: &Tensor,
        rows: &[u32],
        weights: &Tensor,
    ) -> Result<Tensor> {
        layers::absent_logp(view, self.arch.head(), h, rows, weights)
    }

    /// KL(p_ref ‖ p) in nats at the given rows of both models' final hidden states: (n).
    pub fn kl(
        &self,
        view: &View,
        reference: &View,
        h: &Tensor,
        ref_h: &Tensor,
        rows: &[u32],
    ) -> Result<Tensor> {
        layers::kl(view, reference, self.arch.head(), h, ref_h, rows)
    }

    /// Logits of all rows of final hidden states: (n,C) → (n,V).
    pub fn logits(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::logits(view, self.arch.head(), h)
    }

    /// The likeliest token after each of the given rows of final hidden states: (n).
    pub fn likeliest(&self, view: &View, h: &Tensor, rows: &[u32]) -> Result<Vec<u32>> {
        let rows = Tensor::from_slice(rows, rows.len(), h.device())?;
        Ok(self.logits(view, &h.detach().index_select(&rows, 0)?)?.argmax(1)?.to_vec1::<u32>()?)
    }

    /// Logits (B,V) at the last row of each sequence, whose earlier positions are in the caches.
    pub fn next_logits(&self, view: &View, packed: &Packed, caches: &Caches) -> Result<Tensor> {
        let h = self.embed(view, packed)?;
        let h = self.blocks_with(view, packed, h, 0..self.sizes.blocks, Some(caches))?;
        let last: Vec<u32> = packed.sequences.iter().map(|s| s.rows.end as u32 - 1).collect();
        let h = if last.len() == packed.ids.len() {
            h
        } else {
            h.index_select(&Tensor::from_slice(&last, last.len(), h.device())?, 0)?
        };
        self.logits(view, &self.finish(view, h)?)
    }
}

/// Keys and values of every layer, for a batch of sequences in generation.
pub struct Caches {
    layers: Vec<Arc<Mutex<Cache>>>,
}

impl Caches {
    /// Empty caches for this many sequences.
    pub fn new(model: &Model, sequences: usize) -> Self {
        let layers =
            (0..model.sizes.blocks).map(|_| Arc::new(Mutex::new(Cache::new(sequences)))).collect();
        Self { layers }
    }

    /// For each of `of` what is cached of the sequence of that number: copies of one, where it is named again.
    pub fn spread(&self, of: &[usize]) -> Result<()> {
        for layer in &self.layers {
            layer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).spread(of)?;
        }
        Ok(())
    }

    /// Keep only the sequences for which `keep` says so.
    pub fn retain(&self, keep: &[bool]) -> Result<()> {
        for layer in &self.layers {
            layer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retain(keep)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An architecture that says nothing of its MLP.
    struct Experts;

    impl Arch for Experts {
        fn sizes(&self) -> Sizes {
            Sizes { blocks: 1, channels: 2, vocabulary: 3, context: 4 }
        }
        fn activations(&self) -> usize {
            0
        }
        fn specs(&self) -> Vec<TensorSpec> {
            Vec::new()
        }
        fn embed(&self, _: &View, _: &Packed) -> Result<Tensor> {
            anyhow::bail!("not run")
        }
        fn block(&self, _: usize, _: &View, h: &Tensor, _: &Rows) -> Result<Tensor> {
            Ok(h.clone())
        }
        fn finish(&self, _: &View, h: &Tensor) -> Result<Tensor> {
            Ok(h.clone())
        }
        fn head(&self) -> &str {
            "head"
        }
    }

    #[test]
    fn an_mlp_of_another_shape_is_refused_by_name() {
        let model =
            Model { model_type: "experts", arch: Box::new(Experts), sizes: Experts.sizes() };
        let error = model.mlp().expect_err("refused");
        assert_eq!(crate::base::error::exit_code(&error), 3);
        assert!(
            error.to_string().contains("\"experts\": its MLP has not one output matrix"),
            "{error}"
        );
        for entry in ARCHES {
            let config = serde_json::from_str(entry.tiny).expect(entry.model_type);
            let model = Model::from_config(&config).expect(entry.model_type);
            let mlp = model.mlp().expect(entry.model_type);
            let spec = model
                .specs()
                .into_iter()
                .find(|s| s.name == mlp.weight(0))
                .expect("the output matrix");
            assert!(
                spec.shape.contains(&mlp.neurons) && spec.shape.contains(&model.sizes().channels)
            );
        }
    }
}
