//! The *model card* tells the users of a repaired model what was done to it.

use super::before_after::before_after;
use super::record::RunRecord;
use crate::base::plain::{plain, plain_line};

/// The model card of a repaired model as Markdown. `base_card` is the base's card, from which the
/// license is taken.
pub fn model_card(run: &RunRecord, base_card: Option<&str>) -> String {
    // A local base has no public name, and its path is private.
    let on_hub = run.base_revision.is_some();
    let mut card = String::from("---\n");
    if on_hub {
        card += &format!("base_model: {}\nbase_model_relation: finetune\n", plain_line(&run.model));
    }
    let license = base_card
        .and_then(|c| c.lines().find(|l| l.starts_with("license:") && l.len() > "license: ".len()));
    // A name and nothing else: whatever follows would be read as other keys.
    let license = license.filter(|line| {
        line.chars()
            .skip("license:".len())
            .all(|c| c.is_ascii_alphanumeric() || " -_.'\"".contains(c))
    });
    if let Some(license) = license {
        card += &format!("{license}\n");
    }
    card += "library_name: transformers\npipeline_tag: text-generation\n";
    card += if run.edits.is_some() {
        "tags: [irepair, model-editing]"
    } else {
        "tags: [irepair, detoxified]"
    };
    card += "\n---\n\n";
    let base = match &run.base_revision {
        Some(revision) => format!("`{}` (revision `{revision}`)", run.model),
        None if run.model == "demo" => "irepair's demo model".into(),
        None => "a local model".into(),
    };
    card += &format!(
        "# Repaired with irepair\n\n\
         Base: {base}. Method: `{}`, {} steps on {} {}, seed {}; the weights of step {} were \
         kept. {} of {} parameters ({:.2} %) differ from the base, all in the tensors listed in \
         `irepair/run.json`; every other tensor is byte-equal.\n\n",
        run.settings.method,
        run.steps,
        run.data.pairs,
        if run.edits.is_some() { "prompts with their targets" } else { "pairs" },
        run.seed,
        run.kept_step,
        run.changed_parameters,
        run.parameters,
        100.0 * run.changed_parameters as f64 / run.parameters.max(1) as f64,
    );
    let rows = before_after(run);
    if !rows.is_empty() {
        let on = match &run.edits {
            Some(edits) => format!(
                "Targets said: {} of {} that the base got wrong",
                edits.repaired, edits.failures
            ),
            None => format!("On held-back rows (scorer: {})", run.scorer),
        };
        card += &format!("{on}:\n\n| | before | after | change |\n|---|---|---|---|\n");
        for row in rows {
            card += &format!("| {} |\n", row.join(" | "));
        }
        card += if run.edits.is_some() {
            "\n"
        } else {
            "\nScores of different scorers can't be compared.\n\n"
        };
    }
    card += "`irepair/run.json` has the settings, versions and hashes; `irepair/steps.jsonl` \
             every step; `irepair/patch.safetensors` the changed tensors alone.\n";
    plain(&card).into_owned()
}
