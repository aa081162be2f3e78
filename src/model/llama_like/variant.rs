//! What the members of Llama's family have each for themselves, and how their `config.json` tells.

use anyhow::Result;

use super::BLOCKS;
use crate::bail_input;
use crate::model::config::Config;
use crate::model::layers::{Bias, Logits};
use crate::model::rope::Rope;

/// Whether each block's attention slides, where `layer_types` tells. Errors (bad input) on what is
/// neither.
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

/// The window of each block of which `slides` says so. Errors (bad input) if one slides and there
/// is no `sliding_window`.
pub fn windows(
    config: &Config,
    default: Option<usize>,
    slides: &[bool],
) -> Result<Vec<Option<usize>>> {
    let key = "sliding_window";
    let window = match default {
        Some(default) => config.size_or_null(key, default)?,
        None => config.size_or_none(key)?,
    };
    if window.is_none() && slides.contains(&true) {
        bail_input!("config.json: {key:?} is missing or null, and some layers slide");
    }
    Ok(slides.iter().map(|slides| window.filter(|_| *slides)).collect())
}

/// Whether each block slides: by `layer_types`, or by its number.
pub fn slides(config: &Config, usual: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let blocks = config.blocks(BLOCKS)?;
    Ok(attention_kinds(config)?.unwrap_or_else(|| (0..blocks).map(usual).collect()))
}

/// What a variant has beside what all of them have.
pub struct Variant {
    /// On queries, keys and values.
    pub qkv: Bias,
    /// On the attention's output.
    pub output: Bias,
    /// On all three layers of the MLP.
    pub mlp: Bias,
    /// Queries, keys and values of one projection, gate and up of another.
    pub fused: bool,
    pub norms: Norms,
    /// What is added to the stored weight of every norm.
    pub norm_offset: f64,
    pub head_norms: HeadNorms,
    /// The attention window of each block; a block beyond the list has none.
    pub windows: Vec<Option<usize>>,
    pub positions: Positions,
    /// Factor on the scores of attention; `None` for 1/√D.
    pub scale: Option<f64>,
    /// The soft cap of these scores.
    pub cap: Option<f64>,
    /// Factor on embeddings.
    pub embedding: f64,
    /// Factor on what a sublayer adds to the residual stream.
    pub residual: f64,
    pub logits: Logits,
    /// The key of the activation function, and its default.
    pub activation: (&'static str, &'static str),
    pub absent: Absent,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            qkv: Bias::No,
            output: Bias::No,
            mlp: Bias::No,
            fused: false,
            norms: Norms::BEFORE,
            norm_offset: 0.0,
            head_norms: HeadNorms::No,
            windows: Vec::new(),
            positions: Positions::Alike(Rope::USUAL),
            scale: None,
            cap: None,
            embedding: 1.0,
            residual: 1.0,
            logits: Logits::PLAIN,
            activation: ("hidden_act", "silu"),
            absent: Absent::LLAMA,
        }
    }
}

impl Variant {
    /// The plain one, with biases on all four layers of the attention if `attention_bias` says so.
    pub fn biased(config: &Config) -> Result<Self> {
        let attention = bias(config, "attention_bias")?;
        Ok(Self { qkv: attention, output: attention, ..Self::default() })
    }

    /// The attention window of a block.
    pub(super) fn window(&self, block: usize) -> Option<usize> {
        self.windows.get(block).copied().flatten()
    }
}

/// Where the norms of a block stand, and what they are called.
#[derive(Clone, Copy)]
pub struct Norms {
    pub(super) attention: Around,
    pub(super) mlp: Around,
}

/// The norm of what a sublayer reads, and that of what it adds.
#[derive(Clone, Copy)]
pub(super) struct Around {
    pub before: Option<&'static str>,
    pub after: Option<&'static str>,
}

impl Norms {
    /// Before each sublayer alone.
    pub const BEFORE: Self = Self {
        attention: Around { before: Some("input_layernorm"), after: None },
        mlp: Around { before: Some("post_attention_layernorm"), after: None },
    };
    /// After each sublayer alone.
    pub const AFTER: Self = Self {
        attention: Around { before: None, after: Some("post_attention_layernorm") },
        mlp: Around { before: None, after: Some("post_feedforward_layernorm") },
    };
    /// Before and after each sublayer.
    pub const BOTH: Self = Self {
        attention: Around {
            before: Some("input_layernorm"),
            after: Some("post_attention_layernorm"),
        },
        mlp: Around {
            before: Some("pre_feedforward_layernorm"),
            after: Some("post_feedforward_layernorm"),
        },
    };
}

/// An RMSNorm over queries and keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    No,
    /// Over each head by itself.
    Each,
    /// Over all heads together.
    Whole,
}

/// Which rotary positions the blocks have.
pub enum Positions {
    /// All the same.
    Alike(Rope),
    /// Some have them, and some have none: by block.
    Some(Rope, Vec<bool>),
    /// Those that slide have others: `rope`, and θ of each kind where it is not named.
    ByKind { rope: Rope, full: f64, sliding: f64 },
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
    /// `rms_norm_eps`
    pub epsilon: f64,
    /// `tie_word_embeddings`
    pub tied: bool,
}

impl Absent {
    pub const LLAMA: Self =
        Self { kv_heads: None, head_dim: None, context: 2048, epsilon: 1e-6, tied: false };
}

/// Whether a flag of `config.json` gives layers a bias.
pub fn bias(config: &Config, key: &str) -> Result<Bias> {
    Ok(if config.flag_or(key, false)? { Bias::Yes } else { Bias::No })
}
