//! The layers *composed* of candle's operations: for devices that our kernels don't run on, and for
//! the tests of those kernels. As in the kernels, the gradients of parameters go to the ledger, and
//! only those that are wanted are computed. Where there are fused kernels, a layer is a launch or
//! two of those.

mod graft;
pub mod head;
mod launched;

use candle_core::{D, DType, Result, Tensor, Var};

pub use graft::{Kept, graft, graft_onto};

use super::fused;
use super::kernels::activation::Activation;
use super::kernels::linear::Orientation;
use super::kernels::rotary::Which;
use super::ledger::{Param, Want};
use super::precision::Precision;

/// In the dtype that products of this precision take.
fn operand(x: &Tensor, precision: Precision) -> Result<Tensor> {
    x.to_dtype(match precision {
        Precision::F32 | Precision::Tf32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    })
}

/// `a·b` of operands rounded to `precision`, as f32; a GPU rounds the product of bf16 to bf16
/// before. What is rounded lives as long as the product takes.
pub fn product(a: &Tensor, b: &Tensor, precision: Precision) -> Result<Tensor> {
    let (a, b) = (operand(a, precision)?, operand(b, precision)?);
    // candle knows of it for all products of the process, and here it is wanted for this one.
    let tf32 = candle_core::cuda::set_gemm_reduced_precision_f32;
    tf32(precision == Precision::Tf32);
    let product = a.matmul(&b);
    tf32(false);
    product?.to_dtype(DType::F32)
}

/// A vector of parameters (C), in f32.
fn vector(param: &Param) -> Result<Tensor> {
    param.tensor.to_dtype(DType::F32)
}

/// `Σ_n x` of rows (N,C): (C).
fn column_sums(x: &Tensor) -> Result<Tensor> {
    x.sum(0)
}

/// `x·W (+ b) (+ residual)`: (N,in) → (N,out).
pub fn linear(
    weight: Param,
    bias: Option<Param>,
    orientation: Orientation,
    x: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    // As an (in, out) matrix.
    let w = match orientation {
        Orientation::InOut => weight.tensor.clone(),
        Orientation::OutIn => weight.tensor.t()?,
    };
    let precision = weight.precision;
    let mut y = product(&x.detach(), &w, precision)?;
    if let Some(bias) = &bias {
        y = y.broadcast_add(&vector(bias)?)?;
    }
    if let Some(residual) = residual {
        y = (residual.detach() + y)?;
    }
    let goes_on = x.track_op();
    let back = move |x: &Tensor, _: &Tensor, g: &Tensor| {
        weight.find(|| match orientation {
            Orientation::InOut => product(&x.t()?, g, precision),
            Orientation::OutIn => product(&g.t()?, x, precision),
        })?;
        if let Some(bias) = &bias {
            bias.find(|| column_sums(g))?;
        }
        goes_on.then(|| product(g, &w.t()?, precision)).transpose()
    };
    match residual {
        Some(residual) => graft_onto(x, residual, y, back),
        None => graft(x, y, back),
    }
}

/// Rows of tables of parameters (V,C), added up: (N,C). `tables`: each with the row of every
/// position.
pub fn embedding(tables: Vec<(Param, Vec<u32>)>) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    let mut numbered = Vec::with_capacity(tables.len());
    for (table, of) in tables {
        let of = Tensor::from_slice(&of, of.len(), table.tensor.device())?;
        let rows = table.tensor.index_select(&of, 0)?.to_dtype(DType::F32)?;
        sum = Some(match sum {
            Some(sum) => (sum + rows)?,
            None => rows,
        });
        numbered.push((table, of));
    }
    let Some(sum) = sum else { candle_core::bail!("an embedding without tables") };
    if numbered.iter().all(|(table, _)| table.want == Want::Nothing) {
        return Ok(sum);
    }
    // It only carries the graph, so that the backward pass comes by here.
    let anchor = Var::zeros(1, DType::F32, sum.device())?.into_inner();
    graft(&anchor, sum, move |_, _, g| {
        for (table, of) in &numbered {
            table.find(|| {
                Tensor::zeros(table.tensor.shape(), DType::F32, g.device())?.index_add(of, g, 0)
            })?;
        }
        Ok(None)
    })
}

/// The mean of each row (n,C), kept as a column.
fn row_mean(x: &Tensor) -> Result<Tensor> {
    x.mean_keepdim(D::Minus1)
}

/// Rows at mean 0 and variance 1, and what they were divided by: (n,C), (n,1).
fn standardized(x: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let centered = x.broadcast_sub(&row_mean(x)?)?;
    let scale = (row_mean(&centered.sqr()?)? + epsilon)?.sqrt()?;
    Ok((centered.broadcast_div(&scale)?, scale))
}

/// Layer norm: (N,C) → (N,C).
pub fn layer_norm(weight: Param, bias: Param, epsilon: f64, x: &Tensor) -> Result<Tensor> {
    let (w, b, plain) = (vector(&weight)?, vector(&bias)?, x.detach());
    if fused::runs_on(x.device()) {
        return launched::norm(weight, w, Some(bias), epsilon as f32, x);
    }
    let y = if x.device().is_cpu() {
        standardized(&plain, epsilon)?.0.broadcast_mul(&w)?.broadcast_add(&b)?
    } else {
        candle_nn::ops::layer_norm(&plain.contiguous()?, &w, &b, epsilon as f32)?
    };
    let goes_on = x.track_op();
    graft(x, y, move |x, _, g| {
        let (hat, scale) = standardized(x, epsilon)?;
        weight.find(|| column_sums(&(g * &hat)?))?;
        bias.find(|| column_sums(g))?;
        if !goes_on {
            return Ok(None);
        }
        let g = g.broadcast_mul(&w)?;
        let along = row_mean(&(&g * &hat)?)?;
        let g = g.broadcast_sub(&row_mean(&g)?)?.sub(&hat.broadcast_mul(&along)?)?;
        g.broadcast_div(&scale).map(Some)
    })
}

/// RMSNorm of every D columns, with the factor `weight + offset` (D): (N, heads·D) → (N, heads·D).
pub fn rms_norm(weight: Param, epsilon: f64, offset: f64, x: &Tensor) -> Result<Tensor> {
    let mut factor = vector(&weight)?;
    if offset != 0.0 {
        factor = (factor + offset)?;
    }
    if fused::runs_on(x.device()) {
        return launched::norm(weight, factor, None, epsilon as f32, x);
    }
    let columns = factor.dims1()?;
    let normed = move |rows: &Tensor| -> Result<(Tensor, Tensor)> {
        let scale = (row_mean(&rows.sqr()?)? + epsilon)?.sqrt()?;
        Ok((rows.broadcast_div(&scale)?, scale))
    };
    let rows = x.detach().reshape(((), columns))?;
    let y = if x.device().is_cpu() {
        normed(&rows)?.0.broadcast_mul(&factor)?
    } else {
        candle_nn::ops::rms_norm(&rows.contiguous()?, &factor, epsilon as f32)?
    };
    let goes_on = x.track_op();
    graft(x, y.reshape(x.shape())?, move |x, _, g| {
        let g = g.reshape(((), columns))?;
        let (hat, scale) = normed(&x.reshape(((), columns))?)?;
        weight.find(|| column_sums(&(&g * &hat)?))?;
        if !goes_on {
            return Ok(None);
        }
        let g = g.broadcast_mul(&factor)?;
        let along = row_mean(&(&g * &hat)?)?;
        g.sub(&hat.broadcast_mul(&along)?)?.broadcast_div(&scale)?.reshape(x.shape()).map(Some)
    })
}

/// The activation function, element by element.
pub fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    if fused::runs_on(x.device()) {
        return launched::activate(kind, x);
    }
    match kind {
        Activation::GeluTanh => x.gelu(),
        Activation::GeluErf => x.gelu_erf(),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
    }
}

/// `f(gate) ∘ up`, element by element: (N,inner) each.
pub fn activate_gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused::runs_on(gate.device()) {
        return launched::activate_gated(kind, gate, up);
    }
    activate(kind, gate)? * up
}

/// `f(gate) ∘ up` of both side by side: (N, 2·inner) → (N, inner), gates first.
pub fn activate_gated_fused(kind: Activation, both: &Tensor) -> Result<Tensor> {
    if fused::runs_on(both.device()) {
        return launched::activate_gated_fused(kind, both);
    }
    let inner = both.dim(1)? / 2;
    let [gate, up] = [0, inner].map(|first| both.narrow(1, first, inner));
    activate(kind, &gate?.contiguous()?)? * up?
}

/// Softmax over the last dimension of `cap(scale·s) + mask`, where `mask` (broadcast to the shape
/// of s) is a constant, and `cap(x)` is `c·tanh(x / c)` where there is a cap.
pub fn masked_softmax(s: &Tensor, scale: f64, cap: Option<f64>, mask: &Tensor) -> Result<Tensor> {
    if fused::runs_on(s.device()) {
        return launched::masked_softmax(s, scale as f32, cap.map(|cap| cap as f32), mask);
    }
    let capped = move |s: &Tensor| -> Result<Tensor> {
        let z = (s * scale)?;
        match cap {
            Some(cap) => (z / cap)?.tanh()? * cap,
            None => Ok(z),
        }
    };
    let scores = capped(&s.detach())?.broadcast_add(mask)?;
    let p = match s.device().is_cpu() {
        true => candle_nn::ops::softmax(&scores, D::Minus1)?,
        false => candle_nn::ops::softmax_last_dim(&scores)?,
    };
    graft(s, p, move |s, p, g| {
        let mean = (p * g)?.sum_keepdim(D::Minus1)?;
        let mut slope = ((g.broadcast_sub(&mean)? * p)? * scale)?;
        if let Some(cap) = cap {
            // The slope of the cap, 1 − tanh².
            let steep = (capped(s)? / cap)?.sqr()?.affine(-1.0, 1.0)?;
            slope = (slope * steep)?;
        }
        Ok(Some(slope))
    })
}

/// Rotary positions: pairs of values (x1, x2) of each head turned by the angles of their positions.
#[derive(Clone)]
pub struct Turn {
    /// (N,1,1,P) each.
    pub cosines: Tensor,
    pub sines: Tensor,
    /// P
    pub pairs: usize,
    pub head_dim: usize,
    pub which: Which,
}

impl Turn {
    /// (N, heads·D) → (N, heads·D)
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        if fused::runs_on(x.device()) {
            return launched::turn(self, x);
        }
        let y = self.turned(&x.detach())?;
        // A turn is undone by the turn the other way, which is also the gradient's.
        let back = Self { sines: self.sines.neg()?, ..self };
        graft(x, y, move |_, _, g| back.turned(g).map(Some))
    }

    fn turned(&self, x: &Tensor) -> Result<Tensor> {
        let Self { cosines, sines, pairs, head_dim, which } = self;
        let (pairs, head_dim) = (*pairs, *head_dim);
        let heads = x.reshape((x.dim(0)?, (), which.of, head_dim))?;
        let turned = heads.narrow(2, 0, which.turned)?;
        let (x1, x2) = (turned.narrow(3, 0, pairs)?, turned.narrow(3, pairs, pairs)?);
        let mut parts = vec![
            (x1.broadcast_mul(cosines)? - x2.broadcast_mul(sines)?)?,
            (x2.broadcast_mul(cosines)? + x1.broadcast_mul(sines)?)?,
        ];
        if 2 * pairs < head_dim {
            parts.push(turned.narrow(3, 2 * pairs, head_dim - 2 * pairs)?);
        }
        let mut y = Tensor::cat(&parts, 3)?;
        if which.turned < which.of {
            let others = heads.narrow(2, which.turned, which.of - which.turned)?;
            y = Tensor::cat(&[y, others], 2)?;
        }
        y.reshape(x.shape())
    }
}
