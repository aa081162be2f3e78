//! The output head composed of candle's operations, in chunks of positions as the kernel is: the
//! logits of all positions never exist at once, and the slope of each value by its hidden state is
//! found in the forward pass.

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

use super::{graft, product};
use crate::model::fused;
use crate::model::kernels::head::{Logits, MOST_CERTAIN};
use crate::model::ledger::{Param, Want};

/// Logits of a chunk take at most about this many values (256 MiB): a GPU wants large products.
const CHUNK_VALUES: usize = 1 << 26;

/// What is computed of the logits at each position.
pub enum Target {
    /// log p(token): the tokens (n).
    Token(Tensor),
    /// ln(1 − Σ_v w_v p_v): the weight w of each token (V).
    Absent(Tensor),
    /// KL(p_ref ‖ p): hidden states (n,C) of the reference, and its head (V,C).
    Reference(Tensor, Tensor),
}

/// Positions in a chunk.
pub fn chunk_rows(rows: usize, vocabulary: usize) -> usize {
    (CHUNK_VALUES / vocabulary.max(1)).clamp(1, rows.max(1))
}

/// The head over hidden states, as values at chosen rows.
struct Head {
    weight: Param,
    logits: Logits,
    target: Target,
}

/// Softmax of rows (m,V).
fn softmax(z: &Tensor) -> Result<Tensor> {
    match z.device().is_cpu() {
        true => candle_nn::ops::softmax(z, D::Minus1),
        false => candle_nn::ops::softmax_last_dim(&z.contiguous()?),
    }
}

impl Head {
    fn of_products(&self, z: Tensor) -> Result<Tensor> {
        of_products(self.logits, z)
    }

    /// The values (m) of `count` rows from `first` of x (n,C), and with `slopes` their slopes by
    /// the products of the head (m,V).
    fn chunk(
        &self,
        x: &Tensor,
        first: usize,
        count: usize,
        slopes: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let x = x.narrow(0, first, count)?;
        let z = product(&x, &self.weight.tensor.t()?, self.weight.precision)?;
        if fused::runs_on(z.device()) {
            return self.launched(&z, first, count, slopes);
        }
        let z = self.of_products(z)?;
        let p = softmax(&z)?;
        let one = |x: &Tensor| x.squeeze(1);
        let (values, by_logits) = match &self.target {
            Target::Token(tokens) => {
                let tokens = tokens.narrow(0, first, count)?.unsqueeze(1)?;
                let most = z.max_keepdim(1)?;
                let sum = z.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?.log()?;
                let values = one(&((z.gather(&tokens, 1)? - most)? - sum)?)?;
                let by_logits = || {
                    let ones = Tensor::ones((count, 1), DType::F32, z.device())?;
                    p.neg()?.scatter_add(&tokens, &ones, 1)
                };
                (values, slopes.then(by_logits).transpose()?)
            }
            Target::Absent(weights) => {
                let comes = p.broadcast_mul(weights)?.sum_keepdim(1)?;
                let absent = comes.affine(-1.0, 1.0)?;
                let clear = absent.maximum(MOST_CERTAIN)?;
                let by_logits = || {
                    let factor = clear.recip()?.neg()?;
                    let apart = weights.broadcast_as(p.shape())?.broadcast_sub(&comes)?;
                    (&p * apart)?.broadcast_mul(&factor)
                };
                (one(&clear.log()?)?, slopes.then(by_logits).transpose()?)
            }
            Target::Reference(hidden, weight) => {
                let theirs = self.of_products(self.theirs(hidden, weight, first, count)?)?;
                let q = softmax(&theirs)?;
                let log = |z: &Tensor| candle_nn::ops::log_softmax(z, D::Minus1);
                let values = (&q * (log(&theirs)? - log(&z)?)?)?.sum(D::Minus1)?;
                (values, slopes.then(|| &p - &q).transpose()?)
            }
        };
        let Logits { scale, cap } = self.logits;
        let by_products = by_logits.map(|slope| {
            let slope = if scale == 1.0 { slope } else { (slope * f64::from(scale))? };
            match cap.map(f64::from) {
                Some(cap) => slope * (z / cap)?.sqr()?.affine(-1.0, 1.0)?,
                None => Ok(slope),
            }
        });
        Ok((values, by_products.transpose()?))
    }

    /// The reference's products of `count` rows from `first`.
    fn theirs(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        first: usize,
        count: usize,
    ) -> Result<Tensor> {
        product(&hidden.narrow(0, first, count)?, &weight.t()?, self.weight.precision)
    }

    /// As [`chunk`](Self::chunk), of the products z (m,V) of those rows.
    fn launched(
        &self,
        z: &Tensor,
        first: usize,
        count: usize,
        slopes: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let Logits { scale, cap } = self.logits;
        let of = |target| fused::head::values(z, scale, cap, target, slopes);
        match &self.target {
            Target::Token(tokens) => {
                of(fused::head::Target::Token(&tokens.narrow(0, first, count)?))
            }
            Target::Absent(weights) => {
                of(fused::head::Target::Absent(weights, MOST_CERTAIN as f32))
            }
            Target::Reference(hidden, weight) => {
                of(fused::head::Target::Reference(&self.theirs(hidden, weight, first, count)?))
            }
        }
    }
}

/// Logits of the products z.
pub fn of_products(logits: Logits, z: Tensor) -> Result<Tensor> {
    let Logits { scale, cap } = logits;
    let z = if scale == 1.0 { z } else { (z * f64::from(scale))? };
    Ok(match cap.map(f64::from) {
        Some(cap) => ((z / cap)?.tanh()? * cap)?,
        None => z,
    })
}

/// What `target` makes of the logits at these rows of the hidden states (N,C): (n).
pub fn values(
    weight: Param,
    logits: Logits,
    h: &Tensor,
    rows: &[u32],
    target: Target,
) -> Result<Tensor> {
    let index = Tensor::from_slice(rows, rows.len(), h.device())?;
    let x = h.detach().index_select(&index, 0)?;
    let (vocabulary, _) = weight.tensor.dims2()?;
    let step = chunk_rows(rows.len(), vocabulary);
    let head = Arc::new(Head { weight, logits, target });
    let (mut values, mut slopes) = (Vec::new(), Vec::new());
    for first in (0..rows.len()).step_by(step) {
        let count = step.min(rows.len() - first);
        let (chunk, by_products) = head.chunk(&x, first, count, h.track_op())?;
        values.push(chunk);
        if let Some(by_products) = by_products {
            slopes.push(product(&by_products, &head.weight.tensor, head.weight.precision)?);
        }
    }
    let value = Tensor::cat(&values, 0)?;
    if slopes.is_empty() {
        return Ok(value);
    }
    let slopes = Tensor::cat(&slopes, 0)?;
    graft(h, value, move |h, _, g| {
        let g = g.unsqueeze(1)?;
        if head.weight.want != Want::Nothing {
            head.find(&x, &g, step)?;
        }
        let slopes = slopes.broadcast_mul(&g)?;
        h.zeros_like()?.index_add(&index, &slopes, 0).map(Some)
    })
}

impl Head {
    /// Gives the ledger what is wanted of the head's weight: `Σ_n g_n·(∂f_n/∂z_n)ᵀ·x_n`, the
    /// gradients g (n,1).
    fn find(&self, x: &Tensor, g: &Tensor, step: usize) -> Result<()> {
        self.weight.find(|| {
            let (rows, _) = x.dims2()?;
            let mut sum: Option<Tensor> = None;
            for first in (0..rows).step_by(step) {
                let count = step.min(rows - first);
                let (_, Some(slopes)) = self.chunk(x, first, count, true)? else {
                    candle_core::bail!("slopes were asked for")
                };
                let slopes = slopes.broadcast_mul(&g.narrow(0, first, count)?)?;
                let x = x.narrow(0, first, count)?;
                let part = product(&slopes.t()?, &x, self.weight.precision)?;
                sum = Some(match sum {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
            match sum {
                Some(sum) => Ok(sum),
                None => self.weight.tensor.zeros_like()?.to_dtype(DType::F32),
            }
        })
    }
}
