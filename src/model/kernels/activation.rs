//! The MLP's activation functions, one pass each way on all cores.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::{exp, par_rows, par_rows_of_both, read, values, vectorized, zeros};
use crate::base::profile::{Part, span};

/// An activation function as `config.json` names it. Elementwise on any shape: y = f(x), and
/// backward ∂x = g·f′(x).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `gelu_new`: x/2 · (1 + tanh(√(2/π)·(x + 0.044715 x³))).
    GeluTanh,
    /// `gelu`: x·Φ(x) with the exact normal distribution.
    GeluErf,
    Relu,
    /// `silu`: x·σ(x).
    Silu,
}

impl Activation {
    /// The function of this name in transformers' table, if we have it.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "gelu" => Some(Self::GeluErf),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// erf by Abramowitz & Stegun 7.1.26; absolute error below 1.5e-7 (an f32 ulp at 1).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t
        + 0.254_829_6)
        * t;
    let y = 1.0 - p * exp(-a * a);
    if x < 0.0 { -y } else { y }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn value(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::GeluTanh => 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::Relu => {
            if x > 0.0 {
                x
            } else {
                0.0
            }
        }
        Activation::Silu => x * sigmoid(x),
    }
}

#[inline(always)]
fn slope(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::GeluTanh => {
            let t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
        }
        Activation::GeluErf => {
            const INV_SQRT_2PI: f32 = 0.398_942_3;
            0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
                + x * INV_SQRT_2PI * exp(-0.5 * x * x)
        }
        Activation::Relu => {
            if x > 0.0 {
                1.0
            } else {
                0.0
            }
        }
        Activation::Silu => {
            let s = sigmoid(x);
            s * (1.0 + x * (1.0 - s))
        }
    }
}

/// `$work` with `$kind` a constant in each arm, so that each kind's loop is vectorized by itself.
macro_rules! by_kind {
    ($of:expr, |$kind:ident| $work:expr) => {
        by_kind!($of, $kind, $work; GeluTanh GeluErf Relu Silu)
    };
    ($of:expr, $kind:ident, $work:expr; $($each:ident)*) => {
        vectorized!(match $of {
            $(Activation::$each => {
                const $kind: Activation = Activation::$each;
                $work
            })*
        })
    };
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Activation);
        let x = values(x, layout)?;
        let mut y = zeros(x.len());
        par_rows(&mut y, 1, |first, y| {
            by_kind!(self, |KIND| y
                .iter_mut()
                .zip(&x[first..])
                .for_each(|(y, x)| *y = value(KIND, *x)))
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Activation);
        let grad = grad.contiguous()?;
        let mut gx = zeros(x.elem_count());
        read(x, |x| {
            read(&grad, |g| {
                par_rows(&mut gx, 1, |first, gx| {
                    let both = x[first..].iter().zip(&g[first..]);
                    by_kind!(self, |KIND| gx
                        .iter_mut()
                        .zip(both)
                        .for_each(|(gx, (x, g))| *gx = slope(KIND, *x) * g))
                })
            })
        })??;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

/// `f(gate) ∘ up` of a gated MLP, both (N,inner): SwiGLU where f is silu. Backward:
/// ∂gate = g ∘ up ∘ f′(gate), ∂up = g ∘ f(gate).
pub struct Gated(pub Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_l: &Layout,
        up: &CpuStorage,
        up_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Activation);
        let (gate, up) = (values(gate, gate_l)?, values(up, up_l)?);
        let mut y = zeros(gate.len());
        par_rows(&mut y, 1, |first, y| {
            let both = gate[first..].iter().zip(&up[first..]);
            by_kind!(self.0, |KIND| y
                .iter_mut()
                .zip(both)
                .for_each(|(y, (gate, up))| *y = value(KIND, *gate) * up))
        });
        Ok((CpuStorage::F32(y), gate_l.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _span = span(Part::Activation);
        let grad = grad.contiguous()?;
        let (mut g_gate, mut g_up) = (zeros(gate.elem_count()), zeros(up.elem_count()));
        read(gate, |gate| {
            read(up, |up| {
                read(&grad, |g| {
                    par_rows_of_both([&mut g_gate, &mut g_up], 1, |first, g_gate, g_up| {
                        let len = g_gate.len();
                        let (gate, up, g) =
                            (&gate[first..][..len], &up[first..][..len], &g[first..][..len]);
                        by_kind!(self.0, |KIND| for i in 0..len {
                            g_gate[i] = g[i] * up[i] * slope(KIND, gate[i]);
                            g_up[i] = g[i] * value(KIND, gate[i]);
                        })
                    })
                })
            })
        })???;
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(g_gate)?), Some(tensor(g_up)?)))
    }
}

/// The same of gates and ups side by side: (N, 2·inner) → (N, inner), gates first.
pub struct FusedGated(pub Activation);

impl CustomOp1 for FusedGated {
    fn name(&self) -> &'static str {
        "fused-gated-activation"
    }

    fn cpu_fwd(&self, both: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Activation);
        let (both, (rows, width)) = (values(both, layout)?, layout.shape().dims2()?);
        let inner = width / 2;
        let mut y = zeros(rows * inner);
        par_rows(&mut y, inner, |first, y| {
            let rows = y.chunks_exact_mut(inner).zip(both[first * width..].chunks_exact(width));
            by_kind!(self.0, |KIND| for (y, both) in rows {
                let (gate, up) = both.split_at(inner);
                y.iter_mut()
                    .zip(gate.iter().zip(up))
                    .for_each(|(y, (gate, up))| *y = value(KIND, *gate) * up)
            })
        });
        Ok((CpuStorage::F32(y), (rows, inner).into()))
    }

    fn bwd(&self, both: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Activation);
        let (grad, width) = (grad.contiguous()?, both.dim(1)?);
        let inner = width / 2;
        let mut to = zeros(both.elem_count());
        read(both, |both| {
            read(&grad, |g| {
                par_rows(&mut to, width, |first, to| {
                    let from = both[first * width..].chunks_exact(width);
                    let rows = from.zip(g[first * inner..].chunks_exact(inner));
                    let rows = to.chunks_exact_mut(width).zip(rows);
                    by_kind!(self.0, |KIND| for (to, (both, g)) in rows {
                        let ((gate, up), (g_gate, g_up)) =
                            (both.split_at(inner), to.split_at_mut(inner));
                        for i in 0..inner {
                            g_gate[i] = g[i] * up[i] * slope(KIND, gate[i]);
                            g_up[i] = g[i] * value(KIND, gate[i]);
                        }
                    })
                })
            })
        })??;
        Ok(Some(Tensor::from_vec(to, both.shape(), both.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Against candle's own functions, and their derivative by central differences in f64.
    #[test]
    fn equal_to_candle_and_to_finite_differences() -> candle_core::Result<()> {
        let x: Vec<f32> = (-80..=80).map(|i| i as f32 / 10.0 + 0.013).collect();
        let tensor = Tensor::from_slice(&x, x.len(), &Device::Cpu)?;
        for (kind, plain) in [
            (Activation::GeluTanh, tensor.gelu()?),
            (Activation::GeluErf, tensor.gelu_erf()?),
            (Activation::Relu, tensor.relu()?),
            (Activation::Silu, tensor.silu()?),
        ] {
            let plain = plain.to_vec1::<f32>()?;
            for (x, want) in x.iter().zip(plain) {
                assert!((value(kind, *x) - want).abs() < 1e-6, "{kind:?}({x})");
                let exact = |x: f64| match kind {
                    Activation::GeluTanh => {
                        0.5 * x
                            * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x.powi(3))).tanh())
                    }
                    Activation::GeluErf => f64::from(value(kind, x as f32)),
                    Activation::Relu => x.max(0.0),
                    Activation::Silu => x / (1.0 + (-x).exp()),
                };
                let step = if kind == Activation::GeluErf { 0.02 } else { 1e-4 };
                let x64 = f64::from(*x);
                let numeric = (exact(x64 + step) - exact(x64 - step)) / (2.0 * step);
                assert!((f64::from(slope(kind, *x)) - numeric).abs() < 2e-4, "{kind:?}'({x})");
            }
        }
        Ok(())
    }
}
