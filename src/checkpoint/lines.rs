//! The *lines* of a matrix that a patch changes: its rows, or its columns.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Some rows (axis 0) or columns (axis 1) of a matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsOrColumns {
    pub axis: usize,
    /// In ascending order.
    pub indices: Vec<usize>,
}

impl RowsOrColumns {
    /// The rows, or the columns, that hold the whole difference of a matrix: whichever are fewer
    /// values. `None` if they are the whole matrix, or if the shape is not that of a matrix.
    pub fn of(difference: &[u8], shape: &[usize], width: usize) -> Option<Self> {
        let &[rows, columns] = shape else { return None };
        let (mut in_row, mut in_column) = (vec![false; rows], vec![false; columns]);
        for (at, value) in difference.chunks_exact(width).enumerate() {
            if value.iter().any(|b| *b != 0) {
                in_row[at / columns] = true;
                in_column[at % columns] = true;
            }
        }
        let indices = |flags: &[bool]| (0..flags.len()).filter(|&i| flags[i]).collect::<Vec<_>>();
        let (changed_rows, changed_columns) = (indices(&in_row), indices(&in_column));
        let lines = match changed_rows.len() * columns <= changed_columns.len() * rows {
            true => Self { axis: 0, indices: changed_rows },
            false => Self { axis: 1, indices: changed_columns },
        };
        (lines.indices.len() < shape[lines.axis]).then_some(lines)
    }

    /// Where the bytes of their values lie in the matrix, in the order of the matrix. `None` if the
    /// matrix has no such rows or columns.
    pub fn places(&self, shape: &[usize], width: usize) -> Option<Vec<Range<usize>>> {
        let &[rows, columns] = shape else { return None };
        let ascend = self.indices.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend
            || self
                .indices
                .last()
                .is_some_and(|last| shape.get(self.axis).is_none_or(|n| last >= n))
        {
            return None;
        }
        Some(match self.axis {
            0 => self
                .indices
                .iter()
                .map(|row| row * columns * width..(row + 1) * columns * width)
                .collect(),
            _ => (0..rows)
                .flat_map(|row| {
                    self.indices.iter().map(move |column| (row * columns + column) * width)
                })
                .map(|begin| begin..begin + width)
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_rows_or_columns_are_kept() {
        let mut difference = vec![0u8; 3 * 4 * 2];
        difference[2 * (4 + 2)] = 1;
        difference[2 * (8 + 2) + 1] = 1;
        let lines = RowsOrColumns::of(&difference, &[3, 4], 2).expect("less than all");
        assert_eq!(lines, RowsOrColumns { axis: 1, indices: vec![2] });
        assert_eq!(lines.places(&[3, 4], 2).expect("fits"), [4..6, 12..14, 20..22]);
        let rows = RowsOrColumns { axis: 0, indices: vec![0, 2] };
        assert_eq!(rows.places(&[3, 4], 2).expect("fits"), [0..8, 16..24]);
        for (axis, indices) in [(0, vec![3]), (2, vec![0]), (1, vec![1, 1]), (1, vec![2, 1])] {
            assert_eq!(RowsOrColumns { axis, indices }.places(&[3, 4], 2), None);
        }
        assert_eq!(RowsOrColumns::of(&[1; 24], &[3, 4], 2), None);
        assert_eq!(RowsOrColumns::of(&[0, 1], &[2], 1), None);
    }
}
