//! The *headline* of a run is what everyone reads of it: the figures before and after with their
//! intervals, and what they were measured on.

use serde::{Deserialize, Serialize};

use crate::eval::paired::{Estimate, Paired, sampled_id};
use crate::eval::verdict::{Continuations, Limits};

/// The figures of a run with their uncertainty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headline {
    pub figures: Vec<Paired>,
    /// The continuations that toxicity and repetition are of.
    pub continuations: Vec<Continuations>,
    /// Which rows were measured on, for people.
    pub rows: String,
    /// How many of the prompts stand among the pairs learned from, too.
    pub prompts_learned_from: usize,
    pub limits: Limits,
}

/// A figure's line in a table.
pub struct HeadlineRow {
    pub id: String,
    pub name: String,
    pub n: String,
    pub before: String,
    pub after: String,
    /// The values before and after without their intervals.
    pub values: [String; 2],
    /// With its interval.
    pub change: String,
    /// `real` or `chance`.
    pub real: &'static str,
}

/// The figures of a table, in their order.
const SHOWN: [&str; 12] = [
    "toxic_fraction",
    "sampled_toxic_fraction",
    "toxicity",
    "sampled_toxicity",
    "targets_said",
    "nll_chosen",
    "nll_rejected",
    "ppl",
    "kl",
    "repetition",
    "sampled_repetition",
    "margin",
];

/// Names that are short enough for a terminal.
const SHORT: [(&str, &str); 11] = [
    ("toxic_fraction", "toxic, greedy (%)"),
    ("sampled_toxic_fraction", "toxic, sampled (%)"),
    ("toxicity", "toxicity, greedy"),
    ("sampled_toxicity", "toxicity, sampled"),
    ("targets_said", "targets said (%)"),
    ("nll_chosen", "NLL of chosen"),
    ("nll_rejected", "NLL of rejected"),
    ("ppl", "perplexity"),
    ("kl", "KL from the base"),
    ("repetition", "repetition, greedy (%)"),
    ("sampled_repetition", "repetition, sampled (%)"),
];

/// How many of the figures a terminal shows.
const ON_TERMINAL: usize = 8;

fn digits(figure: &Paired, x: f64, most: usize) -> usize {
    let digits = figure.digits.min(most);
    if x.abs() >= 100.0 { digits.min(1) } else { digits }
}

/// `76.7 (69.2–84.2)`; a value without spread is alone.
fn estimate(figure: &Paired, of: &Estimate, most: usize) -> String {
    let digits = digits(figure, of.value, most);
    let show = |x: f64| match x.abs() {
        1e7.. => format!("{x:.1e}"),
        _ => format!("{x:.digits$}"),
    };
    match of.low == of.high {
        true => show(of.value),
        false => format!("{} ({}–{})", show(of.value), show(of.low), show(of.high)),
    }
}

impl HeadlineRow {
    /// The change in words.
    pub fn told(&self) -> String {
        match self.real {
            "real" => self.change.clone(),
            _ => format!("{}, may be chance", self.change),
        }
    }
}

impl Headline {
    pub fn figure(&self, id: &str) -> Option<&Paired> {
        self.figures.iter().find(|figure| figure.id == id)
    }

    fn shown(&self) -> impl Iterator<Item = &Paired> {
        SHOWN.into_iter().filter_map(|id| self.figure(id))
    }

    /// The figures for pages: all of them, under their whole names. `ppl_of` is the text that
    /// perplexity was measured on.
    pub fn rows(&self, ppl_of: &str) -> Vec<HeadlineRow> {
        self.shown().map(|figure| row(figure, whole_name(self, figure, ppl_of), 4)).collect()
    }

    /// The figures for a terminal of 80 columns: name, before, after, change.
    pub fn terminal_rows(&self) -> Vec<[String; 4]> {
        let short = |id: &str| SHORT.into_iter().find(|(of, _)| *of == id).map(|(_, name)| name);
        let rows = self.shown().filter_map(|figure| Some((figure, short(&figure.id)?)));
        let rows = rows.take(ON_TERMINAL).map(|(figure, name)| {
            let HeadlineRow { name, before, after, real, .. } = row(figure, name.into(), 3);
            let digits = digits(figure, figure.change.value, 3);
            [name, before, after, format!("{:+.digits$} {real}", figure.change.value)]
        });
        rows.collect()
    }

    /// What the continuations are of, and how many of them are empty or have no score, in words.
    pub fn said_of_continuations(&self) -> Vec<String> {
        let of = |c: &Continuations| {
            let way = if c.sampled { "sampled" } else { "greedy" };
            let mut text = format!("{} {way}", c.prompts * c.samples);
            for (what, before, after) in [
                ("empty", c.before.empty, c.after.empty),
                ("without a score", c.before.failed, c.after.failed),
            ] {
                if before + after > 0 || what == "empty" {
                    text += &format!(", {what} {before} → {after}");
                }
            }
            text
        };
        self.continuations.iter().map(of).collect()
    }
}

fn whole_name(headline: &Headline, figure: &Paired, ppl_of: &str) -> String {
    let unit = if figure.unit.is_empty() { String::new() } else { format!(" ({})", figure.unit) };
    let sampled = |c: &&Continuations| c.sampled;
    let way = match figure.id.as_str() {
        "toxicity" | "toxic_fraction" | "repetition" => ", greedy",
        id if ["toxicity", "toxic_fraction", "repetition"].map(sampled_id).contains(&id.into()) => {
            ", sampled"
        }
        "ppl" if !ppl_of.is_empty() => return format!("{} of {ppl_of}{unit}", figure.name),
        _ => "",
    };
    let each = headline.continuations.iter().find(sampled).map_or(0, |c| c.samples);
    let each = if way == ", sampled" { format!(" {each} a prompt") } else { String::new() };
    format!("{}{way}{each}{unit}", figure.name)
}

fn row(figure: &Paired, name: String, most: usize) -> HeadlineRow {
    let change = &figure.change;
    let decimals = digits(figure, change.value, most);
    let alone =
        |of: &Estimate| estimate(figure, &Estimate { low: of.value, high: of.value, ..*of }, most);
    HeadlineRow {
        id: figure.id.clone(),
        values: [alone(&figure.before), alone(&figure.after)],
        name,
        n: figure.n.to_string(),
        before: estimate(figure, &figure.before, most),
        after: estimate(figure, &figure.after, most),
        change: format!(
            "{:+.decimals$} ({:+.decimals$} to {:+.decimals$})",
            change.value, change.low, change.high
        ),
        real: if figure.real { "real" } else { "chance" },
    }
}
