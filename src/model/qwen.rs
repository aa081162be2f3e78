//! Qwen2, 2.5 and 3: Llama with biases on queries, keys and values (2, 2.5) or a norm over each of their heads (3), and
//! windows in some of the layers.

use anyhow::Result;

use super::layers::Bias;
use super::llama::{Absent, BLOCKS, Family, attention_kinds, bias, decoder};
use super::{ArchEntry, Settings};

/// Lines of [`ARCHES`](super::ARCHES).
pub const QWEN2: ArchEntry = ArchEntry {
    model_type: "qwen2",
    parse: |s| {
        decoder(
            s,
            Family { qkv: Bias::Yes, windows: windows(s)?, absent: ABSENT, ..Family::default() },
        )
    },
    tiny: r#"{"model_type": "qwen2", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "vocab_size": 300,
              "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2}"#,
};
pub const QWEN3: ArchEntry = ArchEntry {
    model_type: "qwen3",
    parse: |s| {
        let attention = bias(s, "attention_bias")?;
        let absent = Absent { head_dim: Some(128), ..ABSENT };
        let (qkv, output, windows) = (attention, attention, windows(s)?);
        decoder(s, Family { qkv, output, head_norms: true, windows, absent, ..Family::default() })
    },
    tiny: r#"{"model_type": "qwen3", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "head_dim": 6,
              "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "vocab_size": 300,
              "tie_word_embeddings": true}"#,
};

const ABSENT: Absent = Absent { kv_heads: Some(32), head_dim: None, context: 32_768 };

/// The window of each block: by `layer_types`, or in the blocks from `max_window_layers` on.
fn windows(s: &Settings) -> Result<Vec<Option<usize>>> {
    let blocks = s.blocks(BLOCKS)?;
    let window = if s.flag_or("use_sliding_window", false)? {
        s.size_or_null("sliding_window", 4096)?
    } else {
        None
    };
    let Some(slides) = attention_kinds(s)? else {
        let first = s.number_or("max_window_layers", 28.0)? as usize;
        return Ok((0..blocks).map(|block| window.filter(|_| block >= first)).collect());
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}
