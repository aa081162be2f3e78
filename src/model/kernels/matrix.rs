//! A *matrix view* is what a product reads or writes. It borrows the memory it lies in, and its
//! extents are checked where it is made, so that whoever uses one need not check again.

use std::marker::PhantomData;
use std::ops::Range;

use super::stored::Values;

/// Where the work runs: on all cores, or on the thread that calls (in a job that is one of many).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    All,
    One,
}

/// Values from the first to the last of a view, or `None` if so many can't be counted.
fn reach(rows: usize, cols: usize, row_stride: usize) -> Option<usize> {
    isize::try_from(row_stride).ok()?;
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(row_stride)?.checked_add(cols)
}

/// A matrix to read: `rows × cols` with strides in values.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// From the value at (0,0) on, and at least up to the last one.
    data: Values<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix that is all of `data`. Panics if it has another size.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::of(Values::F32(data), rows, cols)
    }

    /// A row-major matrix that is all of `data`. Panics if it has another size.
    pub fn of(data: Values<'a>, rows: usize, cols: usize) -> Self {
        let size = rows.checked_mul(cols);
        assert_eq!(size, Some(data.count()), "matrix of {rows} × {cols}");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Rows of `cols` values that begin `stride` values apart, the first at the beginning of
    /// `data`. Panics if the last row does not end within `data`, or if rows overlap.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let end = reach(rows, cols, stride);
        assert!(
            stride >= cols && end.is_some_and(|end| end <= data.len()),
            "{rows} rows of {cols}, {stride} apart, in {} values",
            data.len()
        );
        Self { data: Values::F32(data), rows, cols, row_stride: stride, col_stride: 1 }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from row to row.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Values from column to column.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// The values from the one at (0,0) on.
    pub fn data(&self) -> Values<'a> {
        self.data
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some rows and columns of it. Panics if it has not all of them.
    pub fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        within(&rows, self.rows);
        within(&cols, self.cols);
        let offset = match rows.is_empty() || cols.is_empty() {
            true => 0,
            false => rows.start * self.row_stride + cols.start * self.col_stride,
        };
        Self { data: self.data.after(offset), rows: rows.len(), cols: cols.len(), ..self }
    }

    /// A row of an f32 matrix. Panics where a row does not lie in one piece.
    pub fn row(&self, row: usize) -> &'a [f32] {
        let Values::F32(values) = self.data else { panic!("a row of weights that are not f32") };
        assert!(row < self.rows && self.col_stride == 1, "row {row} of {}", self.rows);
        &values[row * self.row_stride..][..self.cols]
    }

    /// All values in f32, in the order they lie in. Panics if there are gaps between them.
    pub fn widened(self) -> Vec<f32> {
        let by_rows = self.col_stride == 1 && self.row_stride == self.cols;
        let by_cols = self.row_stride == 1 && self.col_stride == self.rows;
        assert!(by_rows || by_cols, "a matrix with gaps");
        self.data.first(self.rows * self.cols).widened()
    }

    /// The same matrix, its values taken from a copy that [`widened`](Self::widened) made.
    pub fn with_data<'b>(self, wide: &'b [f32]) -> Mat<'b> {
        assert_eq!(wide.len(), self.rows * self.cols, "a copy of another size");
        let dense = (self.rows.max(1) - 1) * self.row_stride
            + (self.cols.max(1) - 1) * self.col_stride
            < wide.len().max(1);
        assert!(dense, "a matrix with gaps");
        Mat {
            data: Values::F32(wide),
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }
}

fn within(range: &Range<usize>, count: usize) {
    assert!(range.start <= range.end && range.end <= count, "{range:?} of {count}");
}

/// A row-major matrix to write, which nobody else reads or writes meanwhile.
pub struct MatMut<'a> {
    /// The value at (0,0).
    to: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}
// SAFETY: it is a `&mut [f32]` of which some columns are left out.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// All of `data`. Panics if it has another size.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(rows.checked_mul(cols), Some(data.len()), "output of {rows} × {cols}");
        Self { to: data.as_mut_ptr(), rows, cols, stride: cols, borrowed: PhantomData }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from row to row.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Where the value at (0,0) goes.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.to
    }

    /// A row. Panics if there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row is one of the matrix, whose places are ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.to.add(row * self.stride), self.cols) }
    }

    /// Some rows and columns of it. Panics if it has not all of them.
    pub fn part(&mut self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        within(&rows, self.rows);
        within(&cols, self.cols);
        // SAFETY: they lie within, and `self` is borrowed as long as the part is.
        unsafe { self.at(rows, cols) }
    }

    /// Parts of `heights` rows, from the top down. Panics if there are not so many rows.
    pub fn split_rows(self, heights: impl IntoIterator<Item = usize>) -> Vec<MatMut<'a>> {
        let cols = self.cols;
        // SAFETY: the ranges lie within, no two of them overlap, and `self` is given up.
        ranges(heights, self.rows).map(|rows| unsafe { self.at(rows, 0..cols) }).collect()
    }

    /// Parts of `widths` columns, from left to right. Panics if there are not so many columns.
    pub fn split_cols(self, widths: impl IntoIterator<Item = usize>) -> Vec<MatMut<'a>> {
        let rows = self.rows;
        // SAFETY: as above.
        ranges(widths, self.cols).map(|cols| unsafe { self.at(0..rows, cols) }).collect()
    }

    /// # Safety
    /// The part must lie within the matrix, and nobody may use its places as long as it lives.
    unsafe fn at<'b>(&self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'b> {
        MatMut {
            // Wrapping, since an empty part may begin behind the last value.
            to: self.to.wrapping_add(rows.start * self.stride + cols.start),
            rows: rows.len(),
            cols: cols.len(),
            stride: self.stride,
            borrowed: PhantomData,
        }
    }
}

/// Ranges of these lengths one after another. Panics at the one that does not end within `count`.
fn ranges(
    lengths: impl IntoIterator<Item = usize>,
    count: usize,
) -> impl Iterator<Item = Range<usize>> {
    lengths.into_iter().scan(0usize, move |start, length| {
        let end = start.checked_add(length).filter(|end| *end <= count);
        let range = *start..end.unwrap_or_else(|| panic!("{start} and {length} of {count}"));
        *start = range.end;
        Some(range)
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn panics<R>(work: impl FnOnce() -> R) -> bool {
        catch_unwind(AssertUnwindSafe(work)).is_err()
    }

    #[test]
    fn a_view_beyond_its_memory_is_refused() {
        let data = [0f32; 12];
        assert!(panics(|| Mat::new(&data, 3, 5)));
        assert!(panics(|| Mat::new(&data, usize::MAX, 2)), "the product overflows");
        assert!(!panics(|| Mat::strided(&data, 3, 2, 5)), "5 + 5 + 2 values");
        assert!(panics(|| Mat::strided(&data, 3, 3, 5)));
        assert!(panics(|| Mat::strided(&data, 2, 2, usize::MAX)));
        assert!(panics(|| Mat::strided(&data, usize::MAX, 1, usize::MAX / 2)));
        assert!(panics(|| Mat::strided(&data, usize::MAX, 4, 0)), "rows that overlap");
        let matrix = Mat::new(&data, 3, 4);
        assert!(panics(|| matrix.part(0..4, 0..4)));
        assert!(panics(|| matrix.part(0..3, 2..5)));
        assert!(panics(|| matrix.t().part(0..4, 0..4)));
        assert!(panics(|| matrix.row(3)));
        assert!(panics(|| matrix.t().row(0)), "a column is no row");
        assert!(panics(|| matrix.part(0..2, 0..2).widened()), "gaps");
        assert!(panics(|| matrix.with_data(&data[..11])));
        assert!(panics(|| matrix.part(0..2, 0..2).with_data(&data[..4])), "gaps");
        assert_eq!(matrix.part(3..3, 4..4).rows(), 0);
        let mut data = data;
        assert!(panics(|| MatMut::new(&mut [0.0; 11], 3, 4).rows()));
        let mut matrix = MatMut::new(&mut data, 3, 4);
        assert!(panics(|| matrix.row(3).len()));
        assert!(panics(|| matrix.part(0..3, 1..5).cols()));
        assert!(panics(|| MatMut::new(&mut [0.0; 12], 3, 4).split_cols([2, 3]).len()));
        assert!(panics(|| MatMut::new(&mut [0.0; 12], 3, 4).split_rows([usize::MAX, 2]).len()));
    }

    #[test]
    fn parts_are_where_they_were_cut() {
        let data: Vec<f32> = (0..24u8).map(f32::from).collect();
        let matrix = Mat::new(&data, 4, 6);
        assert_eq!(matrix.part(1..3, 2..5).row(1), [14.0, 15.0, 16.0]);
        assert_eq!(matrix.t().part(2..5, 1..3).t().row(0), [8.0, 9.0, 10.0]);
        assert_eq!(Mat::strided(&data[2..], 3, 2, 8).row(2), [18.0, 19.0]);
        let mut out = data.clone();
        let halves = MatMut::new(&mut out, 4, 6).split_rows([1, 3]);
        for (row, half) in halves.into_iter().enumerate() {
            for (column, mut part) in half.split_cols([2, 1, 3]).into_iter().enumerate() {
                part.row(0).fill(100.0 * (row + 1) as f32 + column as f32);
            }
        }
        assert_eq!(out[..6], [100.0, 100.0, 101.0, 102.0, 102.0, 102.0]);
        assert_eq!(out[6..12], [200.0, 200.0, 201.0, 202.0, 202.0, 202.0]);
        assert_eq!(out[12..], data[12..]);
    }
}
