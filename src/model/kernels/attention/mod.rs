//! Causal attention over packed sequences, global or windowed, with grouped heads and a key/value
//! cache.
//!
//! `o_i = Σ_j p_ij v_j`, `p_i = softmax_j(s · q_i·k_j)` over `j ≤ i` and, with a window W, `j > i −
//! W`. A sequence is a run of rows of the packed batch, so nothing is padded and no mask is stored;
//! scores exist for a tile of queries at a time. The backward pass computes the probabilities again
//! rather than keeping them: with P of (queries, keys) and ∂P = g·Vᵀ, ∂V = Pᵀ·g, ∂S = P ∘ (∂P − Σ_j
//! P_ij ∂P_ij), ∂Q = s·∂S·K, ∂K = s·∂Sᵀ·Q. With a cap c, `c·tanh(s · q_i·k_j / c)` stands in place
//! of each score, and ∂S is multiplied by its slope 1 − tanh².

mod tiles;

use std::iter::{from_fn, repeat_n};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matrix::MatMut;
use super::{read, values, zeros};
use crate::base::profile::{Part, span};
use crate::tokens::Sequence;
pub use tiles::AttentionShape;
use tiles::{Gradients, Heads, Inputs};

/// How queries, keys and values lie in the output of the one projection that makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fused {
    /// All queries, all keys, all values: GPT-2.
    ByKind,
    /// Query, key and value of each head side by side: GPT-NeoX.
    ByHead,
}

/// The sequences of a packed batch.
pub type Sequences = Arc<[Sequence]>;

/// Keys and values of the positions seen so far, of each sequence at one layer.
#[derive(Debug, Default)]
pub struct Cache {
    sequences: Vec<CachedSequence>,
}

/// (positions, Hkv·D) each.
#[derive(Debug, Default, Clone)]
struct CachedSequence {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// So many sequences more, of which nothing is cached.
    pub fn add(&mut self, sequences: usize) {
        self.sequences.extend(vec![CachedSequence::default(); sequences]);
    }

    /// For each of `of` what is cached of the sequence of that number.
    pub fn spread(&mut self, of: &[usize]) {
        let mut uses = vec![0; self.sequences.len()];
        of.iter().for_each(|i| uses[*i] += 1);
        let taken = of.iter().map(|i| {
            uses[*i] -= 1;
            match uses[*i] {
                0 => std::mem::take(&mut self.sequences[*i]),
                _ => self.sequences[*i].clone(),
            }
        });
        self.sequences = taken.collect();
    }
}

/// Attention over a packed batch: queries (N, H·D), keys and values (N, Hkv·D) apart → (N, H·D).
pub struct Attention {
    pub shape: AttentionShape,
    pub sequences: Sequences,
    /// With a cache the rows are new positions of its sequences, and are appended to it. Not
    /// differentiable.
    pub cache: Option<Arc<Mutex<Cache>>>,
}

impl Attention {
    /// H·D
    fn q_width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Hkv·D
    fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    fn apart<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let alone = |values, heads| Heads::alone(values, heads, head_dim);
        Inputs { q: alone(q, heads), k: alone(k, kv_heads), v: alone(v, kv_heads) }
    }

    /// Number of rows. Errors if heads can't be shared in even groups, or if the sequences are not
    /// the rows of all three, one after another.
    fn rows(&self, inputs: &Inputs) -> Result<usize> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        if head_dim == 0 || kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("attention: {heads} heads of {head_dim} channels in {kv_heads} groups");
        }
        let mut rows = 0;
        for Sequence { rows: own, hidden } in self.sequences.iter() {
            let length = own.len();
            if own.start != rows || hidden.start > hidden.end || hidden.end > length {
                bail!("attention: a sequence of rows {own:?}, {hidden:?} of it hidden, at {rows}");
            }
            rows = own.end;
        }
        for of in [inputs.q, inputs.k, inputs.v] {
            if rows.checked_mul(of.width) != Some(of.values.len()) {
                bail!("attention: {rows} rows of {}, got {} values", of.width, of.values.len());
            }
        }
        Ok(rows)
    }

    fn forward(&self, inputs: &Inputs) -> Result<(CpuStorage, Shape)> {
        let (rows, width, d) = (self.rows(inputs)?, self.q_width(), self.shape.head_dim);
        let mut out = zeros(rows * width);
        let guard = match &self.cache {
            Some(cache) => {
                let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
                self.append(&mut cache, inputs)?;
                Some(cache)
            }
            None => None,
        };
        let cache = guard.as_deref();
        let lengths = self.sequences.iter().map(|s| s.rows.len());
        let places = MatMut::new(&mut out, rows, width).split_rows(lengths);
        let jobs: Vec<_> = self
            .sequences
            .iter()
            .enumerate()
            .zip(places)
            .flat_map(|(of, rows)| {
                let heads = rows.split_cols(repeat_n(d, self.shape.heads));
                heads.into_iter().enumerate().map(move |(head, out)| (of, head, out))
            })
            .collect();
        jobs.into_par_iter().for_each(|((index, sequence), head, out)| {
            let group = head / self.shape.per_group();
            let q = inputs.q.head(head, &sequence.rows);
            let (k, v, past) = match cache {
                Some(cache) => {
                    let CachedSequence { keys, values } = &cache.sequences[index];
                    let [k, v] = [keys, values]
                        .map(|of| Heads::alone(of, self.shape.kv_heads, d))
                        .map(|of| of.head(group, &(0..of.rows())));
                    (k, v, k.rows() - q.rows())
                }
                None => {
                    let [k, v] = [inputs.k, inputs.v].map(|of| of.head(group, &sequence.rows));
                    (k, v, 0)
                }
            };
            self.shape.head(sequence, [q, k, v], out, past);
        });
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }

    fn append(&self, cache: &mut Cache, inputs: &Inputs) -> Result<()> {
        let (cached, new) = (cache.sequences.len(), self.sequences.len());
        if cached != new {
            bail!("cache of {cached} sequences used with {new}");
        }
        for (cached, sequence) in cache.sequences.iter_mut().zip(self.sequences.iter()) {
            for row in sequence.rows.clone() {
                for head in 0..self.shape.kv_heads {
                    cached.keys.extend_from_slice(inputs.k.row(head, row));
                    cached.values.extend_from_slice(inputs.v.row(head, row));
                }
            }
        }
        Ok(())
    }

    /// `to`: the gradients of each sequence, and in it of each group.
    fn backward(&self, inputs: &Inputs, grad: &[f32], to: Vec<Gradients>) -> Result<()> {
        if self.cache.is_some() {
            bail!("attention with a cache has no backward pass");
        }
        let rows = self.rows(inputs)?;
        if grad.len() != rows * self.q_width() {
            bail!("attention: a gradient of {} values for {rows} rows", grad.len());
        }
        let groups = self.shape.kv_heads;
        let grad = Heads::alone(grad, self.shape.heads, self.shape.head_dim);
        to.into_par_iter().enumerate().for_each(|(job, to)| {
            let sequence = &self.sequences[job / groups];
            self.shape.group_backward(inputs, &grad, sequence, job % groups, to);
        });
        Ok(())
    }

    /// The rows of each sequence.
    fn split<'a>(&self, gradient: &'a mut [f32], width: usize) -> Vec<MatMut<'a>> {
        let rows = gradient.len() / width;
        MatMut::new(gradient, rows, width).split_rows(self.sequences.iter().map(|s| s.rows.len()))
    }
}

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
        let (d, groups) = (self.shape.head_dim, self.shape.kv_heads);
        let by_group = |gradient, width: usize| -> Vec<MatMut> {
            let rows = self.split(gradient, width * groups).into_iter();
            rows.flat_map(|rows| rows.split_cols(repeat_n(width, groups))).collect()
        };
        let parts = by_group(&mut gq, self.shape.per_group() * d)
            .into_iter()
            .zip(by_group(&mut gk, d))
            .zip(by_group(&mut gv, d));
        let to = parts.map(|((q, k), v)| Gradients { q, k, v }).collect();
        read(q, |q| {
            read(k, |k| read(v, |v| read(&grad, |g| self.backward(&self.apart(q, k, v), g, to))))
        })?????;
        let tensor =
            |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(gq, q)?), Some(tensor(gk, k)?), Some(tensor(gv, v)?)))
    }
}

/// The same of queries, keys and values in one tensor (N, (H + 2·Hkv)·D).
pub struct FusedAttention {
    pub attention: Attention,
    pub fused: Fused,
}

impl FusedAttention {
    fn inputs<'a>(&self, values: &'a [f32]) -> Result<Inputs<'a>> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention.shape;
        let width = (heads + 2 * kv_heads) * head_dim;
        let (apart, [q, k, v]) = match self.fused {
            Fused::ByKind => (1, [0, heads, heads + kv_heads]),
            Fused::ByHead if heads == kv_heads => (3, [0, 1, 2]),
            Fused::ByHead => bail!("attention: {heads} heads of queries, {kv_heads} of keys"),
        };
        let part = |first: usize| {
            let (first, apart) = (first * head_dim, apart * head_dim);
            Heads { values, width, first, apart, head_dim }
        };
        Ok(Inputs { q: part(q), k: part(k), v: part(v) })
    }

    /// The places of the gradients of one sequence, group after group.
    fn groups<'a>(&self, rows: MatMut<'a>) -> Vec<Gradients<'a>> {
        let shape = &self.attention.shape;
        let (d, groups) = (shape.head_dim, shape.kv_heads);
        match self.fused {
            Fused::ByKind => {
                let widths = repeat_n(shape.per_group() * d, groups).chain(repeat_n(d, 2 * groups));
                let mut q = rows.split_cols(widths);
                let mut k = q.split_off(groups);
                let v = k.split_off(groups);
                let parts = q.into_iter().zip(k).zip(v);
                parts.map(|((q, k), v)| Gradients { q, k, v }).collect()
            }
            Fused::ByHead => {
                let mut parts = rows.split_cols(repeat_n(d, 3 * groups)).into_iter();
                let next =
                    || Some(Gradients { q: parts.next()?, k: parts.next()?, v: parts.next()? });
                from_fn(next).collect()
            }
        }
    }
}

impl CustomOp1 for FusedAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Attention);
        self.attention.forward(&self.inputs(values(qkv, layout)?)?)
    }

    fn bwd(&self, qkv: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Attention);
        let grad = grad.contiguous()?;
        let mut gx = zeros(qkv.elem_count());
        let width = self.attention.q_width() + 2 * self.attention.kv_width();
        let rows = self.attention.split(&mut gx, width).into_iter();
        let to = rows.flat_map(|rows| self.groups(rows)).collect();
        read(qkv, |x| read(&grad, |g| self.attention.backward(&self.inputs(x)?, g, to)))???;
        Ok(Some(Tensor::from_vec(gx, qkv.shape(), qkv.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// What does not fit is an error before anything is read or written.
    #[test]
    fn sequences_that_are_not_the_rows_are_refused() {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            scale: 1.0,
            window: None,
            cap: None,
        };
        let plain = |rows: std::ops::Range<usize>| Sequence::plain(rows);
        let run = |shape, sequences: Vec<Sequence>, cached: Option<usize>, fused| {
            let cache = cached.map(|of| {
                let mut cache = Cache::default();
                cache.add(of);
                Arc::new(Mutex::new(cache))
            });
            let attention = Attention { shape, sequences: sequences.into(), cache };
            let qkv = Tensor::ones((6, 16), candle_core::DType::F32, &Device::Cpu)?;
            qkv.apply_op1(FusedAttention { attention, fused }).map(|_| ())
        };
        let by_kind =
            |shape, sequences, cached| run(shape, sequences, cached, Fused::ByKind).is_ok();
        assert!(by_kind(shape, vec![plain(0..2), plain(2..6)], None));
        assert!(by_kind(shape, vec![plain(0..2), plain(2..6)], Some(2)));
        assert!(!by_kind(shape, vec![plain(0..2), plain(2..6)], Some(1)), "another cache");
        assert!(!by_kind(shape, vec![plain(0..2), plain(2..5)], None), "a row too few");
        assert!(!by_kind(shape, vec![plain(0..2), plain(2..7)], None), "a row too many");
        assert!(!by_kind(shape, vec![plain(0..4), plain(3..6)], None), "rows in two sequences");
        assert!(!by_kind(shape, vec![plain(2..6), plain(0..2)], None), "out of order");
        let hidden = |hidden| Sequence { rows: 0..6, hidden };
        assert!(by_kind(shape, vec![hidden(2..4)], None));
        assert!(!by_kind(shape, vec![hidden(2..7)], None), "hidden rows beyond the sequence");
        let heads = |heads, kv_heads| AttentionShape { heads, kv_heads, ..shape };
        assert!(!by_kind(heads(3, 2), vec![plain(0..6)], None), "uneven groups");
        assert!(!by_kind(heads(2, 0), vec![plain(0..6)], None), "no keys");
        assert!(!by_kind(heads(4, 1), vec![plain(0..6)], None), "wider than the rows");
        let by_head = |shape| run(shape, vec![plain(0..6)], None, Fused::ByHead);
        assert!(by_head(shape).is_err(), "heads without keys of their own");
    }
}
