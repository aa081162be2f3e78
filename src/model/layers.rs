//! The *layers* that architectures are made of. Each takes its parameters from a view by name, and
//! runs either as our CPU kernel or composed of candle's operations. Both give the same numbers,
//! and both differentiate.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

use super::composed;
use super::composed::head::Target;
pub use super::kernels::activation::Activation;
pub use super::kernels::attention::{AttentionShape, Fused};
use super::kernels::head::HeadKind;
pub use super::kernels::head::Logits;
pub use super::kernels::linear::Orientation;
pub use super::kernels::rotary::{Rotary, Which};
use super::kernels::{activation, attention, embedding, head, linear, norm, rotary};
use super::padded;
pub use super::pass::Pass;
use super::weights::{Kernels, Param, View, Want};
use crate::base::profile::{Part, span};
use crate::tokens::Packed;

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
    let positions = positions.map(|table| (table, packed.positions.to_vec()));
    let tables = std::iter::once((tokens, packed.ids.to_vec())).chain(positions);
    Ok(composed::embedding(tables.collect())?)
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
            offset: 0.0,
        })?);
    }
    Ok(composed::layer_norm(weight, bias, epsilon, x)?)
}

/// The numbers of an RMSNorm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    pub epsilon: f64,
    /// What is added to the stored weight: 1 where it is what the factor has above 1 (Gemma).
    pub offset: f64,
}

impl RmsNorm {
    /// With `PREFIX.weight` (D), of every D columns of x: (N, heads·D) → (N, heads·D).
    pub fn apply(self, view: &View, prefix: &str, x: &Tensor) -> Result<Tensor> {
        let Self { epsilon, offset } = self;
        let weight = view.param(&format!("{prefix}.weight"))?;
        if view.kernels() == Kernels::Cpu {
            let (epsilon, offset) = (epsilon as f32, offset as f32);
            return Ok(x.apply_op1(norm::Norm { weight, bias: None, epsilon, offset })?);
        }
        Ok(composed::rms_norm(weight, epsilon, offset, x)?)
    }
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
    let probed = view.probe(prefix, x)?;
    let x = probed.as_ref().unwrap_or(x);
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
    Ok(composed::linear(weight, bias, orientation, x, residual)?)
}

/// The activation function, element by element.
pub fn activate(view: &View, kind: Activation, x: &Tensor) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(x.apply_op1(kind)?);
    }
    Ok(composed::activate(kind, x)?)
}

/// `f(gate) ∘ up`, element by element.
pub fn activate_gated(view: &View, kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(gate.apply_op2(up, activation::Gated(kind))?);
    }
    Ok(composed::activate_gated(kind, gate, up)?)
}

/// `f(gate) ∘ up` of both side by side: (N, 2·inner) → (N, inner), gates first.
pub fn activate_gated_fused(view: &View, kind: Activation, both: &Tensor) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(both.apply_op1(activation::FusedGated(kind))?);
    }
    Ok(composed::activate_gated_fused(kind, both)?)
}

/// Queries or keys turned by the angles of their positions: (N, heads·D) → (N, heads·D). Where they
/// lie in one tensor with the values, `which` says so, and those are left as they are.
pub fn rotate(
    view: &View,
    rotary: &Rotary,
    which: Which,
    x: &Tensor,
    pass: &Pass,
) -> Result<Tensor> {
    let (pairs, head_dim, positions) = (rotary.pairs(), rotary.head_dim(), &pass.packed.positions);
    if view.kernels() == Kernels::Cpu {
        let (turns, positions) = (rotary.turns(positions), positions.clone());
        return Ok(x.apply_op1(rotary::Rotate { turns, pairs, head_dim, which, positions })?);
    }
    let [cosines, sines] = pass.turns(rotary, x.device())?;
    let turn = composed::Turn { cosines, sines, pairs, head_dim, which };
    Ok(turn.apply(x)?)
}

/// Causal attention of queries, keys and values in one tensor: (N, (H + 2·Hkv)·D) → (N, H·D).
pub fn attention_fused(
    view: &View,
    shape: AttentionShape,
    fused: Fused,
    qkv: &Tensor,
    pass: &Pass,
) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        let op = attention::FusedAttention { attention: attention_op(shape, pass), fused };
        return Ok(qkv.apply_op1(op)?);
    }
    let (h, hk, d) = (shape.heads, shape.kv_heads, shape.head_dim);
    let [q, k, v] = match fused {
        Fused::ByKind => [(0, h), (h, hk), (h + hk, hk)]
            .map(|(first, heads)| qkv.narrow(1, first * d, heads * d)),
        Fused::ByHead => {
            let heads = qkv.reshape(((), h, 3, d))?;
            [0, 1, 2].map(|part| heads.narrow(2, part, 1)?.reshape(((), h * d)))
        }
    };
    attention_composed(shape, [&q?, &k?, &v?], pass)
}

/// Causal attention of queries (N, H·D), keys and values (N, Hkv·D) → (N, H·D).
pub fn attention(
    view: &View,
    shape: AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    pass: &Pass,
) -> Result<Tensor> {
    if view.kernels() == Kernels::Cpu {
        return Ok(q.apply_op3(k, v, attention_op(shape, pass))?);
    }
    attention_composed(shape, [q, k, v], pass)
}

fn attention_op(shape: AttentionShape, pass: &Pass) -> attention::Attention {
    let cache = pass.cache.map(|cache| cache.kernel.clone());
    attention::Attention { shape, sequences: pass.packed.sequences.clone(), cache }
}

fn attention_composed(shape: AttentionShape, qkv: [&Tensor; 3], pass: &Pass) -> Result<Tensor> {
    let padded = pass.padded(qkv[0].device())?;
    let mut cache = pass.cache.map(|cache| cache.padded());
    padded::attention(shape, qkv, padded, cache.as_deref_mut())
}

/// The output head: the name of its weight (V,C), and what is made of its products.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub weight: &'a str,
    pub logits: Logits,
}

impl Head<'_> {
    fn kernel(self, weight: Param, h: &Tensor, rows: &[u32], kind: HeadKind) -> Result<Tensor> {
        let op = head::Head::new(weight, rows.to_vec(), kind, self.logits, h.track_op());
        Ok(h.apply_op1(op)?)
    }
}

/// log p(target) at the given rows of the hidden states (N,C): (n).
pub fn token_logp(
    view: &View,
    head: Head,
    h: &Tensor,
    rows: &[u32],
    targets: &[u32],
) -> Result<Tensor> {
    let weight = view.param(head.weight)?;
    if view.kernels() == Kernels::Cpu {
        return head.kernel(weight, h, rows, HeadKind::TokenLogp(targets.to_vec()));
    }
    let targets = Target::Token(Tensor::from_slice(targets, targets.len(), h.device())?);
    Ok(composed::head::values(weight, head.logits, h, rows, targets)?)
}

/// ln(1 − Σ_v w_v p_v) at the given rows of the hidden states (N,C): (n). It is the logarithm of
/// the probability that no weighted token comes, where token v weighs w_v in 0..=1, weights (V).
pub fn absent_logp(
    view: &View,
    head: Head,
    h: &Tensor,
    rows: &[u32],
    weights: &Tensor,
) -> Result<Tensor> {
    let weight = view.param(head.weight)?;
    if view.kernels() == Kernels::Cpu {
        return head.kernel(weight, h, rows, HeadKind::AbsentLogp(weights.clone()));
    }
    let target = Target::Absent(weights.to_device(h.device())?);
    Ok(composed::head::values(weight, head.logits, h, rows, target)?)
}

/// KL(p_ref ‖ p) at the given rows of both models' hidden states (N,C): (n). The reference's are
/// not differentiated.
pub fn kl(
    view: &View,
    reference: &View,
    head: Head,
    h: &Tensor,
    ref_h: &Tensor,
    rows: &[u32],
) -> Result<Tensor> {
    let (weight, ref_weight) = (view.param(head.weight)?, reference.param(head.weight)?.tensor);
    let index = Tensor::from_slice(rows, rows.len(), h.device())?;
    let hidden = ref_h.detach().index_select(&index, 0)?;
    if view.kernels() == Kernels::Cpu {
        return head.kernel(weight, h, rows, HeadKind::Kl { hidden, weight: ref_weight });
    }
    let target = Target::Reference(hidden, ref_weight);
    Ok(composed::head::values(weight, head.logits, h, rows, target)?)
}

/// Logits of all rows of h (n,C) → (n,V). For generation and inspection: no graph.
pub fn logits(view: &View, head: Head, h: &Tensor) -> Result<Tensor> {
    let Param { tensor: weight, precision, .. } = view.param(head.weight)?;
    let (rows, columns) = h.dims2().context("hidden states")?;
    if view.kernels() == Kernels::Cpu {
        let vocabulary = weight.dim(0)?;
        let mut out = super::kernels::zeros(rows * vocabulary);
        let _span = span(Part::Head);
        super::kernels::read(h, |h| {
            super::kernels::stored::read_stored(&weight, |w| {
                use super::kernels::matmul::large_product;
                use super::kernels::matrix::Mat;
                let w = Mat::of(w, vocabulary, columns);
                let h = Mat::new(h, rows, columns);
                large_product(&mut out, h, w.t(), 0.0, head.logits.scale, precision);
            })
        })??;
        head.logits.capped(&mut out, &mut []);
        return Ok(Tensor::from_vec(out, (rows, vocabulary), &Device::Cpu)?);
    }
    let z = composed::product(h, &weight.t()?, precision)?;
    Ok(composed::head::of_products(head.logits, z)?)
}
