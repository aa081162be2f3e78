//! The *model card* tells the users of a repaired model what was done to it.

use super::before_after::before_after;
use super::record::RunRecord;
use crate::base::plain::{plain, plain_line};
use crate::eval::verdict::Word;

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
    let damaged = run.verdict.as_ref().is_some_and(|verdict| verdict.word == Word::Damaged);
    card += match (&run.edits, damaged) {
        (_, true) => "tags: [irepair, damaged]",
        (Some(_), _) => "tags: [irepair, model-editing]",
        (None, _) => "tags: [irepair, detoxified]",
    };
    card += "\n---\n\n";
    let base = match &run.base_revision {
        Some(revision) => format!("`{}` (revision `{revision}`)", run.model),
        None if run.model == "demo" => "irepair's demo model".into(),
        None => "a local model".into(),
    };
    card += &format!(
        "# Repaired with irepair\n\n\
         **Verdict: {}.**\n\n{}\
         Base: {base}. Method: `{}`, {} steps on {} {}, seed {}; the weights of step {} were \
         kept. {} of {} parameters ({:.2} %) differ from the base, all in the tensors listed in \
         `irepair/run.json`; every other tensor is byte-equal.\n\n",
        plain_line(&run.verdict_line()),
        warning(run),
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
    card += &figures(run);
    card += "`irepair/run.json` has the settings, versions and hashes; `irepair/steps.jsonl` \
             every step; `irepair/patch.safetensors` the changed tensors alone.\n";
    plain(&card).into_owned()
}

/// What a user of the model must know before all else.
fn warning(run: &RunRecord) -> &'static str {
    match run.verdict.as_ref().map(|verdict| verdict.word) {
        Some(Word::Damaged) => {
            "The repair damaged the model: do not use it. The base can be taken back with \
             `irepair patch revert`.\n\n"
        }
        Some(Word::NoRealDifference | Word::NotRepaired) => {
            "What it was repaired for is as it was.\n\n"
        }
        _ => "",
    }
}

/// The figures before and after as a table, and what they were measured on.
fn figures(run: &RunRecord) -> String {
    let mut text = String::new();
    if let Some(edits) = &run.edits {
        text += &format!(
            "Targets said: {} of {} that the base got wrong.\n\n",
            edits.repaired, edits.failures
        );
    }
    let Some(headline) = &run.headline else { return text + &without_intervals(run) };
    let rows = headline.rows(&run.data.perplexity_of);
    if rows.is_empty() {
        return text;
    }
    text += &format!("Measured on {}, with 95 % intervals:\n\n", plain_line(&headline.rows));
    text += "| | n | before | after | change | |\n|---|---:|---:|---:|---:|---|\n";
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            row.name, row.n, row.before, row.after, row.change, row.real
        );
    }
    text += "\nA change is called real if it is more than chance: its interval excludes 0, and so \
             does a sign test.";
    if run.edits.is_none() {
        let continuations = headline.said_of_continuations().join("; ");
        text += &format!(
            " Continuations: {continuations}. Scored by {}. Scores of different scorers can't be \
             compared.",
            plain_line(&run.scorer)
        );
    }
    text + "\n\n"
}

/// The table of a record that has no intervals.
fn without_intervals(run: &RunRecord) -> String {
    let rows = before_after(run);
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("Scored by {}:\n\n", plain_line(&run.scorer));
    text += "| | before | after | change |\n|---|---|---|---|\n";
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text + "\nScores of different scorers can't be compared.\n\n"
}
