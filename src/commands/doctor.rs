//! `doctor` says what this build can do, and where it looks for files.

use anyhow::Result;
use serde_json::json;

use crate::base::print;
use crate::checkpoint::hub::Hub;
use crate::cli::Doctor;
use crate::model::ARCHES;
use crate::model::device;
use crate::model::precision::Precision;
use crate::model::shapes::SHAPES;
use crate::print_line;
use crate::{scorers, step};

pub fn run(args: &Doctor) -> Result<()> {
    let choice = device::choose("auto")?;
    let hub = Hub::from_env();
    let features: Vec<&str> =
        [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))]
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect();
    let facts = json!({
        "irepair": env!("CARGO_PKG_VERSION"),
        "features": features,
        "device": format!("{:?}", choice.device.location()),
        "device_why": choice.why,
        "threads": device::set_threads(None)?,
        "vector_instructions": vectors(),
        "bf16_products": match Precision::Bf16.unavailable() {
            Some(why) => format!("{why}: f32 is used"),
            None => "AVX512-BF16".into(),
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
    });
    if args.json {
        print::json(&facts)?;
        return Ok(());
    }
    for (key, value) in facts.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(items) if items.is_empty() => "none".into(),
            serde_json::Value::Array(items) => {
                items.iter().filter_map(|i| i.as_str()).collect::<Vec<_>>().join(", ")
            }
            serde_json::Value::Object(items) => {
                items.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        print_line!("{:<20} {text}", key.replace('_', " "))?;
    }
    Ok(())
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
