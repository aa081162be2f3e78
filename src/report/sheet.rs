//! A table of a publication: once as data, then as Markdown, CSV, LaTeX or text.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What a cell holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    Number {
        mean: f64,
        /// Standard error of the mean over the seeds, where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<f64>,
    },
    Text(String),
    /// Not measured.
    None,
}

impl Cell {
    /// Mean and standard error of what there is.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        if values.is_empty() {
            return Cell::None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let spread = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        let error = (values.len() > 1).then(|| (spread / (n - 1.0) / n).sqrt());
        Cell::Number { mean, error }
    }

    fn mean(&self) -> Option<f64> {
        match self {
            Cell::Number { mean, .. } => Some(*mean),
            _ => None,
        }
    }

    fn show(&self, digits: usize, plus_minus: &str) -> String {
        match self {
            Cell::Number { mean, error: None } => format!("{mean:.digits$}"),
            Cell::Number { mean, error: Some(error) } => {
                format!("{mean:.digits$}{plus_minus}{error:.digits$}")
            }
            Cell::Text(text) => text.clone(),
            Cell::None => "–".into(),
        }
    }
}

/// A column of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// What it is found by.
    pub id: String,
    pub name: String,
    pub digits: usize,
    /// Whether the best and the second best are marked, and which end is best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub less_is_better: Option<bool>,
    /// A value that is no achievement, and never marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst: Option<f64>,
}

impl Column {
    pub fn new(name: impl Into<String>, digits: usize) -> Self {
        let name = name.into();
        Self { id: name.clone(), name, digits, less_is_better: None, worst: None }
    }

    /// Another id than its name.
    pub fn id(self, id: &str) -> Self {
        Self { id: id.into(), ..self }
    }

    /// The best value and the second best are marked; the least is the best.
    pub fn least(self) -> Self {
        Self { less_is_better: Some(true), ..self }
    }

    /// … the greatest is.
    pub fn greatest(self) -> Self {
        Self { less_is_better: Some(false), ..self }
    }

    /// This value is never marked.
    pub fn worst(self, value: f64) -> Self {
        Self { worst: Some(value), ..self }
    }
}

/// A row; `marked` rows take part in the contest for the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub name: String,
    pub marked: bool,
    pub cells: Vec<Cell>,
    /// What is missing, and why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A table with its words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sheet {
    /// For file names: `table1`.
    pub id: String,
    pub title: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Line>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// How a cell stands in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    Best,
    Second,
    Other,
}

impl Sheet {
    /// Best and second best by what is shown: equal figures share their rank.
    pub fn rank(&self, row: usize, column: usize) -> Rank {
        let Some(less) = self.columns[column].less_is_better else { return Rank::Other };
        let shown = |row: &Line| {
            let mean = row.cells[column].mean()?;
            format!("{mean:.*}", self.columns[column].digits).parse::<f64>().ok()
        };
        let (true, Some(own)) = (self.rows[row].marked, shown(&self.rows[row])) else {
            return Rank::Other;
        };
        if self.columns[column].worst == Some(own) {
            return Rank::Other;
        }
        let mut better: Vec<f64> =
            self.rows.iter().filter(|r| r.marked).filter_map(shown).collect();
        better.retain(|v| if less { *v < own } else { *v > own });
        better.sort_by(f64::total_cmp);
        better.dedup();
        match better.len() {
            0 => Rank::Best,
            1 => Rank::Second,
            _ => Rank::Other,
        }
    }

    fn cells(&self, plus_minus: &str, mark: impl Fn(Rank, String) -> String) -> Vec<Vec<String>> {
        let row = |(r, line): (usize, &Line)| {
            let cells = line.cells.iter().zip(&self.columns).enumerate();
            cells
                .map(|(c, (cell, column))| {
                    mark(self.rank(r, c), cell.show(column.digits, plus_minus))
                })
                .collect()
        };
        self.rows.iter().enumerate().map(row).collect()
    }

    /// Names and cells, the best marked with `*`, the second best with `°`.
    pub fn shown(&self, plus_minus: &str) -> Vec<Vec<String>> {
        let cells = self.cells(plus_minus, |rank, text| match rank {
            Rank::Best => format!("{text}*"),
            Rank::Second => format!("{text}°"),
            Rank::Other => text,
        });
        self.rows
            .iter()
            .zip(cells)
            .map(|(line, cells)| std::iter::once(line.name.clone()).chain(cells).collect())
            .collect()
    }

    /// Best bold, second best in italics.
    pub fn markdown(&self) -> String {
        let bar = |text: &str| text.replace('|', "\\|");
        let mut out = format!("### {}\n\n| |", self.title);
        self.columns.iter().for_each(|c| out += &format!(" {} |", bar(&c.name)));
        out += "\n|---|";
        self.columns.iter().for_each(|_| out += "---:|");
        out += "\n";
        let cells = self.cells(" ± ", |rank, text| match rank {
            Rank::Best => format!("**{text}**"),
            Rank::Second => format!("*{text}*"),
            Rank::Other => text,
        });
        for (line, cells) in self.rows.iter().zip(cells) {
            let cells: Vec<String> = cells.iter().map(|c| bar(c)).collect();
            out += &format!("| {} | {} |\n", bar(&line.name), cells.join(" | "));
        }
        out += "\n";
        self.notes.iter().for_each(|note| out += &format!("{note}\n"));
        out
    }

    /// A column of means and one of standard errors each; last what is missing in a row.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        let names = self
            .columns
            .iter()
            .flat_map(|c| [c.name.clone(), format!("{} (standard error)", c.name)]);
        csv.write_record(
            std::iter::once("row".to_owned()).chain(names).chain(["note".to_owned()]),
        )?;
        for line in &self.rows {
            let cells = line.cells.iter().flat_map(|cell| match cell {
                Cell::Number { mean, error } => {
                    [mean.to_string(), error.map_or(String::new(), |e| e.to_string())]
                }
                Cell::Text(text) => [text.clone(), String::new()],
                Cell::None => Default::default(),
            });
            csv.write_record(
                std::iter::once(line.name.clone()).chain(cells).chain([line.note.clone()]),
            )?;
        }
        csv.into_inner().context("a table as CSV")
    }

    /// For `booktabs`: best bold, second best underlined; the notes in small letters below.
    pub fn latex(&self) -> String {
        let mut out = format!("\\begin{{table}}\n\\caption{{{}}}\n", tex(&self.title));
        out += &format!("\\begin{{tabular}}{{l{}}}\n\\toprule\n", "r".repeat(self.columns.len()));
        self.columns.iter().for_each(|c| out += &format!(" & {}", tex(&c.name)));
        out += " \\\\\n\\midrule\n";
        let cells = self.cells(" ± ", |rank, text| match rank {
            Rank::Best => format!("\\textbf{{{}}}", tex(&text)),
            Rank::Second => format!("\\underline{{{}}}", tex(&text)),
            Rank::Other => tex(&text),
        });
        for (line, cells) in self.rows.iter().zip(cells) {
            out += &format!("{} & {} \\\\\n", tex(&line.name), cells.join(" & "));
        }
        out += "\\bottomrule\n\\end{tabular}\n";
        if !self.notes.is_empty() {
            let notes: Vec<String> = self.notes.iter().map(|note| tex(note)).collect();
            out += &format!("\n{{\\footnotesize {}\\par}}\n", notes.join("\n"));
        }
        out + "\\end{table}\n"
    }

    /// For terminals: best marked with `*`, second best with `°`.
    pub fn text(&self) -> String {
        let mut all = vec![
            std::iter::once(String::new())
                .chain(self.columns.iter().map(|c| c.name.clone()))
                .collect(),
        ];
        all.extend(self.shown("±"));
        let widths: Vec<usize> = (0..=self.columns.len())
            .map(|i| {
                all.iter()
                    .map(|row: &Vec<String>| unmarked(&row[i]).0.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = format!("{}\n", self.title);
        for row in &all {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let (bare, mark) = unmarked(cell);
                let pad = " ".repeat(width - bare.chars().count());
                // The mark stands beside the column.
                line += &if index == 0 {
                    format!("{cell}{pad}")
                } else {
                    format!("  {pad}{bare}{mark:1}")
                };
            }
            out += line.trim_end();
            out += "\n";
        }
        self.notes.iter().for_each(|note| out += &format!("{note}\n"));
        out
    }
}

/// A cell of [`Sheet::shown`] and its mark.
fn unmarked(cell: &str) -> (&str, &str) {
    cell.split_at(cell.trim_end_matches(['*', '°']).len())
}

/// Text in LaTeX.
fn tex(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out += "\\textbackslash{}",
            '^' => out += "\\^{}",
            '~' => out += "\\~{}",
            '±' => out += "$\\pm$",
            '×' => out += "$\\times$",
            '–' => out += "--",
            '°' => out += "$^\\circ$",
            '…' => out += "\\ldots{}",
            '<' | '>' | '|' => out.extend(['$', c, '$']),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let row = |name: &str, marked, values: &[f64]| Line {
            name: name.into(),
            marked,
            cells: vec![Cell::of(values)],
            note: if values.is_empty() { "no <memory>".into() } else { String::new() },
        };
        Sheet {
            id: "t".into(),
            title: "Of 100 %".into(),
            columns: vec![Column::new("a_b", 1).least()],
            rows: vec![
                row("vanilla", false, &[0.0]),
                row("x", true, &[2.04, 2.0]),
                row("y", true, &[2.01]),
                row("z", true, &[3.0]),
                row("failed", true, &[]),
            ],
            notes: vec!["A note: 50 %.".into()],
        }
    }

    #[test]
    fn ranks_go_by_what_is_shown_and_leave_the_base_out() {
        let sheet = sheet();
        let ranks: Vec<Rank> = (0..5).map(|row| sheet.rank(row, 0)).collect();
        assert_eq!(ranks, [Rank::Other, Rank::Best, Rank::Best, Rank::Second, Rank::Other]);
        let markdown = sheet.markdown();
        assert!(
            markdown.contains("| x | **2.0 ± 0.0** |") && markdown.contains("| z | *3.0* |"),
            "{markdown}"
        );
        assert!(markdown.contains("| failed | – |"), "{markdown}");
        let latex = sheet.latex();
        assert!(
            latex.contains("x & \\textbf{2.0 $\\pm$ 0.0} \\\\") && latex.contains("a\\_b"),
            "{latex}"
        );
        assert!(latex.contains("\\caption{Of 100 \\%}"), "{latex}");
        assert!(
            latex.ends_with(
                "\\end{tabular}\n\n{\\footnotesize A note: 50 \\%.\\par}\n\\end{table}\n"
            ),
            "{latex}"
        );
        let csv = String::from_utf8(sheet.csv().expect("csv")).expect("utf-8");
        assert!(
            csv.starts_with("row,a_b,a_b (standard error),note\nvanilla,0,,\nx,2.02,0.02"),
            "{csv}"
        );
        assert!(csv.ends_with("failed,,,no <memory>\n"), "{csv}");
        let text = "Of 100 %\n             a_b\nvanilla      0.0\nx        2.0±0.0*\ny            2.0*\n\
                    z            3.0°\nfailed         –\nA note: 50 %.\n";
        assert_eq!(sheet.text(), text);
    }

    #[test]
    fn the_worst_there_can_be_is_not_second_best() {
        let row = |share: f64| Line {
            name: "x".into(),
            marked: true,
            cells: vec![Cell::of(&[share])],
            note: String::new(),
        };
        let columns = vec![Column::new("parameters changed (%)", 2).least().worst(100.0)];
        let rows = vec![row(99.999), row(20.0), row(30.0)];
        let mut sheet = Sheet { columns, rows, ..sheet() };
        let ranks = |sheet: &Sheet| [0, 1, 2].map(|row| sheet.rank(row, 0));
        assert_eq!(ranks(&sheet), [Rank::Other, Rank::Best, Rank::Second]);
        sheet.rows.pop();
        sheet.rows.push(row(100.0));
        assert_eq!(ranks(&sheet), [Rank::Other, Rank::Best, Rank::Other]);
    }

    /// ±: of 1, 2, 3 the sample's deviation is 1, the standard error 1/√3.
    #[test]
    fn standard_errors() {
        let Cell::Number { mean, error: Some(error) } = Cell::of(&[1.0, 2.0, 3.0]) else {
            panic!("a number")
        };
        assert!((mean - 2.0).abs() < 1e-12 && (error - 1.0 / 3f64.sqrt()).abs() < 1e-12);
    }
}
