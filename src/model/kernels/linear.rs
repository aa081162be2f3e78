//! Linear layers: `y = x·W + b (+ residual)`, and the norm of a weight's gradient without the
//! gradient.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::matmul::{Mat, large_product};
use super::stored::{Values, read_stored};
use super::{add_column_sums, par_rows, read, sum_of_squares, values, vectorized, zeros};
use crate::base::profile::{Part, span};
use crate::model::ledger::{Param, Want};
use crate::model::precision::Precision;

/// How a weight matrix lies on disk and in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// (in, out): GPT-2's `Conv1D`.
    InOut,
    /// (out, in): PyTorch's `Linear`.
    OutIn,
}

/// `y (N,out) = x (N,in) · W + b`. Backward: ∂x = g·Wᵀ. To the ledger go ∂W = xᵀ·g and
/// ∂b = Σ_n g_n, or their squared norms alone.
pub struct Linear {
    pub weight: Param,
    pub bias: Option<Param>,
    pub orientation: Orientation,
}

impl Linear {
    /// (in, out)
    fn sizes(&self) -> Result<(usize, usize)> {
        let (a, b) = self.weight.tensor.dims2()?;
        Ok(match self.orientation {
            Orientation::InOut => (a, b),
            Orientation::OutIn => (b, a),
        })
    }

    /// The weight as an (in, out) matrix.
    fn matrix<'a>(&self, w: Values<'a>, input: usize, output: usize) -> Mat<'a> {
        match self.orientation {
            Orientation::InOut => Mat::of(w, input, output),
            Orientation::OutIn => Mat::of(w, output, input).t(),
        }
    }

    fn forward(
        &self,
        x: &[f32],
        residual: Option<&[f32]>,
        shape: &Shape,
    ) -> Result<(CpuStorage, Shape)> {
        let (input, output) = self.sizes()?;
        let rows = x.len() / input;
        let mut y = match residual {
            Some(residual) => residual.to_vec(),
            None => zeros(rows * output),
        };
        if let Some(bias) = &self.bias {
            read(&bias.tensor, |bias| {
                par_rows(&mut y, output, |_, y| {
                    vectorized!({
                        for row in y.chunks_exact_mut(output) {
                            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                        }
                    })
                })
            })?;
        }
        let keep = if residual.is_some() || self.bias.is_some() { 1.0 } else { 0.0 };
        read_stored(&self.weight.tensor, |w| {
            let (x, w) = (Mat::new(x, rows, input), self.matrix(w, input, output));
            large_product(&mut y, x, w, keep, 1.0, self.weight.precision);
        })?;
        let mut dims = shape.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = output;
        }
        Ok((CpuStorage::F32(y), dims.into()))
    }

    /// Gives the ledger what is wanted of W and b, and returns the gradient of x if it is on the
    /// graph.
    fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (input, output) = self.sizes()?;
        let grad = grad.contiguous()?;
        read(x, |x| {
            read(&grad, |g| {
                self.parameters(x, g, input, output)?;
                Ok::<(), candle_core::Error>(())
            })?
        })??;
        if !x.track_op() {
            return Ok(None);
        }
        let rows = x.elem_count() / input;
        let mut gx = zeros(rows * input);
        read(&grad, |g| {
            read_stored(&self.weight.tensor, |w| {
                let (g, w) = (Mat::new(g, rows, output), self.matrix(w, input, output));
                large_product(&mut gx, g, w.t(), 0.0, 1.0, self.weight.precision);
            })
        })??;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }

    fn parameters(&self, x: &[f32], g: &[f32], input: usize, output: usize) -> Result<()> {
        let rows = x.len() / input;
        let (x_m, g_m) = (Mat::new(x, rows, input), Mat::new(g, rows, output));
        let precision = self.weight.precision;
        match self.weight.want {
            Want::Nothing => {}
            Want::Norm => {
                self.weight.add_square(outer_square(x, g, rows, input, output, precision))?
            }
            Want::Gradient => self.weight.add_gradient(|sum, keep| match self.orientation {
                Orientation::InOut => large_product(sum, x_m.t(), g_m, keep, 1.0, precision),
                Orientation::OutIn => large_product(sum, g_m.t(), x_m, keep, 1.0, precision),
            }),
        }
        if let Some(bias) = &self.bias {
            match bias.want {
                Want::Nothing => {}
                Want::Norm => {
                    let mut sums = zeros(output);
                    add_column_sums(g, output, &mut sums);
                    bias.add_square(sum_of_squares(&sums))?;
                }
                Want::Gradient => bias.add_gradient(|sum, _| add_column_sums(g, output, sum)),
            }
        }
        Ok(())
    }
}

/// `‖xᵀg‖²_F` for x (N,in), g (N,out): the squared norm of a weight's gradient.
///
/// It is `Σ (xxᵀ ∘ ggᵀ)`: for few rows two N × N Gram matrices cost less than the in × out
/// gradient, and nothing of its size is ever allocated. Which form runs depends on the shape alone.
pub fn outer_square(
    x: &[f32],
    g: &[f32],
    rows: usize,
    input: usize,
    output: usize,
    precision: Precision,
) -> f64 {
    if gram_products(rows, input, output) < rows * input * output {
        gram_square(x, g, rows, input, output, precision)
    } else {
        direct_square(x, g, rows, input, output, precision)
    }
}

/// Multiplications of [`gram_square`]: only the lower half of the Gram matrices is computed, in
/// tiles of TILE rows.
fn gram_products(rows: usize, input: usize, output: usize) -> usize {
    let tiles = rows.div_ceil(TILE);
    (tiles * (tiles + 1) / 2) * TILE * TILE * (input + output)
}

/// Floating-point operations of [`outer_square`].
pub fn outer_operations(rows: usize, input: usize, output: usize) -> usize {
    2 * gram_products(rows, input, output).min(rows * input * output)
}

const TILE: usize = 128;

/// [`outer_square`] by Gram matrices: N²·(in + out) multiplications at most, N² memory at most.
pub fn gram_square(
    x: &[f32],
    g: &[f32],
    rows: usize,
    input: usize,
    output: usize,
    precision: Precision,
) -> f64 {
    let mut xx = zeros(TILE * TILE);
    let mut gg = zeros(TILE * TILE);
    let mut total = 0f64;
    for i in (0..rows).step_by(TILE) {
        let i_rows = TILE.min(rows - i);
        for j in (0..=i).step_by(TILE) {
            let j_rows = TILE.min(rows - j);
            let tile = |m: &[f32], columns: usize, out: &mut [f32]| {
                let a = Mat::new(&m[i * columns..][..i_rows * columns], i_rows, columns);
                let b = Mat::new(&m[j * columns..][..j_rows * columns], j_rows, columns);
                large_product(out, a, b.t(), 0.0, 1.0, precision);
            };
            let (xx, gg) = (&mut xx[..i_rows * j_rows], &mut gg[..i_rows * j_rows]);
            tile(x, input, xx);
            tile(g, output, gg);
            let sum: f64 = vectorized!({
                let mut lanes = [0f64; 8];
                let (a, a_rest) = xx.as_chunks::<8>();
                let (b, b_rest) = gg.as_chunks::<8>();
                for (a, b) in a.iter().zip(b) {
                    for l in 0..8 {
                        lanes[l] += f64::from(a[l]) * f64::from(b[l]);
                    }
                }
                lanes.iter().sum::<f64>()
                    + a_rest
                        .iter()
                        .zip(b_rest)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum::<f64>()
            });
            total += if i == j { sum } else { 2.0 * sum };
        }
    }
    // Both matrices are positive semidefinite, so only rounding takes the sum below zero.
    total.max(0.0)
}

/// [`outer_square`] by the gradient itself, a strip of it at a time.
pub fn direct_square(
    x: &[f32],
    g: &[f32],
    rows: usize,
    input: usize,
    output: usize,
    precision: Precision,
) -> f64 {
    const STRIP: usize = 512;
    let mut strip = zeros(STRIP.min(input) * output);
    let mut total = 0f64;
    for first in (0..input).step_by(STRIP) {
        let width = STRIP.min(input - first);
        let columns = Mat::new(x, rows, input).part(0..rows, first..first + width);
        let out = &mut strip[..width * output];
        large_product(out, columns.t(), Mat::new(g, rows, output), 0.0, 1.0, precision);
        total += sum_of_squares(out);
    }
    total
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Bias);
        self.forward(values(x, layout)?, None, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Bias);
        self.backward(x, grad)
    }
}

/// [`Linear`] onto a residual stream: `y = r + x·W + b`. It saves a pass over the stream, both
/// ways.
pub struct LinearResidual(pub Linear);

impl CustomOp2 for LinearResidual {
    fn name(&self) -> &'static str {
        "linear-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        r: &CpuStorage,
        r_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Bias);
        self.0.forward(values(x, x_l)?, Some(values(r, r_l)?), x_l.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        r: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _span = span(Part::Bias);
        Ok((self.0.backward(x, grad)?, r.track_op().then(|| grad.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() + 0.1).collect()
    }

    #[test]
    fn gram_and_direct_norms_agree() {
        for (rows, input, output) in [(3, 5, 7), (200, 33, 17), (129, 600, 40), (256, 64, 256)] {
            let (x, g) = (wave(rows * input, 0.37), wave(rows * output, 0.91));
            let gram = gram_square(&x, &g, rows, input, output, Precision::F32);
            let direct = direct_square(&x, &g, rows, input, output, Precision::F32);
            let mut plain = 0f64;
            for i in 0..input {
                for o in 0..output {
                    let dot: f64 = (0..rows)
                        .map(|r| f64::from(x[r * input + i]) * f64::from(g[r * output + o]))
                        .sum();
                    plain += dot * dot;
                }
            }
            assert!((gram / plain - 1.0).abs() < 1e-5, "gram {gram} plain {plain}");
            assert!((direct / plain - 1.0).abs() < 1e-5, "direct {direct} plain {plain}");
        }
    }
}
