//! A run *again*: what a state must be of to go on from it, and what is done where the output is
//! finished already.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::Order;
use super::job::Job;
use super::output::is_output;
use crate::bail_input;
use crate::base::files;
use crate::report::RunRecord;
use crate::settings::setting::Heading;
use crate::settings::{RepairSettings, SETTINGS};
use crate::train::state::{self, Fingerprint};

/// What a state belongs to: the model, every setting that the weights depend on, and the parts that
/// a family of methods has of its own.
pub fn fingerprint<const N: usize>(
    order: &Order,
    own: [(&'static str, String); N],
) -> Result<Fingerprint> {
    let Order { prepared, loaded, .. } = order;
    let mut parts = vec![("model", loaded.checkpoint().identity()?)];
    for (name, value) in prepared.settings.decisive()? {
        let value = match name {
            // As it came to here: a machine may not have fast products in bf16.
            "dtype" => format!("{:?}", loaded.precision),
            _ => told(&value),
        };
        let flag: &'static str = SETTINGS
            .iter()
            .find(|setting| setting.name == name)
            .map_or(name, |setting| setting.flag());
        parts.push((flag, value));
    }
    // Sums of other kernels round otherwise.
    let device = loaded.device_name();
    let kind = device.split(':').next().unwrap_or_default();
    parts.push(("--device", kind.to_owned()));
    parts.extend(own);
    Ok(Fingerprint::new(parts))
}

/// A value as a user would type it.
fn told(value: &Value) -> String {
    match value {
        Value::Null => "not given".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The record of the finished output under this name, if it is of the very same repair. `None` if
/// there is none, or if it may be replaced. Errors (bad input) if it is of another repair, and
/// names what differs.
pub fn finished(order: &Order, job: &dyn Job, path: &Path) -> Result<Option<RunRecord>> {
    let Order { args, prepared, loaded } = order;
    let begun = state::path(&files::partial(path).join("irepair")).exists();
    if args.overwrite || !is_output(path) || args.resume && begun {
        return Ok(None);
    }
    let run = RunRecord::read(&path.join("irepair").join("run.json"))?;
    let mut others: Vec<String> = Vec::new();
    if run.base_sha256 != *loaded.checkpoint().hashes()? {
        others.push("another --model".into());
    }
    if run.data.sha256 != job.data().sha256 {
        others.push("other rows".into());
    }
    others.extend(differences(&run.settings, &prepared.settings)?);
    if others.is_empty() {
        return Ok(Some(run));
    }
    bail_input!(
        "{} is finished, with other settings than these: {}; choose another --out, or replace it \
         with --overwrite",
        path.display(),
        others.join(", ")
    )
}

/// Settings that decide the weights, or what is measured of them, and that are other ones now.
fn differences(found: &RepairSettings, wanted: &RepairSettings) -> Result<Vec<String>> {
    let measures = |heading: Heading| matches!(heading, Heading::Scoring | Heading::Verdict);
    let (values, now) = (serde_json::to_value(found)?, serde_json::to_value(wanted)?);
    let mut names: Vec<&str> = wanted.decisive()?.into_iter().map(|(name, _)| name).collect();
    let others = SETTINGS.iter().filter(|s| s.free && measures(s.heading) && s.name != "fail-on");
    names.extend(others.map(|setting| setting.name));
    names.push("normal");
    let differ = names.into_iter().filter(|name| values[*name] != now[*name]);
    Ok(differ
        .map(|name| format!("--{name} {} (now {})", told(&values[name]), told(&now[name])))
        .collect())
}
