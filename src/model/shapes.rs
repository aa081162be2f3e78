//! Shapes of models that people know, for `bench`.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Model;

/// A line of [`SHAPES`].
pub struct Shape {
    pub name: &'static str,
    /// What its `config.json` says.
    config: &'static str,
}

const fn shape(name: &'static str, config: &'static str) -> Shape {
    Shape { name, config }
}

/// Every shape we know.
pub const SHAPES: &[Shape] = &[
    shape(
        "gpt2",
        r#"{"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}"#,
    ),
    shape(
        "gpt2-medium",
        r#"{"model_type": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024, "n_positions": 1024, "vocab_size": 50257}"#,
    ),
    shape(
        "gpt2-large",
        r#"{"model_type": "gpt2", "n_layer": 36, "n_head": 20, "n_embd": 1280, "n_positions": 1024, "vocab_size": 50257}"#,
    ),
    shape(
        "gpt2-xl",
        r#"{"model_type": "gpt2", "n_layer": 48, "n_head": 25, "n_embd": 1600, "n_positions": 1024, "vocab_size": 50257}"#,
    ),
    shape(
        "smollm2-135m",
        r#"{"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "vocab_size": 49152,
            "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true}"#,
    ),
    shape(
        "llama-1b",
        r#"{"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 131072, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "rope_theta": 500000, "tie_word_embeddings": true, "rope_scaling": {
            "rope_type": "llama3", "factor": 32, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8192}}"#,
    ),
];

impl Shape {
    /// A model of this shape, with its own number of blocks or another.
    pub fn model(name: &str, blocks: Option<usize>) -> Result<Model> {
        let shape = SHAPES.iter().find(|s| s.name == name).with_context(|| format!("no shape {name}"))?;
        let mut config: Value = serde_json::from_str(shape.config)?;
        if let (Some(blocks), Some(settings)) = (blocks, config.as_object_mut()) {
            let key = if settings.contains_key("n_layer") { "n_layer" } else { "num_hidden_layers" };
            settings.insert(key.into(), blocks.into());
        }
        Model::from_config(&config)
    }
}
