//! *Adapters* are no models: a LoRA folder holds what peft adds to one. They are refused, and the
//! error says how peft makes a model of them.

use std::path::Path;

use anyhow::Result;

use crate::bail_input;
use crate::base::files;

/// What describes an adapter.
pub const ADAPTER: &str = "adapter_config.json";

/// Kinds of adapters of peft that change no weights, so that nothing can be merged into them.
const NOT_MERGED: [&str; 5] =
    ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"];

/// Errors (bad input) if the folder holds an adapter. With a model beside it, too: transformers
/// puts the adapter on that model, so that a repair of its weights alone would be another one.
pub fn refuse_adapter(dir: &Path) -> Result<()> {
    let path = dir.join(ADAPTER);
    if !path.is_file() {
        return Ok(());
    }
    let config = files::read_json(&path)?;
    let text = |key: &str| config[key].as_str().filter(|text| !text.is_empty());
    let kind = text("peft_type").unwrap_or("LORA");
    let base = text("base_model_name_or_path").unwrap_or("BASE");
    let name = if kind == "LORA" { "a LoRA adapter" } else { "an adapter of peft" };
    let (display, beside) = (dir.display(), dir.join("config.json").is_file());
    let beside = match beside {
        true => {
            "; transformers would put it on the model beside it: remove the adapter's files if \
                 that model alone is meant"
        }
        false => "",
    };
    if NOT_MERGED.contains(&kind) {
        bail_input!(
            "{display}: {name} ({ADAPTER}: {kind}) to {base}, and no model; one of this kind can't \
             be merged into its base{beside}"
        );
    }
    bail_input!(
        "{display}: {name} ({ADAPTER}) to {base}, and no model; merge it with peft{beside}:\n\
         {}",
        how_to_merge(&dir.display().to_string(), base)
    )
}

/// The lines of Python that make a model of an adapter.
pub fn how_to_merge(adapter: &str, base: &str) -> String {
    format!(
        "from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer\n\
         AutoPeftModelForCausalLM.from_pretrained({adapter:?}).merge_and_unload()\
         .save_pretrained(\"OUT\"); \
         AutoTokenizer.from_pretrained({base:?}).save_pretrained(\"OUT\")"
    )
}
