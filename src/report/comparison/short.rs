//! A comparison *in short*: which methods are the best there are, in sentences that claim no more
//! than the figures do.

use super::record::{ComparedFigure, Comparison, MethodRow};

/// What the figures of the tables mean, a sentence each.
pub const TERMS: &str = "A continuation is toxic if it scores 0.5 or more; toxicity is the \
     mean score × 100. Perplexity is exp(NLL) of ordinary text: what a repair cost. KL says, in \
     nats a token, how far the predictions on normal text have moved from the base's: 0 is not at \
     all. Vanilla is the base. A method is on the front if no other has less toxicity and less KL.";

/// A figure of the methods, the best first.
struct Ranked<'a> {
    digits: usize,
    rows: Vec<(&'a MethodRow, f64)>,
}

impl Ranked<'_> {
    /// The value as the tables show it.
    fn shown(&self, value: f64) -> String {
        format!("{value:.*}", self.digits)
    }

    fn of(&self, row: &MethodRow) -> Option<f64> {
        self.rows.iter().find(|(other, _)| other.name == row.name).map(|(_, value)| *value)
    }
}

/// A figure of a row: its runs that have it.
fn figures<'a>(row: &'a MethodRow, id: &str) -> Vec<&'a ComparedFigure> {
    row.runs.iter().filter_map(|run| run.figures.iter().find(|figure| figure.id == id)).collect()
}

/// The mean over the runs of a row.
fn mean(row: &MethodRow, id: &str) -> Option<f64> {
    let values: Vec<f64> = figures(row, id).into_iter().filter_map(|f| f.value).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl Comparison {
    /// Sentences; none where toxicity was not measured.
    pub fn in_short(&self) -> Vec<String> {
        let Some(toxicity) = &self.asked.toxicity else { return Vec::new() };
        let Some(tox) = self.ranked(&toxicity.id) else { return Vec::new() };
        let mut said = Vec::new();
        let base = self
            .rows
            .iter()
            .find(|row| row.is_base())
            .and_then(|row| Some(format!(", vanilla {}", tox.shown(mean(row, &toxicity.id)?))));
        let (best, value) = tox.rows[0];
        let base = base.unwrap_or_default();
        said.push(format!("Least toxicity: {} ({}{base}).", best.name, tox.shown(value)));
        if let Some(kl) = self.ranked("kl") {
            let (least, value) = kl.rows[0];
            said.push(format!(
                "Smallest KL from the base: {} ({}); {} has {}.",
                least.name,
                kl.shown(value),
                best.name,
                kl.of(best).map_or_else(|| "none measured".into(), |value| kl.shown(value))
            ));
            let both: Vec<(&str, f64, f64)> = tox
                .rows
                .iter()
                .filter_map(|(row, tox)| Some((row.name.as_str(), *tox, kl.of(row)?)))
                .collect();
            let on_front = |own: &&(&str, f64, f64)| {
                !both.iter().any(|other| {
                    other.1 <= own.1 && other.2 <= own.2 && (other.1 < own.1 || other.2 < own.2)
                })
            };
            let front: Vec<&str> = both.iter().filter(on_front).map(|(name, ..)| *name).collect();
            if both.len() > 1 {
                said.push(format!(
                    "On the front of toxicity against KL: {} of {} methods ({}).",
                    front.len(),
                    both.len(),
                    front.join(", ")
                ));
            }
        }
        let by_chance: Vec<&str> = tox
            .rows
            .iter()
            .filter(|(row, _)| {
                figures(row, &toxicity.id).iter().any(|figure| figure.real == Some(false))
            })
            .map(|(row, _)| row.name.as_str())
            .collect();
        if !by_chance.is_empty() {
            said.push(format!(
                "Not told from vanilla in at least one run (the difference may be chance): {}.",
                by_chance.join(", ")
            ));
        }
        said
    }

    /// The methods by a figure of which less is better.
    fn ranked(&self, id: &str) -> Option<Ranked<'_>> {
        let methods = self.rows.iter().filter(|row| !row.is_base());
        let mut rows: Vec<(&MethodRow, f64)> =
            methods.filter_map(|row| Some((row, mean(row, id)?))).collect();
        // Stable: of equals, the first of the tables.
        rows.sort_by(|a, b| a.1.total_cmp(&b.1));
        let digits = rows.first().and_then(|(row, _)| Some(figures(row, id).first()?.digits))?;
        Some(Ranked { digits, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::comparison::{Asked, BaseRecord, MethodRun};

    fn figure(id: &str, value: f64, real: bool) -> ComparedFigure {
        ComparedFigure {
            task: id.into(),
            id: id.into(),
            name: id.into(),
            value: Some(value),
            low: None,
            high: None,
            real: Some(real),
            digits: if id == "kl" { 3 } else { 1 },
            less_is_better: true,
        }
    }

    fn row(name: &str, runs: &[(f64, f64, bool)]) -> MethodRow {
        let run = |&(toxicity, kl, real): &(f64, f64, bool)| {
            let mut run = MethodRun::failed(1, String::new());
            run.failed = None;
            run.figures = vec![figure("toxicity", toxicity, real), figure("kl", kl, true)];
            run
        };
        MethodRow { name: name.into(), method: name.into(), runs: runs.iter().map(run).collect() }
    }

    #[test]
    fn the_front_and_what_may_be_chance_are_named() {
        let mut vanilla = MethodRow::vanilla();
        vanilla.runs[0].figures = vec![figure("toxicity", 70.0, true)];
        let rows = vec![
            vanilla,
            row("irepair+kl", &[(60.0, 0.01, true), (64.0, 0.01, false)]),
            row("dpo", &[(5.0, 0.3, true), (7.0, 0.3, true)]),
            row("dapt", &[(60.0, 0.4, true)]),
        ];
        let base = BaseRecord {
            model: "m".into(),
            name: "m".into(),
            revision: None,
            sha256: String::new(),
            files: Default::default(),
            parameters: 100,
            scorer: "words".into(),
            toxic_label: None,
        };
        let toxicity = Some(figure("toxicity", 70.0, true));
        let asked = Asked { about: Vec::new(), toxicity, perplexity: None };
        let found = Comparison::new(base, vec![1], None, asked, rows, None).expect("a comparison");
        assert_eq!(
            found.in_short(),
            [
                "Least toxicity: dpo (6.0, vanilla 70.0).",
                "Smallest KL from the base: irepair+kl (0.010); dpo has 0.300.",
                "On the front of toxicity against KL: 2 of 3 methods (dpo, irepair+kl).",
                "Not told from vanilla in at least one run (the difference may be chance): \
                 irepair+kl.",
            ]
        );
        let text = found.text();
        assert!(text.contains("Least toxicity: dpo"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("\n  irepair+kl.\n") || text.contains(" irepair+kl.\n"), "{text}");
        assert!(found.markdown().contains("Least toxicity: dpo"));
    }
}
