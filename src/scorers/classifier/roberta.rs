//! *RoBERTa* and XLM-RoBERTa, which differ in their tokenizers only: the model of
//! candle-transformers. Positions count from `pad_token_id` + 1. The head is dense, tanh and
//! `out_proj` on `<s>`.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::xlm_roberta::XLMRobertaForSequenceClassification;
use serde_json::{Value, json};

use super::config::Config;
use super::network::Network;
use crate::bail_input;

pub fn defaults() -> Value {
    json!({
        "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 1,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "position_embedding_type": "absolute",
    })
}

/// The rows of the table of positions up to the one of the padding belong to no token.
pub fn longest(config: &Config) -> Result<usize> {
    let (rows, unused) = (config.positions()?, config.count_or_zero("pad_token_id")? + 1);
    if rows <= unused {
        bail_input!(
            "{}: max_position_embeddings {rows} leaves no position after pad_token_id",
            config.place
        );
    }
    Ok(rows - unused)
}

struct Roberta(XLMRobertaForSequenceClassification);

pub fn build(config: &Config, weights: VarBuilder, labels: usize) -> Result<Box<dyn Network>> {
    config.channels_and_heads("hidden_size", "num_attention_heads")?;
    config.only("position_embedding_type", "absolute")?;
    Ok(Box::new(Roberta(XLMRobertaForSequenceClassification::new(
        labels,
        &config.read([])?,
        weights,
    )?)))
}

impl Network for Roberta {
    fn logits(&self, ids: &Tensor, attend: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(ids, attend, &ids.zeros_like()?)
    }
}
