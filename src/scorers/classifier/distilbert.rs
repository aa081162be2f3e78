//! *DistilBERT*, written here: candle-transformers 0.11.1 computes its `gelu` by the tanh
//! approximation, but transformers by the error function. The head is `pre_classifier`, ReLU and
//! `classifier` on `[CLS]`.

use anyhow::Result;
use candle_core::{D, Tensor};
use candle_nn::{
    Activation, Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear,
};
use serde_json::{Value, json};

use super::config::Config;
use super::network::Network;
use crate::bail_input;

/// The epsilon of all norms, which is fixed in transformers.
const EPSILON: f64 = 1e-12;

pub fn defaults() -> Value {
    json!({
        "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
        "activation": "gelu", "max_position_embeddings": 512, "pad_token_id": 0,
    })
}

struct Block {
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    heads: usize,
    activation: Activation,
}

struct DistilBert {
    words: Embedding,
    /// (positions, C)
    positions: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    pre_classifier: Linear,
    classifier: Linear,
}

pub fn build(config: &Config, weights: VarBuilder, labels: usize) -> Result<Box<dyn Network>> {
    let (channels, heads) = config.channels_and_heads("dim", "n_heads")?;
    let hidden = config.count("hidden_dim")?;
    let activation = match config.get("activation").and_then(Value::as_str) {
        Some("gelu") => Activation::Gelu,
        Some("relu") => Activation::Relu,
        other => bail_input!(
            "{}: activation {}; have: gelu, relu",
            config.place,
            other.unwrap_or("is missing or no text")
        ),
    };
    let block = |weights: VarBuilder| -> candle_core::Result<Block> {
        let attention = weights.pp("attention");
        Ok(Block {
            queries: linear(channels, channels, attention.pp("q_lin"))?,
            keys: linear(channels, channels, attention.pp("k_lin"))?,
            values: linear(channels, channels, attention.pp("v_lin"))?,
            out: linear(channels, channels, attention.pp("out_lin"))?,
            attention_norm: layer_norm(channels, EPSILON, weights.pp("sa_layer_norm"))?,
            up: linear(channels, hidden, weights.pp("ffn.lin1"))?,
            down: linear(hidden, channels, weights.pp("ffn.lin2"))?,
            norm: layer_norm(channels, EPSILON, weights.pp("output_layer_norm"))?,
            heads,
            activation,
        })
    };
    let embeddings = weights.pp("distilbert.embeddings");
    let layers = weights.pp("distilbert.transformer.layer");
    Ok(Box::new(DistilBert {
        words: embedding(config.count("vocab_size")?, channels, embeddings.pp("word_embeddings"))?,
        positions: embeddings
            .pp("position_embeddings")
            .get((config.positions()?, channels), "weight")?,
        norm: layer_norm(channels, EPSILON, embeddings.pp("LayerNorm"))?,
        blocks: (0..config.count("n_layers")?)
            .map(|l| block(layers.pp(l)))
            .collect::<candle_core::Result<_>>()?,
        pre_classifier: linear(channels, channels, weights.pp("pre_classifier"))?,
        classifier: linear(channels, labels, weights.pp("classifier"))?,
    }))
}

impl Block {
    /// States (B, T, C) from states (B, T, C). `hide` (B, 1, 1, T) is added to the attention
    /// scores.
    fn forward(&self, x: &Tensor, hide: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, c) = x.dims3()?;
        // (B, H, T, D)
        let by_head = |x: Tensor| {
            x.reshape((b, t, self.heads, c / self.heads))?.transpose(1, 2)?.contiguous()
        };
        let queries = by_head(self.queries.forward(x)?)?;
        let keys = by_head(self.keys.forward(x)?)?;
        let values = by_head(self.values.forward(x)?)?;
        let scores = (queries.matmul(&keys.t()?)? * ((c / self.heads) as f64).powf(-0.5))?
            .broadcast_add(hide)?;
        let seen = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&values)?;
        let seen = self.out.forward(&seen.transpose(1, 2)?.contiguous()?.reshape((b, t, c))?)?;
        let x = self.attention_norm.forward(&(seen + x)?)?;
        let y = self.down.forward(&self.activation.forward(&self.up.forward(&x)?)?)?;
        self.norm.forward(&(y + x)?)
    }
}

impl Network for DistilBert {
    fn logits(&self, ids: &Tensor, attend: &Tensor) -> candle_core::Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let hide =
            attend.affine(-f64::from(f32::MIN), f64::from(f32::MIN))?.unsqueeze(1)?.unsqueeze(1)?;
        let positions = self.positions.narrow(0, 0, t)?;
        let mut x = self.norm.forward(&self.words.forward(ids)?.broadcast_add(&positions)?)?;
        for block in &self.blocks {
            x = block.forward(&x, &hide)?;
        }
        let first = x.narrow(D::Minus2, 0, 1)?.squeeze(D::Minus2)?.contiguous()?;
        self.classifier.forward(&self.pre_classifier.forward(&first)?.relu()?)
    }
}
