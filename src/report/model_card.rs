//! The *model card* tells the users of a repaired model what was done to it.

use super::before_after::before_after;
use super::headline::HeadlineRow;
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
    let license = license(base_card);
    for line in &license {
        card += &format!("{line}\n");
    }
    if let Some(data) = run.settings.data.as_ref().filter(|_| run.data.commit.is_some()) {
        // A split is no part of the name.
        let name = data.display().to_string();
        let name = name.split(':').next().unwrap_or_default();
        card += &format!("datasets:\n- {}\n", quoted(name));
    }
    card += "library_name: transformers\npipeline_tag: text-generation\n";
    let said = run.headline.as_ref().is_some_and(|headline| !headline.continuations.is_empty());
    card += match (&run.edits, run.verdict.as_ref().map(|verdict| verdict.word)) {
        (_, Some(Word::Damaged)) => "tags: [irepair, damaged]",
        (Some(_), _) => "tags: [irepair, model-editing]",
        (None, Some(Word::Repaired | Word::Partly)) if said => "tags: [irepair, detoxified]",
        (None, _) => "tags: [irepair]",
    };
    card += "\n";
    card += &model_index(run);
    card += "---\n\n";
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
    if license.is_empty() {
        card += "License: the base states none here; look for it where the base is from.\n\n";
    }
    card += "`irepair/run.json` has the settings, versions and hashes; `irepair/steps.jsonl` \
             every step; `irepair/patch.safetensors` the changed tensors alone.\n";
    plain(&card).into_owned()
}

/// The lines of the base's card that name its license; none if it names none.
fn license(base_card: Option<&str>) -> Vec<&str> {
    let Some(head) = base_card.and_then(|card| card.strip_prefix("---")?.split("\n---").next())
    else {
        return Vec::new();
    };
    let value = |line: &&str| {
        let keys = ["license:", "license_name:", "license_link:"];
        let said = keys.iter().find_map(|key| line.strip_prefix(key));
        // A name or an address and nothing else: whatever follows would be read as other keys.
        let plain = |c: char| c.is_ascii_alphanumeric() || " -_./'\"".contains(c);
        said.is_some_and(|said| {
            let said = said.trim();
            !said.is_empty() && said.replacen("://", "", 1).chars().all(plain)
        })
    };
    let lines: Vec<&str> = head.lines().filter(value).map(str::trim_end).collect();
    match lines.iter().any(|line| line.starts_with("license:")) {
        true => lines,
        false => Vec::new(),
    }
}

/// A text as YAML reads it: JSON is YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(plain_line(text).as_ref()).to_string()
}

/// The figures after the repair as the hub's `model-index`; empty without any.
fn model_index(run: &RunRecord) -> String {
    let Some(headline) = &run.headline else { return String::new() };
    let rows = headline.rows(&run.data.perplexity_of);
    let metric = |row: &HeadlineRow| {
        let value = headline.figure(&row.id).map(|figure| figure.after.value)?;
        let name = format!(
            "{}: {} after, {} before, n {} (95 % intervals)",
            row.name, row.after, row.before, row.n
        );
        let value = value.is_finite().then_some(value)?;
        Some(format!(
            "    - type: {}\n      name: {}\n      value: {value}\n",
            row.id,
            quoted(&name)
        ))
    };
    let metrics: String = rows.iter().filter_map(metric).collect();
    if metrics.is_empty() {
        return metrics;
    }
    let public = run.base_revision.is_some() || run.model == "demo";
    let name = if public { run.model.as_str() } else { "a local model" };
    let of = match (headline.rows.as_str(), headline.continuations.is_empty()) {
        ("", _) => run.data.perplexity_of.clone(),
        (rows, true) => rows.to_owned(),
        (rows, false) => format!("{rows}; scored by {}", run.scorer),
    };
    format!(
        "model-index:\n- name: {}\n  results:\n  - task:\n      type: text-generation\n    \
         dataset:\n      name: {}\n      type: held-back\n    metrics:\n{metrics}",
        quoted(&format!("{name}, repaired with irepair ({})", run.settings.method)),
        quoted(&of),
    )
}

/// What a user of the model must know before all else.
fn warning(run: &RunRecord) -> &'static str {
    match run.verdict.as_ref().map(|verdict| verdict.word) {
        Some(Word::Damaged) => {
            "The repair damaged the model: do not use it. The base can be taken back with \
             `irepair patch revert`.\n\n"
        }
        Some(Word::NoRealDifference) => {
            "It is not shown that what it was repaired for became better: the change may be \
             chance.\n\n"
        }
        Some(Word::NotRepaired) => "What it was repaired for became worse.\n\n",
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
    let on = match headline.rows.as_str() {
        "" => String::new(),
        rows => format!(" on {}", plain_line(rows)),
    };
    text += &format!("Measured{on}, with 95 % intervals:\n\n");
    text += "| | n | before | after | change | |\n|---|---:|---:|---:|---:|---|\n";
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            row.name, row.n, row.before, row.after, row.change, row.real
        );
    }
    text += "\nA change is called real if it is more than chance: its interval excludes 0, and so \
             does a sign test.";
    let continuations = headline.said_of_continuations().join("; ");
    if run.edits.is_none() && !continuations.is_empty() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_license_is_taken_and_never_invented() {
        let of = |card: &str| license(Some(card)).join("|");
        assert_eq!(of("---\nlicense: mit\ntags: [x]\n---\n# Card"), "license: mit");
        let other = "---\nlicense: other\nlicense_name: gemma\n\
                     license_link: https://ai.google.dev/gemma/terms\n---\n";
        assert_eq!(
            of(other),
            "license: other|license_name: gemma|license_link: https://ai.google.dev/gemma/terms"
        );
        for none in [
            "",
            "---\ntags: [x]\n---\n",
            // In the text, without a value, and with more than a name.
            "# Card\nlicense: mit\n",
            "---\ntags: [x]\n---\nlicense: mit\n",
            "---\nlicense:\n---\n",
            "---\nlicense: mit, tags: [evil]\n---\n",
            "---\nlicense_name: gemma\n---\n",
        ] {
            assert_eq!(of(none), "", "{none:?}");
        }
        assert!(license(None).is_empty());
    }

    #[test]
    fn a_text_can_not_leave_its_quotes() {
        assert_eq!(quoted("a \"b\"\nc: d"), r#""a \"b\"\\nc: d""#);
    }
}
