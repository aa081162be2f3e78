//! OLMo 2 and 3: norms of what the sublayers add alone, and over queries and keys as a whole; in 3
//! three of four layers slide, and rotary scaling is that of the others.

use super::arch::Architecture;
use super::config::Config;
use super::llama_like::{
    Absent, HeadNorms, MEMBER, Norms, Positions, Variant, decoder, slides, windows,
};
use super::rope::Rope;
use crate::tokens::folder::Usual;

/// Lines of [`ARCHES`](super::ARCHES).
pub const OLMO2: Architecture = Architecture {
    model_type: "olmo2",
    parse: |config| decoder(config, both(config)?),
    tokenizer: Usual::AS_IT_STANDS,
    shapes: r#"{
        "olmo2-1b": {
            "model_type": "olmo2", "num_hidden_layers": 16, "hidden_size": 2048,
            "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 8192,
            "max_position_embeddings": 4096, "vocab_size": 100352, "rms_norm_eps": 1e-6,
            "rope_theta": 500000.0, "tie_word_embeddings": false
        }
    }"#,
    tiny: r#"{
        "model_type": "olmo2", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
        "vocab_size": 300, "rope_theta": 10000.0
    }"#,
    ..MEMBER
};
pub const OLMO3: Architecture = Architecture {
    model_type: "olmo3",
    parse: |config| {
        let slides = slides(config, |block| !(block + 1).is_multiple_of(4))?;
        // transformers gives a θ beside the kinds to full attention alone.
        let (full, sliding) = (config.number_or("rope_theta", THETA)?, THETA);
        let own = Variant {
            windows: windows(config, Some(4096), &slides)?,
            positions: Positions::ByKind { rope: Rope::USUAL, full, sliding },
            ..both(config)?
        };
        decoder(config, own)
    },
    tokenizer: Usual::AS_IT_STANDS,
    tiny: r#"{
        "model_type": "olmo3", "num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 24, "max_position_embeddings": 64,
        "vocab_size": 300, "sliding_window": 5, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16
        }
    }"#,
    ..MEMBER
};

const THETA: f64 = 5e5;

fn both(config: &Config) -> anyhow::Result<Variant> {
    Ok(Variant {
        norms: Norms::AFTER,
        head_norms: HeadNorms::Whole,
        absent: Absent { epsilon: 1e-5, ..Absent::LLAMA },
        ..Variant::biased(config)?
    })
}
