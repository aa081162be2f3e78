//! Llama, SmolLM2 and Mistral: the plain form of a [Llama-like](super::llama_like) decoder.

use super::arch::Architecture;
use super::llama_like::{Absent, BLOCKS, MEMBER, Variant, attention_kinds, bias, decoder};
use crate::tokens::folder::Usual;

/// Lines of [`ARCHES`](super::ARCHES).
pub const LLAMA: Architecture = Architecture {
    model_type: "llama",
    parse: |config| {
        attention_kinds(config)?;
        decoder(config, Variant { mlp: bias(config, "mlp_bias")?, ..Variant::biased(config)? })
    },
    shapes: r#"{
        "smollm2-135m": {
            "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576,
            "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
            "max_position_embeddings": 8192, "vocab_size": 49152, "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0, "tie_word_embeddings": true
        },
        "llama-1b": {
            "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
            "max_position_embeddings": 131072, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": true,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
            }
        }
    }"#,
    tiny: r#"{
        "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
        "vocab_size": 300, "tie_word_embeddings": true, "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        }
    }"#,
    ..MEMBER
};
pub const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    parse: |config| {
        attention_kinds(config)?;
        let window = config.size_or_null("sliding_window", 4096)?;
        let absent = Absent { kv_heads: Some(8), context: 131_072, ..Absent::LLAMA };
        let windows = vec![window; config.blocks(BLOCKS)?];
        decoder(config, Variant { windows, absent, ..Variant::default() })
    },
    tokenizer: Usual::AS_IT_STANDS,
    tiny: r#"{
        "model_type": "mistral", "num_hidden_layers": 3, "hidden_size": 16,
        "num_attention_heads": 4, "head_dim": 6, "num_key_value_heads": 1, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "sliding_window": 5
    }"#,
    ..MEMBER
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::model::Model;

    /// Those of transformers 5.24.
    #[test]
    fn absent_keys_have_the_values_of_transformers() {
        for (model_type, kv_heads, head_dim, context) in [
            ("llama", 64, 2, 2048),
            ("mistral", 8, 2, 131_072),
            ("qwen2", 32, 2, 32_768),
            ("qwen3", 32, 128, 32_768),
        ] {
            let mut config = json!({
                "model_type": model_type, "num_hidden_layers": 1, "hidden_size": 128,
                "num_attention_heads": 64, "intermediate_size": 8, "vocab_size": 16
            });
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
