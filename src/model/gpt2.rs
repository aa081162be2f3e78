//! GPT-2 in all its sizes: fused q/k/v, `Conv1D` weights (in, out), learned positions.

use anyhow::Result;
use candle_core::Tensor;

use super::layers;
use super::layers::Orientation::InOut;
use super::layers::{Activation, AttentionShape, Bias, Rows};
use super::weights::{Place, TensorSpec, View};
use super::{Arch, ArchEntry, Mlp, Settings, Sizes};
use crate::bail_input;
use crate::tokens::Packed;

/// The line of [`ARCHES`](super::ARCHES).
pub const ENTRY: ArchEntry = ArchEntry {
    model_type: "gpt2",
    parse,
    tiny: r#"{"model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 300}"#,
};

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

fn parse(s: &Settings) -> Result<Box<dyn Arch>> {
    if s.flag_or("add_cross_attention", false)? {
        bail_input!("config.json: \"add_cross_attention\" is not implemented");
    }
    let channels = s.size("n_embd")?;
    let heads = s.size("n_head")?;
    s.divide(channels, heads, "heads")?;
    Ok(Box::new(Gpt2 {
        sizes: Sizes {
            blocks: s.blocks("n_layer")?,
            channels,
            vocabulary: s.size("vocab_size")?,
            context: s.size_or_none("n_positions")?.map_or_else(|| s.size("n_ctx"), Ok)?,
        },
        heads,
        inner: s.size_or_none("n_inner")?.unwrap_or(4 * channels),
        epsilon: s.epsilon_or("layer_norm_epsilon", 1e-5)?,
        activation: s.activation_or("activation_function", "gelu_new")?,
        scale_by_width: s.flag_or("scale_attn_weights", true)?,
        scale_by_block: s.flag_or("scale_attn_by_inverse_layer_idx", false)?,
        tied: s.flag_or("tie_word_embeddings", true)?,
    }))
}

impl Gpt2 {
    fn attention(&self, index: usize) -> AttentionShape {
        let head_dim = self.sizes.channels / self.heads;
        let mut scale = 1.0;
        if self.scale_by_width {
            scale /= (head_dim as f32).sqrt();
        }
        if self.scale_by_block {
            scale /= (index + 1) as f32;
        }
        AttentionShape { heads: self.heads, kv_heads: self.heads, head_dim, scale, window: None }
    }
}

impl Arch for Gpt2 {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        // Two norms, queries, keys, values, attention, two sums with the residual stream; the MLP before and after its
        // activation.
        8 * self.sizes.channels + 2 * self.inner
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Sizes { blocks, channels: c, vocabulary, context } = self.sizes;
        let spec = |name: String, shape: &[usize], place| TensorSpec {
            name,
            shape: shape.to_vec(),
            place,
        };
        let mut specs = vec![
            spec("transformer.wte.weight".into(), &[vocabulary, c], Place::Embedding),
            spec("transformer.wpe.weight".into(), &[context, c], Place::Embedding),
            spec("transformer.ln_f.weight".into(), &[c], Place::FinalNorm),
            spec("transformer.ln_f.bias".into(), &[c], Place::FinalNorm),
        ];
        if !self.tied {
            specs.push(spec("lm_head.weight".into(), &[vocabulary, c], Place::Head));
        }
        for b in 0..blocks {
            let of_block: [(&str, &[usize]); 12] = [
                ("ln_1.weight", &[c]),
                ("ln_1.bias", &[c]),
                ("attn.c_attn.weight", &[c, 3 * c]),
                ("attn.c_attn.bias", &[3 * c]),
                ("attn.c_proj.weight", &[c, c]),
                ("attn.c_proj.bias", &[c]),
                ("ln_2.weight", &[c]),
                ("ln_2.bias", &[c]),
                ("mlp.c_fc.weight", &[c, self.inner]),
                ("mlp.c_fc.bias", &[self.inner]),
                ("mlp.c_proj.weight", &[self.inner, c]),
                ("mlp.c_proj.bias", &[c]),
            ];
            specs.extend(of_block.map(|(name, shape)| {
                spec(format!("transformer.h.{b}.{name}"), shape, Place::Block(b))
            }));
        }
        specs
    }

    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        layers::embed(view, "transformer.wte.weight", Some("transformer.wpe.weight"), packed)
    }

    fn block(&self, index: usize, view: &View, h: &Tensor, rows: &Rows) -> Result<Tensor> {
        let name = |part: &str| format!("transformer.h.{index}.{part}");
        let x = layers::layer_norm(view, &name("ln_1"), self.epsilon, h)?;
        let qkv = layers::linear(view, &name("attn.c_attn"), InOut, Bias::Yes, &x)?;
        let x = layers::attention_fused(view, self.attention(index), &qkv, rows)?;
        let h = layers::linear_residual(view, &name("attn.c_proj"), InOut, Bias::Yes, &x, h)?;
        let h = view.enter_mlp(index, h)?;
        let x = layers::layer_norm(view, &name("ln_2"), self.epsilon, &h)?;
        let x = layers::linear(view, &name("mlp.c_fc"), InOut, Bias::Yes, &x)?;
        let x = layers::activate(view, self.activation, &x)?;
        layers::linear_residual(view, &name("mlp.c_proj"), InOut, Bias::Yes, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::layer_norm(view, "transformer.ln_f", self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { "transformer.wte.weight" } else { "lm_head.weight" }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| format!("transformer.h.{block}.mlp.c_proj");
        Some(Mlp { neurons: self.inner, orientation: InOut, output })
    }
}
