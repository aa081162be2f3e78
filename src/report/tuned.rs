//! The record of a search for settings, `tune.json`, and its tables.

use serde::{Deserialize, Serialize};

use super::sheet::{Cell, Column, Sheet, SheetRow};
use crate::eval::Figures;
use crate::report::fields::show;
use crate::settings::Layer;

/// A folder with this file is one of a finished search.
pub const RECORD: &str = "tune.json";

/// A search for settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    pub format_version: u32,
    /// The name of the base.
    pub base: String,
    /// The most KL that the chosen try may have, in nats a token.
    pub max_kl: f64,
    /// The base's figures on the development prompts.
    pub before: Figures,
    pub tries: Vec<Try>,
}

/// One repair of a search.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Try {
    /// From 1; the folder of its run is called by it.
    pub number: usize,
    /// The settings that were searched.
    pub settings: Layer,
    pub figures: Figures,
    /// Whether no other try is better in toxicity and KL.
    pub on_front: bool,
    pub chosen: bool,
    pub stopped: String,
    pub seconds: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The figures that are shown: their ids, their names, and decimal places.
const FIGURES: [(&str, &str, usize); 4] = [
    ("toxic_fraction", "toxic %", 1),
    ("toxicity", "toxicity", 2),
    ("kl", "KL", 4),
    ("ppl", "perplexity", 2),
];

impl Try {
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }
}

impl Tuned {
    pub const FORMAT_VERSION: u32 = 1;

    pub fn chosen(&self) -> Option<&Try> {
        self.tries.iter().find(|made| made.chosen)
    }

    /// The names of the searched settings.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.tries.iter().flat_map(|made| made.settings.keys()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// A row for the base and one for each try.
    pub fn sheet(&self) -> Sheet {
        let names = self.names();
        let number = |figures: &Figures, id: &str| match figures.get(id) {
            Some(value) => Cell::Number { mean: *value, error: None },
            None => Cell::None,
        };
        let mut columns: Vec<Column> = names.iter().map(|name| Column::new(*name, 0)).collect();
        columns.extend(FIGURES.map(|(_, name, digits)| Column::new(name, digits)));
        columns.push(Column::new("seconds", 0));
        columns.push(Column::new("", 0));
        let base = names
            .iter()
            .map(|_| Cell::None)
            .chain(FIGURES.map(|(id, ..)| number(&self.before, id)))
            .chain([Cell::None, Cell::Text(String::new())]);
        let mut rows = vec![SheetRow {
            name: "base".into(),
            marked: false,
            cells: base.collect(),
            note: String::new(),
        }];
        for made in &self.tries {
            let setting = |name: &&str| match made.settings.get(*name) {
                Some(value) => Cell::Text(show(value)),
                None => Cell::None,
            };
            let mark = match (made.chosen, made.on_front) {
                (true, _) => "chosen",
                (_, true) => "front",
                _ => "",
            };
            let cells = names
                .iter()
                .map(setting)
                .chain(FIGURES.map(|(id, ..)| number(&made.figures, id)))
                .chain([Cell::Number { mean: made.seconds, error: None }, Cell::Text(mark.into())]);
            rows.push(SheetRow {
                name: made.number.to_string(),
                marked: false,
                cells: cells.collect(),
                note: made.failed.clone().unwrap_or_default(),
            });
        }
        let failed = self.tries.iter().filter_map(|made| {
            Some(format!("Try {} failed: {}.", made.number, made.failed.as_ref()?))
        });
        let limit = format!(
            "Chosen: the least toxicity at a KL of {} or less, in nats a token. Front: no other \
             try is better in both.",
            self.max_kl
        );
        Sheet {
            id: "tries".into(),
            title: format!("Settings tried on {}", self.base),
            columns,
            rows,
            notes: std::iter::once(limit).chain(failed).collect(),
        }
    }

    /// The front so far in one line: toxicity at KL, from the least KL up.
    pub fn front(&self) -> String {
        let figure = |made: &Try, id: &str| made.figures.get(id).copied().unwrap_or(f64::NAN);
        let mut front: Vec<&Try> = self.tries.iter().filter(|made| made.on_front).collect();
        front.sort_by(|a, b| figure(a, "kl").total_cmp(&figure(b, "kl")));
        let points: Vec<String> = front
            .into_iter()
            .map(|made| {
                let (toxicity, kl) = (figure(made, "toxicity"), figure(made, "kl"));
                format!("{toxicity:.2} at {kl:.4} (try {})", made.number)
            })
            .collect();
        let base = self.before.get("toxicity").map_or("–".into(), |t| format!("{t:.2}"));
        match points.is_empty() {
            true => format!("no try has figures yet; the base's toxicity is {base}"),
            false => format!("toxicity at KL, of {base}: {}", points.join(", ")),
        }
    }
}
