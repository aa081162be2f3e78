//! How the run went: its numbers over the steps.

use maud::html;

use super::NO_STEP;
use crate::report::folder::RunFolder;
use crate::report::page::{Section, figure, table};
use crate::report::plot;
use crate::report::plot::{Curve, Look, Picture, short};
use crate::train::log::{StepLine, ValidationLine};

/// A diagram of one or two curves.
struct Diagram {
    /// The name for files.
    id: &'static str,
    title: &'static str,
    curves: Vec<Curve>,
}

fn diagrams(run: &RunFolder) -> [Diagram; 6] {
    let steps = |get: fn(&StepLine) -> Option<f64>| -> Vec<(usize, f64)> {
        run.steps.iter().filter_map(|s| Some((s.step, get(s)?))).collect()
    };
    let validations = |get: fn(&ValidationLine) -> Option<f64>| -> Vec<(usize, f64)> {
        run.validations.iter().filter_map(|v| Some((v.step, get(v)?))).collect()
    };
    let curve = |name, look, points| Curve { name, look, points };
    let diagram = |id, title, curves| Diagram { id, title, curves };
    [
        diagram(
            "loss",
            "Loss",
            vec![
                curve("training", Look::Solid, steps(|s| Some(s.loss))),
                curve("held back", Look::Dots, validations(|v| Some(v.valid_loss))),
            ],
        ),
        diagram(
            "nll",
            "NLL (nats a token)",
            vec![
                curve("chosen", Look::Solid, steps(|s| s.nll_good)),
                curve("rejected", Look::Dashed, steps(|s| s.nll_bad)),
            ],
        ),
        diagram(
            "kl",
            "KL from the base (nats a token)",
            vec![curve("KL", Look::Solid, steps(|s| s.kl))],
        ),
        diagram(
            "ppl",
            "Perplexity of the guard's text",
            vec![curve("perplexity", Look::Dots, validations(|v| v.ppl))],
        ),
        diagram(
            "grad-norm",
            "Gradient norm",
            vec![curve("before clipping", Look::Solid, steps(|s| Some(s.grad_norm)))],
        ),
        diagram(
            "lr",
            "Learning rate",
            vec![curve("learning rate", Look::Solid, steps(|s| Some(s.lr)))],
        ),
    ]
}

/// The diagrams that have something to draw.
pub fn pictures(run: &RunFolder) -> Vec<Picture> {
    diagrams(run)
        .iter()
        .filter_map(|d| plot::curves(d.id, d.title, &d.curves, run.last(), run.kept()))
        .collect()
}

pub fn section(run: &RunFolder) -> Option<Section> {
    let diagrams = diagrams(run);
    let rows: Vec<[String; 5]> = diagrams
        .iter()
        .flat_map(|Diagram { title, curves, .. }| {
            let name = move |curve: &Curve| match curves.len() {
                1 => (*title).to_owned(),
                _ => format!("{title}: {}", curve.name),
            };
            curves.iter().filter_map(move |curve| summary(name(curve), curve))
        })
        .collect();
    let head = ["curve", "first", "last", "lowest", "at step"];
    let body = html! {
        @if rows.is_empty() { p { (NO_STEP) } } @else {
            div.pair { @for picture in pictures(run) { (figure(&picture)) } }
            p.dim {
                "The loss is what the steps lower: the objective, and the KL term that holds the "
                "model to what it was. NLL and KL are in nats a token, as above. Each step is of "
                "its own few pairs, so curves are ragged. "
                "Where several steps share a point, the line is their mean, and eight of ten lie "
                "in the band."
            }
            (table("The curves in numbers", &head, &rows))
        }
    };
    Some(Section { id: "curves", heading: "How the run went", body })
}

/// The name of a curve, and its first, last and lowest value. `None` if it has no point.
fn summary(name: String, curve: &Curve) -> Option<[String; 5]> {
    let lowest = curve.points.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let (first, last) = (curve.points.first()?, curve.points.last()?);
    Some([name, short(first.1), short(last.1), short(lowest.1), lowest.0.to_string()])
}
