//! `doctor` says what this build can do and where it looks for files; or what of a model it
//! understands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::base::{files, print};
use crate::checkpoint::hub::{Hub, open_model};
use crate::cli::Doctor;
use crate::model;
use crate::model::device;
use crate::model::precision::{self, Precision};
use crate::model::shapes::SHAPES;
use crate::model::{ARCHES, Model};
use crate::print_line;
use crate::tokens::Encoder;
use crate::{scorers, step};

pub fn run(args: &Doctor) -> Result<()> {
    let facts = match &args.model {
        Some(model) => of_model(model, args.revision.as_deref())?,
        None => of_build()?,
    };
    if args.json {
        return print::json(&facts);
    }
    for (key, value) in facts.as_object().into_iter().flatten() {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(items) if items.is_empty() => "none".into(),
            Value::Array(items) => {
                items.iter().filter_map(|i| i.as_str()).collect::<Vec<_>>().join(", ")
            }
            Value::Object(items) => items.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        };
        print_line!("{:<20} {text}", key.replace('_', " "))?;
    }
    Ok(())
}

/// Keys of `config.json` that are read beside the architecture.
const READ_BESIDE: [&str; 5] =
    ["architectures", "bos_token_id", "eos_token_id", "model_type", "tokenizer_class"];

/// Keys, or ends of keys, that change nothing where no architecture asks for them: how weights were
/// made or are stored, how training drops values at random, what transformers puts out beside the
/// logits, what it does not read itself.
const OF_NO_EFFECT: [&str; 22] = [
    "_name_or_path",
    "_model_name_or_path",
    "_sliding_window_pattern",
    "attn_logit_softcapping",
    "auto_map",
    "cache_implementation",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "initializer_range",
    "pad_token_id",
    "unk_token_id",
    "task_specific_params",
    "gradient_checkpointing",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "pretraining_tp",
    "reorder_and_upcast_attn",
    "id2label",
    "label2id",
];
const ENDS_OF_NO_EFFECT: [&str; 2] = ["pdrop", "dropout"];

fn has_no_effect(key: &str) -> bool {
    OF_NO_EFFECT.contains(&key)
        || key.starts_with("summary_")
        || ENDS_OF_NO_EFFECT.iter().any(|end| key.ends_with(end))
}

/// What of a model is understood. Errors (bad input) as any command on it: what is refused, and
/// why.
fn of_model(name: &str, revision: Option<&str>) -> Result<Value> {
    if let Some(path) = config_alone(Path::new(name)) {
        let mut facts = Map::from_iter([("model".to_owned(), json!(name))]);
        facts.extend(understood(&files::read_json(&path)?, &path)?.1);
        facts.insert("weights".into(), json!("none here"));
        return Ok(facts.into());
    }
    let source = open_model(name, revision)?;
    let checkpoint = &source.checkpoint;
    let config = &checkpoint.config;
    let (model, understood) = understood(config, &checkpoint.dir)?;
    let usual = model::architecture(config)?.tokenizer;
    let encoder = Encoder::of(&checkpoint.dir, config, usual, model.sizes().vocabulary)?;
    let bytes: u64 = checkpoint.files.iter().map(|file| size(&checkpoint.dir.join(file))).sum();
    let mut dtypes: Vec<String> =
        checkpoint.entries.values().map(|entry| format!("{:?}", entry.dtype)).collect();
    dtypes.sort();
    dtypes.dedup();
    let special = ["bos_token", "eos_token", "pad_token"];
    let special: Vec<String> = special
        .iter()
        .filter_map(|name| Some(format!("{name} {}", encoder.special(name)?)))
        .collect();
    let facts = json!({
        "model": checkpoint.name,
        "folder": checkpoint.dir.display().to_string(),
        "commit": checkpoint.revision.as_deref().unwrap_or("none (a local model)"),
        "weights": format!(
            "{} tensors of {} in {} file{}, {} MiB", checkpoint.entries.len(), dtypes.join(", "),
            checkpoint.files.len(), if checkpoint.files.len() == 1 { "" } else { "s" }, bytes >> 20
        ),
        "special_tokens": special,
        "chat_template": if encoder.has_chat() { "yes" } else { "no" },
    });
    let Value::Object(mut facts) = facts else { bail!("an object of facts") };
    facts.extend(understood);
    Ok(facts.into())
}

/// The `config.json` of a folder that holds nothing but configurations and texts, or one that is
/// named itself: it can be asked about before weights are downloaded.
fn config_alone(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    let config = path.join("config.json");
    let is_text = |name: &Path| {
        let kind = name.extension().and_then(OsStr::to_str);
        ["json", "txt", "jinja", "md"].iter().any(|text| kind == Some(text))
            && !name.to_string_lossy().ends_with(".index.json")
    };
    let entries = std::fs::read_dir(path).ok()?;
    let only_texts = entries.flatten().all(|entry| is_text(&entry.path()));
    (only_texts && config.is_file()).then_some(config)
}

/// The model that a `config.json` describes, and what of that is understood.
fn understood(config: &Value, place: &Path) -> Result<(Model, Map<String, Value>)> {
    let (model, asked) = Model::and_keys(config).with_context(|| place.display().to_string())?;
    let keys = || config.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let is_read = |key: &&str| asked.contains(*key) || READ_BESIDE.contains(key);
    let (read, others): (Vec<&str>, Vec<&str>) = keys().partition(is_read);
    let (no_effect, unknown): (Vec<&str>, Vec<&str>) =
        others.into_iter().partition(|key| has_no_effect(key));
    let sizes = model.sizes();
    let facts = json!({
        "architecture": config["model_type"],
        "blocks": sizes.blocks,
        "channels": sizes.channels,
        "vocabulary": sizes.vocabulary,
        "positions": sizes.context,
        "parameters": model.parameters(),
        "settings_read": read,
        "settings_of_no_effect": no_effect,
        "settings_not_read": unknown,
    });
    let Value::Object(facts) = facts else { bail!("an object of facts") };
    Ok((model, facts))
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// What this build can do.
fn of_build() -> Result<Value> {
    let choice = device::choose("auto")?;
    let hub = Hub::from_env();
    let features: Vec<&str> =
        [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))]
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect();
    Ok(json!({
        "irepair": env!("CARGO_PKG_VERSION"),
        "features": features,
        "device": format!("{:?}", choice.device.location()),
        "device_why": choice.why,
        "threads": device::set_threads(None)?,
        "vector_instructions": vectors(),
        "bf16_products": match Precision::Bf16.unavailable() {
            Some(why) => format!("{why}: f32 is used"),
            None => precision::bf16_by().into(),
        },
        "architectures": ARCHES.iter().map(|a| a.model_type).collect::<Vec<_>>(),
        "shapes": *SHAPES,
        "methods": step::names().collect::<Vec<_>>(),
        "scorers": scorers::SCORERS.iter().map(|s| s.name).collect::<Vec<_>>(),
        "hub_cache": match &hub {
            Ok(hub) => hub.cache.display().to_string(),
            Err(why) => why.to_string(),
        },
        "hub_endpoint": hub.as_ref().map(|h| h.endpoint.clone()).unwrap_or_default(),
        "hub_offline": hub.as_ref().is_ok_and(|h| h.offline),
        "hub_token": if hub.as_ref().is_ok_and(Hub::has_token) { "set" } else { "not set" },
    }))
}

/// The widest vector instructions of this processor that our kernels use.
fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    "baseline"
}
