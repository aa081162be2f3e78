//! Which blocks were sliced, and how far they changed.

use maud::{Markup, html};

use crate::report::changes::{block_number, change_by_block};
use crate::report::folder::RunFolder;
use crate::report::page::{Section, figure, table};
use crate::report::plot::{Bar, Picture, bars, short};
use crate::slice::Part;
use crate::train::log::{StepLine, TrialLine};

pub fn section(run: &RunFolder) -> Option<Section> {
    let trials: Vec<[String; 2]> = run
        .trials
        .iter()
        .map(|t| [t.trial.join(" + "), t.valid_loss.map_or("diverged".into(), short)])
        .collect();
    let caption = "Trial steps on each slice alone, before the first step";
    let body = html! {
        p.dim {
            "A slice is the part of the model that one step may change; all else stays as it was. "
            "The norm of a change is its length, beside that of the block itself."
        }
        @if run.slices_everything() {
            p { "Every step changed the whole model." }
        } @else if let Some(picture) = picture(run) {
            (figure(&picture))
        }
        @if let Some(picture) = trial_picture(run) { (figure(&picture)) }
        @if !trials.is_empty() { (table(caption, &["slice", "held-back loss"], &trials)) }
        @if run.blocks() > 0 { (block_table(run)) }
    };
    Some(Section { id: "blocks", heading: "What was sliced and what changed", body })
}

/// In how many steps each block or sublayer was sliced. `None` if every step changed the whole
/// model.
pub fn picture(run: &RunFolder) -> Option<Picture> {
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

/// What the trial steps on each slice alone gained on the held-back rows. `None` without trials.
pub fn trial_picture(run: &RunFolder) -> Option<Picture> {
    let losses = run.trials.iter().filter_map(|trial| trial.valid_loss);
    let before = run.validations.iter().find(|line| line.step == 0).map(|line| line.valid_loss);
    // Without validations the worst trial stands for the base.
    let worst = before.or_else(|| losses.clone().max_by(f64::total_cmp))?;
    let best = losses.min_by(f64::total_cmp)?;
    let bar = |trial: &TrialLine| Bar {
        label: trial.trial.join("+"),
        value: trial.valid_loss.map_or(0.0, |loss| (worst - loss).max(0.0)),
        on: trial.valid_loss == Some(best),
    };
    let bars_of: Vec<Bar> = run.trials.iter().map(bar).collect();
    let subtitle =
        "fall of the held-back loss by trial steps on each slice alone; filled: the most";
    Some(bars("trials", "What trial steps gained", subtitle, &bars_of))
}

/// Sensitivity, steps and change of every block.
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
    let caption = "Every block: how sensitive, how often sliced, how far changed, and how much of \
                   it lies in changed tensors";
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
