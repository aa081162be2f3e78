//! The figures of a repair before and after it.

use super::record::RunRecord;
use crate::eval::kinds::figure;

/// The ids of the figures, in the order in which they are shown.
const SHOWN: [&str; 6] = ["toxic_fraction", "toxicity", "nll_chosen", "nll_rejected", "ppl", "kl"];

/// The rows of the before/after table: name with unit, before, after, change. Figures with their
/// intervals, where the record has them.
pub fn before_after(run: &RunRecord) -> Vec<[String; 4]> {
    if let Some(headline) = &run.headline {
        let rows = headline.rows(&run.data.perplexity_of).into_iter();
        return rows.map(|r| [r.name, r.before, r.after, r.change]).collect();
    }
    let row = |id: &str| {
        let figure = figure(id)?;
        let (b, a) = (*run.before.get(id)?, *run.after.get(id)?);
        let name = match id {
            "ppl" => format!("{} of {}", figure.label(), run.data.perplexity_of),
            _ => figure.label(),
        };
        let show = |x: f64| format!("{x:.*}", figure.digits);
        let change =
            if b == 0.0 { "–".into() } else { format!("{:+.1} %", 100.0 * (a / b - 1.0)) };
        Some([name, show(b), show(a), change])
    };
    SHOWN.into_iter().filter_map(row).collect()
}

/// The names of figures that have no value before or after.
pub fn not_measured(run: &RunRecord) -> Vec<&'static str> {
    let missing = |id: &&str| !run.before.contains_key(*id) || !run.after.contains_key(*id);
    let figures = SHOWN.into_iter().filter(missing).filter_map(figure);
    figures.map(|figure| figure.name).collect()
}
