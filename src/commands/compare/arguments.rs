//! The *arguments* of the commands that a comparison runs besides `repair`.

use anyhow::Result;

use crate::bail_input;
use crate::cli::Compare;
use crate::eval::sources;
use crate::eval::toxicity::Protocol;
use crate::model::precision::WeightsDtype;
use crate::scorers;
use crate::settings::RepairSettings;

/// The arguments of `eval`, except for the model, and the scorer's own name. Errors (bad input) if
/// what they name can't be read, which is better known before hours of work.
pub fn evaluation(
    args: &Compare,
    shared: &RepairSettings,
    on_failures: bool,
) -> Result<(Vec<String>, Option<String>)> {
    let mut judge = None;
    let on_demo = shared.model == "demo";
    let mut eval: Vec<String> = Vec::new();
    if on_failures {
        let data = || shared.data.as_ref().map(|data| data.display().to_string());
        let edits = args.edits.clone().filter(|file| !file.is_empty()).or_else(data);
        let edits = edits.unwrap_or_else(|| sources::DEMO.into());
        sources::edits(&edits, None)?;
        eval.extend(["--edits".into(), edits]);
    }
    if let Some(preset) = args.toxicity.as_deref().or((!on_failures).then_some("lee")) {
        let options = scorers::Options { toxic_label: shared.toxic_label.clone() };
        judge = Some(scorers::open(shared.judge(), &options)?.name());
        Protocol::named(preset)?;
        let prompts = match &shared.eval_prompts {
            Some(path) => path.display().to_string(),
            None => if on_demo { sources::DEMO } else { sources::PROMPTS_NAME }.to_owned(),
        };
        sources::prompts(&prompts, None)?;
        eval.extend(["--toxicity".into(), preset.into(), "--prompts".into(), prompts]);
        let mut add = |flag: &str, value: Option<String>| {
            value.into_iter().for_each(|value| eval.extend([flag.to_owned(), value]));
        };
        add("--samples", args.samples.map(|n| n.to_string()));
        add("--scorer", Some(shared.judge().to_owned()));
        add("--toxic-label", shared.toxic_label.clone());
    }
    let mut texts = args.ppl.clone();
    if texts.is_empty() {
        texts = if on_demo {
            vec![sources::DEMO.into()]
        } else {
            ["wikitext2", "lambada-corpus"].map(Into::into).to_vec()
        };
    }
    for text in &texts {
        sources::corpus(text, "--ppl")?;
    }
    texts.into_iter().for_each(|text| eval.extend(["--ppl".into(), text]));
    if let Some(file) = &args.lambada {
        sources::passages(file, None)?;
        eval.push("--lambada".into());
        eval.extend(Some(file.clone()).filter(|f| !f.is_empty()));
    }
    eval.extend([
        "--kl".into(),
        shared.model.clone(),
        "--normal-texts".into(),
        shared.normal_texts.to_string(),
    ]);
    if let Some(revision) = &shared.revision {
        eval.extend(["--revision".into(), revision.clone()]);
    }
    Ok((eval, judge))
}

/// The command `sensitivity` with its arguments.
pub fn sensitivity(shared: &RepairSettings) -> Vec<String> {
    let mut arguments = vec!["sensitivity".to_owned(), "--model".into(), shared.model.clone()];
    let mut add = |flag: &str, value: Option<String>| {
        value.into_iter().for_each(|value| arguments.extend([flag.to_owned(), value]));
    };
    add("--revision", shared.revision.clone());
    add("--data", shared.data.as_ref().map(|d| d.display().to_string()));
    add("--limit", shared.limit.map(|n| n.to_string()));
    add("--max-length", shared.max_length.map(|n| n.to_string()));
    add("--max-prompt-length", shared.max_prompt_length.map(|n| n.to_string()));
    add("--map", Some(shared.map.join(",")).filter(|m| !m.is_empty()));
    add("--batch-size", Some(shared.batch_size.to_string()));
    let kept = Some(shared.weights_dtype).filter(|kept| *kept != WeightsDtype::F32);
    add("--weights-dtype", kept.map(|kept| kept.to_string()));
    arguments
}

/// The scales in ascending order, without 1, which is what a run changed. Errors (bad input) if one
/// is no number or 0.
pub fn scales(args: &Compare) -> Result<Vec<f64>> {
    if let Some(wrong) = args.scales.iter().find(|scale| !scale.is_finite() || **scale == 0.0) {
        bail_input!("--scales {wrong}: must be a number and not 0 (0 is the base)");
    }
    if !args.scales.is_empty() && args.toxicity.is_none() && args.edits.is_some() {
        bail_input!("--scales needs --toxicity: the curve is toxicity against KL");
    }
    let mut scales = args.scales.clone();
    scales.retain(|scale| *scale != 1.0);
    scales.sort_by(f64::total_cmp);
    scales.dedup();
    Ok(scales)
}
