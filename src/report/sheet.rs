//! A *sheet* is a table of a publication as data. It can be written as Markdown, CSV, LaTeX or
//! text.

use anyhow::{Context, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::base::plain::{plain, plain_line};

/// The most decimal places of a number.
const MOST_DIGITS: usize = 17;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    Number {
        /// The mean over the seeds.
        mean: f64,
        /// The standard error of the mean. `None` if there is only one seed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<f64>,
    },
    Text(String),
    /// The value was not measured.
    None,
}

impl Cell {
    /// The mean of these values and its standard error.
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Code finds the column by this.
    pub id: String,
    pub name: String,
    /// Decimal places that are shown.
    #[serde(deserialize_with = "digits")]
    pub digits: usize,
    /// Whether the least value is the best one. `None` if no value is marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub less_is_better: Option<bool>,
    /// The worst possible value, which is never marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst: Option<f64>,
}

/// Decimal places in a record: so few that a number has them.
pub fn digits<'de, D: Deserializer<'de>>(record: D) -> Result<usize, D::Error> {
    match usize::deserialize(record)? {
        digits @ ..=MOST_DIGITS => Ok(digits),
        digits => Err(D::Error::custom(format!("{digits} digits; {MOST_DIGITS} at most"))),
    }
}

impl Column {
    /// A column in which no value is marked. Its id is its name.
    pub fn new(name: impl Into<String>, digits: usize) -> Self {
        let name = name.into();
        Self { id: name.clone(), name, digits, less_is_better: None, worst: None }
    }

    /// Gives the column an id other than its name.
    pub fn id(self, id: &str) -> Self {
        Self { id: id.into(), ..self }
    }

    /// Marks the best and the second best value, where the least is the best.
    pub fn least(self) -> Self {
        Self { less_is_better: Some(true), ..self }
    }

    /// Marks the best and the second best value, where the greatest is the best.
    pub fn greatest(self) -> Self {
        Self { less_is_better: Some(false), ..self }
    }

    /// Says which value is the worst possible one.
    pub fn worst(self, value: f64) -> Self {
        Self { worst: Some(value), ..self }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SheetRow {
    pub name: String,
    /// Whether its values may be the best or the second best of a column.
    pub marked: bool,
    pub cells: Vec<Cell>,
    /// What is missing in the row and why; empty if nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sheet {
    /// The name for files, such as `table1`.
    pub id: String,
    pub title: String,
    pub columns: Vec<Column>,
    pub rows: Vec<SheetRow>,
    /// What a reader must know, a sentence or more each.
    pub notes: Vec<String>,
}

/// Whether a cell is the best of its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Best,
    Second,
    Other,
}

impl Sheet {
    /// The standing of a cell among the marked rows. It goes by the values as they are shown, so
    /// values that look equal have the same standing.
    pub fn standing(&self, row: usize, column: usize) -> Standing {
        let Some(less) = self.columns[column].less_is_better else { return Standing::Other };
        let shown = |row: &SheetRow| {
            let mean = row.cells[column].mean()?;
            format!("{mean:.*}", self.columns[column].digits).parse::<f64>().ok()
        };
        let (true, Some(own)) = (self.rows[row].marked, shown(&self.rows[row])) else {
            return Standing::Other;
        };
        if self.columns[column].worst == Some(own) {
            return Standing::Other;
        }
        let mut better: Vec<f64> =
            self.rows.iter().filter(|r| r.marked).filter_map(shown).collect();
        better.retain(|v| if less { *v < own } else { *v > own });
        better.sort_by(f64::total_cmp);
        better.dedup();
        match better.len() {
            0 => Standing::Best,
            1 => Standing::Second,
            _ => Standing::Other,
        }
    }

    /// The cells of each row as text, which `mark` marks by their standing.
    fn cells(
        &self,
        plus_minus: &str,
        mark: impl Fn(Standing, String) -> String,
    ) -> Vec<Vec<String>> {
        let cells = |(r, row): (usize, &SheetRow)| {
            let cells = row.cells.iter().zip(&self.columns).enumerate();
            cells
                .map(|(c, (cell, column))| {
                    mark(self.standing(r, c), cell.show(column.digits, plus_minus))
                })
                .collect()
        };
        self.rows.iter().enumerate().map(cells).collect()
    }

    /// The name and the cells of each row. The best is marked with `*`, the second best with `°`.
    pub fn shown(&self, plus_minus: &str) -> Vec<Vec<String>> {
        let cells = self.cells(plus_minus, |standing, text| match standing {
            Standing::Best => format!("{text}*"),
            Standing::Second => format!("{text}°"),
            Standing::Other => text,
        });
        self.rows
            .iter()
            .zip(cells)
            .map(|(row, cells)| {
                let name = plain_line(&row.name).into_owned();
                std::iter::once(name).chain(cells).collect()
            })
            .collect()
    }

    /// Markdown. The best is bold, the second best in italics.
    pub fn markdown(&self) -> String {
        // Names of rows are those of folders, which may hold anything.
        let bar = |text: &str| plain_line(text).replace('|', "\\|");
        let mut out = format!("### {}\n\n| |", plain_line(&self.title));
        self.columns.iter().for_each(|c| out += &format!(" {} |", bar(&c.name)));
        out += "\n|---|";
        self.columns.iter().for_each(|_| out += "---:|");
        out += "\n";
        let cells = self.cells(" ± ", |standing, text| match standing {
            Standing::Best => format!("**{text}**"),
            Standing::Second => format!("*{text}*"),
            Standing::Other => text,
        });
        for (row, cells) in self.rows.iter().zip(cells) {
            let cells: Vec<String> = cells.iter().map(|c| bar(c)).collect();
            out += &format!("| {} | {} |\n", bar(&row.name), cells.join(" | "));
        }
        out += "\n";
        self.notes.iter().for_each(|note| out += &format!("{}\n", plain(note)));
        out
    }

    /// CSV. Each column becomes two, the mean and the standard error. The last column says what is
    /// missing in a row.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        let names = self
            .columns
            .iter()
            .flat_map(|c| [c.name.clone(), format!("{} (standard error)", c.name)]);
        csv.write_record(
            std::iter::once("row".to_owned()).chain(names).chain(["note".to_owned()]),
        )?;
        for row in &self.rows {
            let cells = row.cells.iter().flat_map(|cell| match cell {
                Cell::Number { mean, error } => {
                    [mean.to_string(), error.map_or(String::new(), |e| e.to_string())]
                }
                Cell::Text(text) => [plain(text).into_owned(), String::new()],
                Cell::None => Default::default(),
            });
            let [name, note] = [&row.name, &row.note].map(|text| plain(text).into_owned());
            csv.write_record(std::iter::once(name).chain(cells).chain([note]))?;
        }
        csv.into_inner().context("a table as CSV")
    }

    /// LaTeX for the package `booktabs`. The best is bold, the second best underlined, and the
    /// notes stand below in small letters.
    pub fn latex(&self) -> String {
        let mut out = format!("\\begin{{table}}\n\\caption{{{}}}\n", tex(&self.title));
        out += &format!("\\begin{{tabular}}{{l{}}}\n\\toprule\n", "r".repeat(self.columns.len()));
        self.columns.iter().for_each(|c| out += &format!(" & {}", tex(&c.name)));
        out += " \\\\\n\\midrule\n";
        let cells = self.cells(" ± ", |standing, text| match standing {
            Standing::Best => format!("\\textbf{{{}}}", tex(&text)),
            Standing::Second => format!("\\underline{{{}}}", tex(&text)),
            Standing::Other => tex(&text),
        });
        for (row, cells) in self.rows.iter().zip(cells) {
            out += &format!("{} & {} \\\\\n", tex(&row.name), cells.join(" & "));
        }
        out += "\\bottomrule\n\\end{tabular}\n";
        if !self.notes.is_empty() {
            let notes: Vec<String> = self.notes.iter().map(|note| tex(note)).collect();
            out += &format!("\n{{\\footnotesize {}\\par}}\n", notes.join("\n"));
        }
        out + "\\end{table}\n"
    }

    /// Text for terminals. The best is marked with `*`, the second best with `°`.
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
                // The mark stands to the right of the column, so that the digits line up.
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

/// Splits a cell of [`Sheet::shown`] into its value and its mark.
fn unmarked(cell: &str) -> (&str, &str) {
    cell.split_at(cell.trim_end_matches(['*', '°']).len())
}

/// Text with LaTeX's special characters escaped.
fn tex(text: &str) -> String {
    let mut out = String::new();
    for c in plain_line(text).chars() {
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
        let row = |name: &str, marked, values: &[f64]| SheetRow {
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
    fn standings_go_by_what_is_shown_and_leave_the_base_out() {
        let sheet = sheet();
        let standings: Vec<Standing> = (0..5).map(|row| sheet.standing(row, 0)).collect();
        let (best, second, other) = (Standing::Best, Standing::Second, Standing::Other);
        assert_eq!(standings, [other, best, best, second, other]);
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
        let text = "Of 100 %\n             a_b\nvanilla      0.0\nx        2.0±0.0*\n\
                    y            2.0*\nz            3.0°\nfailed         –\nA note: 50 %.\n";
        assert_eq!(sheet.text(), text);
    }

    #[test]
    fn the_worst_there_can_be_is_not_second_best() {
        let row = |share: f64| SheetRow {
            name: "x".into(),
            marked: true,
            cells: vec![Cell::of(&[share])],
            note: String::new(),
        };
        let columns = vec![Column::new("parameters changed (%)", 2).least().worst(100.0)];
        let rows = vec![row(99.999), row(20.0), row(30.0)];
        let mut sheet = Sheet { columns, rows, ..sheet() };
        let standings = |sheet: &Sheet| [0, 1, 2].map(|row| sheet.standing(row, 0));
        assert_eq!(standings(&sheet), [Standing::Other, Standing::Best, Standing::Second]);
        sheet.rows.pop();
        sheet.rows.push(row(100.0));
        assert_eq!(standings(&sheet), [Standing::Other, Standing::Best, Standing::Other]);
    }

    /// The standard deviation of the sample 1, 2, 3 is 1, so the standard error is 1/√3.
    #[test]
    fn standard_errors() {
        let Cell::Number { mean, error: Some(error) } = Cell::of(&[1.0, 2.0, 3.0]) else {
            panic!("a number")
        };
        assert!((mean - 2.0).abs() < 1e-12 && (error - 1.0 / 3f64.sqrt()).abs() < 1e-12);
    }
}
