//! Layer norm and RMSNorm. Both norm rows as wide as their factor; a layer norm has a bias, and
//! takes the mean away.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Address, Grid, launch};
use super::{blank, is, is_whole, size};

/// Most threads of a block.
const THREADS: u32 = 256;
/// Rows whose columns one thread adds up.
const ROWS: usize = 32;

#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Address,
    factor: Address,
    bias: Address,
    y: Address,
    columns: u32,
    centered: u32,
    epsilon: f32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    x: Address,
    g: Address,
    factor: Address,
    gx: Address,
    moments: Address,
    columns: u32,
    centered: u32,
    epsilon: f32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Columns {
    x: Address,
    g: Address,
    moments: Address,
    sums: Address,
    rows: u64,
    columns: u32,
    rows_of_part: u32,
    parts: u32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct AddParts {
    sums: Address,
    out: Address,
    groups: u32,
    parts: u32,
    columns: u32,
    unused: u32,
}

/// Rows and columns of x to a norm of so many columns.
fn rows(x: &Tensor, columns: usize) -> Result<usize> {
    let count = x.elem_count();
    if x.dtype() != DType::F32 || columns == 0 || !count.is_multiple_of(columns) {
        bail!("norm: {:?} of {:?} are no rows of {columns} f32", x.dims(), x.dtype());
    }
    is_whole("norm", x, x.device())?;
    Ok(count / columns)
}

/// `(x − mean) / √(var + ε) ∘ factor + bias` of rows of x as wide as the factor (C); without
/// a bias `x / √(mean(x²) + ε) ∘ factor`. In the shape of x.
pub fn forward(x: &Tensor, factor: &Tensor, bias: Option<&Tensor>, epsilon: f32) -> Result<Tensor> {
    let (columns, device) = (factor.dims1()?, x.device());
    let rows = rows(x, columns)?;
    for of_columns in [Some(factor), bias].into_iter().flatten() {
        is("norm", of_columns, &[columns], device)?;
    }
    let y = blank(x.shape(), DType::F32, device)?;
    let (wide, centered) = (size(columns)?, u32::from(bias.is_some()));
    let grid = Grid::of_rows(rows, columns, THREADS);
    let reads = [Some(x), Some(factor), bias];
    // SAFETY: the shapes are checked, and y is new.
    unsafe {
        launch("norm_forward", device, grid, reads, [Some(&y)], |[x, factor, bias], [y]| {
            Forward { x, factor, bias, y, columns: wide, centered, epsilon, unused: 0 }
        })?;
    }
    Ok(y)
}

/// The gradient of x in its shape by that of y, and what [`column_sums`] wants to know of the rows.
/// `centered`: a layer norm's.
pub fn backward(
    x: &Tensor,
    g: &Tensor,
    factor: &Tensor,
    centered: bool,
    epsilon: f32,
) -> Result<(Tensor, Tensor)> {
    let (columns, device) = (factor.dims1()?, x.device());
    let rows = rows(x, columns)?;
    is("norm", factor, &[columns], device)?;
    is("norm", g, x.dims(), device)?;
    let gx = blank(x.shape(), DType::F32, device)?;
    let moments = blank((rows, 2), DType::F32, device)?;
    let (wide, centered) = (size(columns)?, u32::from(centered));
    let grid = Grid::of_rows(rows, columns, THREADS);
    let (reads, writes) = ([x, g, factor].map(Some), [&gx, &moments].map(Some));
    // SAFETY: the shapes are checked, and what is written is new.
    unsafe {
        launch("norm_backward", device, grid, reads, writes, |[x, g, factor], [gx, moments]| {
            let (columns, unused) = (wide, 0);
            Backward { x, g, factor, gx, moments, columns, centered, epsilon, unused }
        })?;
    }
    Ok((gx, moments))
}

/// Σ g ∘ normed x and Σ g over the rows: (2,C), the gradients of factor and bias. `moments`
/// (rows,2) are those of [`backward`].
pub fn column_sums(x: &Tensor, g: &Tensor, moments: &Tensor, columns: usize) -> Result<Tensor> {
    let device = x.device();
    let rows = rows(x, columns)?;
    is("norm", g, x.dims(), device)?;
    is("norm", moments, &[rows, 2], device)?;
    let parts = rows.div_ceil(ROWS);
    let sums = blank((2, parts, columns), DType::F32, device)?;
    let (wide, part_count, of_part) = (size(columns)?, size(parts)?, size(ROWS)?);
    let grid = Grid::of_values(parts * columns);
    let reads = [x, g, moments].map(Some);
    // SAFETY: the shapes are checked, and what is written is new.
    unsafe {
        launch("norm_columns", device, grid, reads, [Some(&sums)], |[x, g, moments], [sums]| {
            Columns {
                x,
                g,
                moments,
                sums,
                rows: rows as u64,
                columns: wide,
                rows_of_part: of_part,
                parts: part_count,
                unused: 0,
            }
        })?;
    }
    add_parts(&sums)
}

/// (groups,parts,C) → (groups,C)
fn add_parts(sums: &Tensor) -> Result<Tensor> {
    let ((groups, parts, columns), device) = (sums.dims3()?, sums.device());
    let out = blank((groups, columns), DType::F32, device)?;
    let grid = Grid::of_values(groups * columns);
    let (groups, parts, columns) = (size(groups)?, size(parts)?, size(columns)?);
    // SAFETY: the sizes are those of the tensors, and what is written is new.
    unsafe {
        launch("add_parts", device, grid, [Some(sums)], [Some(&out)], |[sums], [out]| AddParts {
            sums,
            out,
            groups,
            parts,
            columns,
            unused: 0,
        })?;
    }
    Ok(out)
}

#[cfg(all(test, unix))]
mod tests {
    use candle_core::D;

    use super::super::stand_in::{both_ways, close, proves, some};
    use super::*;

    /// (y, gx, Σ g ∘ normed, Σ g) by the formulas, in f64.
    fn plain(
        x: &Tensor,
        g: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        e: f64,
    ) -> Result<[Tensor; 4]> {
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        let (x, g, w) = (wide(x)?, wide(g)?, wide(w)?);
        let mean = |t: &Tensor| t.mean_keepdim(D::Minus1);
        let centered = if b.is_some() { x.broadcast_sub(&mean(&x)?)? } else { x };
        let scale = (mean(&centered.sqr()?)? + e)?.sqrt()?;
        let normed = centered.broadcast_div(&scale)?;
        let mut y = normed.broadcast_mul(&w)?;
        let mut h = g.broadcast_mul(&w)?;
        let along = mean(&(&h * &normed)?)?;
        if let Some(b) = b {
            y = y.broadcast_add(&wide(b)?)?;
            h = h.broadcast_sub(&mean(&h)?)?;
        }
        let gx = (h - normed.broadcast_mul(&along)?)?.broadcast_div(&scale)?;
        Ok([y, gx, (&g * &normed)?.sum(0)?, g.sum(0)?])
    }

    #[test]
    fn norms_are_those_of_the_formulas() {
        proves("norm.cu", || {
            for (rows, columns) in [(1, 1), (3, 5), (17, 33), (2, 300), (70, 64)] {
                let shape = [rows, columns];
                // Far from 0: a variance by the mean of squares would be nonsense.
                let x = (some(&shape, 1) * 3.0).and_then(|x| x + 500.0).expect("x");
                let (g, w, b) = (some(&shape, 2), some(&[columns], 3), some(&[columns], 4));
                for bias in [None, Some(&b)] {
                    let what = format!("{rows} × {columns}, bias: {}", bias.is_some());
                    let found = both_ways(|| {
                        let y = forward(&x, &w, bias, 1e-5)?;
                        let (gx, moments) = backward(&x, &g, &w, bias.is_some(), 1e-5)?;
                        let sums = column_sums(&x, &g, &moments, columns)?;
                        Ok(vec![y, gx, sums.get(0)?, sums.get(1)?])
                    });
                    let wanted = plain(&x, &g, &w, bias, 1e-5).expect("plain");
                    for (found, wanted) in found.iter().zip(&wanted) {
                        close(&what, found, wanted, 1e-4);
                    }
                }
            }
        });
    }

    #[test]
    fn another_shape_is_refused() {
        let (x, w) = (some(&[4, 6], 1), some(&[5], 2));
        assert!(forward(&x, &w, None, 1e-5).is_err());
        assert!(backward(&x, &some(&[6, 4], 3), &some(&[6], 2), true, 1e-5).is_err());
        assert!(forward(&x.t().expect("turned"), &some(&[6], 2), None, 1e-5).is_err());
    }
}
