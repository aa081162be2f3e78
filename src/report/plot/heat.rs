//! The *heat map* shows the sensitivity by block and step, and under each block when it was sliced.

use std::fmt::Write as _;
use std::ops::Range;

use maud::{Markup, html};

use super::{Picture, Scale, numbers, px, short};
use crate::slice::{Part, Slice};
use crate::train::log::StepLine;

/// If there are more steps than this, several steps share a column.
const COLUMNS: usize = 240;
/// How many colours tell sensitivities apart.
pub(super) const LEVELS: usize = 9;
/// How many shades the bar under a block has. They tell in how many of a column's steps it was
/// sliced.
const SHADES: usize = 4;
pub(super) const LEFT: f64 = 56.0;
pub(super) const TOP: f64 = 20.0;
pub(super) const WIDTH: f64 = 672.0;

/// The data of a heat map.
pub struct HeatMap<'a> {
    pub steps: &'a [StepLine],
    pub blocks: usize,
    /// The step whose weights were kept.
    pub kept: Option<usize>,
}

/// The steps that share a column.
#[derive(Debug, Clone, Default)]
struct StepColumn {
    steps: usize,
    /// How many of the steps have sensitivities.
    measured: usize,
    /// Mean sensitivity by block.
    mean: Vec<f64>,
    /// In how many steps the attention and the MLP of each block were sliced.
    sliced: Vec<[usize; 2]>,
}

impl HeatMap<'_> {
    fn last(&self) -> usize {
        self.steps.iter().map(|s| s.step).max().unwrap_or(1).max(1)
    }

    fn columns(&self, steps_a_column: usize) -> Vec<StepColumn> {
        let empty = StepColumn {
            mean: vec![0.0; self.blocks],
            sliced: vec![[0; 2]; self.blocks],
            ..StepColumn::default()
        };
        let mut columns = vec![empty; self.last().div_ceil(steps_a_column)];
        for line in self.steps {
            let column = &mut columns[(line.step.max(1) - 1) / steps_a_column];
            column.steps += 1;
            if line.sensitivity.len() == self.blocks {
                column.measured += 1;
                column.mean.iter_mut().zip(&line.sensitivity).for_each(|(m, s)| *m += s);
            }
            for (block, part) in sliced(line, self.blocks) {
                let [attention, mlp] = &mut column.sliced[block];
                *attention += usize::from(part != Part::Mlp);
                *mlp += usize::from(part != Part::Attention);
            }
        }
        columns
            .iter_mut()
            .for_each(|c| c.mean.iter_mut().for_each(|m| *m /= c.measured.max(1) as f64));
        columns
    }
}

/// The parts of the blocks that a step changed.
fn sliced(line: &StepLine, blocks: usize) -> Vec<(usize, Part)> {
    match line.sliced() {
        Some(Slice::Units(units)) => {
            units.iter().filter(|u| u.block < blocks).map(|u| (u.block, u.part)).collect()
        }
        Some(Slice::Everything) => (0..blocks).map(|block| (block, Part::Whole)).collect(),
        None => Vec::new(),
    }
}

/// Levels on a logarithmic scale.
pub(super) struct Levels {
    /// The first percentile.
    pub low: f64,
    /// The last percentile.
    pub high: f64,
}

impl Levels {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.retain(|v| *v > 0.0);
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            values.get((share * values.len() as f64) as usize).or(values.last()).copied()
        };
        Self { low: at(0.01).unwrap_or(1.0), high: at(0.99).unwrap_or(1.0) }
    }

    /// The level of a value, from 0 to [`LEVELS`] − 1.
    pub fn level(&self, value: f64) -> usize {
        if value <= self.low {
            return 0;
        }
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        ((share * LEVELS as f64) as usize).min(LEVELS - 1)
    }
}

/// The heat map. `None` if no sensitivities were measured.
pub fn heat_map(heat: &HeatMap) -> Option<Picture> {
    let last = heat.last();
    let steps_a_column = last.div_ceil(COLUMNS);
    let columns = heat.columns(steps_a_column);
    if heat.blocks == 0 || columns.iter().all(|c| c.measured == 0) {
        return None;
    }
    let measured = columns.iter().filter(|c| c.measured > 0);
    let levels = Levels::of(measured.flat_map(|c| c.mean.iter().copied()).collect());
    let row = (400.0 / heat.blocks as f64).clamp(15.0, 34.0);
    let strip = (row * 0.3).max(4.8);
    // The gap of 3.5 pixels puts the bar nearer to its own block than to the next one.
    let cell = row - strip - 3.5;
    let bottom = TOP + row * heat.blocks as f64;
    let x = Scale::steps(0.5, last as f64 + 0.5, LEFT, LEFT + WIDTH);
    let edge = |column: usize| x.at(((column * steps_a_column).min(last)) as f64 + 0.5);
    let across = |run: &Range<usize>| (edge(run.start), edge(run.end) - edge(run.start));
    let mut paths = vec![String::new(); LEVELS];
    let mut cuts = vec![String::new(); SHADES];
    let halves = heat
        .steps
        .iter()
        .any(|line| sliced(line, heat.blocks).iter().any(|(_, part)| *part != Part::Whole));
    for block in 0..heat.blocks {
        let y = TOP + row * block as f64;
        let level = |c: &StepColumn| (c.measured > 0).then(|| levels.level(c.mean[block]));
        for (level, run) in runs(columns.iter().map(level)) {
            rectangle(&mut paths[level], across(&run), y, &px(cell));
        }
        // A block has one bar, or one for its attention and one for its MLP.
        let lanes: &[usize] = if halves { &[0, 1] } else { &[0] };
        let height = strip / lanes.len() as f64 - if halves { 1.0 } else { 0.0 };
        for &lane in lanes {
            let y = y + cell + 1.0 + strip * lane as f64 / lanes.len() as f64;
            let shade = |c: &StepColumn| {
                (c.sliced[block][lane] * SHADES).div_ceil(c.steps.max(1)).checked_sub(1)
            };
            for (shade, run) in runs(columns.iter().map(shade)) {
                rectangle(&mut cuts[shade], across(&run), y, &format!("{height:.1}"));
            }
        }
    }
    let body = html! {
        @for block in 0..heat.blocks {
            @let y = TOP + row * block as f64 + cell / 2.0 + 4.0;
            text.ink.end x=(px(LEFT - 7.0)) y=(px(y)) { (block) }
        }
        text.dim.middle x="14" y=(px((TOP + bottom) / 2.0))
            transform=(format!("rotate(-90 14 {})", px((TOP + bottom) / 2.0))) { "block" }
        g.heat {
            @for (level, path) in paths.iter().enumerate() {
                @if !path.is_empty() { path class=(format!("h{level}")) d=(path) {} }
            }
            @for (shade, path) in cuts.iter().enumerate() {
                @if !path.is_empty() { path.cut d=(path) fill-opacity=(opacity(shade)) {} }
            }
        }
        @if let Some(kept) = heat.kept.filter(|k| (1..=last).contains(k)) {
            (kept_mark(&x, kept, TOP, bottom))
        }
        (numbers(&x, bottom, "step"))
        (legend(&levels, bottom + 46.0))
    };
    Some(Picture {
        id: "heat".into(),
        title: "Sensitivity by block and step".into(),
        subtitle: format!(
            "gradient norm of the rejected responses' NLL; bar under a block: it was sliced{}",
            if halves { " (upper bar: attention, lower bar: MLP)" } else { "" }
        ),
        about: about(heat, steps_a_column, &levels),
        width: LEFT + WIDTH + 14.0,
        height: bottom + 66.0,
        body,
    })
}

/// Adds a rectangle to a path. `x` and the width are given together.
fn rectangle(path: &mut String, (x, width): (f64, f64), y: f64, height: &str) {
    let (x, y, width) = (px(x), px(y), px(width));
    let _ = write!(path, "M{x} {y}h{width}v{height}h-{width}z");
}

/// The ranges of neighbours with the same value. `None` belongs to no range.
pub(super) fn runs<T: PartialEq>(
    values: impl Iterator<Item = Option<T>>,
) -> Vec<(T, Range<usize>)> {
    let mut runs: Vec<(T, Range<usize>)> = Vec::new();
    for (index, value) in values.enumerate() {
        let Some(value) = value else { continue };
        match runs.last_mut() {
            Some((same, run)) if *same == value && run.end == index => run.end += 1,
            _ => runs.push((value, index..index + 1)),
        }
    }
    runs
}

/// A line at the step whose weights were kept.
pub(super) fn kept_mark(x: &Scale, step: usize, top: f64, bottom: f64) -> Markup {
    let at = x.at(step as f64);
    let side = if at > (x.from + x.to) / 2.0 { "end" } else { "start" };
    html! {
        line.mark x1=(px(at)) y1=(px(top - 8.0)) x2=(px(at)) y2=(px(bottom)) {}
        text.ink x=(px(at + if side == "end" { -4.0 } else { 4.0 })) y=(px(top - 7.0))
            text-anchor=(side) {
            "kept: step " (step)
        }
    }
}

fn opacity(shade: usize) -> f64 {
    (shade + 1) as f64 / SHADES as f64
}

/// Where the scale of levels begins, in pixels.
const START: f64 = LEFT + 48.0;
/// The width of one level in the scale.
const SIDE: f64 = 18.0;
/// Where the scale of levels ends.
const END: f64 = START + SIDE * LEVELS as f64;

/// The legend of the levels.
pub(super) fn scale_of(levels: &Levels, y: f64) -> Markup {
    html! {
        text.dim.end x=(px(START - 6.0)) y=(px(y + 10.0)) { (short(levels.low)) }
        @for level in 0..LEVELS {
            rect class=(format!("h{level}")) x=(px(START + SIDE * level as f64)) y=(px(y))
                width=(SIDE) height="12" {}
        }
        text.dim x=(px(END + 6.0)) y=(px(y + 10.0)) { (short(levels.high)) " (logarithmic)" }
    }
}

/// The legend of the levels and of the shades.
fn legend(levels: &Levels, y: f64) -> Markup {
    html! {
        (scale_of(levels, y))
        @for shade in 0..SHADES {
            rect.cut x=(px(END + 140.0 + 12.0 * shade as f64)) y=(px(y + 4.0))
                width="12" height="5" fill-opacity=(opacity(shade)) {}
        }
        text.dim x=(px(END + 146.0 + 12.0 * SHADES as f64)) y=(px(y + 10.0)) {
            "sliced, in few to all of the steps"
        }
    }
}

/// The map in words.
fn about(heat: &HeatMap, steps_a_column: usize, levels: &Levels) -> String {
    let mut counts = vec![0usize; heat.blocks];
    for line in heat.steps {
        let mut blocks: Vec<usize> =
            sliced(line, heat.blocks).into_iter().map(|(block, _)| block).collect();
        blocks.dedup();
        blocks.into_iter().for_each(|block| counts[block] += 1);
    }
    let steps = heat.steps.len();
    let most = (0..heat.blocks).rev().max_by_key(|&b| counts[b]).unwrap_or(0);
    let columns = if steps_a_column > 1 {
        format!(", {steps_a_column} steps a column")
    } else {
        String::new()
    };
    format!(
        "Rows are blocks 0 to {}, columns steps 1 to {}{columns}; from light to dark (in dark mode \
         from dark to light) the sensitivity rises from {} to {}. Block {most} was sliced most \
         often: in {} of {steps} steps.",
        heat.blocks - 1,
        heat.last(),
        short(levels.low),
        short(levels.high),
        counts[most]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, block: Option<usize>, slice: &[&str], sensitivity: &[f64]) -> StepLine {
        StepLine {
            step,
            block,
            slice: slice.iter().map(ToString::to_string).collect(),
            sensitivity: sensitivity.to_vec(),
            loss: 1.0,
            nll_good: None,
            nll_bad: None,
            kl: None,
            kl_weight: None,
            lr: 0.1,
            grad_norm: 1.0,
            seconds: 0.1,
            tokens: 0,
            operations: 0,
        }
    }

    #[test]
    fn columns_hold_means_and_slices() {
        let steps = [
            line(1, Some(0), &[], &[1.0, 2.0]),
            line(2, Some(1), &["1.mlp"], &[3.0, 2.0]),
            line(4, None, &[], &[]),
        ];
        let heat = HeatMap { steps: &steps, blocks: 2, kept: None };
        let columns = heat.columns(2);
        assert_eq!(columns.len(), 2);
        assert_eq!(
            (columns[0].steps, columns[0].measured, columns[0].mean.as_slice()),
            (2, 2, &[2.0, 2.0][..])
        );
        assert_eq!(columns[0].sliced, [[1, 1], [0, 1]]);
        // The fourth step changed the whole model.
        assert_eq!((columns[1].measured, &columns[1].sliced), (0, &vec![[1, 1], [1, 1]]));
    }

    #[test]
    fn without_sensitivities_there_is_no_map() {
        let steps = [line(1, Some(1), &[], &[])];
        assert!(heat_map(&HeatMap { steps: &steps, blocks: 2, kept: None }).is_none());
    }

    #[test]
    fn levels_are_logarithmic_and_equal_neighbours_one_run() {
        let levels = Levels { low: 1.0, high: 1000.0 };
        assert_eq!([0.0, 1.0, 31.0, 1000.0, 1e6].map(|v| levels.level(v)), [0, 0, 4, 8, 8]);
        let found = runs([Some(1), Some(1), None, Some(1), Some(2)].into_iter());
        assert_eq!(found, [(1, 0..2), (1, 3..4), (2, 4..5)]);
    }
}
