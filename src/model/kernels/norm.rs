//! Layer norm: `y = (x − mean) / √(var + ε) ∘ w + b` over the last dimension, one pass each way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Shared, dot, fold, par_rows, read, sum, sum_of_squares, values, vectorized, zeros};
use crate::profile::{Part, span};
use crate::weights::{Param, Want};

/// Layer norm of x (N,C) with weight and bias (C); their gradients go to the ledger.
pub struct LayerNorm {
    pub weight: Param,
    pub bias: Param,
    pub epsilon: f32,
}

/// Mean and 1/√(var + ε) of a row.
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row) / n;
    let variance = fold(row, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Norm);
        let x = values(x, layout)?;
        let columns = self.weight.tensor.dims1()?;
        let mut y = zeros(x.len());
        read(&self.weight.tensor, |w| {
            read(&self.bias.tensor, |b| {
                par_rows(&mut y, columns, |first, rows| {
                    vectorized(|| {
                        for (i, y) in rows.chunks_exact_mut(columns).enumerate() {
                            let x = &x[(first + i) * columns..][..columns];
                            let (mean, scale) = moments(x, self.epsilon);
                            for j in 0..columns {
                                y[j] = (x[j] - mean) * scale * w[j] + b[j];
                            }
                        }
                    })
                })
            })
        })??;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// With x̂ the normalized row and h = g ∘ w: ∂x = (h − mean(h) − x̂·mean(h ∘ x̂)) / √(var + ε), ∂w = Σ g ∘ x̂, ∂b = Σ g.
    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Norm);
        let columns = self.weight.tensor.dims1()?;
        let grad = grad.contiguous()?;
        let mut gx = zeros(x.elem_count());
        let wanted = self.weight.want != Want::Nothing || self.bias.want != Want::Nothing;
        let (gw, gb) = read(x, |x| {
            read(&grad, |g| read(&self.weight.tensor, |w| self.rows(x, g, w, columns, &mut gx, wanted)))
        })???;
        for (param, gradient) in [(&self.weight, gw), (&self.bias, gb)] {
            match param.want {
                Want::Nothing => {}
                Want::Norm => param.add_square(sum_of_squares(&gradient))?,
                Want::Gradient => param.add_gradient(|sum, _| sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g)),
            }
        }
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

impl LayerNorm {
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
        // Jobs of a fixed number of rows, each with its own partial sums, added up in order: the same bits on any
        // number of threads.
        const ROWS: usize = 64;
        let out = Shared(gx.as_mut_ptr());
        let parts: Vec<(Vec<f32>, Vec<f32>)> = (0..x.len().div_ceil(ROWS * columns))
            .into_par_iter()
            .map(|job| {
                let begin = job * ROWS * columns;
                let end = (begin + ROWS * columns).min(x.len());
                let partial = if wanted { columns } else { 0 };
                let (mut gw, mut gb) = (zeros(partial), zeros(partial));
                let mut hat = zeros(columns);
                vectorized(|| {
                    for at in (begin..end).step_by(columns) {
                        let (x, g) = (&x[at..at + columns], &g[at..at + columns]);
                        // SAFETY: row `at` belongs to this job alone.
                        let gx = unsafe { std::slice::from_raw_parts_mut(out.at(at), columns) };
                        let (mean, scale) = moments(x, self.epsilon);
                        for j in 0..columns {
                            hat[j] = (x[j] - mean) * scale;
                            gx[j] = g[j] * w[j];
                        }
                        let mean_h = sum(gx) / columns as f32;
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
