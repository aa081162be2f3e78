//! Help that tables give: what the methods are made of, and the defaults that go with them.

use crate::slice::select::SELECTORS;
use crate::step::neurons;
use crate::step::objective::OBJECTIVES;
use crate::step::{METHODS, NamedMethod};

pub fn methods() -> String {
    let blocks = METHODS
        .iter()
        .map(|m| format!("{:<17} {} × {}: {}", m.name, m.select.name, m.objective.name, m.about));
    let neurons = neurons::METHODS.iter().map(|m| format!("{:<17} {}", m.name, m.about));
    format!(
        "Selector × objective; any other pair with --select, --objective and --kl-weight:\n{}\n\n\
         A few neurons (rows with a prompt and a target):\n{}",
        lines(blocks),
        lines(neurons)
    )
}

pub fn selectors() -> String {
    lines(SELECTORS.iter().map(|s| format!("{:<16} {}", s.name, s.about)))
}

pub fn objectives() -> String {
    lines(OBJECTIVES.iter().map(|o| format!("{:<13} {}", o.name, o.about)))
}

pub fn boundaries() -> String {
    "Conversations are the same by both: the chat template writes the whole, and it is tokenized \
     and split where the prompt's tokens end."
        .into()
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// The number that most have, then those that have another: `1; trial-dpo+kl 2`.
fn most<'a>(numbers: impl Iterator<Item = (&'a str, f64)>) -> String {
    let numbers: Vec<(&str, f64)> = numbers.collect();
    let count = |number: f64| numbers.iter().filter(|(_, other)| *other == number).count();
    let Some((_, common)) = numbers.iter().max_by_key(|(_, number)| count(*number)) else {
        return String::new();
    };
    let others = numbers.iter().filter(|(_, number)| number != common);
    let others = others.map(|(name, number)| format!("; {name} {number}"));
    format!("{common}{}", others.collect::<String>())
}

pub fn nll_weights() -> String {
    let alpha = |m: &&NamedMethod| m.objective.alpha;
    most(METHODS.iter().filter(alpha).map(|m| (m.name, m.weight)))
}

pub fn kl_weights() -> String {
    let held = METHODS.iter().filter(|m| m.kl_weight != 0.0);
    most(held.map(|m| (m.name, m.kl_weight)))
}

/// Methods that sample their own pairs, and those of neurons, have one rate for all.
pub fn learning_rates() -> String {
    let own = most(METHODS.iter().filter(|m| !m.online).map(|m| (m.name, m.rate)));
    format!("{own}; online 1e-5; star and sgd 0.01")
}

pub fn betas() -> String {
    most(OBJECTIVES.iter().filter_map(|o| Some((o.name, o.beta?))))
}
