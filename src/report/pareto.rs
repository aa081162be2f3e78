//! The trade-off: toxicity against perplexity for every method and every weights kept along its way.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::plot::{escape, round_step, short};

/// One state of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// `None`: what the run kept in the end.
    pub step: Option<usize>,
    pub toxicity: f64,
    pub perplexity: f64,
}

/// Perplexity up to this many times the base's counts.
pub const WORST: f64 = 1.25;

/// The share of the box from (the base's perplexity, no toxicity) to ([`WORST`] times it, the base's toxicity) in which
/// some point is better in both: 1 is no toxicity at no cost, 0 nothing gained. (The hypervolume indicator of
/// multi-objective optimization, Zitzler & Thiele 1998.)
pub fn hypervolume(base: &Point, points: &[Point]) -> f64 {
    let mut inside: Vec<(f64, f64)> = points
        .iter()
        .map(|p| ((p.perplexity / base.perplexity - 1.0).max(0.0) / (WORST - 1.0), p.toxicity / base.toxicity))
        .filter(|(cost, left)| *cost < 1.0 && *left < 1.0)
        .collect();
    inside.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let (mut area, mut lowest) = (0.0, 1.0);
    for (cost, left) in inside {
        if left < lowest {
            area += (1.0 - cost) * (lowest - left);
            lowest = left;
        }
    }
    area
}

/// The marks of rows: shapes tell them apart without colour.
const SHAPES: [&str; 6] = [
    "M-5-5H5V5H-5Z",
    "M0-6.5L6.5 0L0 6.5L-6.5 0Z",
    "M0-6L6 5H-6Z",
    "M0 6L6-5H-6Z",
    "M-6-2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z",
    "M-6 0A6 6 0 1 0 6 0A6 6 0 1 0 -6 0Z",
];
const COLOURS: [&str; 6] = ["#b3361e", "#1d5fa8", "#2a7d3f", "#8a4fa3", "#b07a00", "#4a5568"];

/// Rows with their points in the order of their steps, and the base's.
pub fn pareto_svg(title: &str, text: &str, base: &Point, rows: &[(String, Vec<Vec<Point>>)]) -> String {
    const LEFT: f64 = 64.0;
    const TOP: f64 = 56.0;
    const WIDTH: f64 = 420.0;
    const HEIGHT: f64 = 300.0;
    let all = || rows.iter().flat_map(|(_, runs)| runs).flatten().chain([base]);
    let bound = |of: fn(&Point) -> f64, from: f64, pick: fn(f64, f64) -> f64| all().map(of).fold(from, pick);
    let low = bound(|p| p.perplexity, f64::INFINITY, f64::min);
    // What is far off would press all else into a corner.
    let high = bound(|p| p.perplexity, 0.0, f64::max).min(base.perplexity * 2.0).max(low * 1.01);
    let x_step = round_step((high - low) / 4.0);
    let (x0, x1) = ((low / x_step).floor() * x_step, (high / x_step).ceil() * x_step);
    let y_step = round_step(bound(|p| p.toxicity, 0.0, f64::max).max(1e-6) / 4.0);
    let y1 = (bound(|p| p.toxicity, 0.0, f64::max) / y_step).ceil().max(1.0) * y_step;
    let x = |ppl: f64| LEFT + WIDTH * ((ppl - x0) / (x1 - x0)).clamp(0.0, 1.0);
    let y = |toxicity: f64| TOP + HEIGHT * (1.0 - toxicity / y1);
    let height = (TOP + HEIGHT + 60.0).max(TOP + 30.0 + 22.0 * rows.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height:.0}\" width=\"720\" height=\"{height:.0}\" \
         role=\"img\" aria-label=\"{0}\" font-family=\"sans-serif\" font-size=\"13\">\n<title>{0}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#1a1a1a\">{0}</text>\n\
         <text x=\"16\" y=\"43\" fill=\"#555555\">lower left is better; filled: what a run kept, hollow: along its way</text>\n",
        escape(title)
    );
    let mut tick = y1;
    while tick > -y_step / 2.0 {
        let at = y(tick.max(0.0));
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\n<text x=\"{:.1}\" \
             y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{}</text>\n",
            LEFT + WIDTH,
            LEFT - 8.0,
            at + 4.0,
            short(tick.max(0.0))
        );
        tick -= y_step;
    }
    let mut tick = x0;
    while tick < x1 + x_step / 2.0 {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
            x(tick),
            TOP + HEIGHT + 18.0,
            short(tick)
        );
        tick += x_step;
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#1a1a1a\">perplexity of {}</text>\n\
         <text x=\"18\" y=\"{3:.1}\" text-anchor=\"middle\" fill=\"#1a1a1a\" transform=\"rotate(-90 18 {3:.1})\">toxicity\
         </text>\n",
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 40.0,
        escape(text),
        TOP + HEIGHT / 2.0
    );
    let mark = |svg: &mut String, x: f64, y: f64, row: usize, filled: bool, title: &str| {
        let (shape, colour) = (SHAPES[row % SHAPES.len()], COLOURS[row % COLOURS.len()]);
        let fill = if filled { colour } else { "#ffffff" };
        let size = if filled { 1.0 } else { 0.7 };
        let _ = writeln!(
            svg,
            "<path d=\"{shape}\" transform=\"translate({x:.1} {y:.1}) scale({size})\" fill=\"{fill}\" \
             stroke=\"{colour}\" stroke-width=\"1.5\"><title>{}</title></path>",
            escape(title)
        );
    };
    for (row, (name, runs)) in rows.iter().enumerate() {
        for points in runs {
            let path: Vec<String> = std::iter::once(base)
                .chain(points)
                .map(|p| format!("{:.1},{:.1}", x(p.perplexity), y(p.toxicity)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.5\"/>",
                path.join(" "),
                COLOURS[row % COLOURS.len()]
            );
            for point in points {
                let step = point.step.map_or("kept".into(), |s| format!("step {s}"));
                let (tox, ppl) = (short(point.toxicity), short(point.perplexity));
                let title = format!("{name}, {step}: toxicity {tox}, perplexity {ppl}");
                mark(&mut svg, x(point.perplexity), y(point.toxicity), row, point.step.is_none(), &title);
            }
        }
        let at = TOP + 12.0 + 22.0 * (row + 1) as f64;
        mark(&mut svg, LEFT + WIDTH + 26.0, at - 4.0, row, true, name);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"#1a1a1a\">{}</text>",
            LEFT + WIDTH + 40.0,
            escape(name)
        );
    }
    let (bx, by) = (x(base.perplexity), y(base.toxicity));
    let _ = write!(
        svg,
        "<circle cx=\"{bx:.1}\" cy=\"{by:.1}\" r=\"6\" fill=\"#1a1a1a\"><title>vanilla</title></circle>\n<circle cx=\"{:.1}\" \
         cy=\"{:.1}\" r=\"6\" fill=\"#1a1a1a\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1a1a1a\">vanilla</text>\n",
        LEFT + WIDTH + 26.0,
        TOP + 8.0,
        LEFT + WIDTH + 40.0,
        TOP + 12.0
    );
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(toxicity: f64, perplexity: f64) -> Point {
        Point { step: None, toxicity, perplexity }
    }

    #[test]
    fn the_area_is_that_of_the_dominated_box() {
        let base = point(50.0, 100.0);
        assert_eq!(hypervolume(&base, &[]), 0.0);
        // No toxicity at no cost; better perplexity than the base's is no more than that.
        assert_eq!(hypervolume(&base, &[point(0.0, 90.0)]), 1.0);
        // Half the toxicity at half the tolerated cost: a quarter.
        let half = point(25.0, 112.5);
        assert!((hypervolume(&base, std::slice::from_ref(&half)) - 0.25).abs() < 1e-12);
        // A dominated point adds nothing; one that costs nothing and gains a fifth adds what the other has not.
        assert!((hypervolume(&base, &[half.clone(), point(30.0, 120.0)]) - 0.25).abs() < 1e-12);
        assert!((hypervolume(&base, &[half, point(40.0, 100.0)]) - (0.2 + 0.5 * 0.3)).abs() < 1e-12);
        assert_eq!(hypervolume(&base, &[point(10.0, 130.0), point(60.0, 100.0)]), 0.0);
    }

    #[test]
    fn every_point_is_drawn() {
        let way = Point { step: Some(5), ..point(40.0, 101.0) };
        let rows = [("a<b".to_owned(), vec![vec![way, point(20.0, 103.0)]])];
        let svg = pareto_svg("t", "wiki", &point(50.0, 100.0), &rows);
        // One in the legend.
        assert_eq!(svg.matches("<path").count(), 3);
        assert!(svg.contains("a&lt;b, step 5: toxicity 40.0, perplexity 101"), "{svg}");
    }
}
