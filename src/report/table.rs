//! Tables of plain text for terminals.

use crate::base::plain::{plain_line, shortened};

/// The longest cell in bytes.
const LONGEST: usize = 400;

/// A table as text. Columns are padded to their widest cell; the first one is aligned to the left,
/// the others to the right.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    // Names in it come from files.
    let cell = |cell: &String| plain_line(&shortened(cell, LONGEST)).into_owned();
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(cell)).collect();
    let mut widths = head.map(|h| h.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(i, (cell, width))| {
                let pad = " ".repeat(width - cell.chars().count());
                if i == 0 { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
            })
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(head);
    for row in &rows {
        out += &line(std::array::from_fn(|i| row[i].as_str()));
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_align() {
        let table = super::table(
            ["block", "n"],
            &[["0".into(), "10".into()], ["long name".into(), "7".into()]],
        );
        assert_eq!(table, "block       n\n0          10\nlong name   7\n");
    }
}
