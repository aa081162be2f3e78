//! Settings, versions and hashes.

use maud::{Markup, html};

use crate::report::fields::{fields, show};
use crate::report::folder::RunFolder;
use crate::report::page::{Section, facts};
use crate::report::record::RunRecord;

pub fn section(run: &RunFolder) -> Option<Section> {
    let body = settings(run.record.as_ref()?);
    Some(Section { id: "settings", heading: "Settings, versions, hashes", body })
}

fn settings(record: &RunRecord) -> Markup {
    let mut run = vec![
        ("irepair", record.irepair.clone()),
        ("format version", record.format_version.to_string()),
        ("model", record.model.clone()),
        ("revision", record.base_revision.clone().unwrap_or_else(|| "none (a local model)".into())),
        ("scorer", record.scorer.clone()),
        ("steps", format!("{} ({})", record.steps, record.stopped)),
        ("kept step", record.kept_step.to_string()),
        ("changed parameters", format!("{} of {}", record.changed_parameters, record.parameters)),
        ("seed", record.seed.to_string()),
        ("device", record.device.clone()),
        ("dtype", show(&record.dtype)),
        ("threads", record.threads.to_string()),
        ("seconds", format!("{:.0}", record.seconds)),
    ];
    run.extend(record.peak_rss_mib.map(|mib| ("peak memory", format!("{mib} MiB"))));
    let run: Vec<[String; 2]> = run.into_iter().map(|(name, value)| [name.into(), value]).collect();
    let hashes: Vec<[String; 2]> =
        record.base_sha256.iter().map(|(f, hash)| [f.clone(), hash.clone()]).collect();
    html! {
        div.pair {
            (facts("Settings, as they were resolved", &record.resolved_settings()))
            div {
                (facts("The run", &run))
                (facts("Rows", &fields(&record.data)))
                (facts("SHA-256 of the base's weights", &hashes))
            }
        }
    }
}
