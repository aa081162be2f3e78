//! The decoder that Llama and its kin share: RMSNorm, rotary positions, grouped keys and values, a
//! gated MLP, and whatever a [`Variant`] changes of that.

mod variant;

use anyhow::Result;
use candle_core::Tensor;

use super::arch::{Architecture, Decoder, Mlp, Names, Sizes};
use super::config::Config;
use super::layers;
use super::layers::Orientation::OutIn;
use super::layers::{
    Activation, AttentionShape, Bias, Fused, Logits, Pass, RmsNorm, Rotary, Which,
};
use super::rope::Extent;
use super::weights::{Place, Sublayer, TensorSpec, View};
use crate::bail_input;
use crate::tokens::Packed;
use crate::tokens::folder::Usual;
use variant::Around;
pub use variant::{
    Absent, HeadNorms, Norms, Positions, Variant, attention_kinds, bias, slides, windows,
};

/// The key of the number of blocks.
pub const BLOCKS: &str = "num_hidden_layers";
/// What all variants call their tensors.
const NAMES: Names =
    Names { prefix: "model.", head: &[HEAD], buffers: &[".self_attn.rotary_emb.inv_freq"] };

/// What the members of the family have in common; each has its own name, its own way to read a
/// `config.json`, and a small one.
pub const MEMBER: Architecture = Architecture {
    model_type: "",
    parse: |config| decoder(config, Variant::default()),
    names: NAMES,
    tokenizer: Usual::Named,
    blocks: BLOCKS,
    shapes: "{}",
    tiny: "{}",
};

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm";
const HEAD: &str = "lm_head.weight";

/// Channels of a head, far above those of any model: a table is made of their frequencies.
const MAX_HEAD: usize = 1 << 16;

struct LlamaLike {
    sizes: Sizes,
    variant: Variant,
    /// That of every block but for its window.
    attention: AttentionShape,
    inner: usize,
    norm: RmsNorm,
    activation: Activation,
    /// The kinds of rotary positions.
    rotaries: Vec<Rotary>,
    /// Which of them each block has.
    turned_by: Vec<Option<usize>>,
    tied: bool,
}

/// The decoder of a variant with the settings of its `config.json`.
pub fn decoder(config: &Config, variant: Variant) -> Result<Box<dyn Decoder>> {
    let absent = variant.absent;
    let channels = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let size = |key: &str, absent: Option<usize>| match absent {
        Some(absent) => config.size_or_null(key, absent),
        None => config.size_or_none(key),
    };
    let kv_heads = size("num_key_value_heads", absent.kv_heads)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        bail_input!(
            "config.json: \"num_attention_heads\" {heads} can't share \"num_key_value_heads\" \
             {kv_heads} in even groups"
        );
    }
    let head_dim = size("head_dim", absent.head_dim)?
        .map_or_else(|| config.divide(channels, heads, "heads"), Ok)?;
    if head_dim > MAX_HEAD {
        bail_input!(
            "config.json: heads of {head_dim} channels (\"head_dim\"), expected at most \
             {MAX_HEAD}"
        );
    }
    let context = config.size_or_none("max_position_embeddings")?.unwrap_or(absent.context);
    let blocks = config.blocks(BLOCKS)?;
    let extent = Extent { head_dim, context };
    let (found, turned_by) = match &variant.positions {
        Positions::Alike(rope) => (vec![rope.of_all(config, extent)?], vec![Some(0); blocks]),
        Positions::Some(rope, have) => {
            let turned_by = have.iter().map(|has| has.then_some(0)).collect();
            (vec![rope.of_all(config, extent)?], turned_by)
        }
        Positions::ByKind { rope, full, sliding } => {
            let slides = (0..blocks).map(|block| variant.window(block).is_some());
            let of_kind = |kind, theta| rope.of_kind(config, extent, kind, theta);
            let kinds =
                vec![of_kind("full_attention", *full)?, of_kind("sliding_attention", *sliding)?];
            (kinds, slides.map(|slides| Some(usize::from(slides))).collect())
        }
    };
    let longest = found.iter().map(|(_, longest)| *longest).min().unwrap_or(context);
    let (activation, usual) = variant.activation;
    Ok(Box::new(LlamaLike {
        sizes: Sizes {
            blocks,
            channels,
            vocabulary: config.size("vocab_size")?,
            context: longest.min(context),
        },
        attention: AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale: variant.scale.unwrap_or((head_dim as f64).powf(-0.5)) as f32,
            window: None,
            cap: variant.cap.map(|cap| cap as f32),
        },
        inner: config.size("intermediate_size")?,
        norm: RmsNorm {
            epsilon: config.epsilon_or("rms_norm_eps", absent.epsilon)?,
            offset: variant.norm_offset,
        },
        activation: config.activation_or(activation, usual)?,
        rotaries: found.into_iter().map(|(rotary, _)| rotary).collect(),
        turned_by,
        tied: config.flag_or("tie_word_embeddings", absent.tied)?,
        variant,
    }))
}

impl LlamaLike {
    /// Columns of the queries, and of the keys or the values.
    fn widths(&self) -> (usize, usize) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention;
        (heads * head_dim, kv_heads * head_dim)
    }

    /// The norm of what a sublayer reads.
    fn before(&self, index: usize, view: &View, around: Around, h: &Tensor) -> Result<Tensor> {
        match around.before {
            Some(norm) => self.norm.apply(view, &name_of(index, norm), h),
            None => Ok(h.clone()),
        }
    }

    /// What a sublayer's last layer makes of x, on the residual stream h.
    fn onto(
        &self,
        view: &View,
        layer: &str,
        norm: Option<String>,
        bias: Bias,
        x: &Tensor,
        h: &Tensor,
    ) -> Result<Tensor> {
        let factor = self.variant.residual;
        if norm.is_none() && factor == 1.0 {
            return layers::linear_residual(view, layer, OutIn, bias, x, h);
        }
        if view.skips(layer) {
            return Ok(h.clone());
        }
        let mut y = layers::linear(view, layer, OutIn, bias, x)?;
        if let Some(norm) = norm {
            y = self.norm.apply(view, &norm, &y)?;
        }
        if factor != 1.0 {
            y = (y * factor)?;
        }
        Ok((h + y)?)
    }

    /// What the attention reads → what its output layer reads.
    fn attend(&self, index: usize, view: &View, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let Variant { qkv, head_norms, fused, .. } = &self.variant;
        let name = |part: &str| name_of(index, part);
        let linear = |part: &str| layers::linear(view, &name(part), OutIn, *qkv, x);
        let turned = |heads: Tensor, which| match self.turned_by[index] {
            Some(kind) => layers::rotate(view, &self.rotaries[kind], which, &heads, pass),
            None => Ok(heads),
        };
        let shape = Decoder::attention(self, index);
        if *fused {
            let AttentionShape { heads, kv_heads, .. } = shape;
            let which = Which { turned: heads + kv_heads, of: heads + 2 * kv_heads };
            let qkv = turned(linear("self_attn.qkv_proj")?, which)?;
            return layers::attention_fused(view, shape, Fused::ByKind, &qkv, pass);
        }
        let placed = |projection: &str, head_norm: &str| -> Result<Tensor> {
            let heads = linear(projection)?;
            let heads = match head_norms {
                HeadNorms::No => heads,
                _ => self.norm.apply(view, &name(head_norm), &heads)?,
            };
            turned(heads, Which::ALL)
        };
        let (q, k) = (
            placed("self_attn.q_proj", "self_attn.q_norm")?,
            placed("self_attn.k_proj", "self_attn.k_norm")?,
        );
        layers::attention(view, shape, &q, &k, &linear("self_attn.v_proj")?, pass)
    }

    /// What the MLP reads → its hidden units.
    fn hidden(&self, index: usize, view: &View, x: &Tensor) -> Result<Tensor> {
        let linear =
            |part: &str| layers::linear(view, &name_of(index, part), OutIn, self.variant.mlp, x);
        if self.variant.fused {
            let both = linear("mlp.gate_up_proj")?;
            return layers::activate_gated_fused(view, self.activation, &both);
        }
        let (gate, up) = (linear("mlp.gate_proj")?, linear("mlp.up_proj")?);
        layers::activate_gated(view, self.activation, &gate, &up)
    }
}

/// Name of a part of a block.
fn name_of(block: usize, part: &str) -> String {
    format!("model.layers.{block}.{part}")
}

impl Decoder for LlamaLike {
    fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }

    fn activations(&self) -> usize {
        let ((q, kv), c) = (self.widths(), self.sizes.channels);
        let Variant { norms, residual, head_norms, fused, .. } = &self.variant;
        let attention = match (fused, head_norms) {
            // All as projected and turned.
            (true, _) => 2 * (q + 2 * kv),
            // Queries and keys as projected, normed, turned; values.
            (false, HeadNorms::No) => 2 * (q + kv) + kv,
            (false, _) => 3 * (q + kv) + kv,
        };
        let sublayer = |around: Around| {
            let apart = around.after.is_some() || *residual != 1.0;
            // Its norms, its output where it is not put on the stream at once, the sum.
            usize::from(around.before.is_some())
                + usize::from(around.after.is_some())
                + usize::from(*residual != 1.0)
                + usize::from(apart)
                + 1
        };
        let stream = sublayer(norms.attention) + sublayer(norms.mlp);
        // What the attention puts out; gate, up and their product.
        stream * c + attention + q + 3 * self.inner
    }

    fn attention(&self, index: usize) -> AttentionShape {
        AttentionShape { window: self.variant.window(index), ..self.attention }
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Sizes { blocks, channels: c, vocabulary, .. } = self.sizes;
        let ((q, kv), f, d) = (self.widths(), self.inner, self.attention.head_dim);
        let Variant { qkv, output, mlp, head_norms, norms, fused, .. } = &self.variant;
        let mut specs = vec![
            TensorSpec::outside(EMBEDDING, &[vocabulary, c], Place::Embedding),
            TensorSpec::outside(format!("{FINAL_NORM}.weight"), &[c], Place::FinalNorm),
        ];
        if !self.tied {
            specs.push(TensorSpec::outside(HEAD, &[vocabulary, c], Place::Head));
        }
        for block in 0..blocks {
            let mut add = |sublayer, layer: &str, weight: &[usize], bias: &Bias| {
                let name = |of: &str| name_of(block, &format!("{layer}.{of}"));
                specs.push(TensorSpec::of_block(name("weight"), weight, block, sublayer));
                if *bias == Bias::Yes {
                    specs.push(TensorSpec::of_block(name("bias"), &weight[..1], block, sublayer));
                }
            };
            let mut attention = |layer: &str, weight: &[usize], bias: &Bias| {
                add(Sublayer::Attention, layer, weight, bias)
            };
            for norm in [norms.attention.before, norms.attention.after].into_iter().flatten() {
                attention(norm, &[c], &Bias::No);
            }
            if *fused {
                attention("self_attn.qkv_proj", &[q + 2 * kv, c], qkv);
            } else {
                attention("self_attn.q_proj", &[q, c], qkv);
                attention("self_attn.k_proj", &[kv, c], qkv);
                attention("self_attn.v_proj", &[kv, c], qkv);
            }
            let widths = match head_norms {
                HeadNorms::No => None,
                HeadNorms::Each => Some([d, d]),
                HeadNorms::Whole => Some([q, kv]),
            };
            if let Some([q, k]) = widths {
                attention("self_attn.q_norm", &[q], &Bias::No);
                attention("self_attn.k_norm", &[k], &Bias::No);
            }
            attention("self_attn.o_proj", &[c, q], output);
            for norm in [norms.mlp.before, norms.mlp.after].into_iter().flatten() {
                add(Sublayer::Mlp, norm, &[c], &Bias::No);
            }
            if *fused {
                add(Sublayer::Mlp, "mlp.gate_up_proj", &[2 * f, c], mlp);
            } else {
                add(Sublayer::Mlp, "mlp.gate_proj", &[f, c], mlp);
                add(Sublayer::Mlp, "mlp.up_proj", &[f, c], mlp);
            }
            add(Sublayer::Mlp, "mlp.down_proj", &[c, f], mlp);
        }
        specs
    }

    fn embed(&self, view: &View, packed: &Packed) -> Result<Tensor> {
        let h = layers::embed(view, EMBEDDING, None, packed)?;
        Ok(if self.variant.embedding == 1.0 { h } else { (h * self.variant.embedding)? })
    }

    fn block(&self, index: usize, view: &View, h: &Tensor, pass: &Pass) -> Result<Tensor> {
        let Variant { norms: Norms { attention, mlp }, .. } = self.variant;
        let name = |part: &str| name_of(index, part);
        let h = view.enter_sublayer(index, Sublayer::Attention, h)?;
        let x = self.attend(index, view, &self.before(index, view, attention, &h)?, pass)?;
        let (layer, norm) = (name("self_attn.o_proj"), attention.after.map(name));
        let h = self.onto(view, &layer, norm, self.variant.output, &x, &h)?;
        let h = view.enter_sublayer(index, Sublayer::Mlp, &h)?;
        let x = self.hidden(index, view, &self.before(index, view, mlp, &h)?)?;
        let (layer, norm) = (name("mlp.down_proj"), mlp.after.map(name));
        self.onto(view, &layer, norm, self.variant.mlp, &x, &h)
    }

    fn finish(&self, view: &View, h: &Tensor) -> Result<Tensor> {
        self.norm.apply(view, FINAL_NORM, h)
    }

    fn head(&self) -> &str {
        if self.tied { EMBEDDING } else { HEAD }
    }

    fn logits(&self) -> Logits {
        self.variant.logits
    }

    fn mlp(&self) -> Option<Mlp> {
        let output = |block| name_of(block, "mlp.down_proj");
        Some(Mlp { neurons: self.inner, orientation: OutIn, output })
    }
}
