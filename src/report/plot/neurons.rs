//! The *neuron map* of a neuron-level repair shows which neurons of which blocks were changed, and
//! how far.

use std::fmt::Write as _;

use maud::html;

use super::heat::{LEFT, LEVELS, Levels, TOP, WIDTH, runs, scale_of};
use super::{Picture, Scale, numbers, px, short};
use crate::step::neurons::change::Changed;

/// If a block has more neurons than this, several neurons share a column.
const COLUMNS: usize = 168;

/// The data of a neuron map.
pub struct NeuronMap<'a> {
    pub blocks: usize,
    /// Neurons of one block.
    pub width: usize,
    pub changed: &'a Changed,
    /// Block and number of the neurons that are in the table of tokens.
    pub marked: &'a [(usize, usize)],
}

impl NeuronMap<'_> {
    /// The changed neurons of a block.
    fn of(&self, block: usize) -> &[(usize, f32)] {
        self.changed.get(&block).map_or(&[], Vec::as_slice)
    }
}

/// The neuron map. The colour of a cell tells the norm of the change of its output rows.
pub fn neuron_map(map: &NeuronMap) -> Picture {
    let a_column = map.width.div_ceil(COLUMNS).max(1);
    let columns = map.width.div_ceil(a_column).max(1);
    // Whole pixels keep the file small: a cell takes 20 bytes.
    let side = (WIDTH / columns as f64).floor();
    let row = (400.0 / map.blocks.max(1) as f64).floor().clamp(14.0, 32.0);
    let cell = row - 6.0;
    let bottom = TOP + row * map.blocks as f64;
    let right = LEFT + side * columns as f64;
    let norms: Vec<Vec<Option<f64>>> = (0..map.blocks)
        .map(|block| {
            let mut norms = vec![None; columns];
            for &(neuron, norm) in map.of(block).iter().filter(|(neuron, _)| *neuron < map.width) {
                let sum: &mut Option<f64> = &mut norms[neuron / a_column];
                *sum = Some(sum.unwrap_or(0.0).hypot(f64::from(norm)));
            }
            norms
        })
        .collect();
    let levels = Levels::of(norms.iter().flatten().flatten().copied().collect());
    let mut paths = vec![String::new(); LEVELS];
    for (block, norms) in norms.iter().enumerate() {
        let y = TOP + row * block as f64;
        for (level, run) in runs(norms.iter().map(|norm| norm.map(|norm| levels.level(norm)))) {
            let (x, width) = (LEFT + side * run.start as f64, side * run.len() as f64);
            let _ = write!(paths[level], "M{x} {y}h{width}v{cell}h-{width}z");
        }
    }
    let marked = map.marked.iter().filter(|(b, n)| *b < map.blocks && *n < map.width);
    let x = Scale::steps(0.0, (a_column * columns) as f64, LEFT, right);
    let body = html! {
        @for block in 0..map.blocks {
            @let y = TOP + row * block as f64;
            text.ink.end x=(px(LEFT - 7.0)) y=(px(y + cell / 2.0 + 4.0)) { (block) }
            line.grid x1=(px(LEFT)) y1=(px(y + cell + 0.5))
                x2=(px(right)) y2=(px(y + cell + 0.5)) {}
            text.dim x=(px(right + 8.0)) y=(px(y + cell / 2.0 + 4.0)) { (map.of(block).len()) }
        }
        text.dim.middle x="14" y=(px((TOP + bottom) / 2.0))
            transform=(format!("rotate(-90 14 {})", px((TOP + bottom) / 2.0))) { "block" }
        text.dim x=(px(right + 8.0)) y=(px(TOP - 7.0)) { "changed" }
        g.heat {
            @for (level, path) in paths.iter().enumerate() {
                @if !path.is_empty() { path class=(format!("h{level}")) d=(path) {} }
            }
            @for (block, neuron) in marked {
                rect.cut x=(px(LEFT + side * (neuron / a_column) as f64))
                    y=(px(TOP + row * *block as f64 + cell + 1.0)) width=(px(side)) height="4" {}
            }
        }
        (numbers(&x, bottom, "neuron"))
        (scale_of(&levels, bottom + 46.0))
        rect.cut x=(px(LEFT + 370.0)) y=(px(bottom + 50.0)) width="12" height="4" {}
        text.dim x=(px(LEFT + 388.0)) y=(px(bottom + 56.0)) { "among the most changed" }
    };
    let together = if a_column > 1 { format!(", {a_column} a column") } else { String::new() };
    let counts: Vec<String> =
        (0..map.blocks).map(|block| format!("{block}: {}", map.of(block).len())).collect();
    Picture {
        id: "neurons".into(),
        title: "Changed neurons by block".into(),
        subtitle: format!(
            "norm of the change of their output rows{together}; bar under a neuron: it is in the \
             table of tokens"
        ),
        about: format!(
            "Rows are blocks 0 to {}, columns their {} neurons{together}; from light to dark (in \
             dark mode from dark to light) the norm of the change rises from {} to {}. Changed \
             neurons by block: {}.",
            map.blocks.saturating_sub(1),
            map.width,
            short(levels.low),
            short(levels.high),
            counts.join(", ")
        ),
        width: LEFT + WIDTH + 70.0,
        height: bottom + 66.0,
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_the_norm_of_its_neurons_and_large_models_stay_small() {
        let changed = Changed::from([(1, vec![(0, 3.0), (1, 4.0), (339, 0.5)])]);
        let map = NeuronMap { blocks: 2, width: 340, changed: &changed, marked: &[(1, 339)] };
        let svg = neuron_map(&map).inline().into_string();
        // There are 114 columns of three neurons, and two of them hold a changed one.
        assert_eq!(svg.matches("<path class=\"h").count(), 2, "{svg}");
        assert!(
            svg.contains("rises from 0.500 to 5.00. Changed neurons by block: 0: 0, 1: 3."),
            "{svg}"
        );
        assert_eq!(svg.matches("<rect class=\"cut\"").count(), 2);
        // The worst case: no cell has the level of its neighbour.
        let all = |block: usize| {
            (0..6400).map(|i| (i, (1u32 << ((i / 39 + block) % 9)) as f32)).collect()
        };
        let changed: Changed = (0..48).map(|block| (block, all(block))).collect();
        let map = NeuronMap { blocks: 48, width: 6400, changed: &changed, marked: &[] };
        let svg = neuron_map(&map).file();
        assert!(svg.len() <= 300 << 10, "{} bytes", svg.len());
        assert!(svg.len() > 100 << 10, "{} bytes: it holds next to nothing", svg.len());
    }

    #[test]
    fn nothing_changed_is_an_empty_map() {
        let changed = Changed::new();
        let map = NeuronMap { blocks: 0, width: 0, changed: &changed, marked: &[(3, 7)] };
        assert!(!neuron_map(&map).inline().into_string().contains("NaN"));
    }
}
