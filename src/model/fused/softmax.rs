//! Softmax of masked attention scores.

use candle_core::{DType, Result, Tensor};

use super::launch::{Address, Grid, launch};
use super::{blank, is, size};

/// Most threads of a block.
const THREADS: u32 = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    scores: Address,
    mask: Address,
    p: Address,
    heads: u32,
    queries: u32,
    keys: u32,
    scale: f32,
    cap: f32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    scores: Address,
    p: Address,
    g: Address,
    gs: Address,
    keys: u32,
    scale: f32,
    cap: f32,
    unused: u32,
}

/// Softmax over the keys of `cap(scale·s) + mask`: scores s (B,H,T,S), mask (B,1,T,S) →
/// (B,H,T,S). `cap(x)` is `c·tanh(x / c)` where there is a cap.
pub fn forward(scores: &Tensor, scale: f32, cap: Option<f32>, mask: &Tensor) -> Result<Tensor> {
    let ((batch, heads, queries, keys), device) = (scores.dims4()?, scores.device());
    is("scores", scores, scores.dims(), device)?;
    is("mask", mask, &[batch, 1, queries, keys], device)?;
    let p = blank(scores.shape(), DType::F32, device)?;
    let grid = Grid::of_rows(batch * heads * queries, keys, THREADS);
    let (heads, queries, keys) = (size(heads)?, size(queries)?, size(keys)?);
    let (reads, cap) = ([scores, mask].map(Some), cap.unwrap_or(0.0));
    // SAFETY: the shapes are checked, and p is new.
    unsafe {
        launch("masked_softmax", device, grid, reads, [Some(&p)], |[scores, mask], [p]| Forward {
            scores,
            mask,
            p,
            heads,
            queries,
            keys,
            scale,
            cap,
            unused: 0,
        })?;
    }
    Ok(p)
}

/// The gradient of the scores by that of p = [`forward`] of them, all (B,H,T,S).
pub fn backward(
    scores: &Tensor,
    p: &Tensor,
    g: &Tensor,
    scale: f32,
    cap: Option<f32>,
) -> Result<Tensor> {
    let ((batch, heads, queries, keys), device) = (scores.dims4()?, scores.device());
    for read in [scores, p, g] {
        is("scores", read, scores.dims(), device)?;
    }
    let gs = blank(scores.shape(), DType::F32, device)?;
    let grid = Grid::of_rows(batch * heads * queries, keys, THREADS);
    let (reads, name) = ([scores, p, g].map(Some), "masked_softmax_backward");
    let (keys, cap) = (size(keys)?, cap.unwrap_or(0.0));
    // SAFETY: the shapes are checked, and gs is new.
    unsafe {
        launch(name, device, grid, reads, [Some(&gs)], |[scores, p, g], [gs]| {
            let unused = 0;
            Backward { scores, p, g, gs, keys, scale, cap, unused }
        })?;
    }
    Ok(gs)
}

#[cfg(all(test, unix))]
mod tests {
    use candle_core::{D, Device, Var};

    use super::super::stand_in::{both_ways, close, proves, some};
    use super::*;

    /// p and the gradient of the scores, by candle in f64.
    fn plain(s: &Tensor, g: &Tensor, mask: &Tensor, cap: Option<f64>) -> Result<[Tensor; 2]> {
        let s = Var::from_tensor(&s.to_dtype(DType::F64)?)?;
        let z = (s.as_tensor() * 0.7)?;
        let z = match cap {
            Some(cap) => ((z / cap)?.tanh()? * cap)?,
            None => z,
        };
        let z = z.broadcast_add(&mask.to_dtype(DType::F64)?)?;
        let p = candle_nn::ops::softmax(&z, D::Minus1)?;
        let found = (&p * g.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
        Ok([p, found.get(s.as_tensor()).expect("gradient").clone()])
    }

    #[test]
    fn softmax_is_candles() {
        proves("softmax.cu", || {
            for (queries, keys) in [(1, 1), (3, 5), (2, 33), (2, 300), (17, 17)] {
                let (shape, masks) = ([2, 3, queries, keys], [2, 1, queries, keys]);
                // A naive exponential is infinite at 89.
                let s = (some(&shape, 1) * 200.0).expect("scores");
                let g = some(&shape, 2);
                // Each query sees the first key.
                let seen = |i: usize| i.is_multiple_of(keys) || i % 3 != 1;
                let hidden = |i: usize| if seen(i) { 0.0 } else { f32::NEG_INFINITY };
                let mask: Vec<f32> = (0..2 * queries * keys).map(hidden).collect();
                let mask = Tensor::from_vec(mask, &masks, &Device::Cpu).expect("mask");
                for cap in [None, Some(30f32)] {
                    let found = both_ways(|| {
                        let p = forward(&s, 0.7, cap, &mask)?;
                        let gs = backward(&s, &p, &g, 0.7, cap)?;
                        Ok(vec![p, gs])
                    });
                    let wanted = plain(&s, &g, &mask, cap.map(f64::from)).expect("plain");
                    for (found, wanted) in found.iter().zip(&wanted) {
                        // An f32 score of 280 is off by 1.5e-5 already.
                        close(&format!("{shape:?} {cap:?}"), found, wanted, 1e-4);
                    }
                }
            }
        });
    }
}
