//! What the model said before and after.

use maud::{Markup, html};

use crate::report::folder::RunFolder;
use crate::report::page::Section;
use crate::report::record::Sample;
use crate::scorers;
use crate::scorers::{Scored, TOXIC};

/// The page shows no more samples than this.
const SAMPLES: usize = 60;
/// The scorer of the prompts, which is part of the program.
const EMBEDDED: &str = "words";

pub fn section(run: &RunFolder) -> Option<Section> {
    (!run.is_neuron_level()).then(|| Section {
        id: "samples",
        heading: "Before and after",
        body: samples(run),
    })
}

fn samples(run: &RunFolder) -> Markup {
    let rude = |score: Option<f64>| score.is_some_and(|s| s >= TOXIC);
    // Samples that are still rude come first, so that they are not hidden among the others.
    let (still, other): (Vec<&Sample>, Vec<&Sample>) =
        run.samples.iter().partition(|s| rude(s.score_after));
    let all = run.samples.len();
    let scored = run.samples.iter().filter(|sample| sample.score_after.is_some()).count();
    let empty = run.samples.iter().filter(|sample| sample.after.trim().is_empty()).count();
    let shown: Vec<&Sample> = still.iter().chain(&other).copied().take(SAMPLES).collect();
    let prompts: Vec<&str> = shown.iter().map(|sample| sample.prompt.as_str()).collect();
    let why_none = match run.record.is_some() {
        true => "This run kept no samples.",
        false => "They are written at the end.",
    };
    html! {
        @if all == 0 { p { (why_none) } } @else {
            p {
                "Held-back prompts, continued greedily before and after. " (still.len()) " of "
                (scored) " are still rude after the repair"
                (if still.is_empty() { "." } else { "; they come first." })
                // What says nothing is not clean.
                @if empty > 0 { " " (empty) " more are empty after it." }
                @if shown.len() < all {
                    " The first " (shown.len()) " are shown, all are in "
                    code { "irepair/samples.jsonl" } "."
                }
            }
            p.dim {
                "Rude ones (a score of " (TOXIC) " or more; prompts are scored by "
                code { (EMBEDDED) } ") and those without a score are blurred until clicked, or "
                "reached with the keyboard."
            }
            ol.samples {
                @for (sample, score) in shown.iter().zip(scores_of(&prompts)) {
                    li {
                        (prompt(&sample.prompt, score))
                        div.pair {
                            (said("before", &sample.before, sample.score_before))
                            (said("after", &sample.after, sample.score_after))
                        }
                    }
                }
            }
        }
    }
}

/// Scores of the scorer that is part of the program. `None` for a text that could not be scored.
fn scores_of(texts: &[&str]) -> Vec<Option<f64>> {
    let score = |scored: Scored| match scored {
        Scored::Score(score) => Some(score),
        Scored::Failed(_) | Scored::Refused(_) => None,
    };
    let scored = scorers::open(EMBEDDED, &scorers::Options::default())
        .and_then(|scorer| scorer.score(texts));
    scored
        .map_or_else(|_| vec![None; texts.len()], |scored| scored.into_iter().map(score).collect())
}

/// Whether a text is blurred, because it is rude or nobody knows whether it is.
fn blurred(text: &str, score: Option<f64>) -> bool {
    score.map_or(!text.trim().is_empty(), |s| s >= TOXIC)
}

fn verdict(score: Option<f64>) -> String {
    let Some(score) = score else { return "no score".into() };
    format!("{}{score:.2}", if score >= TOXIC { "rude, " } else { "" })
}

fn prompt(text: &str, score: Option<f64>) -> Markup {
    if !blurred(text, score) {
        return html! { h3 dir="auto" { (text) } };
    }
    html! {
        details.rude {
            summary {
                span.label { "prompt: " (verdict(score)) }
                h3 dir="auto" { span.text { (text) } }
            }
        }
    }
}

/// A continuation and its score, `when` being before or after the repair.
fn said(when: &str, text: &str, score: Option<f64>) -> Markup {
    let label = html! { span.label { (when) ": " (verdict(score)) } };
    let shown = if text.trim().is_empty() { "(nothing)" } else { text };
    let shown = html! { span.text dir="auto" { (shown) } };
    html! {
        div.said {
            @if blurred(text, score) {
                details.rude { summary { (label) (shown) } }
            } @else {
                (label) (shown)
            }
        }
    }
}
