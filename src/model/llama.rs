//! Llama and its kin (Mistral, SmolLM2): RMSNorm, rotary positions, grouped keys and values, a gated MLP, and whatever a
//! [`Family`] adds to that.

use anyhow::Result;
use candle_core::Tensor;

use super::layers;
use super::layers::Orientation::OutIn;
use super::layers::{Activation, AttentionShape, Bias, Rotary, Rows};
use super::weights::{Place, TensorSpec, View};
use super::{Arch, ArchEntry, Mlp, Settings, Sizes};
use crate::bail_input;
use crate::tokens::Packed;

/// Lines of [`ARCHES`](super::ARCHES).
pub const LLAMA: ArchEntry = ArchEntry {
    model_type: "llama",
    parse: |s| {
        attention_kinds(s)?;
        let attention = bias(s, "attention_bias")?;
        let family = Family {
            qkv: attention,
            output: attention,
            mlp: bias(s, "mlp_bias")?,
            ..Family::default()
        };
        decoder(s, family)
    },
    tiny: r#"{"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "vocab_size": 300,
              "tie_word_embeddings": true, "rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
              "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}"#,
};
pub const MISTRAL: ArchEntry = ArchEntry {
    model_type: "mistral",
    parse: |s| {
        attention_kinds(s)?;
        let window = s.size_or_null("sliding_window", 4096)?;
        let absent = Absent { kv_heads: Some(8), head_dim: None, context: 131_072 };
        decoder(s, Family { windows: vec![window; s.blocks(BLOCKS)?], absent, ..Family::default() })
    },
    tiny: r#"{"model_type": "mistral", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "head_dim": 6,
              "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 64, "vocab_size": 300,
              "sliding_window": 5}"#,
};

/// The key of the number of blocks.
pub const BLOCKS: &str = "num_hidden_layers";

/// Whether each block's attention slides, where `layer_types` tells. Llama and Mistral have one kind in all blocks, as
/// transformers has it, and only refuse what is neither.
pub fn attention_kinds(s: &Settings) -> Result<Option<Vec<bool>>> {
    let Some(kinds) = s.get("layer_types") else { return Ok(None) };
    let kinds = kinds.as_array().map_or(&[][..], Vec::as_slice);
    let blocks = s.blocks(BLOCKS)?;
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
            "config.json: attention {kind} in \"layer_types\" is not implemented (have: full_attention, sliding_attention)"
        ),
    };
    kinds.iter().map(slides).collect::<Result<_>>().map(Some)
}

/// What a family has beside what all of them have.
pub struct Family {
    /// Of queries, keys and values.
    pub qkv: Bias,
    /// Of the attention's output.
    pub output: Bias,
    pub mlp: Bias,
    /// An RMSNorm over each head of queries and keys.
    pub head_norms: bool,
    /// The attention window of each block; a block beyond the list has none.
    pub windows: Vec<Option<usize>>,
    pub absent: Absent,
}

impl Default for Family {
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

/// What transformers takes for keys that a `config.json` leaves out (null is another matter: it is worked out then).
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
pub fn bias(s: &Settings, key: &str) -> Result<Bias> {
    Ok(if s.flag_or(key, false)? { Bias::Yes } else { Bias::No })
}

struct Decoder {
    sizes: Sizes,
    family: Family,
    /// Of every block but for its window.
    attention: AttentionShape,
    inner: usize,
    epsilon: f64,
    activation: Activation,
    rotary: Rotary,
    tied: bool,
}

/// A model of this family with the settings of its `config.json`.
pub fn decoder(s: &Settings, family: Family) -> Result<Box<dyn Arch>> {
    let channels = s.size("hidden_size")?;
    let heads = s.size("num_attention_heads")?;
    let size = |key: &str, absent: Option<usize>| match absent {
        Some(absent) => s.size_or_null(key, absent),
        None => s.size_or_none(key),
    };
    let kv_heads = size("num_key_value_heads", family.absent.kv_heads)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        bail_input!(
            "config.json: \"num_attention_heads\" {heads} can't share \"num_key_value_heads\" {kv_heads} in even groups"
        );
    }
    let head_dim = size("head_dim", family.absent.head_dim)?
        .map_or_else(|| s.divide(channels, heads, "heads"), Ok)?;
    if head_dim > MAX_HEAD {
        bail_input!(
            "config.json: heads of {head_dim} channels (\"head_dim\"), expected at most {MAX_HEAD}"
        );
    }
    let context = s.size_or_none("max_position_embeddings")?.unwrap_or(family.absent.context);
    Ok(Box::new(Decoder {
        sizes: Sizes {
            blocks: s.blocks(BLOCKS)?,
            channels,
            vocabulary: s.size("vocab_size")?,
            context,
        },
        family,
        attention: AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
        },
        inner: s.size("intermediate_size")?,
        epsilon: s.epsilon_or("rms_norm_eps", 1e-6)?,
        activation: s.activation_or("hidden_act", "silu")?,
        rotary: s.rotary(head_dim, context)?,
        tied: s.flag_or("tie_word_embeddings", false)?,
    }))
}

impl Decoder {
    /// Columns of the queries, and of the keys or the values.
    fn widths(&self) -> (usize, usize) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention;
        (heads * head_dim, kv_heads * head_dim)
    }
}

impl Arch for Decoder {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        let (q, kv) = self.widths();
        // Queries and keys as projected, normed, turned.
        let placed = if self.family.head_norms { 3 } else { 2 } * (q + kv);
        // Two norms and two sums with the residual stream; values and attention; gate, up and their product.
        4 * self.sizes.channels + placed + kv + q + 3 * self.inner
    }

    fn cached(&self) -> usize {
        2 * self.widths().1
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Sizes { blocks, channels: c, vocabulary, .. } = self.sizes;
        let ((q, kv), f, d) = (self.widths(), self.inner, self.attention.head_dim);
        let Family { qkv, output, mlp, head_norms, .. } = self.family;
        let spec = |name: String, shape: &[usize], place| TensorSpec {
            name,
            shape: shape.to_vec(),
            place,
        };
        let mut specs = vec![
            spec("model.embed_tokens.weight".into(), &[vocabulary, c], Place::Embedding),
            spec("model.norm.weight".into(), &[c], Place::FinalNorm),
        ];
        if !self.tied {
            specs.push(spec("lm_head.weight".into(), &[vocabulary, c], Place::Head));
        }
        for b in 0..blocks {
            let mut add = |layer: &str, weight: &[usize], bias| {
                let name = |of: &str| format!("model.layers.{b}.{layer}.{of}");
                specs.push(spec(name("weight"), weight, Place::Block(b)));
                if bias == Bias::Yes {
                    specs.push(spec(name("bias"), &weight[..1], Place::Block(b)));
                }
            };
            add("input_layernorm", &[c], Bias::No);
            add("self_attn.q_proj", &[q, c], qkv);
            add("self_attn.k_proj", &[kv, c], qkv);
            add("self_attn.v_proj", &[kv, c], qkv);
            if head_norms {
                add("self_attn.q_norm", &[d], Bias::No);
                add("self_attn.k_norm", &[d], Bias::No);
            }
            add("self_attn.o_proj", &[c, q], output);
            add("post_attention_layernorm", &[c], Bias::No);
            add("mlp.gate_proj", &[f, c], mlp);
            add("mlp.up_proj", &[f, c], mlp);
            add("mlp.down_proj", &[c, f], mlp);
        }
        specs
    }

    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        layers::embed(view, "model.embed_tokens.weight", None, packed)
    }

    fn block(&self, index: usize, view: &View, h: &Tensor, rows: &Rows) -> Result<Tensor> {
        let Family { qkv, output, mlp, head_norms, windows, .. } = &self.family;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let norm = |part: &str, x: &Tensor| layers::rms_norm(view, &name(part), self.epsilon, x);
        let linear =
            |part: &str, bias: Bias, x: &Tensor| layers::linear(view, &name(part), OutIn, bias, x);
        let x = norm("input_layernorm", h)?;
        let placed = |projection: &str, head_norm: &str| -> Result<Tensor> {
            let mut heads = linear(projection, *qkv, &x)?;
            if *head_norms {
                heads = norm(head_norm, &heads)?;
            }
            layers::rotate(view, &self.rotary, &heads, rows)
        };
        let (q, k) = (
            placed("self_attn.q_proj", "self_attn.q_norm")?,
            placed("self_attn.k_proj", "self_attn.k_norm")?,
        );
        let v = linear("self_attn.v_proj", *qkv, &x)?;
        let shape =
            AttentionShape { window: windows.get(index).copied().flatten(), ..self.attention };
        let x = layers::attention(view, shape, &q, &k, &v, rows)?;
        let h = layers::linear_residual(view, &name("self_attn.o_proj"), OutIn, *output, &x, h)?;
        let h = view.enter_mlp(index, h)?;
        let x = norm("post_attention_layernorm", &h)?;
        let (gate, up) = (linear("mlp.gate_proj", *mlp, &x)?, linear("mlp.up_proj", *mlp, &x)?);
        let x = layers::activate_gated(view, self.activation, &gate, &up)?;
        layers::linear_residual(view, &name("mlp.down_proj"), OutIn, *mlp, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        layers::rms_norm(view, "model.norm", self.epsilon, h)
    }

    fn head(&self) -> &str {
        if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| format!("model.layers.{block}.mlp.down_proj");
        Some(Mlp { neurons: self.inner, orientation: OutIn, output })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::model::Model;

    /// Of the configurations of transformers 5.24.
    #[test]
    fn absent_keys_have_the_values_of_transformers() {
        for (model_type, kv_heads, head_dim, context) in [
            ("llama", 64, 2, 2048),
            ("mistral", 8, 2, 131_072),
            ("qwen2", 32, 2, 32_768),
            ("qwen3", 32, 128, 32_768),
        ] {
            let mut config = json!({"model_type": model_type, "num_hidden_layers": 1, "hidden_size": 128,
                                    "num_attention_heads": 64, "intermediate_size": 8, "vocab_size": 16});
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
