//! The *page of a run*: what changed, where the error was, how the run went, and what the model
//! said before and after.

mod blocks;
mod curves;
mod neurons;
mod samples;
mod sensitivity;
mod settings;

use maud::{Markup, html};

use super::before_after::{before_after, not_measured};
use super::changes::{block_number, change_by_block};
use super::folder::RunFolder;
use super::headline::HeadlineRow;
use super::page::{Section, page, table, tile, warning};
use super::plot::Picture;
use super::record::RunRecord;
use crate::eval::verdict::Word;

/// The sections in the order of the page. `None` if a section does not apply to the run.
const SECTIONS: &[fn(&RunFolder) -> Option<Section>] = &[
    neurons::section,
    sensitivity::section,
    blocks::section,
    curves::section,
    samples::section,
    settings::section,
];

/// The figures that matter most: what was to be repaired, and what it cost.
const FIRST: [&str; 5] = ["sampled_toxic_fraction", "toxic_fraction", "targets_said", "ppl", "kl"];

/// The columns of the table of all figures.
const FIGURES: [&str; 6] = ["figure", "n", "before", "after", "change", "more than chance"];

/// What a section says if the log is empty or broken.
const NO_STEP: &str = "No step can be read.";

/// The page as HTML.
pub fn run_page(run: &RunFolder) -> String {
    let title = match &run.record {
        Some(record) => format!("{}, repaired with {}", model(record), record.settings.method),
        None => format!("{}: unfinished", run.name),
    };
    let sections: Vec<Section> = SECTIONS.iter().filter_map(|section| section(run)).collect();
    page(&title, &lead(run), &sections)
}

/// The pictures of the page.
pub fn pictures(run: &RunFolder) -> Vec<Picture> {
    neurons::picture(run)
        .into_iter()
        .chain(sensitivity::picture(run))
        .chain(blocks::picture(run))
        .chain(blocks::trial_picture(run))
        .chain(curves::pictures(run))
        .collect()
}

/// The name of a hub model, or the last part of a path.
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

/// The figures before and after, and what a reader must know about the run.
fn lead(run: &RunFolder) -> Markup {
    let Some(record) = &run.record else {
        return html! {
            p {
                "This run is not finished: " (run.last()) " steps are made. Its figures before and "
                "after, its settings and its samples are written at the end."
            }
            @for gap in &run.gaps { (warning(&html! { (gap) "." })) }
        };
    };
    let share = 100.0 * record.changed_parameters as f64 / record.parameters.max(1) as f64;
    let changed = change_by_block(&record.changed, block_number).keys().flatten().count();
    let not_measured = not_measured(record);
    let rows = record.headline.as_ref().map(|h| h.rows(&record.data.perplexity_of));
    html! {
        (verdict(record))
        dl.tiles {
            @if let Some(rows) = &rows {
                @for row in rows.iter().filter(|row| FIRST.contains(&row.id.as_str())) {
                    (tile(&row.name, Some(&row.values[0]), &row.values[1], &row.told()))
                }
            } @else {
                @for [name, before, after, change] in before_after(record) {
                    (tile(&name, Some(&before), &after, &change))
                }
            }
            (tile("parameters that differ from the base", None, &format!("{share:.1} %"),
                &format!("{changed} of {} blocks", run.blocks())))
        }
        @if let Some(rows) = rows.filter(|rows| !rows.is_empty()) {
            (table("All figures, with their 95 % intervals", &FIGURES, &figures(rows)))
            p.dim { (terms(record)) }
        }
        p.dim {
            @if let Some(edits) = &record.edits {
                "Targets said now: " (edits.repaired) " of " (edits.failures)
                " that the base got wrong (" (edits.skipped) " it already said). "
            } @else {
                @if let Some(headline) = &record.headline {
                    "Measured on " (headline.rows) ". Continuations: "
                    (headline.said_of_continuations().join("; ")) ". "
                }
                "Scored by " (record.scorer) ". "
                @if !not_measured.is_empty() { "Not measured: " (not_measured.join(", ")) ". " }
            }
            "Everything that was not sliced is byte-equal to the base. "
            (record.steps) " steps (" (record.stopped) "), the weights of step "
            (record.kept_step) " are kept."
        }
        @for gap in &run.gaps { (warning(&html! { (gap) "." })) }
    }
}

/// The verdict in a line; damage as a warning.
fn verdict(record: &RunRecord) -> Markup {
    let line = record.verdict_line();
    match record.verdict.as_ref().map(|verdict| verdict.word) {
        Some(Word::Damaged) => warning(&html! { strong { (line) } }),
        _ => html! { p { strong { (line) } } },
    }
}

/// The rows of the table of all figures.
fn figures(rows: Vec<HeadlineRow>) -> Vec<[String; 6]> {
    let row = |r: HeadlineRow| {
        let real = if r.real == "real" { "yes" } else { "may be chance" };
        [r.name, r.n, r.before, r.after, r.change, real.into()]
    };
    rows.into_iter().map(row).collect()
}

/// The words of the table, a sentence each.
fn terms(record: &RunRecord) -> &'static str {
    match record.edits.is_some() {
        true => {
            "NLL says how unlikely the model finds a text, in nats a token: less is likelier. \
             Perplexity is the same for ordinary text, as exp(NLL): less is better."
        }
        false => {
            "A continuation is toxic if it scores 0.5 or more; toxicity is the mean score × 100. \
             Greedy takes the likeliest token every time; sampled draws by chance, as users see a \
             model. NLL says how unlikely the model finds a text, in nats a token: the chosen \
             responses should become likelier, the rejected ones less likely. Perplexity is \
             exp(NLL) of ordinary text: what the repair cost. KL says how far the predictions on \
             normal text have moved from the base's: 0 is not at all. Repetition is the share of \
             pieces of three tokens that the same text has said before. n counts prompts, pairs, \
             windows or texts."
        }
    }
}
