//! Shapes of models that people know, for `bench` here and in PyTorch: `irepair doctor --json`
//! prints them for `scripts/irepair_ref.py`.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::{ARCHES, Model};

/// What the `config.json` of each shape says, by its name.
pub static SHAPES: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let of_one = |shapes: &str| serde_json::from_str::<Map<String, Value>>(shapes);
    ARCHES.iter().flat_map(|arch| of_one(arch.shapes).expect(arch.model_type)).collect()
});

/// A model of this shape, with its own number of blocks or another.
pub fn model(name: &str, blocks: Option<usize>) -> Result<Model> {
    let mut config = SHAPES.get(name).with_context(|| format!("no shape {name}"))?.clone();
    if let Some(blocks) = blocks {
        let key = super::architecture(&config)?.blocks;
        config[key] = blocks.into();
    }
    Model::from_config(&config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_a_model() {
        // m = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        // sum(p.numel() for p in m.parameters())
        for (name, count) in [
            ("gpt2", 124_439_808),
            ("smollm2-135m", 134_515_008),
            ("llama-1b", 1_235_814_400),
            ("gemma3-270m", 268_098_176),
            ("smollm3-3b", 3_075_098_624),
            ("olmo2-1b", 1_484_916_736),
        ] {
            let specs = model(name, None).expect(name).specs();
            let parameters: usize = specs.iter().map(|s| s.shape.iter().product::<usize>()).sum();
            assert_eq!(parameters, count, "{name}");
        }
        assert!(SHAPES.keys().all(|name| model(name, Some(2)).expect(name).sizes().blocks == 2));
    }
}
