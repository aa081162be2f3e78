//! The pictures of *trade-offs*: toxicity against perplexity, with a mark for each step at which a
//! run kept its weights, and toxicity against KL along the scale of a change.

use maud::{Markup, html};

use super::{Picture, Scale, px, rulers, short};
use crate::report::pareto::{Pareto, Point, ScaledPoint, Scales};

const LEFT: f64 = 56.0;
const TOP: f64 = 12.0;
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 300.0;

/// The shapes of marks. They tell methods apart without colour.
const SHAPES: [&str; 8] = [
    "M-5-5H5V5H-5Z",
    "M0-6.5L6.5 0L0 6.5L-6.5 0Z",
    "M0-6L6 5H-6Z",
    "M0 6L6-5H-6Z",
    "M-6-2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z",
    "M-6 0L-3-5.5H3L6 0L3 5.5H-3Z",
    "M-6-5L6 0L-6 5Z",
    "M6-5L-6 0L6 5Z",
];
/// What is drawn inside a mark. If all shapes are taken, the next methods have the same shapes with
/// a hole in a filled mark, or a ring in a hollow one.
const INSIDE: [&str; 2] = ["", "M-2.2 0A2.2 2.2 0 1 0 2.2 0A2.2 2.2 0 1 0-2.2 0Z"];

/// A point of a picture.
struct Spot {
    cost: f64,
    toxicity: f64,
    /// Whether it is what a run came to, and not a point beside it.
    is_end: bool,
    words: String,
}

/// Toxicity against what it costs.
struct TradeOff<'a> {
    id: &'static str,
    title: &'a str,
    subtitle: &'static str,
    /// What the axis of the costs is called.
    axis: String,
    /// Points that cost more stand at this edge, because they would press all others into a corner.
    most: f64,
    base: Spot,
    rows: Vec<(&'a str, Vec<Vec<Spot>>)>,
}

/// The points of every run in the order of their steps, joined by a line that begins at the base.
pub fn pareto(title: &str, found: &Pareto) -> Picture {
    let spot = |name: &str, point: &Point| {
        let step = point.step.map_or(String::new(), |s| format!(" at step {s}"));
        Spot {
            cost: point.perplexity,
            toxicity: point.toxicity,
            is_end: point.step.is_none(),
            words: format!(
                "{name}{step}: toxicity {}, perplexity {}",
                short(point.toxicity),
                short(point.perplexity)
            ),
        }
    };
    drawn(&TradeOff {
        id: "pareto",
        title,
        subtitle: "toxicity (up) against perplexity: lower left is better; filled: what a run \
                   kept, hollow: on its way",
        axis: format!("perplexity of {}", found.text),
        most: 2.0 * found.base.perplexity,
        base: spot("vanilla", &found.base),
        rows: spots(&found.rows, spot),
    })
}

/// Parts and multiples of what each run changed, joined by a line that begins at the base.
pub fn scales(title: &str, found: &Scales) -> Picture {
    let spot = |name: &str, point: &ScaledPoint| Spot {
        cost: point.kl,
        toxicity: point.toxicity,
        is_end: point.scale == 1.0,
        words: format!(
            "{name} × {}: toxicity {}, KL {}",
            short(point.scale),
            short(point.toxicity),
            short(point.kl)
        ),
    };
    drawn(&TradeOff {
        id: "scales",
        title,
        subtitle: "toxicity (up) against KL: lower left is better; filled: what a run changed, \
                   hollow: parts and multiples of it",
        axis: "KL from the base on normal text, nats a token".into(),
        most: f64::INFINITY,
        base: Spot {
            cost: 0.0,
            toxicity: found.base,
            is_end: true,
            words: format!("vanilla: toxicity {}, KL 0", short(found.base)),
        },
        rows: spots(&found.rows, spot),
    })
}

/// The points of every run as spots.
fn spots<P>(
    rows: &[(String, Vec<Vec<P>>)],
    spot: impl Fn(&str, &P) -> Spot,
) -> Vec<(&str, Vec<Vec<Spot>>)> {
    let run = |name: &str, points: &Vec<P>| points.iter().map(|p| spot(name, p)).collect();
    let row = |(name, runs): &'_ (String, Vec<Vec<P>>)| runs.iter().map(|r| run(name, r)).collect();
    rows.iter().map(|found| (found.0.as_str(), row(found))).collect()
}

fn drawn(found: &TradeOff) -> Picture {
    let all = || found.rows.iter().flat_map(|(_, runs)| runs).flatten().chain([&found.base]);
    let cost = |spot: &Spot| spot.cost.min(found.most);
    let x = Scale::horizontal(all().map(cost), LEFT, WIDTH);
    let y = Scale::vertical(all().map(|spot| spot.toxicity), true, TOP, HEIGHT);
    let at = |spot: &Spot| (x.at(cost(spot)), y.at(spot.toxicity));
    let key = |row: usize| (LEFT + WIDTH + 28.0, TOP + 10.0 + 22.0 * row as f64);
    let base = at(&found.base);
    let body = html! {
        (rulers(&y, LEFT, LEFT + WIDTH))
        @for value in x.ticks() {
            @let tick = px(x.at(value));
            line.grid x1=(tick) y1=(px(TOP + HEIGHT)) x2=(tick) y2=(px(TOP + HEIGHT + 4.0)) {}
            text.dim.middle x=(tick) y=(px(TOP + HEIGHT + 17.0)) { (x.label(value)) }
        }
        text.dim.middle x=(px(LEFT + WIDTH / 2.0)) y=(px(TOP + HEIGHT + 36.0)) { (found.axis) }
        @for (row, (name, runs)) in found.rows.iter().enumerate() {
            @for spots in runs {
                path class=(format!("way m{}", colour(row))) d=(way(base, spots, at)) {}
                @for spot in spots { (mark(row, at(spot), spot.is_end, &spot.words)) }
            }
            (mark(row, key(row + 1), true, name))
            text.ink x=(px(key(row + 1).0 + 14.0)) y=(px(key(row + 1).1 + 4.0)) { (name) }
        }
        circle.cut cx=(px(base.0)) cy=(px(base.1)) r="5.5" { title { (found.base.words) } }
        circle.cut cx=(px(key(0).0)) cy=(px(key(0).1)) r="5.5" {}
        text.ink x=(px(key(0).0 + 14.0)) y=(px(key(0).1 + 4.0)) { "vanilla" }
    };
    let ends = found.rows.iter().flat_map(|(_, runs)| runs.iter().filter_map(|spots| spots.last()));
    let about: Vec<&str> =
        std::iter::once(&found.base).chain(ends).map(|spot| spot.words.as_str()).collect();
    Picture {
        id: found.id.into(),
        title: found.title.into(),
        subtitle: found.subtitle.into(),
        about: format!("{}.", about.join(". ")),
        width: LEFT + WIDTH + 240.0,
        height: (TOP + HEIGHT + 44.0).max(key(found.rows.len() + 1).1),
        body,
    }
}

/// The outline of the mark of a method. The first `SHAPES.len() * INSIDE.len()` methods have
/// different ones.
fn shape(row: usize) -> String {
    format!("{}{}", SHAPES[row % SHAPES.len()], INSIDE[row / SHAPES.len() % INSIDE.len()])
}

/// The number of a method's colour. Methods with the same shape have different colours.
fn colour(row: usize) -> usize {
    (row + row / SHAPES.len()) % SHAPES.len()
}

/// The path from the base through the points.
fn way(base: (f64, f64), points: &[Spot], at: impl Fn(&Spot) -> (f64, f64)) -> String {
    let path = points.iter().map(at).map(|(x, y)| format!("L{} {}", px(x), px(y)));
    std::iter::once(format!("M{} {}", px(base.0), px(base.1))).chain(path).collect()
}

fn mark(row: usize, (x, y): (f64, f64), filled: bool, title: &str) -> Markup {
    let (how, scale) = if filled { ("filled", "1") } else { ("hollow", ".7") };
    let class = format!("m{} {how}", colour(row));
    let place = format!("translate({} {}) scale({scale})", px(x), px(y));
    html! {
        path class=(class) d=(shape(row)) fill-rule="evenodd" transform=(place) {
            title { (title) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_is_drawn() {
        let point = |step, toxicity, perplexity| Point { step, toxicity, perplexity };
        let rows = vec![(
            "a<b".to_owned(),
            vec![vec![point(Some(5), 40.0, 101.0), point(None, 20.0, 103.0)]],
        )];
        let found = Pareto { text: "wiki".into(), base: point(None, 50.0, 100.0), rows };
        let svg = pareto("t", &found).file();
        // One of the two is in the legend.
        assert_eq!(svg.matches("filled\"").count(), 2);
        assert_eq!(svg.matches("hollow\"").count(), 1);
        assert!(svg.contains("a&lt;b at step 5: toxicity 40.0, perplexity 101"), "{svg}");
    }

    #[test]
    fn marks_differ_without_their_colours() {
        for filled in [true, false] {
            let uncoloured = |row: usize| {
                let mark = mark(row, (0.0, 0.0), filled, "").into_string();
                mark.replace(&format!("\"m{} ", colour(row)), "\"")
            };
            let marks: BTreeSet<String> = (0..16).map(uncoloured).collect();
            assert_eq!(marks.len(), 16, "{marks:?}");
        }
    }
}
