//! Optimizer updates in place: one pass over parameter, gradient and state, on all cores.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, bail};
use rayon::prelude::*;

use super::{values, vectorized};

const JOB: usize = 1 << 15;

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("optimizer wants f32 parameters") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut data[start..end]),
        None => bail!("optimizer wants contiguous parameters"),
    }
}

/// `average ← decay·average + (1 − decay)·gradient^power`: the running average of gradients
/// (power 1) or of their squares (2). Both have one shape, whatever it is. No backward pass.
pub struct Average {
    pub decay: f64,
    pub squared: bool,
    /// The gradient is scaled by this first (clipping, accumulation).
    pub scale: f32,
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "average"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        a_l: &Layout,
        gradient: &CpuStorage,
        g_l: &Layout,
    ) -> Result<()> {
        let (average, gradient) = (values_mut(average, a_l)?, values(gradient, g_l)?);
        // From the exact decay, since 1 − 0.999 in f32 is off by 1e-5 of itself.
        let (keep, take) = (self.decay as f32, (1.0 - self.decay) as f32);
        average.par_chunks_mut(JOB).zip(gradient.par_chunks(JOB)).for_each(
            |(average, gradient)| {
                vectorized!({
                    for (a, g) in average.iter_mut().zip(gradient) {
                        let g = g * self.scale;
                        *a = keep * *a + take * if self.squared { g * g } else { g };
                    }
                })
            },
        );
        Ok(())
    }
}

/// `θ ← shrink·θ − rate · direction / (√(squares)·root + ε)`: the last line of RMSProp and AdamW.
/// All have one shape, whatever it is. No backward pass.
pub struct Descend {
    /// Learning rate, with AdamW's bias correction of the first moment in it.
    pub rate: f32,
    /// Scale of the direction (RMSProp: the gradient's clipping factor).
    pub scale: f32,
    /// 1/√ of AdamW's bias correction of the second moment; 1 for RMSProp.
    pub root: f32,
    pub epsilon: f32,
    /// 1 − lr·weight_decay.
    pub shrink: f32,
}

impl InplaceOp3 for Descend {
    fn name(&self) -> &'static str {
        "descend"
    }

    fn cpu_fwd(
        &self,
        theta: &mut CpuStorage,
        t_l: &Layout,
        direction: &CpuStorage,
        d_l: &Layout,
        squares: &CpuStorage,
        s_l: &Layout,
    ) -> Result<()> {
        let (theta, direction, squares) =
            (values_mut(theta, t_l)?, values(direction, d_l)?, values(squares, s_l)?);
        theta
            .par_chunks_mut(JOB)
            .zip(direction.par_chunks(JOB))
            .zip(squares.par_chunks(JOB))
            .for_each(|((theta, direction), squares)| {
                vectorized!({
                    for ((t, d), s) in theta.iter_mut().zip(direction).zip(squares) {
                        *t = self.shrink * *t
                            - self.rate * (d * self.scale) / (s.sqrt() * self.root + self.epsilon);
                    }
                })
            });
        Ok(())
    }
}
