//! Layer norm `y = (x − mean) / √(var + ε) ∘ w + b` and RMSNorm `y = x / √(mean(x²) + ε) ∘ (w + o)`
//! over rows as wide as their weight, one pass each way. o is 0, or 1 where weights are stored as
//! what they have above 1 (Gemma).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{dot, fold, par_rows, read, sum, sum_of_squares, values, vectorized, zeros};
use crate::base::profile::{Part, span};
use crate::model::ledger::{Param, Want};

/// A norm with weight and bias (C); their gradients go to the ledger. A row of x may be several
/// rows to the norm: heads, each normed by itself.
pub struct Norm {
    pub weight: Param,
    /// A layer norm has one. RMSNorm has none, and takes no mean away.
    pub bias: Option<Param>,
    pub epsilon: f32,
    /// o
    pub offset: f32,
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Norm);
        let x = values(x, layout)?;
        let columns = self.weight.tensor.dims1()?;
        let mut y = zeros(x.len());
        let bias = match &self.bias {
            Some(bias) => bias.tensor.clone(),
            None => self.weight.tensor.zeros_like()?,
        };
        read(&self.weight.tensor, |w| {
            read(&bias, |b| {
                par_rows(&mut y, columns, |first, rows| {
                    vectorized!({
                        for (i, y) in rows.chunks_exact_mut(columns).enumerate() {
                            let x = &x[(first + i) * columns..][..columns];
                            let (mean, scale) = self.moments(x);
                            for j in 0..columns {
                                y[j] = (x[j] - mean) * scale * (w[j] + self.offset) + b[j];
                            }
                        }
                    })
                })
            })
        })??;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// With x̂ the normalized row and h = g ∘ (w + o): ∂x = (h − mean(h) − x̂·mean(h ∘ x̂)) / √(var
    /// + ε), ∂w = Σ g ∘ x̂, ∂b = Σ g. RMSNorm's ∂x has no mean(h).
    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Norm);
        let columns = self.weight.tensor.dims1()?;
        let grad = grad.contiguous()?;
        let mut gx = zeros(x.elem_count());
        let params: Vec<&Param> = std::iter::once(&self.weight).chain(&self.bias).collect();
        let wanted = params.iter().any(|p| p.want != Want::Nothing);
        let (gw, gb) = read(x, |x| {
            read(&grad, |g| {
                read(&self.weight.tensor, |w| self.rows(x, g, w, columns, &mut gx, wanted))
            })
        })???;
        for (param, gradient) in params.into_iter().zip([gw, gb]) {
            match param.want {
                Want::Nothing => {}
                Want::Norm => param.add_square(sum_of_squares(&gradient))?,
                Want::Gradient => param.add_gradient(|sum, _| {
                    sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g)
                }),
            }
        }
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

impl Norm {
    /// The mean that is taken away and 1/√(mean of the squares + ε) of a row.
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = if self.bias.is_some() { sum(row) / n } else { 0.0 };
        let square = fold(row, |x| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (square + self.epsilon).sqrt())
    }

    /// Writes ∂x into `gx` and returns (∂w, ∂b), empty unless `wanted`.
    fn rows(
        &self,
        x: &[f32],
        g: &[f32],
        w: &[f32],
        columns: usize,
        gx: &mut [f32],
        wanted: bool,
    ) -> (Vec<f32>, Vec<f32>) {
        // Each job takes a fixed number of rows and has its own partial sums, which are added up in
        // order: so the bits are the same on any number of threads.
        const ROWS: usize = 64;
        let parts: Vec<(Vec<f32>, Vec<f32>)> = gx
            .par_chunks_mut(ROWS * columns)
            .enumerate()
            .map(|(job, gx)| {
                let begin = job * ROWS * columns;
                let partial = if wanted { columns } else { 0 };
                let (mut gw, mut gb) = (zeros(partial), zeros(partial));
                let mut hat = zeros(columns);
                vectorized!({
                    for (row, gx) in gx.chunks_exact_mut(columns).enumerate() {
                        let at = begin + row * columns;
                        let (x, g) = (&x[at..at + columns], &g[at..at + columns]);
                        let (mean, scale) = self.moments(x);
                        for j in 0..columns {
                            hat[j] = (x[j] - mean) * scale;
                            gx[j] = g[j] * (w[j] + self.offset);
                        }
                        let mean_h =
                            if self.bias.is_some() { sum(gx) / columns as f32 } else { 0.0 };
                        let mean_hx = dot(gx, &hat) / columns as f32;
                        for j in 0..columns {
                            gx[j] = (gx[j] - mean_h - hat[j] * mean_hx) * scale;
                        }
                        if wanted {
                            for j in 0..columns {
                                gw[j] += g[j] * hat[j];
                                gb[j] += g[j];
                            }
                        }
                    }
                });
                (gw, gb)
            })
            .collect();
        let mut total = (zeros(columns), zeros(columns));
        for (gw, gb) in &parts {
            total.0.iter_mut().zip(gw).for_each(|(t, p)| *t += p);
            total.1.iter_mut().zip(gb).for_each(|(t, p)| *t += p);
        }
        total
    }
}
