//! Granite 3: Llama with factors on embeddings, scores, what sublayers add, and logits.

use super::arch::Architecture;
use super::layers::Logits;
use super::llama_like::{MEMBER, Variant, bias, decoder};
use crate::tokens::folder::Usual;

/// The line of [`ARCHES`](super::ARCHES).
pub const GRANITE: Architecture = Architecture {
    model_type: "granite",
    parse: |config| {
        let factor = |key: &str| config.positive_or(key, 1.0);
        let own = Variant {
            mlp: bias(config, "mlp_bias")?,
            scale: Some(factor("attention_multiplier")?),
            embedding: factor("embedding_multiplier")?,
            residual: factor("residual_multiplier")?,
            logits: Logits { scale: factor("logits_scaling")?.recip() as f32, cap: None },
            ..Variant::biased(config)?
        };
        decoder(config, own)
    },
    tokenizer: Usual::AS_IT_STANDS,
    tiny: r#"{
        "model_type": "granite", "num_hidden_layers": 3, "hidden_size": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "tie_word_embeddings": true,
        "attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.8,
        "logits_scaling": 0.5
    }"#,
    ..MEMBER
};
