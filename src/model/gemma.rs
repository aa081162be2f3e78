//! Gemma 2 and 3 (text): norms before and after each sublayer, whose weights are stored as what
//! they have above 1; embeddings times √C; windows in most of the layers; soft caps (2), or norms
//! over the heads of queries and keys and other rotary positions where a layer slides (3).

use anyhow::Result;

use super::arch::Architecture;
use super::config::Config;
use super::layers::Logits;
use super::llama_like::{
    Absent, HeadNorms, MEMBER, Norms, Positions, Variant, decoder, slides, windows,
};
use super::rope::Rope;
use crate::bail_input;
use crate::tokens::folder::Usual;

/// Lines of [`ARCHES`](super::ARCHES).
pub const GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    parse: |config| {
        let slides = slides(config, |block| block % 2 == 0)?;
        let own = Variant {
            windows: windows(config, Some(4096), &slides)?,
            cap: config.positive_or_null("attn_logit_softcapping", Some(50.0))?,
            absent: Absent { context: 8192, ..ABSENT },
            ..both(config, Some(30.0))?
        };
        decoder(config, own)
    },
    tokenizer: Usual::Or("GemmaTokenizer"),
    tiny: r#"{
        "model_type": "gemma2", "num_hidden_layers": 3, "hidden_size": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "sliding_window": 5,
        "query_pre_attn_scalar": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0
    }"#,
    ..MEMBER
};
pub const GEMMA3: Architecture = Architecture {
    model_type: "gemma3_text",
    parse: |config| {
        let pattern = config.size_or_none("sliding_window_pattern")?.unwrap_or(6);
        let slides = slides(config, |block| !(block + 1).is_multiple_of(pattern))?;
        let full = config.number_or("rope_theta", 1e6)?;
        let sliding = config.number_or("rope_local_base_freq", 1e4)?;
        let own = Variant {
            windows: windows(config, Some(4096), &slides)?,
            head_norms: HeadNorms::Each,
            positions: Positions::ByKind { rope: Rope::USUAL, full, sliding },
            ..both(config, None)?
        };
        decoder(config, own)
    },
    tokenizer: Usual::Or("GemmaTokenizer"),
    shapes: r#"{
        "gemma3-270m": {
            "model_type": "gemma3_text", "num_hidden_layers": 18, "hidden_size": 640,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
            "intermediate_size": 2048, "max_position_embeddings": 32768, "vocab_size": 262144,
            "sliding_window": 512, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6
        }
    }"#,
    tiny: r#"{
        "model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 16,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "sliding_window": 5,
        "sliding_window_pattern": 2, "query_pre_attn_scalar": 6
    }"#,
    ..MEMBER
};

const ABSENT: Absent = Absent {
    kv_heads: Some(4),
    head_dim: Some(256),
    context: 131_072,
    tied: true,
    ..Absent::LLAMA
};

/// What both have. `cap`: that of the logits where it is not named.
fn both(config: &Config, cap: Option<f64>) -> Result<Variant> {
    if config.flag_or("use_bidirectional_attention", false)? {
        bail_input!(
            "config.json: \"use_bidirectional_attention\" is true; a model that sees what comes \
             later is not implemented"
        );
    }
    let channels = config.size("hidden_size")?;
    let cap = config.positive_or_null("final_logit_softcapping", cap)?;
    Ok(Variant {
        norms: Norms::BOTH,
        norm_offset: 1.0,
        scale: Some(config.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5)),
        embedding: (channels as f64).sqrt(),
        logits: Logits { scale: 1.0, cap: cap.map(|cap| cap as f32) },
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        absent: ABSENT,
        ..Variant::biased(config)?
    })
}
