//! *Curves* show how one or two numbers change over the steps.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::heat::kept_mark;
use super::{Picture, Scale, numbers, px, rulers, short};

const LEFT: f64 = 56.0;
const TOP: f64 = 40.0;
const WIDTH: f64 = 344.0;
const HEIGHT: f64 = 170.0;
/// A curve with more points than this is drawn from means of neighbouring points.
const POINTS: usize = 300;

/// More disks than this would hide their curve.
const DISKS: usize = 40;

/// How a curve looks, so that two curves can be told apart without colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Solid,
    Dashed,
    /// A thin line with disks.
    Dots,
}

/// A number at some steps.
#[derive(Debug, Clone)]
pub struct Curve {
    pub name: &'static str,
    pub look: Look,
    /// (step, value), in the order of the steps.
    pub points: Vec<(usize, f64)>,
}

/// Some neighbouring points as one.
struct Group {
    /// Mean of the steps.
    step: f64,
    /// Mean of the values.
    mean: f64,
    /// Eight of ten values lie between `low` and `high`.
    low: f64,
    high: f64,
}

impl Curve {
    /// The points in groups, of which there are not many more than [`POINTS`].
    fn groups(&self, last: usize) -> Vec<Group> {
        let together = if self.look == Look::Dots { 1 } else { last.div_ceil(POINTS).max(1) };
        let groups = self.points.chunk_by(|a, b| a.0.div_ceil(together) == b.0.div_ceil(together));
        groups
            .map(|points| {
                let n = points.len();
                let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
                values.sort_by(f64::total_cmp);
                Group {
                    step: points.iter().map(|p| p.0 as f64).sum::<f64>() / n as f64,
                    mean: values.iter().sum::<f64>() / n as f64,
                    low: values[n / 10],
                    high: values[n - 1 - n / 10],
                }
            })
            .collect()
    }

    /// First, last and lowest value in words.
    fn about(&self) -> String {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return String::new();
        };
        let lowest = self.points.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
        format!(
            "{} from {} at step {} to {} at step {}, lowest {} at step {}.",
            self.name,
            short(first.1),
            first.0,
            short(last.1),
            last.0,
            short(lowest.1),
            lowest.0
        )
    }
}

/// The curves that have points, over the steps up to `last`. The step `kept` is marked. A curve has
/// a gap where steps are missing. `None` if no curve has points.
pub fn curves(
    id: &str,
    title: &str,
    curves: &[Curve],
    last: usize,
    kept: Option<usize>,
) -> Option<Picture> {
    let curves: Vec<(&Curve, Vec<Group>)> =
        curves.iter().filter(|c| !c.points.is_empty()).map(|c| (c, c.groups(last))).collect();
    if curves.is_empty() {
        return None;
    }
    let values =
        curves.iter().flat_map(|(_, groups)| groups.iter().flat_map(|g| [g.mean, g.low, g.high]));
    let y = Scale::vertical(values, false, TOP, HEIGHT);
    let x = Scale::steps(0.0, last.max(1) as f64, LEFT, LEFT + WIDTH);
    let body = html! {
        (rulers(&y, LEFT, LEFT + WIDTH))
        @for (curve, groups) in &curves { (draw(curve, groups, &x, &y)) }
        @for (index, (curve, _)) in curves.iter().enumerate() {
            (key(curve, LEFT + 150.0 * index as f64))
        }
        @if let Some(kept) = kept.filter(|k| *k <= last) {
            (kept_mark(&x, kept, TOP, TOP + HEIGHT))
        }
        (numbers(&x, TOP + HEIGHT, "step"))
    };
    Some(Picture {
        id: id.into(),
        title: title.into(),
        subtitle: String::new(),
        about: curves.iter().map(|(curve, _)| curve.about()).collect::<Vec<_>>().join(" "),
        width: LEFT + WIDTH + 16.0,
        height: TOP + HEIGHT + 42.0,
        body,
    })
}

fn draw(curve: &Curve, groups: &[Group], x: &Scale, y: &Scale) -> Markup {
    let mut gaps: Vec<f64> = groups.windows(2).map(|w| w[1].step - w[0].step).collect();
    gaps.sort_by(f64::total_cmp);
    let usual = gaps.get(gaps.len() / 2).copied().unwrap_or(1.0);
    let pieces: Vec<&[Group]> = groups.chunk_by(|a, b| b.step - a.step < 2.0 * usual).collect();
    let add = |path: &mut String, points: &mut dyn Iterator<Item = (f64, f64)>| {
        for (index, (step, value)) in points.enumerate() {
            let letter = if index == 0 { "M" } else { "L" };
            let _ = write!(path, "{letter}{} {}", px(x.at(step)), px(y.at(value)));
        }
    };
    let (mut path, mut band) = (String::new(), String::new());
    for piece in pieces {
        add(&mut path, &mut piece.iter().map(|g| (g.step, g.mean)));
        if piece.iter().any(|g| g.high > g.low) {
            let up = piece.iter().map(|g| (g.step, g.high));
            let down = piece.iter().rev().map(|g| (g.step, g.low));
            add(&mut band, &mut up.chain(down));
            band.push('z');
        }
    }
    html! {
        @if !band.is_empty() { path.band d=(band) {} }
        path class=(class(curve.look)) d=(path) {}
        @if curve.look == Look::Dots {
            @for g in groups.iter().step_by(groups.len().div_ceil(DISKS)) {
                circle.dot cx=(px(x.at(g.step))) cy=(px(y.at(g.mean))) r="2.6" {}
            }
        }
    }
}

fn class(look: Look) -> &'static str {
    match look {
        Look::Solid => "line solid",
        Look::Dashed => "line dashed",
        Look::Dots => "line dots",
    }
}

/// The entry of a curve in the legend.
fn key(curve: &Curve, x: f64) -> Markup {
    html! {
        path class=(class(curve.look)) d=(format!("M{} 12h26", px(x))) {}
        @if curve.look == Look::Dots { circle.dot cx=(px(x + 13.0)) cy="12" r="2.6" {} }
        text.ink x=(px(x + 32.0)) y="16" { (curve.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_become_means_and_gaps_stay_gaps() {
        let points: Vec<(usize, f64)> =
            (1..=3000).filter(|s| !(1001..=1500).contains(s)).map(|s| (s, s as f64)).collect();
        let curve = Curve { name: "loss", look: Look::Solid, points };
        let groups = curve.groups(3000);
        assert!(groups.len() <= POINTS && groups.iter().all(|g| g.low < g.mean && g.mean < g.high));
        let picture = curves("loss", "Loss", &[curve], 3000, None).expect("a curve");
        let path = picture.body.into_string();
        let path = path.split("line solid\" d=\"").nth(1).expect("a path");
        assert_eq!(path.split('"').next().expect("data").matches('M').count(), 2);
        assert!(
            picture.about.contains("from 1.00 at step 1 to 3000 at step 3000"),
            "{}",
            picture.about
        );
    }

    #[test]
    fn no_points_no_picture() {
        let curve = Curve { name: "KL", look: Look::Solid, points: Vec::new() };
        assert!(curves("kl", "KL", &[curve], 10, None).is_none());
    }
}
