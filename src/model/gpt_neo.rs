//! GPT-Neo: global and local attention by turns, scores that are not scaled, q/k/v without biases, `Linear` (out, in).

use anyhow::Result;
use candle_core::Tensor;
use serde_json::Value;

use super::layers;
use super::layers::Orientation::OutIn;
use super::layers::{Activation, AttentionShape, Bias, Rows};
use super::weights::{Place, TensorSpec, View};
use super::{Arch, ArchEntry, Mlp, Settings, Sizes};
use crate::bail_input;
use crate::tokens::Packed;

/// The line of [`ARCHES`](super::ARCHES).
pub const ENTRY: ArchEntry = ArchEntry {
    model_type: "gpt_neo",
    parse,
    tiny: r#"{"model_type": "gpt_neo", "num_layers": 4, "hidden_size": 16, "num_heads": 2, "window_size": 5,
              "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64, "vocab_size": 300}"#,
};

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

fn parse(s: &Settings) -> Result<Box<dyn Arch>> {
    let channels = s.size("hidden_size")?;
    let heads = s.size("num_heads")?;
    s.divide(channels, heads, "heads")?;
    let blocks = s.blocks("num_layers")?;
    let window = s.size_or_none("window_size")?.unwrap_or(256);
    let kinds = attention_kinds(s, blocks)?;
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
            vocabulary: s.size("vocab_size")?,
            context: s.size("max_position_embeddings")?,
        },
        heads,
        inner: s.size_or_none("intermediate_size")?.unwrap_or(4 * channels),
        epsilon: s.epsilon_or("layer_norm_epsilon", 1e-5)?,
        activation: s.activation_or("activation_function", "gelu_new")?,
        windows,
        tied: s.flag_or("tie_word_embeddings", true)?,
    }))
}

/// `attention_layers: ["global", …]`, or `attention_types: [[["global", "local"], 12]]`.
fn attention_kinds(s: &Settings, blocks: usize) -> Result<Vec<String>> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
    };
    if let Some(layers) = s.get("attention_types") {
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
    match s.get("attention_layers").map(texts) {
        Some(Some(kinds)) => Ok(kinds),
        _ => {
            bail_input!(
                "config.json: neither \"attention_types\" nor \"attention_layers\" says what attention to use"
            )
        }
    }
}

impl Arch for GptNeo {
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
            let of_block: [(&str, &[usize]); 13] = [
                ("ln_1.weight", &[c]),
                ("ln_1.bias", &[c]),
                ("attn.attention.q_proj.weight", &[c, c]),
                ("attn.attention.k_proj.weight", &[c, c]),
                ("attn.attention.v_proj.weight", &[c, c]),
                ("attn.attention.out_proj.weight", &[c, c]),
                ("attn.attention.out_proj.bias", &[c]),
                ("ln_2.weight", &[c]),
                ("ln_2.bias", &[c]),
                ("mlp.c_fc.weight", &[self.inner, c]),
                ("mlp.c_fc.bias", &[self.inner]),
                ("mlp.c_proj.weight", &[c, self.inner]),
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
        let project = |part: &str| {
            layers::linear(view, &name(&format!("attn.attention.{part}")), OutIn, Bias::No, &x)
        };
        let (q, k, v) = (project("q_proj")?, project("k_proj")?, project("v_proj")?);
        let shape = AttentionShape {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.sizes.channels / self.heads,
            scale: 1.0,
            window: self.windows[index],
        };
        let x = layers::attention(view, shape, &q, &k, &v, rows)?;
        let h = layers::linear_residual(
            view,
            &name("attn.attention.out_proj"),
            OutIn,
            Bias::Yes,
            &x,
            h,
        )?;
        let h = view.enter_mlp(index, h)?;
        let x = layers::layer_norm(view, &name("ln_2"), self.epsilon, &h)?;
        let x = layers::linear(view, &name("mlp.c_fc"), OutIn, Bias::Yes, &x)?;
        let x = layers::activate(view, self.activation, &x)?;
        layers::linear_residual(view, &name("mlp.c_proj"), OutIn, Bias::Yes, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::layer_norm(view, "transformer.ln_f", self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { "transformer.wte.weight" } else { "lm_head.weight" }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| format!("transformer.h.{block}.mlp.c_proj");
        Some(Mlp { neurons: self.inner, orientation: OutIn, output })
    }
}
