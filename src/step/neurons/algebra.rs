//! Linear algebra that candle has not, in double precision. Singular systems have an answer, too:
//! the least-norm one.

use anyhow::{Context, Result, ensure};
use faer::{Mat, MatRef, Side};
use rayon::prelude::*;

/// Rows (of `columns` values each) as a matrix.
pub fn matrix(rows: &[f32], columns: usize) -> Mat<f64> {
    Mat::from_fn(rows.len() / columns, columns, |i, j| f64::from(rows[i * columns + j]))
}

/// A solution of ZX ≈ S.
#[derive(Debug, Clone)]
pub struct Solution {
    /// X is their product.
    factors: (Mat<f64>, Mat<f64>),
    /// Rank of Z: what is left of it above rounding.
    pub rank: usize,
    /// ‖ZX − S‖ / ‖S‖, 0 to 1.
    pub residual: f64,
}

impl Solution {
    /// X
    pub fn x(&self) -> Mat<f64> {
        &self.factors.0 * &self.factors.1
    }

    /// Xᵀ: a matrix lies column by column, and this one so by X's rows.
    pub fn transposed(&self) -> Mat<f64> {
        self.factors.1.transpose() * self.factors.0.transpose()
    }
}

/// Z⁺S: of all X that bring ZX nearest to S, the smallest. Z (n,m) is of single precision, so
/// singular values below max(n, m)·2⁻²³ of the largest count as zero. Errors if a value is not
/// finite.
pub fn least_norm(z: MatRef<f64>, s: MatRef<f64>) -> Result<Solution> {
    let (n, m) = (z.nrows(), z.ncols());
    let smallest = n.max(m) as f64 * f64::from(f32::EPSILON);
    // The Gram matrix of the shorter side has the squared singular values; double precision has
    // digits enough for them.
    let wide = n <= m;
    let gram = if wide { z * z.transpose() } else { z.transpose() * z };
    let (vectors, values) = spectrum(gram.as_ref(), smallest * smallest)?;
    let seen = if wide { s.to_owned() } else { z.transpose() * s };
    let mut coefficients = vectors.transpose() * seen;
    let mut explained = 0.0;
    for (i, value) in values.iter().enumerate() {
        for j in 0..coefficients.ncols() {
            // The part of S in the direction that Z reaches by this singular value.
            explained += if wide {
                coefficients[(i, j)].powi(2)
            } else {
                coefficients[(i, j)].powi(2) / value
            };
            coefficients[(i, j)] /= value;
        }
    }
    let factors = if wide {
        (z.transpose().to_owned(), vectors * coefficients)
    } else {
        (vectors, coefficients)
    };
    let rank = values.len();
    let whole = s.squared_norm_l2();
    let residual = if whole > 0.0 { ((whole - explained).max(0.0) / whole).sqrt() } else { 0.0 };
    Ok(Solution { factors, rank, residual })
}

/// (WᵀW)⁺ for W of rows of `columns` values: (columns, columns). Singular values of W below
/// √(columns·2⁻⁵²) of the largest count as zero.
pub fn inverse_gram(w: &[f32], columns: usize) -> Result<Mat<f64>> {
    /// Rows of a part; the parts are added in order, so that the sum does not depend on the number
    /// of threads.
    const ROWS: usize = 4096;
    let parts: Vec<Mat<f64>> = w
        .par_chunks(ROWS * columns)
        .map(|rows| {
            let rows = matrix(rows, columns);
            rows.transpose() * &rows
        })
        .collect();
    let mut gram = Mat::zeros(columns, columns);
    parts.iter().for_each(|part| gram += part);
    let (vectors, values) = spectrum(gram.as_ref(), columns as f64 * f64::EPSILON)?;
    let scaled = Mat::from_fn(vectors.nrows(), values.len(), |i, j| vectors[(i, j)] / values[j]);
    Ok(scaled * vectors.transpose())
}

/// Eigenvectors (columns) and eigenvalues of a positive semidefinite matrix above `smallest` of the
/// largest.
fn spectrum(gram: MatRef<f64>, smallest: f64) -> Result<(Mat<f64>, Vec<f64>)> {
    let finite = (0..gram.ncols()).all(|j| (0..gram.nrows()).all(|i| gram[(i, j)].is_finite()));
    ensure!(finite, "a linear system with a value that is not finite");
    let eigen = gram
        .self_adjoint_eigen(Side::Lower)
        .ok()
        .context("an eigendecomposition that does not converge")?;
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let largest = values.iter().copied().fold(0.0, f64::max);
    let kept: Vec<usize> = (0..values.len()).filter(|&i| values[i] > smallest * largest).collect();
    let vectors = Mat::from_fn(gram.nrows(), kept.len(), |i, j| eigen.U()[(i, kept[j])]);
    Ok((vectors, kept.into_iter().map(|i| values[i]).collect()))
}

/// The q-quantile of values, 0 ≤ q ≤ 1, linear between the two nearest (as `torch.quantile`).
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of full rank; a plain wave would have rank 2.
    fn wave(rows: usize, columns: usize, step: f32) -> Vec<f32> {
        (0..rows * columns).map(|i| ((i * i) as f32 * step).sin()).collect()
    }

    /// The largest of |a|.
    fn largest(a: &Mat<f64>) -> f64 {
        a.norm_max()
    }

    #[test]
    fn a_wide_system_is_solved_exactly_by_the_smallest_solution() {
        let (z, s) = (matrix(&wave(3, 8, 0.7), 8), matrix(&wave(3, 2, 1.3), 2));
        let found = least_norm(z.as_ref(), s.as_ref()).expect("solves");
        assert_eq!(found.rank, 3);
        assert!(
            found.residual < 1e-7 && largest(&(&z * &found.x() - &s)) < 1e-12,
            "{}",
            found.residual
        );
        // The smallest solution lies in the span of Z's rows: one orthogonal to it would add
        // nothing.
        let again = least_norm(z.as_ref(), (&z * &found.x()).as_ref()).expect("solves");
        assert!(largest(&(again.x() - &found.x())) < 1e-12);
    }

    #[test]
    fn a_singular_system_has_a_residual_and_no_nan() {
        // The same position twice, with contradicting wishes: their mean is nearest, at 1/√2 of
        // them.
        let z = matrix(&[1.0, 2.0, 1.0, 2.0], 2);
        let s = matrix(&[1.0, 0.0], 1);
        let found = least_norm(z.as_ref(), s.as_ref()).expect("solves");
        assert_eq!(found.rank, 1);
        assert!((found.residual - 0.5f64.sqrt()).abs() < 1e-9, "{}", found.residual);
        assert!(
            (found.x()[(0, 0)] - 0.1).abs() < 1e-12
                && (found.transposed()[(0, 1)] - 0.2).abs() < 1e-12
        );
        // Neurons that are all silent: nothing can be done, and nothing is.
        let silent = least_norm(matrix(&[0.0; 4], 2).as_ref(), s.as_ref()).expect("solves");
        assert_eq!((silent.rank, silent.residual, largest(&silent.x())), (0, 1.0, 0.0));
        assert!(least_norm(matrix(&[f32::NAN; 4], 2).as_ref(), s.as_ref()).is_err());
    }

    #[test]
    fn more_rows_than_columns_is_least_squares() {
        let (z, s) = (matrix(&wave(9, 4, 0.7), 4), matrix(&wave(9, 3, 1.3), 3));
        let found = least_norm(z.as_ref(), s.as_ref()).expect("solves");
        let left = &s - &z * &found.x();
        // What is left is orthogonal to the columns.
        assert!(largest(&(z.transpose() * &left)) < 1e-12);
        assert!((found.residual - left.norm_l2() / s.norm_l2()).abs() < 1e-9);
    }

    #[test]
    fn the_inverse_of_a_gram_matrix() {
        let w = wave(50, 6, 0.7);
        let inverse = inverse_gram(&w, 6).expect("inverts");
        let w = matrix(&w, 6);
        let one = (w.transpose() * &w) * inverse;
        assert!(largest(&(one - Mat::<f64>::identity(6, 6))) < 1e-9);
    }

    #[test]
    fn quantiles_are_linear_between_values() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(
            (quantile(&sorted, 0.25), quantile(&sorted, 0.75), quantile(&sorted, 1.0)),
            (1.75, 5.0, 8.0)
        );
    }
}
