//! *ModernBERT*: the encoder of candle-transformers, and a head that gives logits, because the one
//! of candle gives softmax for every `problem_type`. The head takes the first token or the mean of
//! all tokens, then dense, gelu, norm, `classifier`.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm_no_bias, linear, linear_b};
use candle_transformers::models::modernbert::{Config as Settings, ModernBert as Encoder};
use serde_json::{Value, json};

use super::config::Config;
use super::network::Network;
use crate::bail_input;

pub fn defaults() -> Value {
    json!({
        "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
        "intermediate_size": 1152, "max_position_embeddings": 8192, "norm_eps": 1e-5,
        "pad_token_id": 50283, "local_attention": 128, "classifier_pooling": "cls",
        "classifier_bias": false,
    })
}

enum Pooling {
    First,
    Mean,
}

struct ModernBert {
    encoder: Encoder,
    pooling: Pooling,
    dense: Linear,
    norm: LayerNorm,
    classifier: Linear,
}

/// The base of the rotary positions of one kind of layer, as transformers 5 or 4 writes it, or its
/// default.
fn theta(config: &Config, kind: &str, old: &str, default: f64) -> Result<f64> {
    let rope = config.get("rope_parameters").and_then(|all| all.get(kind));
    if let Some(found) =
        rope.and_then(|rope| rope.get("rope_type")).filter(|found| *found != "default")
    {
        bail_input!("{}: rope_type {found} is not implemented; only \"default\" is", config.place);
    }
    match rope.and_then(|rope| rope.get("rope_theta")?.as_f64()) {
        Some(theta) => Ok(theta),
        None if config.get(old).is_some() => config.number(old),
        None => Ok(default),
    }
}

/// Every how many layers the attention is global: from `layer_types` (transformers 5) or from the
/// setting itself.
fn global_every(config: &Config) -> Result<usize> {
    let Some(types) = config.get("layer_types").and_then(Value::as_array) else {
        return if config.get("global_attn_every_n_layers").is_some() {
            config.count("global_attn_every_n_layers")
        } else {
            Ok(3)
        };
    };
    let is_global: Vec<bool> = types.iter().map(|kind| kind == "full_attention").collect();
    let every = is_global
        .iter()
        .skip(1)
        .position(|global| *global)
        .map_or(is_global.len().max(1), |at| at + 1);
    let layers = config.count("num_hidden_layers")?;
    if is_global.len() != layers
        || (0..layers).any(|layer| is_global[layer] != layer.is_multiple_of(every))
    {
        bail_input!(
            "{}: layer_types must be global at equal distances, from the first layer on",
            config.place
        );
    }
    Ok(every)
}

pub fn build(config: &Config, weights: VarBuilder, labels: usize) -> Result<Box<dyn Network>> {
    let (channels, heads) = config.channels_and_heads("hidden_size", "num_attention_heads")?;
    for key in ["attention_bias", "mlp_bias", "norm_bias"] {
        config.only(key, false)?;
    }
    for key in ["hidden_activation", "classifier_activation"] {
        config.only(key, "gelu")?;
    }
    let pooling = match config.get("classifier_pooling").and_then(Value::as_str) {
        Some("cls") => Pooling::First,
        Some("mean") => Pooling::Mean,
        other => bail_input!(
            "{}: classifier_pooling {}; have: cls, mean",
            config.place,
            other.unwrap_or("is missing or no text")
        ),
    };
    let settings = Settings {
        vocab_size: config.count("vocab_size")?,
        hidden_size: channels,
        num_hidden_layers: config.count("num_hidden_layers")?,
        num_attention_heads: heads,
        intermediate_size: config.count("intermediate_size")?,
        max_position_embeddings: config.positions()?,
        layer_norm_eps: config.number("norm_eps")?,
        pad_token_id: config.count_or_zero("pad_token_id")? as u32,
        global_attn_every_n_layers: global_every(config)?,
        global_rope_theta: theta(config, "full_attention", "global_rope_theta", 160_000.0)?,
        local_attention: config.count("local_attention")?,
        local_rope_theta: theta(config, "sliding_attention", "local_rope_theta", 10_000.0)?,
        classifier_config: None,
    };
    let bias = config.get("classifier_bias") == Some(&Value::Bool(true));
    Ok(Box::new(ModernBert {
        encoder: Encoder::load(weights.clone(), &settings)?,
        pooling,
        dense: linear_b(channels, channels, bias, weights.pp("head.dense"))?,
        norm: layer_norm_no_bias(channels, settings.layer_norm_eps, weights.pp("head.norm"))?,
        classifier: linear(channels, labels, weights.pp("classifier"))?,
    }))
}

impl Network for ModernBert {
    fn logits(&self, ids: &Tensor, attend: &Tensor) -> candle_core::Result<Tensor> {
        let states = self.encoder.forward(ids, attend)?;
        let pooled = match self.pooling {
            Pooling::First => states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            Pooling::Mean => states
                .broadcast_mul(&attend.unsqueeze(2)?)?
                .sum(1)?
                .broadcast_div(&attend.sum_keepdim(1)?)?,
        };
        self.classifier.forward(&self.norm.forward(&self.dense.forward(&pooled)?.gelu_erf()?)?)
    }
}
