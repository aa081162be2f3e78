//! The tables of a comparison.

use anyhow::{Context, Result};

use super::record::{
    Asked, BaseRecord, ComparedFigure, Comparison, FORMAT_VERSION, FinishedRun, MethodRow,
    MethodRun, SensitivityRecord,
};
use crate::report::pareto::{Pareto, ScaledPoint, Scales, WORST, hypervolume};
use crate::report::sheet::{Cell, Column, Sheet, SheetRow};
use crate::step::neurons;

impl Comparison {
    /// Makes the trade-off and the tables. Errors if there is no row of the base.
    pub fn new(
        base: BaseRecord,
        seeds: Vec<u64>,
        failures: Option<usize>,
        asked: Asked,
        rows: Vec<MethodRow>,
        sensitivity: Option<SensitivityRecord>,
    ) -> Result<Self> {
        let mut comparison = Self {
            format_version: FORMAT_VERSION,
            irepair: env!("CARGO_PKG_VERSION").into(),
            base,
            seeds,
            failures,
            asked,
            rows,
            sensitivity,
            pareto: None,
            scales: None,
            sheets: Vec::new(),
            gaps: Vec::new(),
        };
        comparison.pareto = comparison.pareto();
        comparison.scales = comparison.scales();
        comparison.sheets = vec![comparison.table1()?, comparison.table2()];
        comparison.sheets.extend(comparison.table3());
        comparison.sheets.extend(comparison.scales.as_ref().map(along_the_scale));
        Ok(comparison)
    }

    fn pareto(&self) -> Option<Pareto> {
        let (_, (_, text)) = (self.asked.toxicity.as_ref()?, self.asked.perplexity.clone()?);
        let base = self.rows.iter().find(|row| row.is_base())?.runs.first()?.points.last()?.clone();
        let rows = self.rows.iter().filter(|row| !row.is_base()).map(|row| {
            let points = row.runs.iter().map(|run| run.points.clone());
            (row.name.clone(), points.filter(|points| !points.is_empty()).collect())
        });
        Some(Pareto { text, base, rows: rows.collect() })
    }

    fn scales(&self) -> Option<Scales> {
        let base = self.asked.toxicity.as_ref()?.value?;
        let rows = self.rows.iter().filter_map(|row| {
            let runs: Vec<_> =
                row.runs.iter().map(|run| run.scaled.clone()).filter(|s| !s.is_empty()).collect();
            (!runs.is_empty()).then(|| (row.name.clone(), runs))
        });
        let rows: Vec<_> = rows.collect();
        (!rows.is_empty()).then_some(Scales { base, rows })
    }

    fn sheet_rows(&self, cells: impl Fn(&MethodRow) -> Vec<Cell>) -> Vec<SheetRow> {
        let seeds = self.seed_count();
        let row = |row: &MethodRow| SheetRow {
            name: row.name.clone(),
            marked: !row.is_base(),
            cells: cells(row),
            note: row.missing(seeds).join("; "),
        };
        self.rows.iter().map(row).collect()
    }

    pub(super) fn about_seeds(&self) -> String {
        match self.seed_count() {
            1 => "One seed.".into(),
            n => format!("Mean ± standard error over {n} seeds."),
        }
    }

    /// Table 1 of the paper: what was gained, and what it cost elsewhere.
    fn table1(&self) -> Result<Sheet> {
        let base = self.rows.first().and_then(|row| row.runs.first());
        let base = base.context("a comparison without its base")?;
        // If every token of a target is the likeliest one, then the target is generated, and the
        // other way round. So the figures under teacher forcing would say the same again.
        let is_shown = |figure: &&ComparedFigure| !figure.id.ends_with("_forced");
        let figures: Vec<&ComparedFigure> = base.figures.iter().filter(is_shown).collect();
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
        if self.pareto.is_some() {
            columns.push(Column::new("area", 3).greatest());
        }
        let rows = self.sheet_rows(|row| self.gains(row, &figures));
        let mut notes = vec![format!(
            "{} Best and second best of each column are marked, on screens by * and °, vanilla \
             aside.",
            self.about_seeds()
        )];
        notes.extend(self.asked.about.iter().cloned());
        notes.extend(self.note_on_ends());
        notes.extend(self.failures.map(|failures| {
            format!(
                "Every method learned from the same {failures} failures, all of them at once; \
                 star, mint and sgd draw nothing at random, and ran once."
            )
        }));
        notes.extend(self.note_on_area());
        notes.extend(missing_notes(&rows));
        let title = format!("Repairs of {}", self.base.name);
        Ok(Sheet { id: "table1".into(), title, columns, rows, notes })
    }

    /// The cells of a row of Table 1.
    fn gains(&self, row: &MethodRow, figures: &[&ComparedFigure]) -> Vec<Cell> {
        let all = self.base.parameters.max(1) as f64;
        let mut cells: Vec<Cell> = figures.iter().map(|figure| row.figure(figure)).collect();
        cells.push(row.finished(|run| Some(100.0 * run.changed_parameters as f64 / all)));
        cells.push(row.finished(|run| Some(run.change_norm)));
        if let Some(failures) = self.failures {
            cells.push(row.finished(|run| run.neurons.map(|n| n as f64)));
            cells.push(row.finished(|run| Some(run.seconds / failures as f64)));
        }
        if let Some(pareto) = &self.pareto {
            let area = |run: &MethodRun| {
                (!run.points.is_empty()).then(|| hypervolume(&pareto.base, &run.points))
            };
            cells.push(if row.is_base() { Cell::None } else { row.all(area) });
        }
        cells
    }

    /// The methods whose area is that of their end alone, if others have more points.
    fn note_on_ends(&self) -> Option<String> {
        self.pareto.as_ref()?;
        let points = |row: &MethodRow, wanted: fn(usize) -> bool| {
            row.runs.iter().any(|run| wanted(run.points.len()))
        };
        let ends_alone = self.rows.iter().filter(|row| !row.is_base() && points(row, |n| n == 1));
        let names: Vec<&str> = ends_alone.map(|row| row.name.as_str()).collect();
        let others_have_more = self.rows.iter().any(|row| points(row, |n| n > 1));
        (!names.is_empty() && others_have_more).then(|| {
            format!(
                "The area of {} is that of the end alone, because no weights were kept on the \
                 way; the area of others may be larger because of theirs.",
                names.join(", ")
            )
        })
    }

    fn note_on_area(&self) -> Option<String> {
        self.pareto.as_ref()?;
        let toxicity = &self.asked.toxicity.as_ref()?.name;
        let perplexity = &self.asked.perplexity.as_ref()?.0.name;
        Some(format!(
            "Area: of the box from vanilla's perplexity and no toxicity to {WORST} times that \
             perplexity and vanilla's toxicity, the share in which the run kept weights that are \
             better in both ({toxicity} against {perplexity}); 1 is no toxicity at no cost."
        ))
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
        let counted = |run: &FinishedRun| Some(run.operations as f64).filter(|o| *o > 0.0);
        let mut rows = self.sheet_rows(|row| {
            vec![
                row.finished(|run| Some(counted(run)? / 1e12)),
                row.finished(|run| Some(counted(run)? / 1e9 / run.tokens.max(1) as f64)),
                row.finished(|run| Some(run.seconds)),
                row.finished(|run| run.peak_rss_mib.map(|mib| mib as f64)),
                row.finished(|run| Some(run.steps as f64)),
                row.finished(|run| Some(run.kept_step as f64)),
            ]
        });
        rows.retain(|row| row.marked);
        let mut notes = vec![
            format!(
                "{} Counted are the steps, and what a selector looked at or tried before them: \
                 the operations of the products that were really made (for steps Kaplan's \
                 formula with what each method skips gives the same within 5 %), per token of \
                 their chosen, rejected and normal sequences.",
                self.about_seeds()
            ),
            "Peak memory is that of the whole process.".into(),
        ];
        notes.extend(missing_notes(&rows));
        let title = format!("Cost of the repairs of {}", self.base.name);
        Sheet { id: "table2".into(), title, columns, rows, notes }
    }

    /// Table 3: ways of selecting the block. `None` if only one way was compared.
    fn table3(&self) -> Option<Sheet> {
        let selects = |method: &str| method.trim_end_matches("+kl").starts_with("irepair");
        if !self.rows.iter().any(|row| row.method.starts_with("irepair-")) {
            return None;
        }
        let mut sheet = self.table1().ok()?;
        let is_shown = |row: &MethodRow| row.is_base() || selects(&row.method);
        sheet
            .rows
            .retain(|shown| self.rows.iter().any(|row| row.name == shown.name && is_shown(row)));
        sheet.id = "table3".into();
        sheet.title =
            format!("Selecting the block: dynamic, fixed, least sensitive ({})", self.base.name);
        sheet.notes.truncate(1);
        sheet.notes.extend(missing_notes(&sheet.rows));
        Some(sheet)
    }
}

impl MethodRow {
    /// The mean over the runs that have a value.
    fn all(&self, value: impl Fn(&MethodRun) -> Option<f64>) -> Cell {
        Cell::of(&self.runs.iter().filter_map(value).collect::<Vec<f64>>())
    }

    /// The mean over the finished runs that have a value.
    fn finished(&self, value: impl Fn(&FinishedRun) -> Option<f64>) -> Cell {
        self.all(|run| value(run.made.as_ref()?))
    }

    fn figure(&self, wanted: &ComparedFigure) -> Cell {
        self.all(|run| run.figures.iter().find(|figure| figure.is(wanted))?.value)
    }

    /// What is missing in the runs of this row and why, if there are this many seeds.
    fn missing(&self, seeds: usize) -> Vec<String> {
        let measured = self.runs.iter().filter(|run| run.failed.is_none()).count();
        // A neuron-level repair draws nothing at random, so it runs once.
        let draws =
            !self.is_base() && !neurons::METHODS.iter().any(|method| method.name == self.method);
        let few = (draws && (1..seeds).contains(&measured))
            .then(|| format!("{}: {measured} of {seeds} seeds", self.name));
        let failed = |run: &MethodRun| {
            let why = run.failed.as_ref()?;
            Some(format!("{}, seed {}: failed: {why}", self.name, run.seed))
        };
        few.into_iter().chain(self.runs.iter().filter_map(failed)).collect()
    }
}

/// A note for each row in which something is missing.
pub(super) fn missing_notes(rows: &[SheetRow]) -> impl Iterator<Item = String> {
    rows.iter()
        .filter(|row| !row.note.is_empty())
        .map(|row| format!("{}.", row.note.trim_end_matches('.')))
}

/// Toxicity and KL of every scale, over the runs of a row.
fn along_the_scale(scales: &Scales) -> Sheet {
    let columns = vec![Column::new("toxicity", 2), Column::new("KL", 4)];
    let row = |name: String, points: &[&ScaledPoint]| {
        let over = |value: fn(&ScaledPoint) -> f64| {
            Cell::of(&points.iter().map(|point| value(point)).collect::<Vec<_>>())
        };
        let cells = vec![over(|point| point.toxicity), over(|point| point.kl)];
        SheetRow { name, marked: false, cells, note: String::new() }
    };
    let base = ScaledPoint { scale: 0.0, toxicity: scales.base, kl: 0.0 };
    let mut rows = vec![row("vanilla".into(), &[&base])];
    for (name, runs) in &scales.rows {
        let mut own: Vec<f64> = runs.iter().flatten().map(|point| point.scale).collect();
        own.sort_by(f64::total_cmp);
        own.dedup();
        for scale in own {
            let points: Vec<&ScaledPoint> =
                runs.iter().flatten().filter(|point| point.scale == scale).collect();
            rows.push(row(format!("{name} at {scale}"), &points));
        }
    }
    let note = "Base + scale · (repaired - base), for each run; KL from the base on normal text, \
                in nats a token.";
    Sheet {
        id: "scales".into(),
        title: "Toxicity against KL along the scale of the change".into(),
        columns,
        rows,
        notes: vec![note.into()],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn figure(id: &str, name: &str, value: f64) -> ComparedFigure {
        ComparedFigure {
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

    fn run(seed: u64, toxicity: f64) -> MethodRun {
        let made = FinishedRun {
            dir: format!("seed{seed}").into(),
            data_sha256: String::new(),
            prompts: 0,
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
        MethodRun {
            seed,
            made: Some(made),
            failed: None,
            figures,
            points: Vec::new(),
            scaled: Vec::new(),
        }
    }

    fn comparison(rows: &[(&str, Vec<MethodRun>)]) -> Comparison {
        let base = BaseRecord {
            model: "m".into(),
            name: "m".into(),
            revision: None,
            sha256: String::new(),
            files: BTreeMap::new(),
            parameters: 100,
            scorer: "words".into(),
            toxic_label: None,
        };
        let mut vanilla = MethodRow::vanilla();
        vanilla.runs[0].figures = run(0, 50.0).figures;
        let row = |(name, runs): &(&str, Vec<MethodRun>)| MethodRow {
            name: (*name).into(),
            method: (*name).into(),
            runs: runs.clone(),
        };
        let rows = std::iter::once(vanilla).chain(rows.iter().map(row)).collect();
        let asked = Asked { about: Vec::new(), toxicity: None, perplexity: None };
        Comparison::new(base, Vec::new(), None, asked, rows, None).expect("a comparison")
    }

    /// If all runs were finished before, no seed was asked for. Then the seeds are those of the
    /// runs.
    #[test]
    fn seeds_are_those_of_the_runs() {
        let three = vec![run(1, 10.0), run(2, 20.0), run(3, 30.0)];
        let two = vec![run(1, 10.0), run(2, 20.0), MethodRun::failed(3, "50 % of {it}".into())];
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
            // Table 3 has no row of `dapt`.
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
        assert_eq!(table[2], "irepair-min  20.0±5.8     20.0±0.0*      2±0*");
        assert_eq!(
            comparison(&[("dapt", vec![run(1, 1.0)])]).sheets[0].notes[0].split('.').next(),
            Some("One seed")
        );
    }
}
