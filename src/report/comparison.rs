//! `compare.json`: runs of one repair by several methods beside each other, and the tables that are made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunRecord;
use super::pareto::{Pareto, Point, WORST, hypervolume};
use super::sheet::{Cell, Column, Line, Sheet};
use crate::bail_input;
use crate::base::error::Error;
use crate::step::neurons;
use crate::train::log::read_steps;

/// What says that a folder is a comparison's.
pub const RECORD: &str = "compare.json";
/// Of that file.
const FORMAT_VERSION: u32 = 1;

/// The model that all start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// As it was named.
    pub model: String,
    pub name: String,
    pub revision: Option<String>,
    /// Of the weights, and of each file of them.
    pub sha256: String,
    pub files: BTreeMap<String, String>,
    pub parameters: usize,
    pub scorer: String,
    /// Of a classifier, where it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toxic_label: Option<String>,
}

/// A row of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: String,
    pub method: String,
    pub runs: Vec<Run>,
}

/// One run of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub seed: u64,
    /// `None`: it failed, or is the base.
    pub made: Option<Made>,
    /// Why there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    pub figures: Vec<Figure>,
    /// The states kept along the way, and the end.
    pub points: Vec<Point>,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    pub dir: PathBuf,
    pub data_sha256: String,
    pub steps: usize,
    pub kept_step: usize,
    pub stopped: String,
    pub changed_parameters: usize,
    /// ‖change‖₂ over all parameters.
    pub change_norm: f64,
    /// Of the steps and the look or the trials before them; of a neuron-level repair, with what is looked at between them.
    pub seconds: f64,
    pub tokens: usize,
    /// Floating-point operations counted in the products; 0: not counted.
    pub operations: u64,
    pub peak_rss_mib: Option<u64>,
    /// By name, as they were resolved.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// How many were changed, of a neuron-level repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neurons: Option<usize>,
}

/// A figure of a model with its 95 % interval and its difference from the base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The task, and the figure's own id: together they are found.
    pub task: String,
    pub id: String,
    /// For people.
    pub name: String,
    pub value: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Whether the difference from the base is more than chance.
    pub real: Option<bool>,
    pub digits: usize,
    pub less_is_better: bool,
}

impl Figure {
    fn is(&self, other: &Self) -> bool {
        self.task == other.task && self.id == other.id
    }
}

/// What `irepair sensitivity --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    pub pairs: usize,
    pub blocks: Vec<Block>,
    pub error_density: Option<Density>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    pub block: usize,
    pub sensitivity: f64,
    pub share: f64,
    pub parameters: usize,
    pub density: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Density {
    pub top: Vec<usize>,
    pub top_density: f64,
    pub rest_density: f64,
    pub percent_above: f64,
}

/// What all models were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// A line a task.
    pub about: Vec<String>,
    /// The figures that lead, as the base has them: toxicity, and the perplexity of this text.
    pub toxicity: Option<Figure>,
    pub perplexity: Option<(Figure, String)>,
}

/// `compare.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    pub format_version: u32,
    pub irepair: String,
    pub base: Base,
    pub seeds: Vec<u64>,
    /// How many the repairs are of, where they are of wrong answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<usize>,
    pub asked: Asked,
    pub entries: Vec<Entry>,
    /// `None`: it could not be measured.
    pub sensitivity: Option<Sensitivity>,
    pub pareto: Option<Pareto>,
    pub sheets: Vec<Sheet>,
    /// What the figures lack, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
}

impl Entry {
    /// The base as a row.
    pub fn vanilla() -> Self {
        let run =
            Run { seed: 0, made: None, failed: None, figures: Vec::new(), points: Vec::new() };
        Self { name: "vanilla".into(), method: String::new(), runs: vec![run] }
    }

    pub fn is_base(&self) -> bool {
        self.method.is_empty()
    }

    fn all<T: Into<f64>>(&self, of: impl Fn(&Run) -> Option<T>) -> Cell {
        Cell::of(&self.runs.iter().filter_map(|run| of(run).map(Into::into)).collect::<Vec<f64>>())
    }

    fn made(&self, of: impl Fn(&Made) -> Option<f64>) -> Cell {
        self.all(|run| of(run.made.as_ref()?))
    }

    fn figure(&self, wanted: &Figure) -> Cell {
        self.all(|run| run.figures.iter().find(|f| f.is(wanted))?.value)
    }

    /// What is missing of its runs, of which others have as many as there are seeds, and why.
    fn missing(&self, seeds: usize) -> Vec<String> {
        let measured = self.runs.iter().filter(|run| run.failed.is_none()).count();
        // Nothing in a repair of neurons is drawn: one run says all.
        let drawn =
            !self.is_base() && !neurons::METHODS.iter().any(|method| method.name == self.method);
        let few = (drawn && (1..seeds).contains(&measured))
            .then(|| format!("{}: {measured} of {seeds} seeds", self.name));
        let failed = |run: &Run| {
            let why = run.failed.as_ref()?;
            Some(format!("{}, seed {}: failed: {why}", self.name, run.seed))
        };
        few.into_iter().chain(self.runs.iter().filter_map(failed)).collect()
    }
}

impl Run {
    pub fn failed(seed: u64, why: String) -> Self {
        Self { seed, made: None, failed: Some(why), figures: Vec::new(), points: Vec::new() }
    }

    pub fn of(seed: u64, dir: &Path, record: &RunRecord) -> Result<Self> {
        // Older records don't have this sum; the steps do.
        let of_steps = match record.step_seconds {
            0.0 => read_steps(&dir.join("irepair").join("steps.jsonl"))?
                .iter()
                .map(|s| s.seconds)
                .sum(),
            seconds => seconds,
        };
        let made = Made {
            dir: dir.to_owned(),
            data_sha256: record.data.sha256.clone(),
            steps: record.steps,
            kept_step: record.kept_step,
            stopped: record.stopped.clone(),
            changed_parameters: record.changed_parameters,
            change_norm: record
                .changed
                .iter()
                .fold(0.0, |norm: f64, change| norm.hypot(change.norm)),
            seconds: record.edits.as_ref().map_or(of_steps, |edits| edits.repair_seconds),
            tokens: record.tokens,
            operations: record.operations,
            peak_rss_mib: record.peak_rss_mib,
            settings: record
                .resolved_settings()
                .into_iter()
                .map(|[name, value]| (name, value))
                .collect(),
            neurons: record.edits.as_ref().map(|edits| edits.neurons.values().sum()),
        };
        Ok(Self { seed, made: Some(made), failed: None, figures: Vec::new(), points: Vec::new() })
    }
}

impl Comparison {
    /// Errors (bad input) if it is broken or of another format version.
    pub fn read(path: &Path) -> Result<Self> {
        let broken = |e: &dyn std::fmt::Display| {
            Error::Input(format!("{}: a broken record: {e}", path.display()))
        };
        let value: Value = serde_json::from_slice(&std::fs::read(path).map_err(|e| broken(&e))?)
            .map_err(|e| broken(&e))?;
        if value["format_version"] != FORMAT_VERSION {
            let found = &value["format_version"];
            bail_input!(
                "{}: format version {found}, this program reads {FORMAT_VERSION}",
                path.display()
            );
        }
        Ok(serde_json::from_value(value).map_err(|e| broken(&e))?)
    }

    pub fn new(
        base: Base,
        seeds: Vec<u64>,
        failures: Option<usize>,
        asked: Asked,
        entries: Vec<Entry>,
        sensitivity: Option<Sensitivity>,
    ) -> Result<Self> {
        let mut comparison = Self {
            format_version: FORMAT_VERSION,
            irepair: env!("CARGO_PKG_VERSION").into(),
            base,
            seeds,
            failures,
            asked,
            entries,
            sensitivity,
            pareto: None,
            sheets: Vec::new(),
            gaps: Vec::new(),
        };
        comparison.pareto = comparison.pareto();
        comparison.sheets = vec![comparison.table1()?, comparison.table2()];
        comparison.sheets.extend(comparison.table3());
        Ok(comparison)
    }

    fn pareto(&self) -> Option<Pareto> {
        let (_, (_, text)) = (self.asked.toxicity.as_ref()?, self.asked.perplexity.clone()?);
        let base = self.entries.iter().find(|e| e.is_base())?.runs.first()?.points.last()?.clone();
        let rows = self.entries.iter().filter(|e| !e.is_base()).map(|entry| {
            (
                entry.name.clone(),
                entry.runs.iter().map(|r| r.points.clone()).filter(|p| !p.is_empty()).collect(),
            )
        });
        Some(Pareto { text, base, rows: rows.collect() })
    }

    fn rows(&self, of: impl Fn(&Entry) -> Vec<Cell>) -> Vec<Line> {
        let seeds = self.seed_count();
        let line = |entry: &Entry| Line {
            name: entry.name.clone(),
            marked: !entry.is_base(),
            cells: of(entry),
            note: entry.missing(seeds).join("; "),
        };
        self.entries.iter().map(line).collect()
    }

    /// Of the row with most runs; `seeds` knows nothing of finished runs.
    pub fn seed_count(&self) -> usize {
        self.entries.iter().filter(|e| !e.is_base()).map(|e| e.runs.len()).max().unwrap_or(0).max(1)
    }

    fn about_seeds(&self) -> String {
        match self.seed_count() {
            1 => "One seed.".into(),
            n => format!("Mean ± standard error over {n} seeds."),
        }
    }

    /// Table 1 of the paper: what was gained and what it cost elsewhere.
    fn table1(&self) -> Result<Sheet> {
        let first = self
            .entries
            .first()
            .and_then(|e| e.runs.first())
            .context("a comparison without its base")?;
        // A target that is the likeliest token by token is what is generated, and the other way round.
        let figures: Vec<&Figure> =
            first.figures.iter().filter(|f| !f.id.ends_with("_forced")).collect();
        let mut columns: Vec<Column> = Vec::new();
        for figure in &figures {
            let column = Column::new(&figure.name, figure.digits).id(&figure.id);
            let better = if figure.less_is_better { Column::least } else { Column::greatest };
            columns.push(better(column));
        }
        columns.push(Column::new("parameters changed (%)", 2).least().worst(100.0));
        columns.push(Column::new("norm of the change", 2).least());
        if self.failures.is_some() {
            columns.extend([
                Column::new("neurons changed", 0).id("neurons"),
                Column::new("seconds a failure", 3).id("seconds_each").least(),
            ]);
        }
        let merit = self.pareto.is_some();
        if merit {
            columns.push(Column::new("area", 3).greatest());
        }
        let cells = |entry: &Entry| {
            let mut cells: Vec<Cell> = figures.iter().map(|f| entry.figure(f)).collect();
            let share = |m: &Made| {
                Some(100.0 * m.changed_parameters as f64 / self.base.parameters.max(1) as f64)
            };
            cells.push(entry.made(share));
            cells.push(entry.made(|m| Some(m.change_norm)));
            if let Some(failures) = self.failures {
                cells.push(entry.made(|m| m.neurons.map(|n| n as f64)));
                cells.push(entry.made(|m| Some(m.seconds / failures as f64)));
            }
            if let Some(pareto) = &self.pareto {
                let area = |run: &Run| {
                    (!run.points.is_empty()).then(|| hypervolume(&pareto.base, &run.points))
                };
                cells.push(if entry.is_base() { Cell::None } else { entry.all(area) });
            }
            cells
        };
        let mut notes = vec![format!(
            "{} Best and second best of each column are marked, on screens by * and °, vanilla aside.",
            self.about_seeds()
        )];
        notes.extend(self.asked.about.iter().cloned());
        if merit {
            let ends_alone = |entry: &&Entry| {
                !entry.is_base() && entry.runs.iter().any(|run| run.points.len() == 1)
            };
            let ends: Vec<&str> =
                self.entries.iter().filter(ends_alone).map(|entry| entry.name.as_str()).collect();
            if !ends.is_empty()
                && self
                    .entries
                    .iter()
                    .any(|entry| entry.runs.iter().any(|run| run.points.len() > 1))
            {
                notes.push(format!(
                    "Of {} no states of the way were kept: the area is of the end alone, where others may owe some to earlier \
                     states.",
                    ends.join(", ")
                ));
            }
        }
        if let Some(failures) = self.failures {
            notes.push(format!(
                "Every method learned from the same {failures} failures, all of them at once; star, mint and sgd draw nothing \
                 at random, and ran once."
            ));
        }
        if let (true, Some(toxicity), Some(perplexity)) =
            (merit, &self.asked.toxicity, &self.asked.perplexity)
        {
            let (toxicity, (perplexity, _)) = (&toxicity.name, perplexity);
            let perplexity = &perplexity.name;
            notes.push(format!(
                "Area: of the box from vanilla's perplexity and no toxicity to {WORST} times that perplexity and vanilla's \
                 toxicity, the share in which some state of the run is better in both ({toxicity} against {perplexity}); 1 is no \
                 toxicity at no cost."
            ));
        }
        let rows = self.rows(cells);
        notes.extend(notes_of(&rows));
        Ok(Sheet {
            id: "table1".into(),
            title: format!("Repairs of {}", self.base.name),
            columns,
            rows,
            notes,
        })
    }

    /// Table 2: what the repairs took.
    fn table2(&self) -> Sheet {
        let columns = vec![
            Column::new("TFLOP", 2).least(),
            Column::new("GFLOP a token", 4).least(),
            Column::new("seconds", 1).least(),
            Column::new("peak memory (MiB)", 0).least(),
            Column::new("steps", 0),
            Column::new("steps to the best validation", 0),
        ];
        let counted = |m: &Made| Some(m.operations as f64).filter(|o| *o > 0.0);
        let mut rows = self.rows(|entry| {
            vec![
                entry.made(|m| Some(counted(m)? / 1e12)),
                entry.made(|m| Some(counted(m)? / 1e9 / m.tokens.max(1) as f64)),
                entry.made(|m| Some(m.seconds)),
                entry.made(|m| m.peak_rss_mib.map(|p| p as f64)),
                entry.made(|m| Some(m.steps as f64)),
                entry.made(|m| Some(m.kept_step as f64)),
            ]
        });
        rows.retain(|row| row.marked);
        let mut notes = vec![
            format!(
                "{} Of the steps, and of what a selector looked at or tried before them: operations counted in the products \
                 that were really made (for steps Kaplan's formula with what each method skips gives the same within 5 %), \
                 per token of their chosen, rejected and normal sequences.",
                self.about_seeds()
            ),
            "Peak memory is of the whole process.".into(),
        ];
        notes.extend(notes_of(&rows));
        Sheet {
            id: "table2".into(),
            title: format!("Cost of the repairs of {}", self.base.name),
            columns,
            rows,
            notes,
        }
    }

    /// Table 3: the ablations of selection, where there are any.
    fn table3(&self) -> Option<Sheet> {
        let of = |method: &str| method.trim_end_matches("+kl").starts_with("irepair");
        let ablated = |e: &Entry| e.method.starts_with("irepair-");
        if !self.entries.iter().any(ablated) {
            return None;
        }
        let mut sheet = self.table1().ok()?;
        sheet.rows.retain(|row| {
            self.entries.iter().any(|e| e.name == row.name && (e.is_base() || of(&e.method)))
        });
        sheet.id = "table3".into();
        sheet.title =
            format!("Selecting the block: dynamic, fixed, least sensitive ({})", self.base.name);
        sheet.notes.truncate(1);
        sheet.notes.extend(notes_of(&sheet.rows));
        Some(sheet)
    }

    /// Figure 2 in words.
    pub fn figure2(&self) -> String {
        let Some(sensitivity) = &self.sensitivity else { return String::new() };
        let Some(d) = &sensitivity.error_density else { return String::new() };
        let top: Vec<String> = d.top.iter().map(ToString::to_string).collect();
        format!(
            "Error density (sensitivity a block, {} pairs): {:.3} in the top 20 % of blocks ({}), {:.3} in the others: {:+.1} %.",
            sensitivity.pairs,
            d.top_density,
            top.join(", "),
            d.rest_density,
            d.percent_above
        )
    }

    /// The whole for people, as Markdown with its pictures.
    pub fn markdown(&self) -> String {
        let mut out = format!("# Repairs of {} compared\n\n", self.base.name);
        self.gaps.iter().for_each(|gap| out += &format!("**Note:** {gap}\n\n"));
        for sheet in &self.sheets {
            out += &sheet.markdown();
            out += "\n";
        }
        if self.pareto.is_some() {
            out +=
                "### Toxicity against perplexity\n\n![toxicity against perplexity](pareto.svg)\n\n";
        }
        if self.sensitivity.is_some() {
            out += &format!(
                "### Relative sensitivity of the blocks\n\n![sensitivity by block](figure2.svg)\n\n{}\n",
                self.figure2()
            );
        }
        out
    }

    /// For terminals: the figures that lead, in 80 columns.
    pub fn text(&self) -> String {
        /// Ids of columns of Table 1, what they are called here, digits.
        const LEADING: [(&str, &str, usize); 6] = [
            ("edits_generated", "said (%)", 1),
            ("toxicity", "toxicity", 1),
            ("ppl", "perplexity", 1),
            ("kl", "KL", 3),
            ("area", "area", 3),
            ("neurons", "neurons", 0),
        ];
        /// Columns that there is room for, beside the seconds.
        const MOST: usize = 4;
        const NAME: usize = 16;
        let [gain, cost, ..] = self.sheets.as_slice() else { return String::new() };
        let find = |sheet: &Sheet, id: &str| sheet.columns.iter().position(|c| c.id == id);
        let leading = LEADING
            .iter()
            .filter_map(|(id, name, digits)| Some((gain, find(gain, id)?, *name, *digits)));
        let seconds = match find(gain, "seconds_each") {
            Some(at) => Some((gain, at, "s a failure", 3)),
            None => find(cost, "seconds").map(|at| (cost, at, "seconds", 0)),
        };
        let found: Vec<(&Sheet, usize, &str, usize)> = leading.take(MOST).chain(seconds).collect();
        let columns = found.iter().map(|(sheet, at, name, digits)| Column {
            name: (*name).to_owned(),
            digits: *digits,
            ..sheet.columns[*at].clone()
        });
        let row = |line: &Line| {
            let cell = |(sheet, at, ..): &(&Sheet, usize, &str, usize)| {
                let same = sheet.rows.iter().find(|row| row.name == line.name);
                same.map_or(Cell::None, |row| row.cells[*at].clone())
            };
            let cells = found.iter().map(cell).collect();
            let mut name = line.name.clone();
            if name.chars().count() > NAME {
                // In the middle: what tells settings apart stands at the end.
                let (head, end) = (NAME / 2, name.chars().count() - (NAME / 2 - 1));
                name = name.chars().take(head).chain(['…']).chain(name.chars().skip(end)).collect();
            }
            Line { name, cells, ..line.clone() }
        };
        let mut notes = vec![format!("{} Best *, second best °.", self.about_seeds())];
        notes.extend(
            self.asked.perplexity.iter().map(|(_, text)| format!("Perplexity: of {text}.")),
        );
        notes.extend(notes_of(&gain.rows));
        let (columns, rows) = (columns.collect(), gain.rows.iter().map(row).collect());
        Sheet { id: "short".into(), title: gain.title.clone(), columns, rows, notes }.text()
    }
}

/// What is missing in a table, a note a row.
fn notes_of(rows: &[Line]) -> impl Iterator<Item = String> {
    rows.iter()
        .filter(|row| !row.note.is_empty())
        .map(|row| format!("{}.", row.note.trim_end_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(id: &str, name: &str, value: f64) -> Figure {
        Figure {
            task: id.into(),
            id: id.into(),
            name: name.into(),
            value: Some(value),
            low: None,
            high: None,
            real: None,
            digits: 2,
            less_is_better: true,
        }
    }

    fn run(seed: u64, toxicity: f64) -> Run {
        let made = Made {
            dir: format!("seed{seed}").into(),
            data_sha256: String::new(),
            steps: 4,
            kept_step: 4,
            stopped: "all steps made".into(),
            changed_parameters: 50,
            change_norm: 1.0,
            seconds: 2.0,
            tokens: 10,
            operations: 0,
            peak_rss_mib: None,
            settings: BTreeMap::new(),
            neurons: None,
        };
        let figures = vec![
            figure("toxicity", "toxicity (mean score × 100)", toxicity),
            figure("ppl", "perplexity of wiki", 20.0),
        ];
        Run { seed, made: Some(made), failed: None, figures, points: Vec::new() }
    }

    fn comparison(rows: &[(&str, Vec<Run>)]) -> Comparison {
        let base = Base {
            model: "m".into(),
            name: "m".into(),
            revision: None,
            sha256: String::new(),
            files: BTreeMap::new(),
            parameters: 100,
            scorer: "words".into(),
            toxic_label: None,
        };
        let mut vanilla = Entry::vanilla();
        vanilla.runs[0].figures = run(0, 50.0).figures;
        let row = |(name, runs): &(&str, Vec<Run>)| Entry {
            name: (*name).into(),
            method: (*name).into(),
            runs: runs.clone(),
        };
        let entries = std::iter::once(vanilla).chain(rows.iter().map(row)).collect();
        let asked = Asked { about: Vec::new(), toxicity: None, perplexity: None };
        Comparison::new(base, Vec::new(), None, asked, entries, None).expect("a comparison")
    }

    /// Finished runs alone: no seed was asked for, and each row has those of its runs.
    #[test]
    fn seeds_are_those_of_the_runs() {
        let three = vec![run(1, 10.0), run(2, 20.0), run(3, 30.0)];
        let two = vec![run(1, 10.0), run(2, 20.0), Run::failed(3, "50 % of {it}".into())];
        let found =
            comparison(&[("irepair-min", three), ("dapt", two), ("star", vec![run(1, 1.0)])]);
        assert_eq!(found.seed_count(), 3);
        assert_eq!(found.sheets.len(), 3);
        for sheet in &found.sheets {
            assert!(
                sheet.notes[0].starts_with("Mean ± standard error over 3 seeds."),
                "{:?}",
                sheet.notes
            );
            let said = sheet
                .notes
                .contains(&"dapt: 2 of 3 seeds; dapt, seed 3: failed: 50 % of {it}.".to_owned());
            // Table 3 has other rows.
            assert_eq!(said, sheet.id != "table3", "{:?}", sheet.notes);
            assert!(!sheet.notes.iter().any(|note| note.contains("star: ")), "{:?}", sheet.notes);
        }
        let table = &found.sheets[1];
        let csv = String::from_utf8(table.csv().expect("csv")).expect("utf-8");
        assert!(
            csv.contains(",\"dapt: 2 of 3 seeds; dapt, seed 3: failed: 50 % of {it}\"\n"),
            "{csv}"
        );
        assert!(table.latex().contains("failed: 50 \\% of \\{it\\}."), "{}", table.latex());
        let text = found.text();
        assert!(
            text.contains("Mean ± standard error over 3 seeds.")
                && text.contains("dapt: 2 of 3 seeds"),
            "{text}"
        );
        let table: Vec<&str> = text.lines().skip(1).take(5).collect();
        assert_eq!(table[0], "             toxicity   perplexity   seconds");
        assert_eq!(table[1], "vanilla          50.0         20.0         –");
        assert_eq!(table[2], "irepair-min  20.0±5.8     20.0±0.0       2±0*");
        assert_eq!(
            comparison(&[("dapt", vec![run(1, 1.0)])]).sheets[0].notes[0].split('.').next(),
            Some("One seed")
        );
    }
}
