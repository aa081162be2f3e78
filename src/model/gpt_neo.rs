//! GPT-Neo: global and local attention by turns, scores that are not scaled, q/k/v without biases,
//! `Linear` (out, in).

use anyhow::Result;
use candle_core::Tensor;
use serde_json::Value;

use super::arch::{Architecture, Decoder, Mlp, Names, Sizes};
use super::config::Config;
use super::layers;
use super::layers::Orientation::OutIn;
use super::layers::{Activation, AttentionShape, Bias, Pass};
use super::weights::{Place, Sublayer, TensorSpec, View};
use crate::bail_input;
use crate::tokens::Packed;
use crate::tokens::folder::Usual;

/// The line of [`ARCHES`](super::ARCHES).
pub const GPT_NEO: Architecture = Architecture {
    model_type: "gpt_neo",
    parse,
    names: Names {
        prefix: "transformer.",
        head: &[HEAD],
        buffers: &[".attn.attention.bias", ".attn.attention.masked_bias"],
    },
    tokenizer: Usual::Or("GPT2Tokenizer"),
    blocks: "num_layers",
    // With another number of blocks a shape would need another list of their kinds.
    shapes: "{}",
    tiny: r#"{
        "model_type": "gpt_neo", "num_layers": 4, "hidden_size": 16, "num_heads": 2,
        "window_size": 5, "attention_types": [[["global", "local"], 2]],
        "max_position_embeddings": 64, "vocab_size": 300
    }"#,
};

const EMBEDDING: &str = "transformer.wte.weight";
const POSITIONS: &str = "transformer.wpe.weight";
const FINAL_NORM: &str = "transformer.ln_f";
const HEAD: &str = "lm_head.weight";

struct GptNeo {
    sizes: Sizes,
    heads: usize,
    inner: usize,
    epsilon: f64,
    activation: Activation,
    /// The window of each block, `None` for global attention.
    windows: Vec<Option<usize>>,
    tied: bool,
}

fn parse(config: &Config) -> Result<Box<dyn Decoder>> {
    let channels = config.size("hidden_size")?;
    let heads = config.size("num_heads")?;
    config.divide(channels, heads, "heads")?;
    let blocks = config.blocks(GPT_NEO.blocks)?;
    let window = config.size_or_none("window_size")?.unwrap_or(256);
    let kinds = attention_kinds(config, blocks)?;
    if kinds.len() != blocks {
        bail_input!(
            "config.json: attention is given for {} layers, the model has {blocks}",
            kinds.len()
        );
    }
    let windows = kinds
        .iter()
        .map(|kind| match kind.as_str() {
            "global" => Ok(None),
            "local" if window > 0 => Ok(Some(window)),
            "local" => bail_input!("config.json: local attention with \"window_size\" 0"),
            other => bail_input!(
                "config.json: attention {other:?} is not implemented (have: global, local)"
            ),
        })
        .collect::<Result<_>>()?;
    Ok(Box::new(GptNeo {
        sizes: Sizes {
            blocks,
            channels,
            vocabulary: config.size("vocab_size")?,
            context: config.size("max_position_embeddings")?,
        },
        heads,
        inner: config.size_or_none("intermediate_size")?.unwrap_or(4 * channels),
        epsilon: config.epsilon_or("layer_norm_epsilon", 1e-5)?,
        activation: config.activation_or("activation_function", "gelu_new")?,
        windows,
        tied: config.flag_or("tie_word_embeddings", true)?,
    }))
}

/// `attention_layers: ["global", …]`, or `attention_types: [[["global", "local"], 12]]`.
fn attention_kinds(config: &Config, blocks: usize) -> Result<Vec<String>> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
    };
    if let Some(layers) = config.get("attention_types") {
        let mut kinds = Vec::new();
        for item in layers.as_array().into_iter().flatten() {
            let (Some(pattern), Some(times)) = (texts(&item[0]), item[1].as_u64()) else {
                bail_input!(
                    "config.json: \"attention_types\" is {layers}, expected [[[kinds], times], …]"
                );
            };
            // No further than one past the number of blocks: more is wrong anyway.
            let room = (blocks + 1).saturating_sub(kinds.len());
            kinds.extend(
                pattern
                    .iter()
                    .cycle()
                    .take(room.min(pattern.len().saturating_mul(times as usize)))
                    .cloned(),
            );
        }
        return Ok(kinds);
    }
    match config.get("attention_layers").map(texts) {
        Some(Some(kinds)) => Ok(kinds),
        _ => {
            bail_input!(
                "config.json: neither \"attention_types\" nor \"attention_layers\" says what \
                 attention to use"
            )
        }
    }
}

/// Name of a part of a block.
fn name_of(block: usize, part: &str) -> String {
    format!("transformer.h.{block}.{part}")
}

impl Decoder for GptNeo {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        // Two norms, queries, keys, values, attention, two sums with the residual stream; the MLP
        // before and after its activation.
        8 * self.sizes.channels + 2 * self.inner
    }

    fn attention(&self, index: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.sizes.channels / self.heads,
            scale: 1.0,
            window: self.windows.get(index).copied().flatten(),
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
            let of_block: [(_, &str, &[usize]); 13] = [
                (Sublayer::Attention, "ln_1.weight", &[c]),
                (Sublayer::Attention, "ln_1.bias", &[c]),
                (Sublayer::Attention, "attn.attention.q_proj.weight", &[c, c]),
                (Sublayer::Attention, "attn.attention.k_proj.weight", &[c, c]),
                (Sublayer::Attention, "attn.attention.v_proj.weight", &[c, c]),
                (Sublayer::Attention, "attn.attention.out_proj.weight", &[c, c]),
                (Sublayer::Attention, "attn.attention.out_proj.bias", &[c]),
                (Sublayer::Mlp, "ln_2.weight", &[c]),
                (Sublayer::Mlp, "ln_2.bias", &[c]),
                (Sublayer::Mlp, "mlp.c_fc.weight", &[self.inner, c]),
                (Sublayer::Mlp, "mlp.c_fc.bias", &[self.inner]),
                (Sublayer::Mlp, "mlp.c_proj.weight", &[c, self.inner]),
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
        let project = |part: &str| {
            layers::linear(view, &name(&format!("attn.attention.{part}")), OutIn, Bias::No, &x)
        };
        let (q, k, v) = (project("q_proj")?, project("k_proj")?, project("v_proj")?);
        let x = layers::attention(view, self.attention(index), &q, &k, &v, pass)?;
        let output = name("attn.attention.out_proj");
        let h = layers::linear_residual(view, &output, OutIn, Bias::Yes, &x, &h)?;
        let h = view.enter_sublayer(index, Sublayer::Mlp, &h)?;
        let x = layers::layer_norm(view, &name("ln_2"), self.epsilon, &h)?;
        let x = layers::linear(view, &name("mlp.c_fc"), OutIn, Bias::Yes, &x)?;
        let x = layers::activate(view, self.activation, &x)?;
        layers::linear_residual(view, &name("mlp.c_proj"), OutIn, Bias::Yes, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::layer_norm(view, FINAL_NORM, self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { EMBEDDING } else { HEAD }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| name_of(block, "mlp.c_proj");
        Some(Mlp { neurons: self.inner, orientation: OutIn, output })
    }
}
