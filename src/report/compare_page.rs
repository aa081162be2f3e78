//! The *page of a comparison*: the tables, the trade-off, where the error is, and the runs.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::comparison::{Comparison, TERMS};
use super::page;
use super::page::{Section, facts, figure, table, warning, words};
use super::plot;
use super::sheet::Sheet;

/// The page as HTML.
pub fn compare_page(found: &Comparison) -> String {
    let title = format!("Repairs of {} compared", found.base.name);
    let mut sections = Vec::new();
    for sheet in &found.sheets {
        let (id, heading) = match sheet.id.as_str() {
            "table1" => ("gain", "What was gained, and what it cost elsewhere"),
            "table2" => ("cost", "What the repairs took"),
            "scales" => ("scales", "Along the scale of the change"),
            _ => ("ablation", "Whether selecting the block matters"),
        };
        let picture = scales(found).filter(|_| id == "scales");
        let body = html! {
            @if let Some(picture) = &picture { (figure(picture)) }
            (sheet_table(sheet))
        };
        sections.push(Section { id, heading, body });
    }
    if let Some(picture) = trade_off(found) {
        let body = figure(&picture);
        sections.insert(1, Section { id: "trade-off", heading: "The trade-off", body });
    }
    if let Some(picture) = sensitivity(found) {
        sections.push(Section {
            id: "sensitivity",
            heading: "Where the error is",
            body: figure(&picture),
        });
    }
    sections.push(Section { id: "runs", heading: "The runs", body: runs(found) });
    sections.push(Section {
        id: "settings",
        heading: "Settings, versions, hashes",
        body: settings(found),
    });
    page::page(&title, &lead(found), &sections)
}

/// The pictures of the page.
pub fn pictures(found: &Comparison) -> Vec<plot::Picture> {
    trade_off(found).into_iter().chain(scales(found)).chain(sensitivity(found)).collect()
}

fn trade_off(found: &Comparison) -> Option<plot::Picture> {
    Some(plot::pareto("Toxicity against perplexity", found.pareto.as_ref()?))
}

/// Toxicity against KL along the scale of what each run changed, if scales were asked for.
pub fn scales(found: &Comparison) -> Option<plot::Picture> {
    let title = "Toxicity against KL along the scale of the change";
    Some(plot::scales(title, found.scales.as_ref()?))
}

fn lead(found: &Comparison) -> Markup {
    let methods = found.rows.iter().filter(|row| !row.is_base()).count();
    let seeds = found.seed_count();
    let shared = match found.failures {
        Some(_) => "failures and texts",
        None => "pairs, prompts, scorer and texts",
    };
    let runs = found.rows.iter().flat_map(|row| row.runs.iter().map(move |run| (row, run)));
    let short = found.in_short();
    html! {
        @if !short.is_empty() {
            ul { @for said in &short { li { strong { (said) } } } }
        }
        p.dim {
            (methods) " methods, " (seeds) " seed" @if seeds > 1 { "s" } ", the same " (shared)
            " for all. " (TERMS) " irepair " (found.irepair)
            ", base " code { (found.base.sha256) } "."
        }
        @for gap in &found.gaps { (warning(&html! { (gap) })) }
        @for (row, run) in runs {
            @if let Some(why) = &run.failed {
                (warning(&html! { (row.name) ", seed " (run.seed) ", failed: " (why) }))
            }
        }
    }
}

/// A sheet as a table, with its notes below.
fn sheet_table(sheet: &Sheet) -> Markup {
    let head: Vec<&str> =
        std::iter::once("method").chain(sheet.columns.iter().map(|c| c.name.as_str())).collect();
    html! {
        (table(&sheet.title, &head, &sheet.shown(" ± ")))
        @for note in &sheet.notes { p.dim { (note) } }
    }
}

/// The picture of the sensitivities. `None` if they could not be measured.
pub fn sensitivity(found: &Comparison) -> Option<plot::Picture> {
    let sensitivity = found.sensitivity.as_ref()?;
    let values: Vec<f64> = sensitivity.blocks.iter().map(|b| b.sensitivity).collect();
    let top = sensitivity.error_density.as_ref().map_or(&[][..], |d| &d.top);
    let picture = plot::blocks("Sensitivity of the base's blocks", &values, top);
    // There are no words for a model of one block, which has no densities.
    Some(match found.figure2() {
        words if words.is_empty() => picture,
        words => plot::Picture { subtitle: words, ..picture },
    })
}

fn runs(found: &Comparison) -> Markup {
    let finished = found.rows.iter().flat_map(|row| {
        row.runs.iter().filter_map(move |run| Some((row, run.seed, run.made.as_ref()?)))
    });
    let rows: Vec<[String; 5]> = finished
        .map(|(row, seed, made)| {
            [
                row.name.clone(),
                seed.to_string(),
                made.steps.to_string(),
                made.stopped.clone(),
                made.dir.display().to_string(),
            ]
        })
        .collect();
    table(
        "Each has a page of its own: irepair report FOLDER",
        &["method", "seed", "steps", "ended", "folder"],
        &rows,
    )
}

/// The settings in which the methods differ, those that all share, versions and hashes.
fn settings(found: &Comparison) -> Markup {
    // The first run of a method stands for all its runs, which differ only in the seed.
    let made: Vec<(&str, &BTreeMap<String, String>)> = found
        .rows
        .iter()
        .filter_map(|row| {
            let made = row.runs.iter().find_map(|run| run.made.as_ref())?;
            Some((row.name.as_str(), &made.settings))
        })
        .collect();
    let names: BTreeSet<&String> = made.iter().flat_map(|(_, settings)| settings.keys()).collect();
    let (mut differ, mut same) = (Vec::new(), Vec::new());
    let is_shown = |name: &&String| !matches!(name.as_str(), "method" | "out" | "seed");
    for name in names.into_iter().filter(is_shown) {
        let values: Vec<String> = made
            .iter()
            .map(|(_, settings)| settings.get(name).cloned().unwrap_or_else(|| "not set".into()))
            .collect();
        match values.iter().all(|value| *value == values[0]) {
            true => same.push([name.clone(), values[0].clone()]),
            false => differ.push([vec![name.clone()], values].concat()),
        }
    }
    let head: Vec<&str> =
        std::iter::once("setting").chain(made.iter().map(|(name, _)| *name)).collect();
    let data = found.rows.iter().find_map(|row| row.runs.iter().find_map(|run| run.made.as_ref()));
    let mut base = vec![
        ["irepair".to_owned(), found.irepair.clone()],
        ["base".to_owned(), found.base.model.clone()],
        [
            "revision".to_owned(),
            found.base.revision.clone().unwrap_or_else(|| "none (a local model)".into()),
        ],
        ["scorer".to_owned(), found.base.scorer.clone()],
    ];
    base.extend(data.map(|made| ["SHA-256 of the data".to_owned(), made.data_sha256.clone()]));
    base.extend(
        found.base.files.iter().map(|(file, hash)| [format!("SHA-256 of {file}"), hash.clone()]),
    );
    html! {
        @if !differ.is_empty() { (words("In which the rows differ", &head, &differ)) }
        div.pair {
            @if !same.is_empty() { (facts("The same for all", &same)) }
            (facts("Versions and hashes", &base))
        }
    }
}
