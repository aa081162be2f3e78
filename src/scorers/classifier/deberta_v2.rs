//! *DeBERTa* v2 and v3: the model of candle-transformers. It has no convolution, so checkpoints
//! with one (`conv_kernel_size`: deberta-v2-xlarge and -xxlarge) are refused.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::debertav2::DebertaV2SeqClassificationModel;
use serde_json::{Value, json};

use super::config::Config;
use super::network::Network;

pub fn defaults() -> Value {
    json!({
        "vocab_size": 128_100, "hidden_size": 1536, "num_hidden_layers": 24,
        "num_attention_heads": 24, "intermediate_size": 6144, "hidden_act": "gelu",
        "max_position_embeddings": 512, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
        "pad_token_id": 0, "relative_attention": false, "max_relative_positions": -1,
        "position_biased_input": true, "pos_att_type": [], "pooler_dropout": 0.0,
        "pooler_hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    })
}

struct DebertaV2 {
    model: DebertaV2SeqClassificationModel,
    /// Positions are added to the input. candle-transformers 0.11.1 can do that for one text at a
    /// time only.
    one_by_one: bool,
}

pub fn build(config: &Config, weights: VarBuilder, labels: usize) -> Result<Box<dyn Network>> {
    let (channels, _) = config.channels_and_heads("hidden_size", "num_attention_heads")?;
    config.only("conv_kernel_size", 0)?;
    config.only("z_steps", 0)?;
    let pooler = config.get("pooler_hidden_size").cloned().unwrap_or(channels.into());
    let settings = config.read([
        ("hidden_act", config.activation("hidden_act")),
        ("pooler_hidden_act", config.activation("pooler_hidden_act")),
        ("pooler_hidden_size", pooler),
        ("id2label", Value::Null),
        ("label2id", Value::Null),
    ])?;
    // Only the number of labels matters.
    let labels: HashMap<u32, String> = (0..labels as u32).map(|id| (id, id.to_string())).collect();
    let model =
        DebertaV2SeqClassificationModel::load(weights.pp("deberta"), &settings, Some(labels))?;
    Ok(Box::new(DebertaV2 { model, one_by_one: settings.position_biased_input }))
}

impl Network for DebertaV2 {
    fn logits(&self, ids: &Tensor, attend: &Tensor) -> candle_core::Result<Tensor> {
        if !self.one_by_one {
            return self.model.forward(ids, None, Some(attend.clone()));
        }
        let row = |row| {
            self.model.forward(&ids.narrow(0, row, 1)?, None, Some(attend.narrow(0, row, 1)?))
        };
        Tensor::cat(&(0..ids.dim(0)?).map(row).collect::<candle_core::Result<Vec<_>>>()?, 0)
    }
}
