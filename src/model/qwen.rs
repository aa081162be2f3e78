//! Qwen2, 2.5 and 3: Llama with biases on queries, keys and values (2, 2.5) or a norm over each of
//! their heads (3), and windows in some of the layers.

use anyhow::Result;

use super::arch::Architecture;
use super::config::Config;
use super::layers::Bias;
use super::llama_like::{Absent, BLOCKS, HeadNorms, MEMBER, Variant, attention_kinds, decoder};
use crate::tokens::folder::Usual;

/// Lines of [`ARCHES`](super::ARCHES).
pub const QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    parse: |config| {
        let windows = windows(config)?;
        decoder(config, Variant { qkv: Bias::Yes, windows, absent: ABSENT, ..Variant::default() })
    },
    tokenizer: Usual::Only("Qwen2Tokenizer"),
    tiny: r#"{
        "model_type": "qwen2", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
        "vocab_size": 300, "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2
    }"#,
    ..MEMBER
};
pub const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    parse: |config| {
        let own = Variant {
            head_norms: HeadNorms::Each,
            windows: windows(config)?,
            absent: Absent { head_dim: Some(128), ..ABSENT },
            ..Variant::biased(config)?
        };
        decoder(config, own)
    },
    tokenizer: Usual::Or("Qwen2Tokenizer"),
    tiny: r#"{
        "model_type": "qwen3", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
        "head_dim": 6, "num_key_value_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "tie_word_embeddings": true
    }"#,
    ..MEMBER
};

const ABSENT: Absent = Absent { kv_heads: Some(32), context: 32_768, ..Absent::LLAMA };

/// The window of each block: by `layer_types`, or in the blocks from `max_window_layers` on.
fn windows(config: &Config) -> Result<Vec<Option<usize>>> {
    let blocks = config.blocks(BLOCKS)?;
    let window = if config.flag_or("use_sliding_window", false)? {
        config.size_or_null("sliding_window", 4096)?
    } else {
        None
    };
    let Some(slides) = attention_kinds(config)? else {
        let first = config.number_or("max_window_layers", 28.0)? as usize;
        return Ok((0..blocks).map(|block| window.filter(|_| block >= first)).collect());
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}
