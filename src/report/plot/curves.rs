//! Curves: one or two numbers over the steps.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::heat::kept_mark;
use super::{Picture, Scale, numbers, px, rulers, short};

const LEFT: f64 = 56.0;
const TOP: f64 = 40.0;
const WIDTH: f64 = 344.0;
const HEIGHT: f64 = 170.0;
/// More points than this are joined to means.
const POINTS: usize = 300;

/// More disks than this would hide their line.
const DISKS: usize = 40;

/// How a line is told from the other one without colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Solid,
    Dashed,
    /// A thin line with disks.
    Dots,
}

/// A number over the steps.
#[derive(Debug, Clone)]
pub struct Line {
    pub name: &'static str,
    pub look: Look,
    /// (step, value), in order.
    pub points: Vec<(usize, f64)>,
}

/// The mean of some points on end, and where eight of ten lie.
struct Point {
    step: f64,
    mean: f64,
    low: f64,
    high: f64,
}

impl Line {
    fn points(&self, last: usize) -> Vec<Point> {
        let together = if self.look == Look::Dots { 1 } else { last.div_ceil(POINTS).max(1) };
        let groups = self.points.chunk_by(|a, b| a.0.div_ceil(together) == b.0.div_ceil(together));
        groups
            .map(|points| {
                let n = points.len();
                let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
                values.sort_by(f64::total_cmp);
                Point {
                    step: points.iter().map(|p| p.0 as f64).sum::<f64>() / n as f64,
                    mean: values.iter().sum::<f64>() / n as f64,
                    low: values[n / 10],
                    high: values[n - 1 - n / 10],
                }
            })
            .collect()
    }

    /// First, last and lowest value, in words.
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

/// The lines that have points. `None` if none has. Where steps are missing, so is the line.
pub fn curves(
    id: &str,
    title: &str,
    lines: &[Line],
    last: usize,
    kept: Option<usize>,
) -> Option<Picture> {
    let lines: Vec<(&Line, Vec<Point>)> =
        lines.iter().filter(|l| !l.points.is_empty()).map(|l| (l, l.points(last))).collect();
    if lines.is_empty() {
        return None;
    }
    let values =
        lines.iter().flat_map(|(_, points)| points.iter().flat_map(|p| [p.mean, p.low, p.high]));
    let y = Scale::vertical(values, false, TOP, HEIGHT);
    let x = Scale::steps(0.0, last.max(1) as f64, LEFT, LEFT + WIDTH);
    let body = html! {
        (rulers(&y, LEFT, LEFT + WIDTH))
        @for (line, points) in &lines { (draw(line, points, &x, &y)) }
        @for (index, (line, _)) in lines.iter().enumerate() { (key(line, LEFT + 150.0 * index as f64)) }
        @if let Some(kept) = kept.filter(|k| *k <= last) { (kept_mark(&x, kept, TOP, TOP + HEIGHT)) }
        (numbers(&x, TOP + HEIGHT, "step"))
    };
    Some(Picture {
        id: id.into(),
        title: title.into(),
        subtitle: String::new(),
        about: lines.iter().map(|(line, _)| line.about()).collect::<Vec<_>>().join(" "),
        width: LEFT + WIDTH + 16.0,
        height: TOP + HEIGHT + 42.0,
        body,
    })
}

fn draw(line: &Line, points: &[Point], x: &Scale, y: &Scale) -> Markup {
    let mut gaps: Vec<f64> = points.windows(2).map(|w| w[1].step - w[0].step).collect();
    gaps.sort_by(f64::total_cmp);
    let usual = gaps.get(gaps.len() / 2).copied().unwrap_or(1.0);
    let pieces: Vec<&[Point]> = points.chunk_by(|a, b| b.step - a.step < 2.0 * usual).collect();
    let (mut path, mut band) = (String::new(), String::new());
    for piece in pieces {
        for (index, p) in piece.iter().enumerate() {
            let _ = write!(
                path,
                "{}{} {}",
                if index == 0 { "M" } else { "L" },
                px(x.at(p.step)),
                px(y.at(p.mean))
            );
        }
        if piece.iter().any(|p| p.high > p.low) {
            let up = piece.iter().map(|p| (p.step, p.high));
            let down = piece.iter().rev().map(|p| (p.step, p.low));
            for (index, (step, value)) in up.chain(down).enumerate() {
                let _ = write!(
                    band,
                    "{}{} {}",
                    if index == 0 { "M" } else { "L" },
                    px(x.at(step)),
                    px(y.at(value))
                );
            }
            band.push('z');
        }
    }
    html! {
        @if !band.is_empty() { path.band d=(band) {} }
        path class=(class(line.look)) d=(path) {}
        @if line.look == Look::Dots {
            @for p in points.iter().step_by(points.len().div_ceil(DISKS)) {
                circle.dot cx=(px(x.at(p.step))) cy=(px(y.at(p.mean))) r="2.6" {}
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

/// A piece of the line and its name.
fn key(line: &Line, x: f64) -> Markup {
    html! {
        path class=(class(line.look)) d=(format!("M{} 12h26", px(x))) {}
        @if line.look == Look::Dots { circle.dot cx=(px(x + 13.0)) cy="12" r="2.6" {} }
        text.ink x=(px(x + 32.0)) y="16" { (line.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_become_means_and_gaps_stay_gaps() {
        let points: Vec<(usize, f64)> =
            (1..=3000).filter(|s| !(1001..=1500).contains(s)).map(|s| (s, s as f64)).collect();
        let line = Line { name: "loss", look: Look::Solid, points };
        let means = line.points(3000);
        assert!(means.len() <= POINTS && means.iter().all(|p| p.low < p.mean && p.mean < p.high));
        let picture = curves("loss", "Loss", &[line], 3000, None).expect("a line");
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
        let line = Line { name: "KL", look: Look::Solid, points: Vec::new() };
        assert!(curves("kl", "KL", &[line], 10, None).is_none());
    }
}
