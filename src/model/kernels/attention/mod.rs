//! Causal attention over packed sequences, global or windowed, with grouped heads and a key/value cache.
//!
//! `o_i = Σ_j p_ij v_j`, `p_i = softmax_j(s · q_i·k_j)` over `j ≤ i` and, with a window W, `j > i − W`. A sequence is a
//! run of rows of the packed batch, so nothing is padded and no mask is stored; scores exist for a tile of queries at a
//! time. The backward pass computes the probabilities again rather than keeping them: with P of (queries, keys) and ∂P = g·Vᵀ,
//! ∂V = Pᵀ·g, ∂S = P ∘ (∂P − Σ_j P_ij ∂P_ij), ∂Q = s·∂S·K, ∂K = s·∂Sᵀ·Q.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matmul::{Cores, Mat, product, product_into};
use super::{Shared, dot, exp, max, read, sum, values, vectorized, zeros};

use crate::base::profile::{Part, span};
use crate::model::padded::CachedBatch;
use crate::tokens::Sequence;

/// Sizes and scaling of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub heads: usize,
    /// Heads of keys and values; fewer than `heads` where they are shared by groups.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A query sees this many positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
}

/// The sequences of a packed batch.
pub type Sequences = Arc<[Sequence]>;

/// Keys and values of the positions seen so far, of each sequence at one layer.
#[derive(Debug, Default)]
pub struct Cache {
    sequences: Vec<CachedSequence>,
    /// Of the composed form, which keeps all sequences in one tensor.
    pub(in crate::model) padded: Option<CachedBatch>,
}

#[derive(Debug, Default, Clone)]
struct CachedSequence {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// An empty cache for this many sequences.
    pub fn new(sequences: usize) -> Self {
        Self { sequences: vec![CachedSequence::default(); sequences], padded: None }
    }

    /// For each of `of` what is cached of the sequence of that number.
    pub fn spread(&mut self, of: &[usize]) -> Result<()> {
        self.sequences = of.iter().map(|i| self.sequences[*i].clone()).collect();
        self.padded.as_mut().map_or(Ok(()), |batch| batch.spread(of))
    }

    /// Keep only the sequences for which `keep` says so (finished ones leave).
    pub fn retain(&mut self, keep: &[bool]) -> Result<()> {
        let mut flags = keep.iter();
        self.sequences.retain(|_| flags.next().copied().unwrap_or(false));
        self.padded.as_mut().map_or(Ok(()), |batch| batch.retain(keep))
    }
}

const TILE: usize = 64;

/// One head's rows inside a strided matrix.
#[derive(Clone, Copy)]
struct Rows {
    ptr: *const f32,
    stride: usize,
}
// SAFETY: only read, and the buffers outlive the jobs (they are borrowed for the whole parallel section).
unsafe impl Send for Rows {}
unsafe impl Sync for Rows {}

impl Rows {
    fn new(data: &[f32], stride: usize, offset: usize) -> Self {
        Self { ptr: data[offset..].as_ptr(), stride }
    }

    fn mat(self, rows: Range<usize>, width: usize) -> Mat {
        // SAFETY: `rows` lie within the sequence that `ptr` is the first row of.
        unsafe {
            Mat::strided(self.ptr.add(rows.start * self.stride), rows.len(), width, self.stride)
        }
    }

    fn row(&self, row: usize, width: usize) -> &[f32] {
        // SAFETY: as in `mat`.
        unsafe { std::slice::from_raw_parts(self.ptr.add(row * self.stride), width) }
    }
}

impl AttentionShape {
    /// A run of keys that holds all that the `queries` can see.
    fn seen(&self, sequence: &Sequence, queries: &Range<usize>) -> Range<usize> {
        let first = |row| {
            let [beginning, own] = sequence.seen(row, self.window);
            if beginning.is_empty() { own.start } else { beginning.start }
        };
        queries.clone().map(first).min().unwrap_or(0)..queries.end
    }

    /// Probabilities of a tile: `scores` (queries, keys) in place, `keys.start` the row of column 0.
    #[inline(always)]
    fn softmax(
        &self,
        sequence: &Sequence,
        scores: &mut [f32],
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) {
        for (scores, row) in scores.chunks_exact_mut(keys.len()).zip(queries.clone()) {
            let [beginning, own] = sequence.seen(row, self.window);
            let [a, b, c, d] = match beginning.is_empty() {
                true => [own.start, own.start, own.start, own.end],
                false => [beginning.start, beginning.end, own.start, own.end],
            }
            .map(|key| key - keys.start);
            scores[..a].fill(0.0);
            scores[b..c].fill(0.0);
            scores[d..].fill(0.0);
            let top = max(&scores[a..b]).max(max(&scores[c..d]));
            let mut total = 0.0;
            for part in [a..b, c..d] {
                let part = &mut scores[part];
                part.iter_mut().for_each(|x| *x = exp((*x - top) * self.scale));
                total += sum(part);
            }
            let inverse = 1.0 / total;
            scores.iter_mut().for_each(|x| *x *= inverse);
        }
    }

    /// One head, `queries` of them at positions from `past` on. Rows of `out` lie one row of all heads apart.
    ///
    /// # Safety
    /// `out` must be writable for `queries` rows of `head_dim`, by this job alone.
    unsafe fn head(
        &self,
        sequence: &Sequence,
        [q, k, v]: [Rows; 3],
        out: *mut f32,
        queries: usize,
        past: usize,
    ) {
        let d = self.head_dim;
        let out_stride = self.heads * d;
        if queries == 1 {
            // A single query (generation): dot products beat a matrix product of one row.
            let keys = self.seen(sequence, &(past..past + 1));
            let mut scores = zeros(keys.len());
            vectorized(|| {
                let query = q.row(0, d);
                for (score, key) in scores.iter_mut().zip(keys.clone()) {
                    *score = dot(query, k.row(key, d));
                }
                self.softmax(sequence, &mut scores, &(past..past + 1), &keys);
                // SAFETY: one row, ours.
                let out = unsafe { std::slice::from_raw_parts_mut(out, d) };
                out.fill(0.0);
                for (p, key) in scores.iter().zip(keys) {
                    out.iter_mut().zip(v.row(key, d)).for_each(|(o, v)| *o += p * v);
                }
            });
            return;
        }
        let mut scores = zeros(TILE.min(queries) * (past + queries));
        for first in (0..queries).step_by(TILE) {
            let rows = first..(first + TILE).min(queries);
            let positions = past + rows.start..past + rows.end;
            let keys = self.seen(sequence, &positions);
            let scores = &mut scores[..rows.len() * keys.len()];
            product(
                scores,
                q.mat(rows.clone(), d),
                k.mat(keys.clone(), d).t(),
                0.0,
                1.0,
                Cores::One,
            );
            vectorized(|| self.softmax(sequence, scores, &positions, &keys));
            let p = Mat::new(scores, rows.len(), keys.len());
            // SAFETY: the rows of this tile, ours.
            unsafe {
                product_into(
                    out.add(rows.start * out_stride),
                    out_stride,
                    p,
                    v.mat(keys, d),
                    0.0,
                    1.0,
                    Cores::One,
                );
            }
        }
    }

    /// Gradients of one group: the query heads that share key/value head `group`. Adds into `gk`, `gv`; writes `gq`.
    ///
    /// # Safety
    /// The gradient pointers must be writable for this group's columns of `queries` rows, by this job alone.
    unsafe fn group_backward(
        &self,
        at: &Packed,
        sequence: &Sequence,
        group: usize,
        out: &Gradients,
    ) {
        let (d, rows) = (self.head_dim, &sequence.rows);
        let queries = rows.len();
        let k = Rows::new(at.k, at.k_stride, rows.start * at.k_stride + at.k_offset + group * d);
        let v = Rows::new(at.v, at.v_stride, rows.start * at.v_stride + at.v_offset + group * d);
        let gk = out.k.at(rows.start * at.k_stride + at.k_offset + group * d);
        let gv = out.v.at(rows.start * at.v_stride + at.v_offset + group * d);
        let width = TILE.min(queries) * queries;
        let (mut p, mut dp) = (zeros(width), zeros(width));
        let per_group = self.heads / self.kv_heads;
        for head in group * per_group..(group + 1) * per_group {
            let q = Rows::new(at.q, at.q_stride, rows.start * at.q_stride + at.q_offset + head * d);
            let go = Rows::new(out.output, self.heads * d, rows.start * self.heads * d + head * d);
            let gq = out.q.at(rows.start * at.q_stride + at.q_offset + head * d);
            for first in (0..queries).step_by(TILE) {
                let tile = first..(first + TILE).min(queries);
                let keys = self.seen(sequence, &tile);
                let size = tile.len() * keys.len();
                let (p, dp) = (&mut p[..size], &mut dp[..size]);
                product(
                    p,
                    q.mat(tile.clone(), d),
                    k.mat(keys.clone(), d).t(),
                    0.0,
                    1.0,
                    Cores::One,
                );
                product(
                    dp,
                    go.mat(tile.clone(), d),
                    v.mat(keys.clone(), d).t(),
                    0.0,
                    1.0,
                    Cores::One,
                );
                vectorized(|| self.softmax(sequence, p, &tile, &keys));
                let p_m = Mat::new(p, tile.len(), keys.len());
                // SAFETY: rows of this group's columns, ours.
                unsafe {
                    let gv = gv.add(keys.start * at.v_stride);
                    product_into(
                        gv,
                        at.v_stride,
                        p_m.t(),
                        go.mat(tile.clone(), d),
                        1.0,
                        1.0,
                        Cores::One,
                    );
                }
                vectorized(|| {
                    for (p, dp) in p.chunks_exact(keys.len()).zip(dp.chunks_exact_mut(keys.len())) {
                        let mean = dot(p, dp);
                        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - mean));
                    }
                });
                let ds = Mat::new(dp, tile.len(), keys.len());
                // SAFETY: as above.
                unsafe {
                    let gq = gq.add(tile.start * at.q_stride);
                    product_into(
                        gq,
                        at.q_stride,
                        ds,
                        k.mat(keys.clone(), d),
                        0.0,
                        self.scale,
                        Cores::One,
                    );
                    let gk = gk.add(keys.start * at.k_stride);
                    product_into(
                        gk,
                        at.k_stride,
                        ds.t(),
                        q.mat(tile, d),
                        1.0,
                        self.scale,
                        Cores::One,
                    );
                }
            }
        }
    }
}

/// Where queries, keys and values lie: three tensors, or columns of one.
struct Packed<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    q_stride: usize,
    k_stride: usize,
    v_stride: usize,
    q_offset: usize,
    k_offset: usize,
    v_offset: usize,
}

struct Gradients<'a> {
    output: &'a [f32],
    q: Shared,
    k: Shared,
    v: Shared,
}

/// Attention over a packed batch.
pub struct Attention {
    pub shape: AttentionShape,
    pub sequences: Sequences,
    /// With a cache the rows are new positions of its sequences, and are appended to it. Not differentiable.
    pub cache: Option<Arc<Mutex<Cache>>>,
}

impl Attention {
    fn q_width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    /// Views of one (N, q + k + v) tensor.
    fn fused<'a>(&self, qkv: &'a [f32]) -> Packed<'a> {
        let (q, kv) = (self.q_width(), self.kv_width());
        let stride = q + 2 * kv;
        Packed {
            q: qkv,
            k: qkv,
            v: qkv,
            q_stride: stride,
            k_stride: stride,
            v_stride: stride,
            q_offset: 0,
            k_offset: q,
            v_offset: q + kv,
        }
    }

    fn apart<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Packed<'a> {
        let (q_stride, kv) = (self.q_width(), self.kv_width());
        Packed {
            q,
            k,
            v,
            q_stride,
            k_stride: kv,
            v_stride: kv,
            q_offset: 0,
            k_offset: 0,
            v_offset: 0,
        }
    }

    fn forward(&self, at: &Packed) -> Result<(CpuStorage, Shape)> {
        let rows = self.sequences.last().map_or(0, |s| s.rows.end);
        let width = self.q_width();
        let mut out = zeros(rows * width);
        let result = Shared(out.as_mut_ptr());
        let (d, shape) = (self.shape.head_dim, &self.shape);
        let per_group = shape.heads / shape.kv_heads;
        let jobs: Vec<(usize, usize)> =
            (0..self.sequences.len()).flat_map(|s| (0..shape.heads).map(move |h| (s, h))).collect();
        let guard = match &self.cache {
            Some(cache) => {
                let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
                self.append(&mut cache, at)?;
                Some(cache)
            }
            None => None,
        };
        let cache = guard.as_deref();
        jobs.into_par_iter().for_each(|(sequence, head)| {
            let found = &self.sequences[sequence];
            let rows = &found.rows;
            let group = head / per_group;
            let q = Rows::new(at.q, at.q_stride, rows.start * at.q_stride + at.q_offset + head * d);
            let (k, v, past) = match cache {
                Some(cache) => {
                    let (cached, stride) = (&cache.sequences[sequence], self.kv_width());
                    let past = cached.keys.len() / stride - rows.len();
                    (
                        Rows::new(&cached.keys, stride, group * d),
                        Rows::new(&cached.values, stride, group * d),
                        past,
                    )
                }
                None => (
                    Rows::new(
                        at.k,
                        at.k_stride,
                        rows.start * at.k_stride + at.k_offset + group * d,
                    ),
                    Rows::new(
                        at.v,
                        at.v_stride,
                        rows.start * at.v_stride + at.v_offset + group * d,
                    ),
                    0,
                ),
            };
            // SAFETY: this job's rows and columns of `out`.
            unsafe {
                shape.head(
                    found,
                    [q, k, v],
                    result.at(rows.start * width + head * d),
                    rows.len(),
                    past,
                )
            };
        });
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }

    fn append(&self, cache: &mut Cache, at: &Packed) -> Result<()> {
        if cache.sequences.len() != self.sequences.len() {
            bail!(
                "cache of {} sequences used with {}",
                cache.sequences.len(),
                self.sequences.len()
            );
        }
        let width = self.kv_width();
        for (cached, sequence) in cache.sequences.iter_mut().zip(self.sequences.iter()) {
            for row in sequence.rows.clone() {
                cached.keys.extend_from_slice(&at.k[row * at.k_stride + at.k_offset..][..width]);
                cached.values.extend_from_slice(&at.v[row * at.v_stride + at.v_offset..][..width]);
            }
        }
        Ok(())
    }

    fn backward(&self, at: &Packed, grad: &[f32], q: Shared, k: Shared, v: Shared) -> Result<()> {
        if self.cache.is_some() {
            bail!("attention with a cache has no backward pass");
        }
        let out = Gradients { output: grad, q, k, v };
        let shape = &self.shape;
        let jobs: Vec<(usize, usize)> = (0..self.sequences.len())
            .flat_map(|s| (0..shape.kv_heads).map(move |g| (s, g)))
            .collect();
        jobs.into_par_iter().for_each(|(sequence, group)| {
            // SAFETY: a job has its sequence's rows and its group's columns of all three gradients to itself.
            unsafe { shape.group_backward(at, &self.sequences[sequence], group, &out) };
        });
        Ok(())
    }
}

/// Queries, keys and values in one tensor (N, (H + 2·Hkv)·D): GPT-2's `c_attn`. Result (N, H·D).
impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Attention);
        self.forward(&self.fused(values(qkv, layout)?))
    }

    fn bwd(&self, qkv: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Attention);
        let grad = grad.contiguous()?;
        let mut gx = zeros(qkv.elem_count());
        let place = Shared(gx.as_mut_ptr());
        read(qkv, |x| read(&grad, |g| self.backward(&self.fused(x), g, place, place, place)))???;
        Ok(Some(Tensor::from_vec(gx, qkv.shape(), qkv.device())?))
    }
}

/// Queries (N, H·D), keys and values (N, Hkv·D) apart. Result (N, H·D).
impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Attention);
        self.forward(&self.apart(values(q, q_l)?, values(k, k_l)?, values(v, v_l)?))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = span(Part::Attention);
        let grad = grad.contiguous()?;
        let (mut gq, mut gk, mut gv) =
            (zeros(q.elem_count()), zeros(k.elem_count()), zeros(v.elem_count()));
        let places = (Shared(gq.as_mut_ptr()), Shared(gk.as_mut_ptr()), Shared(gv.as_mut_ptr()));
        read(q, |q| {
            read(k, |k| {
                read(v, |v| {
                    read(&grad, |g| {
                        self.backward(&self.apart(q, k, v), g, places.0, places.1, places.2)
                    })
                })
            })
        })?????;
        let tensor =
            |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(gq, q)?), Some(tensor(gk, k)?), Some(tensor(gv, v)?)))
    }
}
