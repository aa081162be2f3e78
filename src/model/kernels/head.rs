//! The output head fused with what is computed from its logits, in chunks of positions: the logits
//! (n,V), their softmax and its gradient never exist at once.
//!
//! An operation gives one value a counted position, so that every loss (a mean, a sum a sequence, a
//! log-ratio) is a small candle expression over them. Its slope by the hidden state,
//! `∂f_i/∂x_i = u_i`, is found in the forward pass already, while the chunk's logits are there. The
//! backward pass only scales it: `∂x_i = g_i·u_i`.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matmul::{Mat, large_product};
use super::stored::{Values, read_stored};
use super::{exp, fold, max, par_rows, read, tanh, values, vectorized, zeros};
use crate::base::profile::{Part, span};
use crate::model::ledger::{Param, Want};
use crate::model::precision::Precision;

/// Logits of a chunk take at most about this many values (32 MiB).
const CHUNK_VALUES: usize = 1 << 23;

/// Where tokens shall be absent, no smaller probability of that has its logarithm taken.
pub const MOST_CERTAIN: f64 = 1e-4;

/// Positions in a chunk. All chunks are about as large, because each reads the whole head.
fn chunk_rows(rows: usize, vocabulary: usize) -> usize {
    let most = (CHUNK_VALUES / vocabulary).clamp(16, 512);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Values of a chunk's logits for so many positions.
pub fn chunk_values(rows: usize, vocabulary: usize) -> usize {
    chunk_rows(rows, vocabulary) * vocabulary
}

/// What is made of the products z = x·Wᵀ of the head: the logits `scale·z`, and with a cap c
/// `c·tanh(scale·z / c)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logits {
    pub scale: f32,
    pub cap: Option<f32>,
}

impl Logits {
    /// The products themselves.
    pub const PLAIN: Self = Self { scale: 1.0, cap: None };

    /// Caps scaled products in place, and keeps the slope of each in `slopes` where it is as long.
    pub fn capped(self, logits: &mut [f32], slopes: &mut [f32]) {
        let Some(cap) = self.cap else { return };
        const JOB: usize = 1 << 14;
        logits.par_chunks_mut(JOB).for_each(|logits| {
            vectorized!(logits.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)))
        });
        let both = slopes.par_chunks_mut(JOB).zip(logits.par_chunks(JOB));
        both.for_each(|(slopes, logits)| {
            let slope = |x: f32| 1.0 - (x / cap) * (x / cap);
            vectorized!(slopes.iter_mut().zip(logits).for_each(|(s, x)| *s = slope(*x)))
        });
    }
}

/// The head's matrix (V,C) as its products see it.
#[derive(Clone, Copy)]
struct Vocabulary<'a> {
    w: Values<'a>,
    columns: usize,
    precision: Precision,
    logits: Logits,
}

impl<'a> Vocabulary<'a> {
    fn len(&self) -> usize {
        self.w.count() / self.columns
    }

    fn mat(&self) -> Mat<'a> {
        Mat::of(self.w, self.len(), self.columns)
    }
}

/// What a head operation computes of the logits at each position.
enum Target<'a> {
    /// log p(token).
    Token(&'a [u32]),
    /// ln(1 − Σ_v w_v p_v): the weight w of each token (V).
    Absent(&'a [f32]),
    /// KL(p_ref ‖ p): hidden states (n,C) of the reference and its head (V,C).
    Reference(&'a [f32], Values<'a>),
}

/// f_i of each row of x (n,C) under head w (V,C), and with `slopes` also u_i = ∂f_i/∂x_i (n,C).
fn scan(x: &[f32], head: Vocabulary, target: &Target, slopes: Option<&mut [f32]>) -> Vec<f32> {
    scan_with(x, head, target, slopes, |_, _| ())
}

/// As [`scan`]; `visit(first row, ∂f/∂logits of the chunk)` also sees the gradient by the logits.
fn scan_with(
    x: &[f32],
    head: Vocabulary,
    target: &Target,
    mut slopes: Option<&mut [f32]>,
    mut visit: impl FnMut(usize, &mut [f32]),
) -> Vec<f32> {
    let Vocabulary { columns, precision, logits: Logits { scale, cap }, .. } = head;
    let (rows, vocabulary) = (x.len() / columns, head.len());
    let chunk = chunk_rows(rows, vocabulary);
    let mut logits = zeros(chunk * vocabulary);
    let mut caps = zeros(cap.map_or(0, |_| logits.len()));
    let mut ref_logits =
        zeros(if matches!(target, Target::Reference(..)) { chunk * vocabulary } else { 0 });
    let mut out = zeros(rows);
    for first in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - first);
        let logits = &mut logits[..count * vocabulary];
        let x = Mat::new(&x[first * columns..][..count * columns], count, columns);
        large_product(logits, x, head.mat().t(), 0.0, scale, precision);
        let caps = caps.get_mut(..logits.len()).unwrap_or_default();
        head.logits.capped(logits, caps);
        let out = &mut out[first..first + count];
        if let Target::Reference(ref_x, ref_w) = target {
            let ref_logits = &mut ref_logits[..count * vocabulary];
            let ref_x = Mat::new(&ref_x[first * columns..][..count * columns], count, columns);
            let ref_head = Mat::of(*ref_w, vocabulary, columns);
            large_product(ref_logits, ref_x, ref_head.t(), 0.0, scale, precision);
            head.logits.capped(ref_logits, &mut []);
        }
        let rows = logits.par_chunks_exact_mut(vocabulary).zip(out).enumerate();
        rows.for_each(|(row, (logits, out))| {
            *out = vectorized!(match target {
                Target::Token(tokens) => token_row(logits, tokens[first + row] as usize),
                Target::Absent(weights) => absent_row(logits, weights),
                Target::Reference(..) => {
                    kl_row(logits, &ref_logits[row * vocabulary..][..vocabulary])
                }
            });
        });
        // The rows now hold ∂f/∂logits; by the products without a cap, with this.
        let both = logits.par_chunks_mut(vocabulary).zip(caps.par_chunks(vocabulary));
        both.for_each(|(logits, caps)| {
            vectorized!(logits.iter_mut().zip(caps).for_each(|(x, slope)| *x *= slope))
        });
        if let Some(slopes) = slopes.as_deref_mut() {
            let slopes = &mut slopes[first * columns..][..count * columns];
            large_product(
                slopes,
                Mat::new(logits, count, vocabulary),
                head.mat(),
                0.0,
                scale,
                precision,
            );
        }
        visit(first, logits);
    }
    out
}

/// Returns log p(token) and turns the logits into onehot(token) − p.
#[inline(always)]
fn token_row(logits: &mut [f32], token: usize) -> f32 {
    let top = max(logits);
    let chosen = logits[token] - top;
    logits.iter_mut().for_each(|x| *x = exp(*x - top));
    let total = fold_wide(logits);
    let inverse = (1.0 / total) as f32;
    logits.iter_mut().for_each(|x| *x *= -inverse);
    logits[token] += 1.0;
    (f64::from(chosen) - total.ln()) as f32
}

/// Returns ln(1 − m), m = Σ_v w_v p_v, and turns the logits into p_v·(m − w_v) / (1 − m).
#[inline(always)]
fn absent_row(logits: &mut [f32], weights: &[f32]) -> f32 {
    let top = max(logits);
    logits.iter_mut().for_each(|x| *x = exp(*x - top));
    let total = fold_wide(logits);
    let pairs = logits.chunks(1024).zip(weights.chunks(1024));
    let comes = pairs.map(|(p, w)| f64::from(product(p, w))).sum::<f64>() / total;
    // A token that is certain would have an infinite loss.
    let absent = (1.0 - comes).max(MOST_CERTAIN);
    let (inverse, comes) = ((1.0 / (total * absent)) as f32, comes as f32);
    logits.iter_mut().zip(weights).for_each(|(p, w)| *p *= (comes - w) * inverse);
    absent.ln() as f32
}

/// Σ x_i·y_i
#[inline(always)]
fn product(x: &[f32], y: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let (other_chunks, other_rest) = y.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for (x, y) in chunks.iter().zip(other_chunks) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().zip(other_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// Returns KL(p_ref ‖ p) and turns the logits into p − p_ref.
#[inline(always)]
fn kl_row(logits: &mut [f32], reference: &[f32]) -> f32 {
    let (top, ref_top) = (max(logits), max(reference));
    let total = fold_sum(logits, |x| exp(x - top));
    let ref_total = fold_sum(reference, |x| exp(x - ref_top));
    let (inverse, ref_inverse) = ((1.0 / total) as f32, (1.0 / ref_total) as f32);
    // KL = Σ p_ref·(z_ref − z) + ln Z − ln Z_ref, with z measured from each row's top.
    let mut lanes = [0f32; 16];
    let (chunks, rest) = logits.as_chunks_mut::<16>();
    let (ref_chunks, ref_rest) = reference.as_chunks::<16>();
    let mut cross = 0f64;
    // Lanes are emptied into f64 now and then: so many f32 additions as there are tokens would cost
    // three digits.
    for (block, ref_block) in chunks.chunks_mut(64).zip(ref_chunks.chunks(64)) {
        for (x, r) in block.iter_mut().zip(ref_block) {
            for i in 0..16 {
                let p_ref = exp(r[i] - ref_top) * ref_inverse;
                let z = x[i] - top;
                lanes[i] += p_ref * ((r[i] - ref_top) - z);
                x[i] = exp(z) * inverse - p_ref;
            }
        }
        cross += f64::from(lanes.iter().sum::<f32>());
        lanes = [0f32; 16];
    }
    for (x, r) in rest.iter_mut().zip(ref_rest) {
        let p_ref = exp(*r - ref_top) * ref_inverse;
        let z = *x - top;
        cross += f64::from(p_ref * ((*r - ref_top) - z));
        *x = exp(z) * inverse - p_ref;
    }
    (cross + total.ln() - ref_total.ln()) as f32
}

/// Σ f(x), f32 lanes emptied into f64 every 1,024 values.
#[inline(always)]
fn fold_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    values.chunks(1024).map(|chunk| f64::from(fold(chunk, &f))).sum()
}

#[inline(always)]
fn fold_wide(values: &[f32]) -> f64 {
    fold_sum(values, |x| x)
}

/// The head at the positions that count: a value of this kind at each.
pub struct Head {
    pub weight: Param,
    /// Rows of the hidden states (N,C) that count.
    pub rows: Vec<u32>,
    pub kind: HeadKind,
    pub logits: Logits,
    slopes: Mutex<Option<Vec<f32>>>,
    keep_slopes: bool,
}

/// What is computed at each counted position.
pub enum HeadKind {
    /// log p(target) = z_t − ln Σ_v exp z_v with the logits z, one target a counted row;
    /// ∂h = Wᵀ(1_t − p).
    TokenLogp(Vec<u32>),
    /// ln(1 − m), m = Σ_v w_v p_v with weights w (V) in 0..=1: that no weighted token comes;
    /// ∂h = Wᵀ(p_v·(m − w_v) / (1 − m)).
    AbsentLogp(Tensor),
    /// KL(p_ref ‖ p) = Σ_v p_ref,v (ln p_ref,v − ln p_v); ∂h = Wᵀ(p − p_ref). `hidden` are the
    /// reference's states (n,C) at the counted rows, `weight` is its head.
    Kl { hidden: Tensor, weight: Tensor },
}

impl Head {
    /// An operation on hidden states (N,C); `on_graph` where they are differentiated.
    pub fn new(
        weight: Param,
        rows: Vec<u32>,
        kind: HeadKind,
        logits: Logits,
        on_graph: bool,
    ) -> Self {
        Self { weight, rows, kind, logits, slopes: Mutex::new(None), keep_slopes: on_graph }
    }

    fn vocabulary<'a>(&self, w: Values<'a>, columns: usize) -> Vocabulary<'a> {
        Vocabulary { w, columns, precision: self.weight.precision, logits: self.logits }
    }

    fn gather(&self, h: &[f32], columns: usize) -> Vec<f32> {
        let mut x = zeros(self.rows.len() * columns);
        for (to, &row) in x.chunks_exact_mut(columns).zip(&self.rows) {
            to.copy_from_slice(&h[row as usize * columns..][..columns]);
        }
        x
    }

    fn with_target<R>(&self, work: impl FnOnce(&Target) -> R) -> Result<R> {
        match &self.kind {
            HeadKind::TokenLogp(tokens) => Ok(work(&Target::Token(tokens))),
            HeadKind::AbsentLogp(weights) => {
                read(weights, |weights| work(&Target::Absent(weights)))
            }
            HeadKind::Kl { hidden, weight } => {
                read(hidden, |x| read_stored(weight, |w| work(&Target::Reference(x, w))))?
            }
        }
    }
}

impl CustomOp1 for Head {
    fn name(&self) -> &'static str {
        "head"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Head);
        let (_, columns) = self.weight.tensor.dims2()?;
        let x = self.gather(values(h, layout)?, columns);
        let mut slopes = self.keep_slopes.then(|| zeros(x.len()));
        let out = read_stored(&self.weight.tensor, |w| {
            let head = self.vocabulary(w, columns);
            self.with_target(|target| scan(&x, head, target, slopes.as_deref_mut()))
        })??;
        if let Ok(mut place) = self.slopes.lock() {
            *place = slopes;
        }
        Ok((CpuStorage::F32(out), self.rows.len().into()))
    }

    fn bwd(&self, h: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Head);
        let (_, columns) = self.weight.tensor.dims2()?;
        let g = grad.to_vec1::<f32>()?;
        if self.weight.want != Want::Nothing {
            self.weight_gradient(h, &g, columns)?;
        }
        let Some(slopes) = self.slopes.lock().ok().and_then(|mut s| s.take()) else {
            bail!("head: backward without a forward on the graph");
        };
        let mut gh = zeros(h.elem_count());
        for ((u, g), &row) in slopes.chunks_exact(columns).zip(&g).zip(&self.rows) {
            let to = &mut gh[row as usize * columns..][..columns];
            to.iter_mut().zip(u).for_each(|(t, u)| *t += g * u);
        }
        Ok(Some(Tensor::from_vec(gh, h.shape(), h.device())?))
    }
}

impl Head {
    /// ∂W += Σ_i g_i · (∂f_i/∂logits) x_iᵀ: the logits are computed again, a chunk at a time.
    fn weight_gradient(&self, h: &Tensor, g: &[f32], columns: usize) -> Result<()> {
        if self.weight.want == Want::Norm {
            bail!("{}: the head belongs to no block", self.weight.name);
        }
        let x = read(h, |h| self.gather(h, columns))?;
        read_stored(&self.weight.tensor, |w| {
            let head = self.vocabulary(w, columns);
            let vocabulary = head.len();
            self.with_target(|target| {
                self.weight.add_gradient(|sum, keep| {
                    let mut keep = keep;
                    scan_with(&x, head, target, None, |first, slope| {
                        let count = slope.len() / vocabulary;
                        par_rows(slope, vocabulary, |row, slope| {
                            for (i, slope) in slope.chunks_exact_mut(vocabulary).enumerate() {
                                let g = g[first + row + i];
                                vectorized!(slope.iter_mut().for_each(|s| *s *= g));
                            }
                        });
                        let x = Mat::new(&x[first * columns..][..count * columns], count, columns);
                        large_product(
                            sum,
                            Mat::new(slope, count, vocabulary).t(),
                            x,
                            keep,
                            head.logits.scale,
                            head.precision,
                        );
                        keep = 1.0;
                    });
                });
            })
        })??;
        Ok(())
    }
}
