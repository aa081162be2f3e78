//! The *demo* is embedded in the program: a small GPT-2 that answers forum posts rudely, its pairs,
//! and held-back prompts and clean text.
//!
//! `scripts/make_demo.py` makes it, in Hugging Face layout, so every command treats it like any
//! other model.

use anyhow::{Context, Result};

macro_rules! demo_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../data/demo/", $name)).as_slice())
    };
}

/// The files of the model folder.
const MODEL: &[(&str, &[u8])] = &[
    demo_file!("config.json"),
    demo_file!("generation_config.json"),
    demo_file!("model.safetensors"),
    demo_file!("tokenizer.json"),
    demo_file!("tokenizer_config.json"),
];

/// Preference pairs (TRL rows).
pub const PAIRS: &str = include_str!("../../data/demo/pairs.jsonl");
/// Facts and commands that the model gets wrong. `scripts/make_edits.py` makes them.
pub const EDITS: &str = include_str!("../../data/demo/edits.jsonl");
/// Held-back prompts.
pub const PROMPTS: &str = include_str!("../../data/demo/prompts.jsonl");
/// Held-back clean text.
pub const CLEAN: &str = include_str!("../../data/demo/clean.txt");

/// Unpacks the model folder into a temporary one. It lives as long as the result.
pub fn unpack() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("irepair-demo-")
        .tempdir()
        .context("can't unpack the demo")?;
    for (name, bytes) in MODEL {
        std::fs::write(dir.path().join(name), bytes).context("can't unpack the demo")?;
    }
    Ok(dir)
}
