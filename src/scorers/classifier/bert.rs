//! *BERT*: the encoder of candle-transformers, and the head that it lacks: the pooler (dense and
//! tanh on `[CLS]`), then `classifier`.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Linear, Module, VarBuilder, linear};
use candle_transformers::models::bert::BertModel;
use serde_json::{Value, json};

use super::config::Config;
use super::network::Network;

pub fn defaults() -> Value {
    json!({
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "hidden_dropout_prob": 0.1, "initializer_range": 0.02,
        "position_embedding_type": "absolute",
    })
}

struct Bert {
    encoder: BertModel,
    pooler: Linear,
    classifier: Linear,
}

pub fn build(config: &Config, weights: VarBuilder, labels: usize) -> Result<Box<dyn Network>> {
    let (channels, _) = config.channels_and_heads("hidden_size", "num_attention_heads")?;
    config.only("position_embedding_type", "absolute")?;
    let encoder = BertModel::load(
        weights.pp("bert"),
        &config
            .read([("hidden_act", config.activation("hidden_act")), ("model_type", Value::Null)])?,
    )?;
    Ok(Box::new(Bert {
        encoder,
        pooler: linear(channels, channels, weights.pp("bert.pooler.dense"))?,
        classifier: linear(channels, labels, weights.pp("classifier"))?,
    }))
}

impl Network for Bert {
    fn logits(&self, ids: &Tensor, attend: &Tensor) -> candle_core::Result<Tensor> {
        let states = self.encoder.forward(ids, &ids.zeros_like()?, Some(attend))?;
        let first = states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.classifier.forward(&self.pooler.forward(&first)?.tanh()?)
    }
}
