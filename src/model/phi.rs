//! Phi-3, 3.5 and Phi-4-mini: Llama with queries, keys and values of one projection, gate and up of
//! another, a part of each head turned, and LongRoPE.

use anyhow::Result;
use serde_json::Value;

use super::arch::Architecture;
use super::config::Config;
use super::llama_like::{Absent, BLOCKS, MEMBER, Positions, Variant, decoder};
use super::rope::Rope;
use crate::bail_input;
use crate::tokens::folder::Usual;

/// The line of [`ARCHES`](super::ARCHES).
pub const PHI3: Architecture = Architecture {
    model_type: "phi3",
    parse: |config| {
        long_or_plain(config)?;
        let windows = vec![config.size_or_none("sliding_window")?; config.blocks(BLOCKS)?];
        let positions = Positions::Alike(ROPE);
        decoder(
            config,
            Variant { fused: true, windows, positions, absent: ABSENT, ..Variant::default() },
        )
    },
    tokenizer: Usual::AS_IT_STANDS,
    tiny: r#"{
        "model_type": "phi3", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 128,
        "original_max_position_embeddings": 64, "vocab_size": 300, "partial_rotary_factor": 0.5,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]
        }
    }"#,
    ..MEMBER
};

const ROPE: Rope = Rope {
    part: Some(("partial_rotary_factor", 1.0)),
    original: Some(4096),
    renamed: &[("su", "longrope"), ("yarn", "longrope")],
    ..Rope::USUAL
};
const ABSENT: Absent = Absent { context: 4096, epsilon: 1e-5, ..Absent::LLAMA };

/// Errors (bad input) on a rotary scaling that transformers does not have for this architecture
/// either.
fn long_or_plain(config: &Config) -> Result<()> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(found) = config.get(key) else { continue };
        let kind = found.get("rope_type").or_else(|| found.get("type")).and_then(Value::as_str);
        if let Some(other) =
            kind.filter(|kind| !["default", "longrope", "su", "yarn"].contains(kind))
        {
            bail_input!(
                "config.json: rotary scaling {other} is not implemented for this architecture \
                 (have: default, longrope)"
            );
        }
    }
    Ok(())
}
