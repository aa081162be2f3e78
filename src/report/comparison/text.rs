//! The texts of a comparison: Markdown with everything, and a short table for terminals.

use super::record::Comparison;
use super::tables::missing_notes;
use crate::report::sheet::{Cell, Column, Sheet, SheetRow};

/// The columns of Table 1 that the short table shows: id, short name, decimal places.
const LEADING: [(&str, &str, usize); 6] = [
    ("edits_generated", "said (%)", 1),
    ("toxicity", "toxicity", 1),
    ("ppl", "perplexity", 1),
    ("kl", "KL", 3),
    ("area", "area", 3),
    ("neurons", "neurons", 0),
];
/// How many of these columns fit into 80 columns of text, beside the name and the seconds.
const MOST: usize = 4;
/// Columns of a terminal.
const COLUMNS: usize = 80;
/// The longest name of a row, in characters.
const NAME: usize = 16;

/// A column of the short table: a column of another table under a short name.
struct ShortColumn<'a> {
    sheet: &'a Sheet,
    /// The place of the column in the sheet.
    at: usize,
    name: &'static str,
    digits: usize,
}

impl ShortColumn<'_> {
    /// The cell of the row with this name.
    fn cell(&self, row: &str) -> Cell {
        let same = self.sheet.rows.iter().find(|other| other.name == row);
        same.map_or(Cell::None, |same| same.cells[self.at].clone())
    }

    fn column(&self) -> Column {
        let column = self.sheet.columns[self.at].clone();
        Column { name: self.name.to_owned(), digits: self.digits, ..column }
    }
}

impl Comparison {
    /// What the picture of the sensitivities shows, in words. Empty if there are no densities.
    pub fn figure2(&self) -> String {
        let Some(sensitivity) = &self.sensitivity else { return String::new() };
        let Some(d) = &sensitivity.error_density else { return String::new() };
        let top: Vec<String> = d.top.iter().map(ToString::to_string).collect();
        format!(
            "Error density (sensitivity a block, {} pairs): {:.3} in the top 20 % of blocks ({}), \
             {:.3} in the others: {:+.1} %.",
            sensitivity.pairs,
            d.top_density,
            top.join(", "),
            d.rest_density,
            d.percent_above
        )
    }

    /// All tables and pictures as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("# Repairs of {} compared\n\n", self.base.name);
        let short: Vec<String> = self.in_short().iter().map(|said| format!("- {said}\n")).collect();
        if !short.is_empty() {
            out += &format!("{}\n", short.concat());
        }
        self.gaps.iter().for_each(|gap| out += &format!("**Note:** {gap}\n\n"));
        for sheet in &self.sheets {
            out += &sheet.markdown();
            out += "\n";
        }
        if self.pareto.is_some() {
            out += "### Toxicity against perplexity\n\n\
                    ![toxicity against perplexity](pareto.svg)\n\n";
        }
        if self.scales.is_some() {
            out += "![toxicity against KL along the scale](scales.svg)\n\n";
        }
        if self.sensitivity.is_some() {
            out += &format!(
                "### Relative sensitivity of the blocks\n\n\
                 ![sensitivity by block](figure2.svg)\n\n{}\n",
                self.figure2()
            );
        }
        out
    }

    /// The leading figures as a table for terminals with 80 columns.
    pub fn text(&self) -> String {
        let [gain, cost, ..] = self.sheets.as_slice() else { return String::new() };
        let short = |sheet, id, name, digits| -> Option<ShortColumn> {
            let find = |sheet: &Sheet| sheet.columns.iter().position(|column| column.id == id);
            Some(ShortColumn { sheet, at: find(sheet)?, name, digits })
        };
        let leading =
            LEADING.into_iter().filter_map(|(id, name, digits)| short(gain, id, name, digits));
        let seconds = short(gain, "seconds_each", "s a failure", 3)
            .or_else(|| short(cost, "seconds", "seconds", 0));
        let found: Vec<ShortColumn> = leading.take(MOST).chain(seconds).collect();
        let row = |row: &SheetRow| SheetRow {
            name: shortened(&row.name),
            cells: found.iter().map(|column| column.cell(&row.name)).collect(),
            ..row.clone()
        };
        let mut notes = vec![format!("{} Best *, second best °.", self.about_seeds())];
        let text = self.asked.perplexity.iter().map(|(_, text)| text);
        notes.extend(text.map(|text| format!("Perplexity: of {text}.")));
        notes.extend(missing_notes(&gain.rows));
        let columns = found.iter().map(ShortColumn::column).collect();
        let rows = gain.rows.iter().map(row).collect();
        let title = gain.title.clone();
        let table = Sheet { id: "short".into(), title, columns, rows, notes }.text();
        match self.in_short() {
            said if said.is_empty() => table,
            said => {
                let said: Vec<String> = said.iter().map(|line| within(line, COLUMNS)).collect();
                format!("{table}\n{}\n", said.join("\n"))
            }
        }
    }
}

/// A sentence in lines of at most so many characters.
fn within(text: &str, columns: usize) -> String {
    let (mut out, mut room) = (String::new(), columns);
    for word in text.split(' ') {
        let length = word.chars().count();
        if out.is_empty() {
            room = columns.saturating_sub(length);
        } else if length < room {
            out.push(' ');
            room -= length + 1;
        } else {
            out += "\n  ";
            room = columns.saturating_sub(length + 2);
        }
        out += word;
    }
    out
}

/// A name with at most [`NAME`] characters. What is too much is taken from the middle, because the
/// end of a name often says in which setting a row differs.
fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_owned();
    }
    let (head, end) = (NAME / 2, length - (NAME / 2 - 1));
    name.chars().take(head).chain(['…']).chain(name.chars().skip(end)).collect()
}
