//! One head of attention, a tile of queries at a time.

use std::ops::Range;

use crate::model::kernels::matmul::{product, product_into};
use crate::model::kernels::matrix::{Cores, Mat, MatMut};
use crate::model::kernels::{dot, exp, max, sum, tanh, vectorized, zeros};
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
    /// c of `c·tanh(s/c)` in place of a score s (a soft cap).
    pub cap: Option<f32>,
}

/// Queries, keys or values: where those of each head lie in rows of `width` values.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub values: &'a [f32],
    pub width: usize,
    /// Where head 0 begins in a row.
    pub first: usize,
    /// Values from head to head.
    pub apart: usize,
    /// D
    pub head_dim: usize,
}

impl<'a> Heads<'a> {
    /// Rows that hold nothing else.
    pub fn alone(values: &'a [f32], heads: usize, head_dim: usize) -> Self {
        Self { values, width: heads * head_dim, first: 0, apart: head_dim, head_dim }
    }

    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// Some rows of a head: (rows, D). Panics if there are not so many.
    pub fn head(&self, head: usize, rows: &Range<usize>) -> Mat<'a> {
        let rows = &self.values[rows.start * self.width..rows.end * self.width];
        let first = (self.first + head * self.apart).min(rows.len());
        Mat::strided(&rows[first..], rows.len() / self.width, self.head_dim, self.width)
    }

    /// One row of a head: (D).
    pub fn row(&self, head: usize, row: usize) -> &'a [f32] {
        &self.values[row * self.width + self.first + head * self.apart..][..self.head_dim]
    }
}

/// Queries, keys and values of a packed batch.
pub(super) struct Inputs<'a> {
    pub q: Heads<'a>,
    pub k: Heads<'a>,
    pub v: Heads<'a>,
}

/// Gradients of one group in one sequence: the query heads that share a head of keys and values.
pub(super) struct Gradients<'a> {
    /// (T, H/Hkv · D)
    pub q: MatMut<'a>,
    /// (T,D)
    pub k: MatMut<'a>,
    /// (T,D)
    pub v: MatMut<'a>,
}

const TILE: usize = 64;

impl AttentionShape {
    /// Query heads that share a head of keys and values.
    pub(super) fn per_group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// A run of keys that holds all that the `queries` can see.
    fn seen(&self, sequence: &Sequence, queries: &Range<usize>) -> Range<usize> {
        let first = |row| {
            let [beginning, own] = sequence.seen(row, self.window);
            if beginning.is_empty() { own.start } else { beginning.start }
        };
        queries.clone().map(first).min().unwrap_or(0)..queries.end
    }

    /// Caps the products q·k of a tile in place, still without the factor on scores, and returns
    /// the slope of each in `slopes` where it is as long as they. Nothing without a cap.
    #[inline(always)]
    fn capped(&self, products: &mut [f32], slopes: &mut [f32]) {
        let Some(cap) = self.cap else { return };
        let (inner, outer) = (self.scale / cap, cap / self.scale);
        products.iter_mut().for_each(|x| *x = tanh(*x * inner));
        slopes.iter_mut().zip(&*products).for_each(|(slope, t)| *slope = 1.0 - t * t);
        products.iter_mut().for_each(|t| *t *= outer);
    }

    /// Probabilities of a tile: `scores` (queries, keys) in place, `keys.start` the row of column
    /// 0.
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

    /// One head: queries (T,D) at positions from `past` on, keys and values (past + T, D) → (T,D).
    pub(super) fn head(
        &self,
        sequence: &Sequence,
        [q, k, v]: [Mat; 3],
        mut out: MatMut,
        past: usize,
    ) {
        let (d, queries) = (self.head_dim, q.rows());
        if queries == 1 {
            // A single query (generation): dot products beat a matrix product of one row.
            let keys = self.seen(sequence, &(past..past + 1));
            let mut scores = zeros(keys.len());
            vectorized!({
                let query = q.row(0);
                for (score, key) in scores.iter_mut().zip(keys.clone()) {
                    *score = dot(query, k.row(key));
                }
                self.capped(&mut scores, &mut []);
                self.softmax(sequence, &mut scores, &(past..past + 1), &keys);
                let out = out.row(0);
                out.fill(0.0);
                for (p, key) in scores.iter().zip(keys) {
                    out.iter_mut().zip(v.row(key)).for_each(|(o, v)| *o += p * v);
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
            let (q, k) = (q.part(rows.clone(), 0..d), k.part(keys.clone(), 0..d));
            product(scores, q, k.t(), 0.0, 1.0, Cores::One);
            vectorized!({
                self.capped(scores, &mut []);
                self.softmax(sequence, scores, &positions, &keys);
            });
            let p = Mat::new(scores, rows.len(), keys.len());
            product_into(out.part(rows, 0..d), p, v.part(keys, 0..d), 0.0, 1.0, Cores::One);
        }
    }

    /// Gradients of the query heads that share key/value head `group`, in one sequence.
    /// `grad` (N, H·D) is that of the output.
    pub(super) fn group_backward(
        &self,
        inputs: &Inputs,
        grad: &Heads,
        sequence: &Sequence,
        group: usize,
        mut to: Gradients,
    ) {
        let (d, rows) = (self.head_dim, &sequence.rows);
        let queries = rows.len();
        let (k, v) = (inputs.k.head(group, rows), inputs.v.head(group, rows));
        let width = TILE.min(queries) * queries;
        let (mut p, mut dp) = (zeros(width), zeros(width));
        let mut slopes = zeros(self.cap.map_or(0, |_| width));
        for place in 0..self.per_group() {
            let head = group * self.per_group() + place;
            let (q, go) = (inputs.q.head(head, rows), grad.head(head, rows));
            for first in (0..queries).step_by(TILE) {
                let tile = first..(first + TILE).min(queries);
                let keys = self.seen(sequence, &tile);
                let size = tile.len() * keys.len();
                let (p, dp) = (&mut p[..size], &mut dp[..size]);
                let (q, go) = (q.part(tile.clone(), 0..d), go.part(tile.clone(), 0..d));
                let (k, v) = (k.part(keys.clone(), 0..d), v.part(keys.clone(), 0..d));
                product(p, q, k.t(), 0.0, 1.0, Cores::One);
                product(dp, go, v.t(), 0.0, 1.0, Cores::One);
                let slopes = slopes.get_mut(..size).unwrap_or_default();
                vectorized!({
                    self.capped(p, slopes);
                    self.softmax(sequence, p, &tile, &keys);
                });
                let p_m = Mat::new(p, tile.len(), keys.len());
                let gv = to.v.part(keys.clone(), 0..d);
                product_into(gv, p_m.t(), go, 1.0, 1.0, Cores::One);
                vectorized!({
                    for (p, dp) in p.chunks_exact(keys.len()).zip(dp.chunks_exact_mut(keys.len())) {
                        let mean = dot(p, dp);
                        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - mean));
                    }
                    dp.iter_mut().zip(&*slopes).for_each(|(dp, slope)| *dp *= slope);
                });
                let ds = Mat::new(dp, tile.len(), keys.len());
                let gq = to.q.part(tile, place * d..(place + 1) * d);
                product_into(gq, ds, k, 0.0, self.scale, Cores::One);
                let gk = to.k.part(keys, 0..d);
                product_into(gk, ds.t(), q, 1.0, self.scale, Cores::One);
            }
        }
    }
}
