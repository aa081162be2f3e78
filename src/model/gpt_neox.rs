//! GPT-NeoX (Pythia): attention and MLP side by side on one residual stream, queries, keys and
//! values fused head by head, rotary positions on a part of each head, biases everywhere.

use anyhow::Result;
use candle_core::Tensor;

use super::arch::{Architecture, Decoder, Mlp, Names, Sizes};
use super::config::Config;
use super::layers;
use super::layers::Orientation::OutIn;
use super::layers::{Activation, AttentionShape, Bias, Fused, Pass, Rotary, Which};
use super::rope::{Extent, Rope};
use super::weights::{Place, Sublayer, TensorSpec, View};
use crate::tokens::Packed;
use crate::tokens::folder::Usual;

/// The line of [`ARCHES`](super::ARCHES).
pub const GPT_NEOX: Architecture = Architecture {
    model_type: "gpt_neox",
    parse,
    names: Names {
        prefix: "gpt_neox.",
        head: &[HEAD, "lm_head.weight"],
        buffers: &[".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"],
    },
    tokenizer: Usual::Or("GPTNeoXTokenizer"),
    blocks: "num_hidden_layers",
    shapes: r#"{
        "pythia-160m": {
            "model_type": "gpt_neox", "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 2048,
            "vocab_size": 50304, "rotary_pct": 0.25
        }
    }"#,
    tiny: r#"{
        "model_type": "gpt_neox", "num_hidden_layers": 3, "hidden_size": 32,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
        "vocab_size": 300, "rotary_pct": 0.5
    }"#,
};

const EMBEDDING: &str = "gpt_neox.embed_in.weight";
const FINAL_NORM: &str = "gpt_neox.final_layer_norm";
const HEAD: &str = "embed_out.weight";
const QKV_BIAS: &str = "attention.query_key_value.bias";
const OUTPUT_BIAS: &str = "attention.dense.bias";

struct GptNeox {
    sizes: Sizes,
    attention: AttentionShape,
    inner: usize,
    epsilon: f64,
    activation: Activation,
    rotary: Rotary,
    /// Whether the MLP reads what the attention reads (`use_parallel_residual`), and not what it
    /// leaves.
    parallel: bool,
    /// On the attention's two matrices.
    bias: Bias,
    tied: bool,
}

// What a config.json leaves out is what transformers takes for it: GPT-NeoX-20B's.
fn parse(config: &Config) -> Result<Box<dyn Decoder>> {
    let channels = config.size_or_none("hidden_size")?.unwrap_or(6144);
    let heads = config.size_or_none("num_attention_heads")?.unwrap_or(64);
    let head_dim = config.divide(channels, heads, "heads")?;
    let context = config.size_or_none("max_position_embeddings")?.unwrap_or(2048);
    let rope = Rope {
        theta: ("rotary_emb_base", 10000.0),
        part: Some(("rotary_pct", 0.25)),
        ..Rope::USUAL
    };
    let (rotary, context) = rope.of_all(config, Extent { head_dim, context })?;
    let bias = if config.flag_or("attention_bias", true)? { Bias::Yes } else { Bias::No };
    Ok(Box::new(GptNeox {
        sizes: Sizes {
            blocks: config.blocks(GPT_NEOX.blocks)?,
            channels,
            vocabulary: config.size("vocab_size")?,
            context,
        },
        attention: AttentionShape {
            heads,
            kv_heads: heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            cap: None,
        },
        inner: config.size_or_none("intermediate_size")?.unwrap_or(24_576),
        epsilon: config.epsilon_or("layer_norm_eps", 1e-5)?,
        activation: config.activation_or("hidden_act", "gelu")?,
        rotary,
        parallel: config.flag_or("use_parallel_residual", true)?,
        bias,
        tied: config.flag_or("tie_word_embeddings", false)?,
    }))
}

/// Name of a part of a block.
fn name_of(block: usize, part: &str) -> String {
    format!("gpt_neox.layers.{block}.{part}")
}

impl Decoder for GptNeox {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        // Two norms, queries, keys and values before and after they are turned, attention, two sums
        // with the residual stream; the MLP before and after its activation.
        11 * self.sizes.channels + 2 * self.inner
    }

    fn attention(&self, _: usize) -> AttentionShape {
        self.attention
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Sizes { blocks, channels: c, vocabulary, .. } = self.sizes;
        let mut specs = vec![
            TensorSpec::outside(EMBEDDING, &[vocabulary, c], Place::Embedding),
            TensorSpec::outside(format!("{FINAL_NORM}.weight"), &[c], Place::FinalNorm),
            TensorSpec::outside(format!("{FINAL_NORM}.bias"), &[c], Place::FinalNorm),
        ];
        if !self.tied {
            specs.push(TensorSpec::outside(HEAD, &[vocabulary, c], Place::Head));
        }
        for block in 0..blocks {
            let of_block: [(_, &str, &[usize]); 12] = [
                (Sublayer::Attention, "input_layernorm.weight", &[c]),
                (Sublayer::Attention, "input_layernorm.bias", &[c]),
                (Sublayer::Attention, "attention.query_key_value.weight", &[3 * c, c]),
                (Sublayer::Attention, QKV_BIAS, &[3 * c]),
                (Sublayer::Attention, "attention.dense.weight", &[c, c]),
                (Sublayer::Attention, OUTPUT_BIAS, &[c]),
                (Sublayer::Mlp, "post_attention_layernorm.weight", &[c]),
                (Sublayer::Mlp, "post_attention_layernorm.bias", &[c]),
                (Sublayer::Mlp, "mlp.dense_h_to_4h.weight", &[self.inner, c]),
                (Sublayer::Mlp, "mlp.dense_h_to_4h.bias", &[self.inner]),
                (Sublayer::Mlp, "mlp.dense_4h_to_h.weight", &[c, self.inner]),
                (Sublayer::Mlp, "mlp.dense_4h_to_h.bias", &[c]),
            ];
            let has =
                |name: &str| self.bias == Bias::Yes || ![QKV_BIAS, OUTPUT_BIAS].contains(&name);
            let own = of_block.into_iter().filter(|(_, name, _)| has(name));
            specs.extend(own.map(|(sublayer, name, shape)| {
                TensorSpec::of_block(name_of(block, name), shape, block, sublayer)
            }));
        }
        specs
    }

    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        layers::embed(view, EMBEDDING, None, packed)
    }

    fn block(&self, index: usize, view: &View, h: &Tensor, pass: &Pass) -> Result<Tensor> {
        let name = |part: &str| name_of(index, part);
        let input = view.enter_sublayer(index, Sublayer::Attention, h)?;
        let x = layers::layer_norm(view, &name("input_layernorm"), self.epsilon, &input)?;
        let fused = name("attention.query_key_value");
        let qkv = layers::linear(view, &fused, OutIn, self.bias, &x)?;
        let qkv = layers::rotate(view, &self.rotary, Which::BY_HEAD, &qkv, pass)?;
        let x = layers::attention_fused(view, self.attention, Fused::ByHead, &qkv, pass)?;
        let output = name("attention.dense");
        let h = layers::linear_residual(view, &output, OutIn, self.bias, &x, &input)?;
        let mlp_input = if self.parallel { &input } else { &h };
        let mlp_input = view.enter_sublayer(index, Sublayer::Mlp, mlp_input)?;
        let norm = name("post_attention_layernorm");
        let x = layers::layer_norm(view, &norm, self.epsilon, &mlp_input)?;
        let x = layers::linear(view, &name("mlp.dense_h_to_4h"), OutIn, Bias::Yes, &x)?;
        let x = layers::activate(view, self.activation, &x)?;
        let h = if self.parallel { &h } else { &mlp_input };
        layers::linear_residual(view, &name("mlp.dense_4h_to_h"), OutIn, Bias::Yes, &x, h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::layer_norm(view, FINAL_NORM, self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { EMBEDDING } else { HEAD }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| name_of(block, "mlp.dense_4h_to_h");
        Some(Mlp { neurons: self.inner, orientation: OutIn, output })
    }
}
