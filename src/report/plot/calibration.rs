//! The picture of a *calibration*: the scores of a scorer against stored scores.

use maud::html;

use super::{Picture, px};
use crate::scorers::calibration::Calibration;

/// One disk for each tenth of the scorer's scale, at the mean stored score of the texts that have
/// such a score. Its area is the number of texts. On the diagonal both scores agree.
pub fn calibration(found: &Calibration, scorer: &str) -> Picture {
    const LEFT: f64 = 64.0;
    const TOP: f64 = 10.0;
    const SIDE: f64 = 320.0;
    let at = |score: f64, stored: f64| (LEFT + SIDE * score, TOP + SIDE * (1.0 - stored));
    let radius = |texts: usize| 3.0 + 22.0 * (texts as f64 / found.texts as f64).sqrt();
    let ((x1, y1), (x2, y2), middle) = (at(0.0, 0.0), at(1.0, 1.0), TOP + SIDE / 2.0);
    let body = html! {
        @for tick in (0..=5).map(|t| f64::from(t) / 5.0) {
            @let (x, y) = at(tick, tick);
            line.grid x1=(LEFT) y1=(px(y)) x2=(px(LEFT + SIDE)) y2=(px(y)) {}
            text.dim.end x=(px(LEFT - 8.0)) y=(px(y + 4.0)) { (format!("{tick:.1}")) }
            text.dim.middle x=(px(x)) y=(px(TOP + SIDE + 18.0)) { (format!("{tick:.1}")) }
        }
        line.mark x1=(x1) y1=(y1) x2=(x2) y2=(y2) {}
        text.ink.middle x=(px(LEFT + SIDE / 2.0)) y=(px(TOP + SIDE + 40.0)) { "score of " (scorer) }
        text.ink.middle x="18" y=(px(middle)) transform=(format!("rotate(-90 18 {middle})")) {
            "mean stored score"
        }
        @for bin in &found.bins {
            @if let Some(stored) = bin.stored {
                @let (x, y) = at((bin.from + bin.to) / 2.0, stored);
                @let range = format!("{:.1} to {:.1}", bin.from, bin.to);
                circle.disk cx=(px(x)) cy=(px(y)) r=(px(radius(bin.texts))) {
                    title { (range) ": " (bin.texts) " texts, stored " (format!("{stored:.2}")) }
                }
            }
        }
    };
    let figures =
        format!("{} texts, Spearman {:.3}, AUC {:.3}", found.texts, found.spearman, found.auc);
    Picture {
        id: "calibration".into(),
        title: format!("{scorer} against stored scores"),
        subtitle: format!("{figures}; areas: numbers of texts"),
        about: format!(
            "The mean stored score of the texts that {scorer} gives each tenth of its scale. \
             {figures}."
        ),
        width: 480.0,
        height: TOP + SIDE + 58.0,
        body,
    }
}
