//! Llama and its kin (Mistral, SmolLM2): RMSNorm, rotary positions, grouped keys and values, a
//! gated MLP, and whatever a [`Variant`] adds to that.

use anyhow::Result;
use candle_core::Tensor;

use super::arch::{Architecture, Decoder, Mlp, Names, Sizes};
use super::config::Config;
use super::layers;
use super::layers::Orientation::OutIn;
use super::layers::{Activation, AttentionShape, Bias, Pass, Rotary, Which};
use super::weights::{Place, Sublayer, TensorSpec, View};
use crate::bail_input;
use crate::tokens::Packed;
use crate::tokens::folder::Usual;

/// Lines of [`ARCHES`](super::ARCHES).
pub const LLAMA: Architecture = Architecture {
    model_type: "llama",
    parse: |config| {
        attention_kinds(config)?;
        let attention = bias(config, "attention_bias")?;
        let variant = Variant {
            qkv: attention,
            output: attention,
            mlp: bias(config, "mlp_bias")?,
            ..Variant::default()
        };
        decoder(config, variant)
    },
    names: NAMES,
    tokenizer: Usual::Named,
    blocks: BLOCKS,
    shapes: r#"{
        "smollm2-135m": {
            "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576,
            "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
            "max_position_embeddings": 8192, "vocab_size": 49152, "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0, "tie_word_embeddings": true
        },
        "llama-1b": {
            "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
            "max_position_embeddings": 131072, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": true,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
            }
        }
    }"#,
    tiny: r#"{
        "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
        "vocab_size": 300, "tie_word_embeddings": true, "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        }
    }"#,
};
pub const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    parse: |config| {
        attention_kinds(config)?;
        let window = config.size_or_null("sliding_window", 4096)?;
        let absent = Absent { kv_heads: Some(8), head_dim: None, context: 131_072 };
        let windows = vec![window; config.blocks(BLOCKS)?];
        decoder(config, Variant { windows, absent, ..Variant::default() })
    },
    names: NAMES,
    // Its tokenizers are taken as they stand, whatever class they name.
    tokenizer: Usual::Only("TokenizersBackend"),
    blocks: BLOCKS,
    shapes: "{}",
    tiny: r#"{
        "model_type": "mistral", "num_hidden_layers": 3, "hidden_size": 16,
        "num_attention_heads": 4, "head_dim": 6, "num_key_value_heads": 1, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "sliding_window": 5
    }"#,
};

/// The key of the number of blocks.
pub const BLOCKS: &str = "num_hidden_layers";
/// What all variants call their tensors.
pub const NAMES: Names =
    Names { prefix: "model.", head: &[HEAD], buffers: &[".self_attn.rotary_emb.inv_freq"] };

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm";
const HEAD: &str = "lm_head.weight";

/// Whether each block's attention slides, where `layer_types` tells. Llama and Mistral have one
/// kind in all blocks, as transformers has it, and only refuse what is neither.
pub fn attention_kinds(config: &Config) -> Result<Option<Vec<bool>>> {
    let Some(kinds) = config.get("layer_types") else { return Ok(None) };
    let kinds = kinds.as_array().map_or(&[][..], Vec::as_slice);
    let blocks = config.blocks(BLOCKS)?;
    if kinds.len() != blocks {
        bail_input!(
            "config.json: \"layer_types\" has {} kinds, the model has {blocks} layers",
            kinds.len()
        );
    }
    let slides = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => bail_input!(
            "config.json: attention {kind} in \"layer_types\" is not implemented \
             (have: full_attention, sliding_attention)"
        ),
    };
    kinds.iter().map(slides).collect::<Result<_>>().map(Some)
}

/// What a variant has beside what all of them have.
pub struct Variant {
    /// On queries, keys and values.
    pub qkv: Bias,
    /// On the attention's output.
    pub output: Bias,
    /// On all three layers of the MLP.
    pub mlp: Bias,
    /// An RMSNorm over each head of queries and keys.
    pub head_norms: bool,
    /// The attention window of each block; a block beyond the list has none.
    pub windows: Vec<Option<usize>>,
    pub absent: Absent,
}

impl Default for Variant {
    fn default() -> Self {
        let absent = Absent { kv_heads: None, head_dim: None, context: 2048 };
        Self {
            qkv: Bias::No,
            output: Bias::No,
            mlp: Bias::No,
            head_norms: false,
            windows: Vec::new(),
            absent,
        }
    }
}

/// What transformers takes for keys that a `config.json` leaves out (null is another matter: it is
/// worked out then).
#[derive(Clone, Copy)]
pub struct Absent {
    /// `num_key_value_heads`; `None` for as many as there are of queries.
    pub kv_heads: Option<usize>,
    /// `head_dim`; `None` for a head's share of the channels.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`
    pub context: usize,
}

/// Channels of a head, far above those of any model: a table is made of their frequencies.
const MAX_HEAD: usize = 1 << 16;

/// Whether a flag of `config.json` gives layers a bias.
pub fn bias(config: &Config, key: &str) -> Result<Bias> {
    Ok(if config.flag_or(key, false)? { Bias::Yes } else { Bias::No })
}

struct Llama {
    sizes: Sizes,
    variant: Variant,
    /// That of every block but for its window.
    attention: AttentionShape,
    inner: usize,
    epsilon: f64,
    activation: Activation,
    rotary: Rotary,
    tied: bool,
}

/// The decoder of a variant with the settings of its `config.json`.
pub fn decoder(config: &Config, variant: Variant) -> Result<Box<dyn Decoder>> {
    let channels = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let size = |key: &str, absent: Option<usize>| match absent {
        Some(absent) => config.size_or_null(key, absent),
        None => config.size_or_none(key),
    };
    let kv_heads = size("num_key_value_heads", variant.absent.kv_heads)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        bail_input!(
            "config.json: \"num_attention_heads\" {heads} can't share \"num_key_value_heads\" \
             {kv_heads} in even groups"
        );
    }
    let head_dim = size("head_dim", variant.absent.head_dim)?
        .map_or_else(|| config.divide(channels, heads, "heads"), Ok)?;
    if head_dim > MAX_HEAD {
        bail_input!(
            "config.json: heads of {head_dim} channels (\"head_dim\"), expected at most \
             {MAX_HEAD}"
        );
    }
    let context = config.size_or_none("max_position_embeddings")?.unwrap_or(variant.absent.context);
    Ok(Box::new(Llama {
        sizes: Sizes {
            blocks: config.blocks(BLOCKS)?,
            channels,
            vocabulary: config.size("vocab_size")?,
            context,
        },
        variant,
        attention: AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
        },
        inner: config.size("intermediate_size")?,
        epsilon: config.epsilon_or("rms_norm_eps", 1e-6)?,
        activation: config.activation_or("hidden_act", "silu")?,
        rotary: config.rotary(head_dim, context)?,
        tied: config.flag_or("tie_word_embeddings", false)?,
    }))
}

impl Llama {
    /// Columns of the queries, and of the keys or the values.
    fn widths(&self) -> (usize, usize) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention;
        (heads * head_dim, kv_heads * head_dim)
    }
}

/// Name of a part of a block.
fn name_of(block: usize, part: &str) -> String {
    format!("model.layers.{block}.{part}")
}

impl Decoder for Llama {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        let (q, kv) = self.widths();
        // Queries and keys as projected, normed, turned.
        let placed = if self.variant.head_norms { 3 } else { 2 } * (q + kv);
        // Two norms and two sums with the residual stream; values and attention; gate, up and their
        // product.
        4 * self.sizes.channels + placed + kv + q + 3 * self.inner
    }

    fn cached(&self) -> usize {
        2 * self.widths().1
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Sizes { blocks, channels: c, vocabulary, .. } = self.sizes;
        let ((q, kv), f, d) = (self.widths(), self.inner, self.attention.head_dim);
        let Variant { qkv, output, mlp, head_norms, .. } = self.variant;
        let mut specs = vec![
            TensorSpec::outside(EMBEDDING, &[vocabulary, c], Place::Embedding),
            TensorSpec::outside(format!("{FINAL_NORM}.weight"), &[c], Place::FinalNorm),
        ];
        if !self.tied {
            specs.push(TensorSpec::outside(HEAD, &[vocabulary, c], Place::Head));
        }
        for block in 0..blocks {
            let mut add = |sublayer, layer: &str, weight: &[usize], bias| {
                let name = |of: &str| name_of(block, &format!("{layer}.{of}"));
                specs.push(TensorSpec::of_block(name("weight"), weight, block, sublayer));
                if bias == Bias::Yes {
                    specs.push(TensorSpec::of_block(name("bias"), &weight[..1], block, sublayer));
                }
            };
            let mut attention =
                |layer: &str, weight: &[usize], bias| add(Sublayer::Attention, layer, weight, bias);
            attention("input_layernorm", &[c], Bias::No);
            attention("self_attn.q_proj", &[q, c], qkv);
            attention("self_attn.k_proj", &[kv, c], qkv);
            attention("self_attn.v_proj", &[kv, c], qkv);
            if head_norms {
                attention("self_attn.q_norm", &[d], Bias::No);
                attention("self_attn.k_norm", &[d], Bias::No);
            }
            attention("self_attn.o_proj", &[c, q], output);
            add(Sublayer::Mlp, "post_attention_layernorm", &[c], Bias::No);
            add(Sublayer::Mlp, "mlp.gate_proj", &[f, c], mlp);
            add(Sublayer::Mlp, "mlp.up_proj", &[f, c], mlp);
            add(Sublayer::Mlp, "mlp.down_proj", &[c, f], mlp);
        }
        specs
    }

    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        layers::embed(view, EMBEDDING, None, packed)
    }

    fn block(&self, index: usize, view: &View, h: &Tensor, pass: &Pass) -> Result<Tensor> {
        let Variant { qkv, output, mlp, head_norms, windows, .. } = &self.variant;
        let name = |part: &str| name_of(index, part);
        let norm = |part: &str, x: &Tensor| layers::rms_norm(view, &name(part), self.epsilon, x);
        let linear =
            |part: &str, bias: Bias, x: &Tensor| layers::linear(view, &name(part), OutIn, bias, x);
        let h = view.enter_sublayer(index, Sublayer::Attention, h)?;
        let x = norm("input_layernorm", &h)?;
        let placed = |projection: &str, head_norm: &str| -> Result<Tensor> {
            let mut heads = linear(projection, *qkv, &x)?;
            if *head_norms {
                heads = norm(head_norm, &heads)?;
            }
            layers::rotate(view, &self.rotary, Which::ALL, &heads, pass)
        };
        let (q, k) = (
            placed("self_attn.q_proj", "self_attn.q_norm")?,
            placed("self_attn.k_proj", "self_attn.k_norm")?,
        );
        let v = linear("self_attn.v_proj", *qkv, &x)?;
        let shape =
            AttentionShape { window: windows.get(index).copied().flatten(), ..self.attention };
        let x = layers::attention(view, shape, &q, &k, &v, pass)?;
        let h = layers::linear_residual(view, &name("self_attn.o_proj"), OutIn, *output, &x, &h)?;
        let h = view.enter_sublayer(index, Sublayer::Mlp, &h)?;
        let x = norm("post_attention_layernorm", &h)?;
        let (gate, up) = (linear("mlp.gate_proj", *mlp, &x)?, linear("mlp.up_proj", *mlp, &x)?);
        let x = layers::activate_gated(view, self.activation, &gate, &up)?;
        layers::linear_residual(view, &name("mlp.down_proj"), OutIn, *mlp, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::rms_norm(view, FINAL_NORM, self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { EMBEDDING } else { HEAD }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| name_of(block, "mlp.down_proj");
        Some(Mlp { neurons: self.inner, orientation: OutIn, output })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::model::Model;

    /// Those of transformers 5.24.
    #[test]
    fn absent_keys_have_the_values_of_transformers() {
        for (model_type, kv_heads, head_dim, context) in [
            ("llama", 64, 2, 2048),
            ("mistral", 8, 2, 131_072),
            ("qwen2", 32, 2, 32_768),
            ("qwen3", 32, 128, 32_768),
        ] {
            let mut config = json!({
                "model_type": model_type, "num_hidden_layers": 1, "hidden_size": 128,
                "num_attention_heads": 64, "intermediate_size": 8, "vocab_size": 16
            });
            let keys = |config: &serde_json::Value| {
                let model = Model::from_config(config).expect(model_type);
                let keys =
                    model.specs().into_iter().find(|spec| spec.name.ends_with("k_proj.weight"));
                (keys.expect("keys").shape, model.sizes().context, model.cached())
            };
            assert_eq!(
                keys(&config),
                (vec![kv_heads * head_dim, 128], context, 2 * kv_heads * head_dim),
                "{model_type}"
            );
            config["num_key_value_heads"] = serde_json::Value::Null;
            assert_eq!(keys(&config).0, [64 * head_dim, 128], "{model_type}: null");
        }
    }
}
