//! A comparison of short repairs of the demo, and its tables.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::command::{CommandLine, irepair};
use super::files::{Folder, json, read};

/// A row of settings of one's own.
pub const RUNS: &str =
    "[one-block]\nselect = \"fixed\"\nobjective = \"dpo\"\nkl-weight = 1.0\nfixed-sample = 16\n";

const PROMPTS: &str =
    "{\"prompt\": \"the old farmer said to the baker that\"}\n{\"prompt\": \"my neighbour is\"}\n";

/// A folder with rows, prompts and pairs, and the comparison that goes to `out` in it.
pub struct Comparison(Folder);

impl Comparison {
    pub fn new() -> Self {
        let folder = Folder::new();
        folder.write("runs.toml", RUNS);
        folder.write("prompts.jsonl", PROMPTS);
        folder.write("pairs.jsonl", irepair::data::demo::PAIRS);
        Self(folder)
    }

    pub fn folder(&self) -> &Folder {
        &self.0
    }

    pub fn out(&self) -> PathBuf {
        self.0.path("out")
    }

    /// The command without its methods.
    pub fn line(&self) -> CommandLine {
        irepair("compare --max-steps 6 --eval-steps 3 --checkpoint-steps 3 --normal-texts 16")
            .and("--valid-size 8 --limit 40 -q")
            .with("--runs", self.0.path("runs.toml"))
            .with("--eval-prompts", self.0.path("prompts.jsonl"))
            .with("--out", self.out())
    }

    pub fn record(&self) -> Value {
        json(self.out().join("compare.json"))
    }
}

/// The mean in a table, at a row's name and the beginning of a column's.
pub fn cell(sheet: &Value, row: &str, column: &str) -> Option<f64> {
    let columns = sheet["columns"].as_array().expect("columns").iter();
    let mut names = columns.map(|c| c["name"].as_str().expect("a name"));
    let at = names.position(|name| name.starts_with(column)).expect(column);
    let mut rows = sheet["rows"].as_array().expect("rows").iter();
    rows.find(|r| r["name"] == row).expect(row)["cells"][at]["mean"].as_f64()
}

/// The tables' numbers are those of the record, in every form.
pub fn tables_are_of_the_record(dir: &Path, record: &Value) {
    for sheet in record["sheets"].as_array().expect("sheets") {
        let id = sheet["id"].as_str().expect("id");
        let text = |ending: &str| read(dir.join(format!("{id}.{ending}")));
        let (csv, markdown, latex) = (text("csv"), text("md"), text("tex"));
        let mut lines = csv::Reader::from_reader(csv.as_bytes());
        let rows = sheet["rows"].as_array().expect("rows");
        let found: Vec<csv::StringRecord> = lines.records().map(|r| r.expect("row")).collect();
        assert_eq!(found.len(), rows.len(), "{id}");
        let columns = sheet["columns"].as_array().expect("columns");
        for (row, found) in rows.iter().zip(&found) {
            let name = row["name"].as_str().expect("name");
            let begins = format!("| {name} |");
            let line = markdown.lines().find(|l| l.starts_with(&begins)).expect(name);
            let begins = format!("{name} & ");
            let row_of_latex = latex.lines().find(|l| l.starts_with(&begins)).expect(name);
            assert_eq!(&found[0], name);
            let cells = row["cells"].as_array().expect("cells");
            for (index, (cell, column)) in cells.iter().zip(columns).enumerate() {
                let Some(mean) = cell["mean"].as_f64() else { continue };
                let number = found[1 + 2 * index].parse::<f64>().expect("number");
                assert_eq!(number, mean, "{id} {name}");
                let digits = column["digits"].as_u64().expect("digits") as usize;
                let shown = |plus_minus: &str| match cell["error"].as_f64() {
                    Some(error) => format!("{mean:.digits$}{plus_minus}{error:.digits$}"),
                    None => format!("{mean:.digits$}"),
                };
                let in_latex = shown(" $\\pm$ ");
                assert!(line.contains(&shown(" ± ")), "{} is not in {line}", shown(" ± "));
                assert!(row_of_latex.contains(&in_latex), "{in_latex} is not in {row_of_latex}");
                let error = found[2 + 2 * index].parse::<f64>().ok();
                assert_eq!(error, cell["error"].as_f64(), "{id} {name}");
            }
        }
    }
}
