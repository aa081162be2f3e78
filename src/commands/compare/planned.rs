//! The runs that a comparison makes, and how a plan that was written down tells its tasks from
//! those of another one.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::settings::setting::Heading;
use crate::settings::{Layer, Prepared, RepairSettings, SETTINGS, setting};
use crate::step;

/// A run that the comparison makes.
pub struct PlannedRun {
    /// The name of its row.
    pub name: String,
    pub method: String,
    pub seed: u64,
    /// All settings that were given, for the file of the run.
    pub layer: Layer,
    pub settings: RepairSettings,
}

impl PlannedRun {
    /// The title for progress lines.
    pub fn title(&self) -> String {
        format!("{}, seed {}", self.name, self.seed)
    }

    pub fn file_name(&self) -> String {
        format!("{}-seed{}", self.name, self.seed)
    }

    /// The folder of the run, if `out` is that of the comparison.
    pub fn dir(&self, out: &Path) -> PathBuf {
        out.join("runs").join(self.file_name())
    }
}

/// What `plan.json` says of the runs: their titles, and all settings that decide what they make.
pub fn written(runs: &[PlannedRun]) -> Result<Value> {
    let of_one = |run: &PlannedRun| -> Result<Value> {
        let decisive = run.settings.decisive()?;
        let kept = decisive.into_iter().filter(|(_, value)| !value.is_null());
        let settings: Map<String, Value> =
            kept.map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(json!({"title": run.title(), "settings": settings}))
    };
    runs.iter().map(of_one).collect::<Result<_>>().map(Value::Array)
}

/// In what the runs that were written down differ from those of this command; `None` if in nothing.
pub fn apart(found: &Value, own: &Value) -> Option<String> {
    let Some(found) = found.as_array() else {
        return Some("it names no tasks: give --plan again".into());
    };
    let own = own.as_array().map_or(&[][..], Vec::as_slice);
    if found.len() != own.len() {
        // Task 0 measures the base.
        let (there, here) = (found.len() + 1, own.len() + 1);
        return Some(format!("it has {there} tasks, and this command {here}"));
    }
    let title = |run: &Value| run["title"].as_str().unwrap_or_default().to_owned();
    found.iter().zip(own).enumerate().find_map(|(at, (there, here))| {
        let task = at + 1;
        if there["title"] != here["title"] {
            return Some(format!("its task {task} is {}, and here {}", title(there), title(here)));
        }
        let (there, settings) = (&there["settings"], &here["settings"]);
        let name = SETTINGS.iter().map(|s| s.name).find(|name| there[name] != settings[name])?;
        Some(format!(
            "its task {task} ({}) has --{name} {}, and here {}",
            title(here),
            there[name],
            settings[name]
        ))
    })
}

/// The name of a file that holds something else than it did, of those that both name. What only
/// the older names is kept.
pub fn changed(found: &Value, own: &mut Value) -> Option<String> {
    let (found, own) = (found.as_object()?, own.as_object_mut()?);
    for (name, hash) in found {
        if own.get(name).is_some_and(|own| own != hash) {
            return Some(name.clone());
        }
        own.entry(name).or_insert_with(|| hash.clone());
    }
    None
}

/// The name of a setting that differs between two runs and changes their weights.
pub fn difference(found: &RepairSettings, wanted: &RepairSettings) -> Result<Option<&'static str>> {
    let (found, wanted) = (serde_json::to_value(found)?, serde_json::to_value(wanted)?);
    let matters = SETTINGS.iter().filter(|setting| !setting.free);
    Ok(matters.map(|setting| setting.name).find(|name| found[*name] != wanted[*name]))
}

/// Leaves a row pairs or prompts: an online method has no use for pairs, nor another for prompts
/// and how they are sampled.
pub fn learn_from_one(layer: &mut Layer, own_prompts: bool) {
    let named = layer.get("method").and_then(Value::as_str).map(step::named);
    let online = match named {
        Some(Ok(step::Named::Blocks(method))) => method.online || own_prompts,
        _ => own_prompts,
    };
    let samples = |key: &String| {
        key == "prompts" || setting(key).is_some_and(|s| s.heading == Heading::Online)
    };
    layer.retain(|key, _| if online { key != "data" } else { !samples(key) });
}

/// Whether a row learns from the comparison's pairs, or from prompts.
pub fn same_data(row: &Prepared, shared: &Prepared) -> bool {
    row.recipe().is_some_and(|recipe| recipe.online) || row.data == shared.data
}
