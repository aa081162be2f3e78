//! SmolLM3: Llama with layers that have no rotary positions, every fourth of them by default.

use anyhow::Result;
use serde_json::Value;

use super::arch::Architecture;
use super::config::Config;
use super::llama_like::{
    Absent, BLOCKS, MEMBER, Positions, Variant, attention_kinds, bias, decoder, windows,
};
use super::rope::Rope;
use crate::bail_input;

/// The line of [`ARCHES`](super::ARCHES).
pub const SMOLLM3: Architecture = Architecture {
    model_type: "smollm3",
    parse: |config| {
        let turned = turned(config)?;
        let slides = match attention_kinds(config)? {
            Some(slides) => slides,
            None => {
                let some = config.flag_or("use_sliding_window", false)?
                    && config.get("sliding_window").is_some();
                turned.iter().map(|turned| some && !turned).collect()
            }
        };
        let own = Variant {
            mlp: bias(config, "mlp_bias")?,
            windows: windows(config, None, &slides)?,
            positions: Positions::Some(ROPE, turned),
            absent: ABSENT,
            ..Variant::biased(config)?
        };
        decoder(config, own)
    },
    shapes: r#"{
        "smollm3-3b": {
            "model_type": "smollm3", "num_hidden_layers": 36, "hidden_size": 2048,
            "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 11008,
            "max_position_embeddings": 65536, "vocab_size": 128256, "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0, "tie_word_embeddings": true
        }
    }"#,
    tiny: r#"{
        "model_type": "smollm3", "num_hidden_layers": 3, "hidden_size": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 64, "vocab_size": 300, "no_rope_layers": [1, 0, 1],
        "rope_theta": 10000.0
    }"#,
    ..MEMBER
};

const ROPE: Rope = Rope { theta: ("rope_theta", 2e6), ..Rope::USUAL };
const ABSENT: Absent = Absent { kv_heads: Some(4), context: 32_768, tied: true, ..Absent::LLAMA };

/// Whether each block has rotary positions: by `no_rope_layers`, which says 1 where a block has
/// them, or by its number.
fn turned(config: &Config) -> Result<Vec<bool>> {
    let (key, blocks) = ("no_rope_layers", config.blocks(BLOCKS)?);
    let Some(layers) = config.get(key) else {
        let every = config.size_or_none("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((1..=blocks).map(|number| !number.is_multiple_of(every)).collect());
    };
    let has = |value: &Value| match value {
        Value::Bool(has) => Some(*has),
        value => value.as_i64().map(|has| has != 0),
    };
    match layers.as_array().and_then(|list| list.iter().map(has).collect::<Option<Vec<_>>>()) {
        Some(turned) if turned.len() == blocks => Ok(turned),
        _ => bail_input!("config.json: {key:?} is no list of 0 or 1 for each of {blocks} layers"),
    }
}
