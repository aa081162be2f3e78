//! The page of a run: what changed, where the error was, how the run went, what the model said before and after.

use maud::{Markup, html};

use super::folder::RunFolder;
use super::neurons::NeuronsRecord;
use super::page;
use super::page::{Section, facts, figure, table, tile, warning, words};
use super::plot;
use super::plot::{Bar, Heat, Line, Look, Map, Picture, bars, curves, heat, short};
use super::{
    RunRecord, Sample, before_after, block_number, change_by_block, fields, not_measured, show,
};
use crate::scorers;
use crate::scorers::{Scored, TOXIC};
use crate::slice::Part;
use crate::step::neurons::change::Promoted;
use crate::train::log::{StepLine, ValidationLine};

/// More samples than this are left in their file.
const SAMPLES: usize = 60;
/// What prompts are scored with: it is part of the program.
const EMBEDDED: &str = "words";
const NO_STEP: &str = "No step can be read.";

/// The whole page.
pub fn run_page(run: &RunFolder) -> String {
    let title = match &run.record {
        Some(record) => format!("{}, repaired with {}", model(record), record.settings.method),
        None => format!("{}: unfinished", run.name),
    };
    let mut sections = vec![
        Section { id: "blocks", heading: "What was sliced and what changed", body: blocks(run) },
        Section { id: "curves", heading: "How the run went", body: progress(run) },
    ];
    match &run.neurons {
        Some(found) => {
            sections.insert(
                0,
                Section { id: "changed", heading: "Which neurons changed", body: neurons(found) },
            );
        }
        // What a neuron-level repair has not.
        None if run.record.as_ref().is_some_and(|r| r.edits.is_some()) => {}
        None => {
            sections.insert(
                0,
                Section {
                    id: "sensitivity",
                    heading: "Where the error is",
                    body: sensitivity(run),
                },
            );
            sections.push(Section {
                id: "samples",
                heading: "Before and after",
                body: samples(run),
            });
        }
    }
    if let Some(record) = &run.record {
        sections.push(Section {
            id: "settings",
            heading: "Settings, versions, hashes",
            body: settings(record),
        });
    }
    page::page(&title, &lead(run), &sections)
}

/// The page's drawings.
pub fn pictures(run: &RunFolder) -> Vec<Picture> {
    let neurons = run.neurons.as_ref().map(neuron_map);
    neurons
        .into_iter()
        .chain(heat_map(run))
        .chain(slices(run))
        .chain(curves_of(run, &drawings(run)))
        .collect()
}

/// The hub's name, or the last part of a path.
fn model(record: &RunRecord) -> &str {
    let is_path = record.base_revision.is_none();
    record
        .model
        .trim_end_matches(['/', '\\'])
        .rsplit(['/', '\\'])
        .next()
        .filter(|_| is_path)
        .unwrap_or(&record.model)
}

/// The figures before and after, and what a reader must know of the run.
fn lead(run: &RunFolder) -> Markup {
    let Some(record) = &run.record else {
        return html! {
            p {
                "This run is not finished: " (run.last()) " steps are made. Its figures before and after, its settings "
                "and its samples are written at the end."
            }
            @for gap in &run.gaps { (warning(&html! { (gap) "." })) }
        };
    };
    let share = 100.0 * record.changed_parameters as f64 / record.parameters.max(1) as f64;
    let changed = change_by_block(&record.changed, block_number).keys().flatten().count();
    let not_measured = not_measured(record);
    html! {
        dl.tiles {
            @for [name, before, after, change] in before_after(record) { (tile(&name, Some(&before), &after, &change)) }
            (tile("parameters that differ from the base", None, &format!("{share:.1} %"),
                &format!("{changed} of {} blocks", run.blocks())))
        }
        p.dim {
            @if let Some(edits) = &record.edits {
                "Targets said now: " (edits.repaired) " of " (edits.failures) " that the base got wrong ("
                (edits.skipped) " it already said). "
            } @else {
                "On held-back rows, scored by " (record.scorer) ". "
                @if !not_measured.is_empty() { "Not measured: " (not_measured.join(", ")) ". " }
            }
            "Everything that was not sliced is byte-equal to the base. "
            (record.steps) " steps (" (record.stopped) "), the weights of step " (record.kept_step) " are kept."
        }
        @for gap in &run.gaps { (warning(&html! { (gap) "." })) }
    }
}

fn neuron_map(found: &NeuronsRecord) -> Picture {
    let marked: Vec<(usize, usize)> = found.most.iter().map(|n| (n.block, n.neuron)).collect();
    plot::neurons(&Map {
        blocks: found.blocks,
        width: found.neurons,
        changed: &found.changed,
        marked: &marked,
    })
}

/// The map of the changed neurons, and what the most changed ones promote.
fn neurons(found: &NeuronsRecord) -> Markup {
    let quoted = |tokens: &[String]| {
        tokens.iter().map(|token| format!("{token:?}")).collect::<Vec<_>>().join(" ")
    };
    let row = |n: &Promoted<String>| {
        let relative = if n.base_norm > 0.0 {
            format!("{:.1} %", 100.0 * n.norm / n.base_norm)
        } else {
            "–".into()
        };
        let name = format!("{}, {}", n.block, n.neuron);
        [name, short(f64::from(n.norm)), relative, quoted(&n.before), quoted(&n.after)]
    };
    let rows: Vec<[String; 5]> = found.most.iter().map(row).collect();
    let head =
        ["block, neuron", "norm of change", "of its norm", "promoted before", "promotes now"];
    let caption = "The most changed neurons, and the tokens whose logits their output rows raise most (head × output row)";
    html! {
        (figure(&neuron_map(found)))
        (words(caption, &head, &rows))
    }
}

fn heat_map(run: &RunFolder) -> Option<Picture> {
    heat(&Heat { steps: &run.steps, blocks: run.blocks(), kept: run.kept() })
}

fn sensitivity(run: &RunFolder) -> Markup {
    match heat_map(run) {
        Some(picture) => figure(&picture),
        None if run.steps.is_empty() => html! { p { (NO_STEP) } },
        None => {
            html! { p { "The method does not measure the sensitivity of the blocks at every step." } }
        }
    }
}

fn blocks(run: &RunFolder) -> Markup {
    let trials: Vec<[String; 2]> = run
        .trials
        .iter()
        .map(|t| [t.trial.join(" + "), t.valid_loss.map_or("diverged".into(), short)])
        .collect();
    html! {
        @if run.slices_everything() {
            p { "Every step changed the whole model." }
        } @else if let Some(picture) = slices(run) {
            (figure(&picture))
        }
        @if !trials.is_empty() {
            (table("Trial steps on each slice alone, before the first step", &["slice", "held-back loss"], &trials))
        }
        @if run.blocks() > 0 { (block_table(run)) }
    }
}

/// How often each was sliced, where not all were in every step.
fn slices(run: &RunFolder) -> Option<Picture> {
    if run.slices_everything() || run.sliced().is_empty() {
        return None;
    }
    let units = run.sliced_units();
    let whole = run.sliced();
    let filled = |label: String, steps: usize| Bar { label, value: steps as f64, on: steps > 0 };
    let sublayers = units.keys().any(|u| u.part != Part::Whole);
    let found: Vec<Bar> = if sublayers {
        units.iter().map(|(unit, steps)| filled(unit.to_string(), *steps)).collect()
    } else {
        (0..run.blocks())
            .map(|b| filled(b.to_string(), whole.get(&b).copied().unwrap_or(0)))
            .collect()
    };
    let subtitle = if sublayers { "steps, by sublayer" } else { "steps, by block" };
    Some(bars("sliced", "How often each was sliced", subtitle, &found))
}

/// Sensitivity, slices and change of every block.
fn block_table(run: &RunFolder) -> Markup {
    let blocks = run.blocks();
    let measured: Vec<&StepLine> =
        run.steps.iter().filter(|s| s.sensitivity.len() == blocks).collect();
    let sliced = run.sliced();
    let changes = run
        .record
        .as_ref()
        .map_or_else(Default::default, |r| change_by_block(&r.changed, block_number));
    let none = || "–".to_owned();
    let percent = |part: f64, whole: f64| {
        if whole > 0.0 { format!("{:.2} %", 100.0 * part / whole) } else { none() }
    };
    let row = |block: Option<usize>| {
        let mean = block.filter(|_| !measured.is_empty()).map(|b| {
            let sum: f64 = measured.iter().map(|s| s.sensitivity[b]).sum();
            short(sum / measured.len() as f64)
        });
        let steps = block.and_then(|b| sliced.get(&b)).map(ToString::to_string);
        let change = changes.get(&block);
        let size = block.and_then(|b| run.block_parameters.get(b));
        let touched = size.map(|&size| percent(change.map_or(0, |c| c.values) as f64, size as f64));
        [
            block.map_or("outside".into(), |b| b.to_string()),
            mean.unwrap_or_else(none),
            steps.unwrap_or_else(|| {
                if block.is_some() && !run.slices_everything() { "0".into() } else { none() }
            }),
            change.map_or_else(none, |c| short(c.norm)),
            change.map_or_else(none, |c| percent(c.norm, c.base_norm)),
            touched.unwrap_or_else(none),
        ]
    };
    let mut rows: Vec<[String; 6]> = (0..blocks).map(|b| row(Some(b))).collect();
    if changes.contains_key(&None) {
        rows.push(row(None));
    }
    let caption = "Every block: how sensitive, how often sliced, how far changed, and how much of it lies in changed tensors";
    let head = [
        "block",
        "mean sensitivity",
        "steps sliced",
        "norm of change",
        "of its norm",
        "of its parameters",
    ];
    table(caption, &head, &rows)
}

/// A name for files, a title and the lines of each diagram of the run's course.
type Drawing = (&'static str, &'static str, Vec<Line>);

fn drawings(run: &RunFolder) -> [Drawing; 6] {
    let of = |get: fn(&StepLine) -> Option<f64>| -> Vec<(usize, f64)> {
        run.steps.iter().filter_map(|s| Some((s.step, get(s)?))).collect()
    };
    let validations = |get: fn(&ValidationLine) -> Option<f64>| -> Vec<(usize, f64)> {
        run.validations.iter().filter_map(|v| Some((v.step, get(v)?))).collect()
    };
    let line = |name, look, points| Line { name, look, points };
    [
        (
            "loss",
            "Loss",
            vec![
                line("training", Look::Solid, of(|s| Some(s.loss))),
                line("held back", Look::Dots, validations(|v| Some(v.valid_loss))),
            ],
        ),
        (
            "nll",
            "NLL (nats a token)",
            vec![
                line("chosen", Look::Solid, of(|s| s.nll_good)),
                line("rejected", Look::Dashed, of(|s| s.nll_bad)),
            ],
        ),
        ("kl", "KL from the base (nats a token)", vec![line("KL", Look::Solid, of(|s| s.kl))]),
        (
            "ppl",
            "Perplexity of the guard's text",
            vec![line("perplexity", Look::Dots, validations(|v| v.ppl))],
        ),
        (
            "grad-norm",
            "Gradient norm",
            vec![line("before clipping", Look::Solid, of(|s| Some(s.grad_norm)))],
        ),
        ("lr", "Learning rate", vec![line("learning rate", Look::Solid, of(|s| Some(s.lr)))]),
    ]
}

/// Of those there is something to draw of.
fn curves_of(run: &RunFolder, drawings: &[Drawing]) -> Vec<Picture> {
    drawings
        .iter()
        .filter_map(|(id, title, lines)| curves(id, title, lines, run.last(), run.kept()))
        .collect()
}

fn progress(run: &RunFolder) -> Markup {
    let drawings = drawings(run);
    let rows: Vec<[String; 5]> = drawings
        .iter()
        .flat_map(|(_, title, lines)| {
            let name = move |line: &Line| match lines.len() {
                1 => (*title).to_owned(),
                _ => format!("{title}: {}", line.name),
            };
            lines.iter().filter_map(move |line| summary(name(line), line))
        })
        .collect();
    html! {
        @if rows.is_empty() { p { (NO_STEP) } } @else {
            div.pair { @for picture in curves_of(run, &drawings) { (figure(&picture)) } }
            p.dim { "Where several steps share a point, the line is their mean, and eight of ten lie in the band." }
            (table("The curves in numbers", &["curve", "first", "last", "lowest", "at step"], &rows))
        }
    }
}

/// First, last and lowest value of a line.
fn summary(name: String, line: &Line) -> Option<[String; 5]> {
    let lowest = line.points.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let (first, last) = (line.points.first()?, line.points.last()?);
    Some([name, short(first.1), short(last.1), short(lowest.1), lowest.0.to_string()])
}

fn samples(run: &RunFolder) -> Markup {
    let rude = |score: Option<f64>| score.is_some_and(|s| s >= TOXIC);
    // What the repair did not mend must not be hidden among what it did.
    let (still, other): (Vec<&Sample>, Vec<&Sample>) =
        run.samples.iter().partition(|s| rude(s.score_after));
    let all = run.samples.len();
    let shown: Vec<&Sample> = still.iter().chain(&other).copied().take(SAMPLES).collect();
    let prompts: Vec<&str> = shown.iter().map(|sample| sample.prompt.as_str()).collect();
    html! {
        @if all == 0 {
            p { (if run.record.is_some() { "This run kept no samples." } else { "They are written at the end." }) }
        } @else {
            p {
                "Held-back prompts, continued greedily before and after. " (still.len()) " of " (all)
                " are still rude after the repair" (if still.is_empty() { "." } else { "; they come first." })
                @if shown.len() < all {
                    " The first " (shown.len()) " are shown, all are in " code { "irepair/samples.jsonl" } "."
                }
            }
            p.dim {
                "Rude ones (a score of " (TOXIC) " or more; of prompts by the scorer " code { (EMBEDDED) } ") and those "
                "without a score are blurred until clicked, or reached with the keyboard."
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

/// Scores of the scorer that is part of the program.
fn scores_of(texts: &[&str]) -> Vec<Option<f64>> {
    let score = |scored: Scored| match scored {
        Scored::Score(score) => Some(score),
        Scored::Failed(_) => None,
    };
    let scored = scorers::open(EMBEDDED, &scorers::Options::default())
        .and_then(|scorer| scorer.score(texts));
    scored
        .map_or_else(|_| vec![None; texts.len()], |scored| scored.into_iter().map(score).collect())
}

/// Whether a text is behind a veil: a rude one, and one of which nobody knows.
fn veiled(text: &str, score: Option<f64>) -> bool {
    score.map_or(!text.trim().is_empty(), |s| s >= TOXIC)
}

fn verdict(score: Option<f64>) -> String {
    let Some(score) = score else { return "no score".into() };
    format!("{}{score:.2}", if score >= TOXIC { "rude, " } else { "" })
}

fn prompt(text: &str, score: Option<f64>) -> Markup {
    if !veiled(text, score) {
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

/// A continuation and its score.
fn said(when: &str, text: &str, score: Option<f64>) -> Markup {
    let label = html! { span.label { (when) ": " (verdict(score)) } };
    let shown = html! { span.text dir="auto" { (if text.trim().is_empty() { "(nothing)" } else { text }) } };
    html! {
        div.said {
            @if veiled(text, score) { details.rude { summary { (label) (shown) } } } @else { (label) (shown) }
        }
    }
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
