//! The layers architectures are made of. Each takes its parameters from a view by name, and runs either as our CPU
//! kernel or composed of candle's operations; both give the same numbers, and both differentiate.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor};

pub use super::kernels::activation::Activation;
pub use super::kernels::attention::{AttentionShape, Cache};
pub use super::kernels::linear::Orientation;
pub use super::kernels::rotary::Rotary;
use super::kernels::{activation, attention, embedding, head, linear, norm, rotary};
use super::padded;
use super::padded::Padded;
use super::precision::Precision;
use super::weights::{Kernels, Param, View, Want};
use crate::base::profile::{Part, span};
use crate::tokens::Packed;

/// What a block needs beside its input: where the sequences are, and in generation the layer's cache.
pub struct Rows<'a> {
    pub packed: &'a Packed,
    pub cache: Option<Arc<Mutex<Cache>>>,
    /// Made by the first layer of a pass that wants it, for all of them.
    padded: OnceCell<Padded>,
    /// Cosines and sines (N,1,1,D/2) of rotary positions, likewise.
    turns: OnceCell<[Tensor; 2]>,
}

impl<'a> Rows<'a> {
    /// Of a pass without caches.
    pub fn new(packed: &'a Packed) -> Self {
        Self { packed, cache: None, padded: OnceCell::new(), turns: OnceCell::new() }
    }

    pub(super) fn padded(&self, device: &Device) -> Result<&Padded> {
        if self.padded.get().is_none() {
            // Set by no one else in between: a pass runs on one thread.
            let _ = self.padded.set(Padded::new(self.packed, device)?);
        }
        self.padded.get().context("the padded layout of a pass")
    }

    /// A model has one kind of rotary positions.
    fn turns(&self, rotary: &Rotary, device: &Device) -> Result<&[Tensor; 2]> {
        if self.turns.get().is_none() {
            let (turns, pairs, positions) =
                (rotary.turns(&self.packed.positions), rotary.pairs(), &self.packed.positions);
            let table = |of: &[f32]| {
                let rows =
                    positions.iter().flat_map(|at| &of[*at as usize * pairs..][..pairs]).copied();
                Tensor::from_vec(rows.collect::<Vec<f32>>(), (positions.len(), 1, 1, pairs), device)
            };
            let _ = self.turns.set([table(&turns.cosines)?, table(&turns.sines)?]);
        }
        self.turns.get().context("the rotary positions of a pass")
    }
}

/// Token embedding of a packed batch, plus that of the positions where they are learned: (N,C).
pub fn embed(
    view: &View,
    tokens: &str,
    positions: Option<&str>,
    packed: &Packed,
) -> Result<Tensor> {
    let (tokens, positions) =
        (view.param(tokens)?, positions.map(|name| view.param(name)).transpose()?);
    if view.kernels() == Kernels::Cpu {
        let wanted =
            std::iter::once(&tokens).chain(&positions).any(|table| table.want != Want::Nothing);
        let anchor = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let anchor =
            if wanted { candle_core::Var::from_tensor(&anchor)?.into_inner() } else { anchor };
        let positions = positions.map(|table| (table, packed.positions.clone()));
        let op = embedding::Embedding { tokens, positions, ids: packed.ids.clone() };
        return Ok(anchor.apply_op1(op)?);
    }
    let rows = |table: &Tensor, of: &[u32]| {
        table.index_select(&Tensor::from_slice(of, of.len(), table.device())?, 0)
    };
    let h = rows(&tokens.tensor, &packed.ids)?;
    Ok(match positions {
        Some(positions) => (h + rows(&positions.tensor, &packed.positions)?)?,
        None => h,
    })
}

/// Whether candle's fused kernels will do, which have no backward pass. On a GPU a launch is what a small layer costs, and they
/// take one instead of eight. On the CPU the composed form stays plain.
fn fused(x: &Tensor, weight: &Param) -> bool {
    !x.device().is_cpu() && !x.track_op() && !weight.tensor.track_op()
}

/// Layer norm with `PREFIX.weight` and `PREFIX.bias`: (N,C) → (N,C).
pub fn layer_norm(view: &View, prefix: &str, epsilon: f64, x: &Tensor) -> Result<Tensor> {
    let (weight, bias) =
        (view.param(&format!("{prefix}.weight"))?, view.param(&format!("{prefix}.bias"))?);
    if view.kernels() == Kernels::Cpu {
        return Ok(x.apply_op1(norm::Norm {
            weight,
            bias: Some(bias),
            epsilon: epsilon as f32,
        })?);
    }
    if fused(x, &weight) {
        return Ok(candle_nn::ops::layer_norm(
            &x.contiguous()?,
            &weight.tensor,
            &bias.tensor,
            epsilon as f32,
        )?);
    }
    Ok(candle_nn::ops::layer_norm_slow(x, &weight.tensor, &bias.tensor, epsilon as f32)?)
}

/// RMSNorm with `PREFIX.weight` (D) of every D columns of x: (N, heads·D) → (N, heads·D).
pub fn rms_norm(view: &View, prefix: &str, epsilon: f64, x: &Tensor) -> Result<Tensor> {
    let weight = view.param(&format!("{prefix}.weight"))?;
    if view.kernels() == Kernels::Cpu {
        return Ok(x.apply_op1(norm::Norm { weight, bias: None, epsilon: epsilon as f32 })?);
    }
    let rows = x.reshape(((), weight.tensor.dims1()?))?;
    if fused(x, &weight) {
        return Ok(candle_nn::ops::rms_norm(&rows.contiguous()?, &weight.tensor, epsilon as f32)?
            .reshape(x.shape())?);
    }
    let scale = (rows.sqr()?.mean_keepdim(1)? + epsilon)?.sqrt()?;
    Ok(rows.broadcast_div(&scale)?.broadcast_mul(&weight.tensor)?.reshape(x.shape())?)
}

/// Whether a linear layer has a `PREFIX.bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    Yes,
    No,
}

/// `x·W (+ b)`: (N,in) → (N,out).
pub fn linear(
    view: &View,
    prefix: &str,
    orientation: Orientation,
    bias: Bias,
    x: &Tensor,
) -> Result<Tensor> {
    linear_onto(view, prefix, orientation, bias, x, None)
}

/// `residual + x·W (+ b)`: (N,in), (N,out) → (N,out).
pub fn linear_residual(
    view: &View,
    prefix: &str,
    orientation: Orientation,
    bias: Bias,
    x: &Tensor,
    residual: &Tensor,
) -> Result<Tensor> {
    linear_onto(view, prefix, orientation, bias, x, Some(residual))
}

fn linear_onto(
    view: &View,
    prefix: &str,
    orientation: Orientation,
    bias: Bias,
    x: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    if let Some(residual) = residual.filter(|_| view.skips(prefix)) {
        return Ok(residual.clone());
    }
    let tapped = view.tap(prefix, x)?;
    let x = tapped.as_ref().unwrap_or(x);
    let weight = view.param(&format!("{prefix}.weight"))?;
    let bias = match bias {
        Bias::Yes => Some(view.param(&format!("{prefix}.bias"))?),
        Bias::No => None,
    };
    if view.kernels() == Kernels::Cpu {
        let op = linear::Linear { weight, bias, orientation };
        return Ok(match residual {
            Some(residual) => x.apply_op2(residual, linear::LinearResidual(op))?,
            None => x.apply_op1(op)?,
        });
    }
    let mut y = match orientation {
        Orientation::InOut => matmul(x, &weight.tensor, weight.precision)?,
        Orientation::OutIn => matmul(x, &weight.tensor.t()?, weight.precision)?,
    };
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.tensor)?;
    }
    Ok(match residual {
        Some(residual) => (residual + y)?,
        None => y,
    })
}

/// A product whose operands are rounded to `precision`, in f32.
fn matmul(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    Ok(match precision {
        Precision::F32 => x.matmul(w)?,
        Precision::Bf16 => {
            x.to_dtype(DType::BF16)?.matmul(&w.to_dtype(DType::BF16)?)?.to_dtype(DType::F32)?
        }
    })
}

/// The activation function, element by element.
pub fn activate(view: &View, kind: Activation, x: &Tensor) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(x.apply_op1(kind)?);
    }
    Ok(match kind {
        Activation::GeluTanh => x.gelu()?,
        Activation::GeluErf => x.gelu_erf()?,
        Activation::Relu => x.relu()?,
        Activation::Silu => x.silu()?,
    })
}

/// `f(gate) ∘ up`, element by element.
pub fn activate_gated(view: &View, kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(gate.apply_op2(up, activation::Gated(kind))?);
    }
    Ok((activate(view, kind, gate)? * up)?)
}

/// Queries or keys turned by the angles of their positions: (N, heads·D) → (N, heads·D).
pub fn rotate(view: &View, rotary: &Rotary, x: &Tensor, rows: &Rows) -> Result<Tensor> {
    let (pairs, positions) = (rotary.pairs(), &rows.packed.positions);
    if view.kernels() == Kernels::Cpu {
        let turns = rotary.turns(positions);
        return Ok(x.apply_op1(rotary::Rotate { turns, pairs, positions: positions.clone() })?);
    }
    let [cosines, sines] = rows.turns(rotary, x.device())?;
    let heads = x.reshape((positions.len(), (), 2, pairs))?;
    let (x1, x2) = (heads.narrow(2, 0, 1)?, heads.narrow(2, 1, 1)?);
    let y1 = (x1.broadcast_mul(cosines)? - x2.broadcast_mul(sines)?)?;
    let y2 = (x2.broadcast_mul(cosines)? + x1.broadcast_mul(sines)?)?;
    Ok(Tensor::cat(&[y1, y2], 2)?.reshape(x.shape())?)
}

/// Causal attention of queries, keys and values that lie in one tensor (N, (H + 2·Hkv)·D) → (N, H·D).
pub fn attention_fused(
    view: &View,
    shape: AttentionShape,
    qkv: &Tensor,
    rows: &Rows,
) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(qkv.apply_op1(attention_op(shape, rows))?);
    }
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    padded::attention(
        shape,
        &qkv.narrow(1, 0, q)?,
        &qkv.narrow(1, q, kv)?,
        &qkv.narrow(1, q + kv, kv)?,
        rows,
    )
}

/// Causal attention of queries (N, H·D), keys and values (N, Hkv·D) → (N, H·D).
pub fn attention(
    view: &View,
    shape: AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(q.apply_op3(k, v, attention_op(shape, rows))?);
    }
    padded::attention(shape, q, k, v, rows)
}

fn attention_op(shape: AttentionShape, rows: &Rows) -> attention::Attention {
    attention::Attention {
        shape,
        sequences: rows.packed.sequences.clone(),
        cache: rows.cache.clone(),
    }
}

/// log p(target) at the given rows of the hidden states (N,C): (n). Head weight `name` (V,C).
pub fn token_logp(
    view: &View,
    name: &str,
    h: &Tensor,
    rows: &[u32],
    targets: &[u32],
) -> Result<Tensor> {
    let weight = view.param(name)?;
    if view.kernels() == Kernels::Cpu {
        let kind = head::HeadKind::TokenLogp(targets.to_vec());
        return Ok(h.apply_op1(head::Head::new(weight, rows.to_vec(), kind, h.track_op()))?);
    }
    let logp = composed_logp(&weight.tensor, h, rows, weight.precision)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), h.device())?;
    Ok(logp.gather(&targets, 1)?.squeeze(1)?)
}

/// ln(1 − Σ_v w_v p_v) at the given rows of the hidden states (N,C), each token v weighing w_v (V) in 0..=1: (n). That none
/// of the weighted tokens comes.
pub fn absent_logp(
    view: &View,
    name: &str,
    h: &Tensor,
    rows: &[u32],
    weights: &Tensor,
) -> Result<Tensor> {
    let weight = view.param(name)?;
    if view.kernels() == Kernels::Cpu {
        let kind = head::HeadKind::AbsentLogp(weights.clone());
        return Ok(h.apply_op1(head::Head::new(weight, rows.to_vec(), kind, h.track_op()))?);
    }
    let logp = composed_logp(&weight.tensor, h, rows, weight.precision)?;
    let comes = logp.exp()?.broadcast_mul(&weights.to_device(h.device())?)?.sum(D::Minus1)?;
    Ok(comes.affine(-1.0, 1.0)?.maximum(head::MOST_CERTAIN)?.log()?)
}

/// KL(p_ref ‖ p) at the given rows of both models' hidden states (N,C): (n). The reference's are not differentiated.
pub fn kl(
    view: &View,
    reference: &View,
    name: &str,
    h: &Tensor,
    ref_h: &Tensor,
    rows: &[u32],
) -> Result<Tensor> {
    let (weight, ref_weight) = (view.param(name)?, reference.param(name)?.tensor);
    if view.kernels() == Kernels::Cpu {
        let index = Tensor::from_slice(rows, rows.len(), h.device())?;
        let kind = head::HeadKind::Kl {
            hidden: ref_h.detach().index_select(&index, 0)?,
            weight: ref_weight,
        };
        return Ok(h.apply_op1(head::Head::new(weight, rows.to_vec(), kind, h.track_op()))?);
    }
    let logp_ref = composed_logp(&ref_weight, ref_h, rows, weight.precision)?.detach();
    let logp = composed_logp(&weight.tensor, h, rows, weight.precision)?;
    Ok((logp_ref.exp()? * (logp_ref - logp)?)?.sum(D::Minus1)?)
}

fn composed_logp(
    weight: &Tensor,
    h: &Tensor,
    rows: &[u32],
    precision: Precision,
) -> Result<Tensor> {
    let index = Tensor::from_slice(rows, rows.len(), h.device())?;
    let logits = matmul(&h.index_select(&index, 0)?, &weight.t()?, precision)?;
    Ok(candle_nn::ops::log_softmax(&logits, D::Minus1)?)
}

/// Logits of all rows of h (n,C) → (n,V). For generation and inspection: no graph.
pub fn logits(view: &View, name: &str, h: &Tensor) -> Result<Tensor> {
    let Param { tensor: weight, precision, .. } = view.param(name)?;
    let (rows, columns) = h.dims2().context("hidden states")?;
    if view.kernels() == Kernels::Cpu {
        let vocabulary = weight.dim(0)?;
        let mut out = super::kernels::zeros(rows * vocabulary);
        let _span = span(Part::Head);
        super::kernels::read(h, |h| {
            super::kernels::stored::read_stored(&weight, |w| {
                use super::kernels::matmul::{Mat, large_product};
                let w = Mat::of(w, vocabulary, columns);
                large_product(&mut out, Mat::new(h, rows, columns), w.t(), 0.0, 1.0, precision);
            })
        })??;
        return Ok(Tensor::from_vec(out, (rows, vocabulary), &Device::Cpu)?);
    }
    matmul(h, &weight.t()?, precision)
}
