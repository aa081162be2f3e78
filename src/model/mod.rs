//! A *model* turns the ids of a packed batch into hidden states (N,C), block after block, and those
//! into log-probabilities at the positions that count.
//!
//! An architecture is one file and one line in [`ARCHES`].

mod arch;
mod cache;
mod composed;
mod config;
pub mod device;
pub mod finite;
pub mod fused;
pub mod generate;
mod gemma;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod granite;
pub mod kernels;
pub mod layers;
pub mod ledger;
mod llama;
mod llama_like;
pub mod loss;
pub mod memory;
mod olmo;
mod padded;
mod pass;
pub mod precision;
pub mod probes;
mod phi;
mod qwen;
mod rope;
pub mod shapes;
mod smollm3;
pub mod weights;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use serde_json::Value;

use crate::bail_input;
use crate::tokens::Packed;
pub use arch::{Architecture, Decoder, Mlp, Names, Sizes};
pub use cache::Caches;
pub use config::Config;
pub use config::MOST_BLOCKS;
use layers::{AttentionShape, Head, Pass};
use weights::{Place, TensorSpec, View};

/// Every architecture we have.
pub const ARCHES: &[Architecture] = &[
    gpt2::GPT2,
    gpt_neo::GPT_NEO,
    gpt_neox::GPT_NEOX,
    llama::LLAMA,
    llama::MISTRAL,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA2,
    gemma::GEMMA3,
    smollm3::SMOLLM3,
    olmo::OLMO2,
    olmo::OLMO3,
    granite::GRANITE,
    phi::PHI3,
];

/// Models that people run, and what of them would be skipped.
const NOT_OPENED: [(&[&str], &str); 5] = [
    (
        &[
            "dbrx",
            "deepseek_v2",
            "deepseek_v3",
            "ernie4_5_moe",
            "glm4_moe",
            "gpt_oss",
            "granitemoe",
            "granitemoeshared",
            "jetmoe",
            "mixtral",
            "minimax",
            "olmoe",
            "phimoe",
            "qwen2_moe",
            "qwen3_moe",
        ],
        "its MLPs are a mixture of experts, and a router chooses among them; blocks with one MLP \
         each are implemented",
    ),
    (
        &[
            "bamba",
            "falcon_h1",
            "granitemoehybrid",
            "jamba",
            "lfm2",
            "olmo_hybrid",
            "qwen3_next",
            "qwen3_5_text",
            "qwen3_5_moe_text",
            "recurrent_gemma",
            "zamba2",
        ],
        "some of its layers are recurrent (linear attention or a state space), which are not \
         implemented",
    ),
    (
        &["qwen3_5", "qwen3_5_moe"],
        "some of its layers are recurrent (DeltaNet), and beside the text it has a vision tower; \
         neither is implemented",
    ),
    (
        &["gemma3"],
        "beside the text it has a vision tower. Its text model alone is opened; in transformers: \
         save Gemma3ForConditionalGeneration's language model as a Gemma3ForCausalLM \
         (\"gemma3_text\")",
    ),
    (
        &[
            "gemma3n",
            "gemma4",
            "idefics3",
            "llama4",
            "llava",
            "mistral3",
            "mllama",
            "paligemma",
            "phi4_multimodal",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_vl",
            "smolvlm",
        ],
        "beside the text it has towers for images or sound, which would be skipped",
    ),
];

/// The architecture that a `config.json` names. Errors (bad input) if we have none of that name.
pub fn architecture(config: &Value) -> Result<&'static Architecture> {
    let model_type = Config::new(config).text("model_type")?;
    let Some(found) = ARCHES.iter().find(|a| a.model_type == model_type) else {
        if let Some((_, why)) = NOT_OPENED.iter().find(|(names, _)| names.contains(&model_type)) {
            bail_input!("config.json: a {model_type} is not opened: {why}");
        }
        let known: Vec<_> = ARCHES.iter().map(|a| a.model_type).collect();
        bail_input!(
            "config.json: architecture {model_type:?} is not implemented (have: {})",
            known.join(", ")
        );
    };
    Ok(found)
}

/// A decoder, with the passes that are the same for all of them.
pub struct Model {
    model_type: &'static str,
    decoder: Arc<dyn Decoder>,
    sizes: Sizes,
}

impl Model {
    /// The model that a `config.json` describes. Errors (bad input) name the setting that isn't
    /// implemented.
    pub fn from_config(config: &Value) -> Result<Self> {
        Self::and_keys(config).map(|(model, _)| model)
    }

    /// The model, and the keys of `config.json` that were looked up for it. Errors as
    /// [`Self::from_config`].
    pub fn and_keys(config: &Value) -> Result<(Self, BTreeSet<String>)> {
        let Architecture { model_type, parse, .. } = *architecture(config)?;
        let config = Config::new(config);
        if let Some(quantized) = config.get("quantization_config") {
            let by = quantized
                .get("quant_method")
                .and_then(Value::as_str)
                .unwrap_or("a method without a name");
            bail_input!(
                "config.json: weights quantized by {by} are not implemented; in transformers: \
                 model.dequantize(), then model.save_pretrained(…), and no \"quantization_config\" \
                 in what is saved"
            );
        }
        let decoder: Arc<dyn Decoder> = parse(&config)?.into();
        let sizes = decoder.sizes();
        for (name, size) in [
            ("blocks", sizes.blocks),
            ("channels", sizes.channels),
            ("vocabulary", sizes.vocabulary),
        ] {
            if size == 0 {
                bail_input!("config.json: a {model_type} with no {name}");
            }
        }
        Ok((Self { model_type, decoder, sizes }, config.asked()))
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Every tensor of the model.
    pub fn specs(&self) -> Vec<TensorSpec> {
        self.decoder.specs()
    }

    /// Values a row that the layers of one block put out, all together.
    pub fn activations(&self) -> usize {
        self.decoder.activations()
    }

    /// Values a position that one block keeps in a cache.
    pub fn cached(&self) -> usize {
        let AttentionShape { kv_heads, head_dim, .. } = self.attention();
        2 * kv_heads * head_dim
    }

    /// The heads of a block. Blocks differ in windows and scales alone.
    pub fn attention(&self) -> AttentionShape {
        self.decoder.attention(0)
    }

    /// The MLPs of the blocks. Errors (bad input) on an architecture whose MLP has no output matrix
    /// (several experts).
    pub fn mlp(&self) -> Result<Mlp> {
        match self.decoder.mlp() {
            Some(mlp) => Ok(mlp),
            None => bail_input!(
                "architecture {:?}: its MLP has not one output matrix, so that a neuron's output \
                 is no row of it",
                self.model_type
            ),
        }
    }

    /// Name of the output head's weight (V,C).
    pub fn head(&self) -> &str {
        self.decoder.head()
    }

    fn output_head(&self) -> Head<'_> {
        Head { weight: self.decoder.head(), logits: self.decoder.logits() }
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
        self.decoder.embed(view, packed)
    }

    /// Blocks `range` over their input h: (N,C) → (N,C). Below the first block in which the view
    /// wants something, no graph is built and no activation kept.
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
        let mut pass = Pass::new(packed);
        for index in range {
            if caches.is_none() && view.recomputes(index, &h) {
                let (decoder, packed) = (self.decoder.clone(), packed.clone());
                h = view.keep_input(
                    &h,
                    Box::new(move |view, h| decoder.block(index, view, h, &Pass::new(&packed))),
                )?;
                continue;
            }
            pass.cache = caches.map(|c| c.of(index));
            h = self.decoder.block(index, view, &h, &pass)?;
        }
        Ok(h)
    }

    /// Final hidden states from those after the last block: (N,C) → (N,C).
    pub fn finish(&self, view: &View, h: Tensor) -> Result<Tensor> {
        let h = view.enter(Place::FinalNorm, &h)?;
        let h = self.decoder.finish(view, &h)?;
        view.enter(Place::Head, &h)
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
        layers::token_logp(view, self.output_head(), h, rows, targets)
    }

    /// ln(1 − Σ_v w_v p_v) in nats at the given rows of final hidden states, each token v weighing
    /// w_v (V) in 0..=1: (n).
    pub fn absent_logp(
        &self,
        view: &View,
        h: &Tensor,
        rows: &[u32],
        weights: &Tensor,
    ) -> Result<Tensor> {
        layers::absent_logp(view, self.output_head(), h, rows, weights)
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
        layers::kl(view, reference, self.output_head(), h, ref_h, rows)
    }

    /// Logits of all rows of final hidden states: (n,C) → (n,V).
    pub fn logits(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::logits(view, self.output_head(), h)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoder that says nothing of its MLP.
    struct Experts;

    impl Decoder for Experts {
        fn sizes(&self) -> Sizes {
            Sizes { blocks: 1, channels: 2, vocabulary: 3, context: 4 }
        }
        fn activations(&self) -> usize {
            0
        }
        fn attention(&self, _: usize) -> AttentionShape {
            unreachable!("not run")
        }
        fn specs(&self) -> Vec<TensorSpec> {
            Vec::new()
        }
        fn embed(&self, _: &View, _: &Packed) -> Result<Tensor> {
            anyhow::bail!("not run")
        }
        fn block(&self, _: usize, _: &View, h: &Tensor, _: &Pass) -> Result<Tensor> {
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
        let (decoder, sizes) = (Arc::new(Experts), Experts.sizes());
        let model = Model { model_type: "experts", decoder, sizes };
        let error = model.mlp().expect_err("refused");
        assert_eq!(crate::base::error::exit_code(&error), 3);
        assert!(
            error.to_string().contains("\"experts\": its MLP has not one output matrix"),
            "{error}"
        );
        for arch in ARCHES {
            let config = serde_json::from_str(arch.tiny).expect(arch.model_type);
            let model = Model::from_config(&config).expect(arch.model_type);
            let mlp = model.mlp().expect(arch.model_type);
            let weight = model.specs().into_iter().find(|s| s.name == mlp.weight(0));
            let shape = weight.expect("the output matrix").shape;
            assert!(shape.contains(&mlp.neurons) && shape.contains(&model.sizes().channels));
        }
    }

    /// Every block has both sublayers, nothing outside has one, and every name but the head's
    /// begins as the architecture says.
    #[test]
    fn every_tensor_says_where_it_belongs() {
        for Architecture { model_type, names, tiny, .. } in ARCHES {
            let config = serde_json::from_str(tiny).expect(model_type);
            let model = Model::from_config(&config).expect(model_type);
            for spec in model.specs() {
                let (in_block, name) = (matches!(spec.place, Place::Block(_)), &spec.name);
                assert_eq!(spec.sublayer.is_some(), in_block, "{model_type}: {name}");
                let head = spec.place == Place::Head;
                assert_eq!(names.head[0] == name, head, "{model_type}: {name}");
                assert_eq!(name.starts_with(names.prefix), !head, "{model_type}: {name}");
                assert!(!names.is_buffer(name), "{model_type}: {name}");
            }
        }
    }
}
