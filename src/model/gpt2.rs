//! GPT-2 in all its sizes: fused q/k/v, `Conv1D` weights (in, out), learned positions.

use anyhow::Result;
use candle_core::Tensor;

use super::arch::{Architecture, Decoder, Mlp, Names, Sizes};
use super::config::Config;
use super::layers;
use super::layers::Orientation::InOut;
use super::layers::{Activation, AttentionShape, Bias, Fused, Pass};
use super::weights::{Place, Sublayer, TensorSpec, View};
use crate::bail_input;
use crate::tokens::Packed;
use crate::tokens::folder::Usual;

/// The line of [`ARCHES`](super::ARCHES).
pub const GPT2: Architecture = Architecture {
    model_type: "gpt2",
    parse,
    names: Names {
        prefix: "transformer.",
        head: &[HEAD],
        buffers: &[".attn.bias", ".attn.masked_bias"],
    },
    tokenizer: Usual::Or("GPT2Tokenizer"),
    blocks: "n_layer",
    shapes: r#"{
        "gpt2": {
            "model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768,
            "n_positions": 1024, "vocab_size": 50257
        },
        "gpt2-medium": {
            "model_type": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024,
            "n_positions": 1024, "vocab_size": 50257
        },
        "gpt2-large": {
            "model_type": "gpt2", "n_layer": 36, "n_head": 20, "n_embd": 1280,
            "n_positions": 1024, "vocab_size": 50257
        },
        "gpt2-xl": {
            "model_type": "gpt2", "n_layer": 48, "n_head": 25, "n_embd": 1600,
            "n_positions": 1024, "vocab_size": 50257
        }
    }"#,
    tiny: r#"{
        "model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 64,
        "vocab_size": 300
    }"#,
};

const EMBEDDING: &str = "transformer.wte.weight";
const POSITIONS: &str = "transformer.wpe.weight";
const FINAL_NORM: &str = "transformer.ln_f";
const HEAD: &str = "lm_head.weight";

struct Gpt2 {
    sizes: Sizes,
    heads: usize,
    inner: usize,
    epsilon: f64,
    activation: Activation,
    /// Scores are scaled by 1/√D (`scale_attn_weights`) …
    scale_by_width: bool,
    /// … and by 1/(block + 1) (`scale_attn_by_inverse_layer_idx`).
    scale_by_block: bool,
    tied: bool,
}

fn parse(config: &Config) -> Result<Box<dyn Decoder>> {
    if config.flag_or("add_cross_attention", false)? {
        bail_input!("config.json: \"add_cross_attention\" is not implemented");
    }
    let channels = config.size("n_embd")?;
    let heads = config.size("n_head")?;
    config.divide(channels, heads, "heads")?;
    Ok(Box::new(Gpt2 {
        sizes: Sizes {
            blocks: config.blocks(GPT2.blocks)?,
            channels,
            vocabulary: config.size("vocab_size")?,
            context: config
                .size_or_none("n_positions")?
                .map_or_else(|| config.size("n_ctx"), Ok)?,
        },
        heads,
        inner: config.size_or_none("n_inner")?.unwrap_or(4 * channels),
        epsilon: config.epsilon_or("layer_norm_epsilon", 1e-5)?,
        activation: config.activation_or("activation_function", "gelu_new")?,
        scale_by_width: config.flag_or("scale_attn_weights", true)?,
        scale_by_block: config.flag_or("scale_attn_by_inverse_layer_idx", false)?,
        tied: config.flag_or("tie_word_embeddings", true)?,
    }))
}

/// Name of a part of a block.
fn name_of(block: usize, part: &str) -> String {
    format!("transformer.h.{block}.{part}")
}

impl Decoder for Gpt2 {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        // Two norms, queries, keys, values, attention, two sums with the residual stream; the MLP
        // before and after its activation.
        8 * self.sizes.channels + 2 * self.inner
    }

    fn attention(&self, index: usize) -> AttentionShape {
        let head_dim = self.sizes.channels / self.heads;
        let mut scale = 1.0;
        if self.scale_by_width {
            scale /= (head_dim as f32).sqrt();
        }
        if self.scale_by_block {
            scale /= (index + 1) as f32;
        }
        AttentionShape {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim,
            scale,
            window: None,
            cap: None,
        }
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Sizes { blocks, channels: c, vocabulary, context } = self.sizes;
        let mut specs = vec![
            TensorSpec::outside(EMBEDDING, &[vocabulary, c], Place::Embedding),
            TensorSpec::outside(POSITIONS, &[context, c], Place::Embedding),
            TensorSpec::outside(format!("{FINAL_NORM}.weight"), &[c], Place::FinalNorm),
            TensorSpec::outside(format!("{FINAL_NORM}.bias"), &[c], Place::FinalNorm),
        ];
        if !self.tied {
            specs.push(TensorSpec::outside(HEAD, &[vocabulary, c], Place::Head));
        }
        for block in 0..blocks {
            let of_block: [(_, &str, &[usize]); 12] = [
                (Sublayer::Attention, "ln_1.weight", &[c]),
                (Sublayer::Attention, "ln_1.bias", &[c]),
                (Sublayer::Attention, "attn.c_attn.weight", &[c, 3 * c]),
                (Sublayer::Attention, "attn.c_attn.bias", &[3 * c]),
                (Sublayer::Attention, "attn.c_proj.weight", &[c, c]),
                (Sublayer::Attention, "attn.c_proj.bias", &[c]),
                (Sublayer::Mlp, "ln_2.weight", &[c]),
                (Sublayer::Mlp, "ln_2.bias", &[c]),
                (Sublayer::Mlp, "mlp.c_fc.weight", &[c, self.inner]),
                (Sublayer::Mlp, "mlp.c_fc.bias", &[self.inner]),
                (Sublayer::Mlp, "mlp.c_proj.weight", &[self.inner, c]),
                (Sublayer::Mlp, "mlp.c_proj.bias", &[c]),
            ];
            specs.extend(of_block.map(|(sublayer, name, shape)| {
                TensorSpec::of_block(name_of(block, name), shape, block, sublayer)
            }));
        }
        specs
    }

    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        layers::embed(view, EMBEDDING, Some(POSITIONS), packed)
    }

    fn block(&self, index: usize, view: &View, h: &Tensor, pass: &Pass) -> Result<Tensor> {
        let name = |part: &str| name_of(index, part);
        let h = view.enter_sublayer(index, Sublayer::Attention, h)?;
        let x = layers::layer_norm(view, &name("ln_1"), self.epsilon, &h)?;
        let qkv = layers::linear(view, &name("attn.c_attn"), InOut, Bias::Yes, &x)?;
        let x = layers::attention_fused(view, self.attention(index), Fused::ByKind, &qkv, pass)?;
        let h = layers::linear_residual(view, &name("attn.c_proj"), InOut, Bias::Yes, &x, &h)?;
        let h = view.enter_sublayer(index, Sublayer::Mlp, &h)?;
        let x = layers::layer_norm(view, &name("ln_2"), self.epsilon, &h)?;
        let x = layers::linear(view, &name("mlp.c_fc"), InOut, Bias::Yes, &x)?;
        let x = layers::activate(view, self.activation, &x)?;
        layers::linear_residual(view, &name("mlp.c_proj"), InOut, Bias::Yes, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::layer_norm(view, FINAL_NORM, self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { EMBEDDING } else { HEAD }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| name_of(block, "mlp.c_proj");
        Some(Mlp { neurons: self.inner, orientation: InOut, output })
    }
}
