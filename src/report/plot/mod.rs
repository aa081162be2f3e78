//! A *picture* is an SVG drawing without fonts and scripts. It can be read in dark and light mode,
//! on paper, and without colour.

mod bars;
mod calibration;
mod curves;
mod heat;
mod neurons;
mod pareto;

use maud::{Markup, PreEscaped, html};

use crate::base::plain::plain;

pub use bars::{Bar, bars, blocks};
pub use calibration::calibration;
pub use curves::{Curve, Look, curves};
pub use heat::{HeatMap, heat_map};
pub use neurons::{NeuronMap, neuron_map};
pub use pareto::{pareto, scales};

/// The style sheet with the classes of all pictures: `ink dim grid bar on line …`.
pub const STYLE: &str = include_str!("plot.css");

/// A drawing with its texts. On a page it has the style of the page, and a file brings its own.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The name for files, unique on a page.
    pub id: String,
    pub title: String,
    /// What a reader must know to read it, in one line.
    pub subtitle: String,
    /// What it shows, for people who can't see it.
    pub about: String,
    pub width: f64,
    pub height: f64,
    pub body: Markup,
}

impl Picture {
    /// The SVG element for a page, which shows title and subtitle itself.
    pub fn inline(&self) -> Markup {
        let (width, height) = (self.width.ceil(), self.height.ceil());
        html! {
            svg.plot role="img" viewBox=(format!("0 0 {width} {height}"))
                width=(width) height=(height)
                aria-labelledby=(format!("{0}-title {0}-about", self.id)) {
                (self.words())
                (self.body)
            }
        }
    }

    /// The contents of an `.svg` file, with title and subtitle above the drawing.
    pub fn file(&self) -> String {
        const HEADING: f64 = 52.0;
        // The subtitle begins at 16 pixels, and its letters are about 6.4 pixels wide.
        let words = 32.0 + 6.4 * self.subtitle.chars().count() as f64;
        let (width, height) =
            (self.width.max(words).max(600.0).ceil(), (self.height + HEADING).ceil());
        let svg = html! {
            svg.plot xmlns="http://www.w3.org/2000/svg" role="img" width=(width) height=(height)
                viewBox=(format!("0 -{HEADING} {width} {height}"))
                aria-labelledby=(format!("{0}-title {0}-about", self.id)) {
                (self.words())
                style { (PreEscaped(STYLE)) }
                rect.paper x="0" y=(-HEADING) width=(width) height=(height) {}
                text.ink.heading x="16" y="-28" { (self.title) }
                text.dim x="16" y="-9" { (self.subtitle) }
                (self.body)
            }
        };
        plain(&svg.into_string()).into_owned() + "\n"
    }

    fn words(&self) -> Markup {
        html! {
            title id={ (self.id) "-title" } { (self.title) }
            desc id={ (self.id) "-about" } { (self.about) }
        }
    }
}

/// An axis: it maps values to pixels.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    /// The pixel of `low`.
    from: f64,
    /// The pixel of `high`.
    to: f64,
    /// The distance of two ticks, as a value.
    step: f64,
}

impl Scale {
    /// A horizontal axis over whole numbers, such as steps.
    fn steps(low: f64, high: f64, from: f64, to: f64) -> Self {
        /// The least distance of two ticks in pixels.
        const BETWEEN: f64 = 70.0;
        Self {
            low,
            high,
            from,
            to,
            step: round_step(((high - low) * BETWEEN / (to - from)).max(1.0)),
        }
    }

    /// A vertical axis that spans these values, and begins and ends at a tick. With `zero` it
    /// begins at 0.
    fn vertical(values: impl Iterator<Item = f64>, zero: bool, top: f64, height: f64) -> Self {
        let (mut low, mut high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if zero || !low.is_finite() {
            (low, high) = (0.0, high.max(f64::MIN_POSITIVE));
        }
        if high - low <= f64::EPSILON * high.abs() {
            (low, high) = (low - 0.5 * low.abs().max(1e-6), high + 0.5 * high.abs().max(1e-6));
        }
        let step = round_step((high - low) / 4.0);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Self { low, high, from: top + height, to: top, step }
    }

    /// A horizontal axis that spans these values, and begins and ends at a tick.
    fn horizontal(values: impl Iterator<Item = f64>, left: f64, width: f64) -> Self {
        let Self { low, high, step, .. } = Self::vertical(values, false, 0.0, 0.0);
        Self { low, high, from: left, to: left + width, step }
    }

    /// The pixel of a value.
    fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let step = self.step;
        let (first, last) =
            ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        (first..=last).map(move |n| n as f64 * step)
    }

    /// The value of a tick as text, with as many digits as neighbouring ticks need to differ.
    fn label(&self, value: f64) -> String {
        if self.high < 1e-2 || self.high >= 1e6 {
            return if value == 0.0 {
                "0".into()
            } else {
                format!("{value:.1e}").replace(".0e", "e")
            };
        }
        // Steps of 2.5 need a decimal place more than steps of 2 or 5.
        let is_whole = |x: f64| (x - x.round()).abs() < 1e-6;
        let digits = (0..8).find(|digits| is_whole(self.step * 10f64.powi(*digits))).unwrap_or(8);
        format!("{value:.*}", digits as usize)
    }
}

/// A horizontal line at each tick, with its value at the left.
fn rulers(scale: &Scale, left: f64, right: f64) -> Markup {
    html! {
        @for value in scale.ticks() {
            @let y = scale.at(value);
            line.grid x1=(px(left)) y1=(px(y)) x2=(px(right)) y2=(px(y)) {}
            text.dim.end x=(px(left - 7.0)) y=(px(y + 4.0)) { (scale.label(value)) }
        }
    }
}

/// A horizontal axis of whole numbers below a drawing, with a name such as `step`.
fn numbers(scale: &Scale, y: f64, name: &str) -> Markup {
    html! {
        @for value in scale.ticks() {
            @let x = scale.at(value);
            line.grid x1=(px(x)) y1=(px(y)) x2=(px(x)) y2=(px(y + 4.0)) {}
            text.dim.middle x=(px(x)) y=(px(y + 17.0)) { (value) }
        }
        text.dim.middle x=(px((scale.from + scale.to) / 2.0)) y=(px(y + 34.0)) { (name) }
    }
}

/// Pixels as text, with at most one decimal place.
fn px(x: f64) -> String {
    let text = format!("{x:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// The least number that is at least `x` and is 1, 2, 2.5 or 5 times a power of ten.
pub fn round_step(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 2.5, 5.0].map(|m| m * power).into_iter().find(|s| *s >= x).unwrap_or(10.0 * power)
}

/// A number with three significant digits.
pub fn short(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 8) as usize;
    if x.abs() >= 1e5 || x.abs() < 1e-4 { format!("{x:.2e}") } else { format!("{x:.digits$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        assert_eq!(
            ["0", "12.3", "0.00123", "1.23e7"],
            [0.0, 12.34, 0.001234, 1.234e7].map(super::short).each_ref().map(|s| s.as_str())
        );
    }

    #[test]
    fn axes_begin_and_end_at_ticks() {
        let scale = Scale::vertical([0.31, 1.27].into_iter(), false, 0.0, 100.0);
        assert_eq!((scale.low, scale.high), (0.25, 1.5));
        assert_eq!(scale.ticks().count(), 6);
        assert_eq!((scale.at(0.25), scale.at(1.5)), (100.0, 0.0));
        let labels = |low: f64, high: f64| {
            let scale = Scale::vertical([low, high].into_iter(), false, 0.0, 1.0);
            scale.ticks().map(|value| scale.label(value)).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.0, 2.0), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(labels(0.0, 200.0), ["0", "50", "100", "150", "200"]);
        assert_eq!(labels(0.0, 1e-3), ["0", "2.5e-4", "5e-4", "7.5e-4", "1e-3"]);
        // One value makes an axis, and so does no value.
        for values in [vec![2.0, 2.0], vec![0.0], vec![]] {
            let scale = Scale::vertical(values.iter().copied(), false, 0.0, 100.0);
            assert!(scale.high > scale.low && scale.ticks().count() < 10, "{values:?}: {scale:?}");
        }
    }

    #[test]
    fn a_file_stands_alone_and_escapes() {
        let bars = bars("b", "a <b>", "", &[Bar { label: "0".into(), value: 1.0, on: true }]);
        let (file, inline) = (bars.file(), bars.inline().into_string());
        assert!(
            file.contains("xmlns") && file.contains("a &lt;b&gt;") && file.contains("<style>"),
            "{file}"
        );
        assert!(!inline.contains("xmlns") && !inline.contains("<style>"), "{inline}");
    }
}
